"""Starting from the weights of another run: which are taken, what is recorded, what is refused."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar import cli, data, programs, restore, start, task, train
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.models import create_model
from jaxcifar.optim import make_optimizer
from jaxcifar.replay import replay
from jaxcifar.run import signs
from jaxcifar.run.digest import digests
from jaxcifar.state import abstract_variables, create_state
from tests.test_run_integrity import Predict
from tests.tiny import Look, SignalAt, mesh, run, state_of, tiny, without_times

ONE = mesh(1)


class Fail(Hook):
    """Ends a run before it has a checkpoint."""

    def start(self, run):
        raise ZeroDivisionError("on purpose")


@pytest.fixture(scope="module")
def first(finished):
    """The folder of a finished run, as `config.init_from`."""
    return str(finished[0])


@pytest.fixture
def moving(finished, tmp_path):
    """A copy of it, which may be deleted."""
    return shutil.copytree(finished[0], tmp_path / "first")


def huge(variables):
    """The variables of a network whose first step is not finite."""
    return jax.tree.map(lambda x: np.full_like(x, 1e30), variables)


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.slow
@pytest.mark.parametrize("reordered", [False, True])
def test_what_another_run_held_out_may_be_others(tmp_path, monkeypatch, capsys, reordered):
    """As the images' order depends on the files that they are read from."""
    fields = {"data__protocol": "holdout", "train__limit_train_images": 0, "train__epochs": 1}
    run(tiny(**fields), tmp_path / "first", SignalAt(40))
    load = data.load

    def other_order(name, split, **options):
        return load(name, split, **options).take(slice(None, None, -1), "the other way round")

    if reordered:
        monkeypatch.setattr(data, "load", other_order)
    config = tiny(**fields, init_from=str(tmp_path / "first"))
    with pytest.raises(Interrupted):
        train.train_and_evaluate(config, tmp_path / "next", hooks=[SignalAt(1)], mesh=ONE)
    assert ("that run held out other images" in capsys.readouterr().out) == reordered


@pytest.mark.slow
def test_the_weights_are_those_of_the_best_checkpoint(tmp_path, monkeypatch):
    first = str(tmp_path / "first")
    result = run(tiny(), first, Predict(1))
    assert result["best"]["step"] < result["last"]["step"]
    expected = state_of(first, "best")
    monkeypatch.setattr(programs, "train", lambda *_: None)  # no step is made

    def begin(folder, **fields):
        look = Look()
        with pytest.raises(Interrupted):
            run(tiny(init_from=first, **fields), folder, look, SignalAt(0))
        return look.state

    state = begin(tmp_path / "a", train__ema_decay=0.5, seed=3)
    equal(state.variables, expected)
    equal(state.ema, expected)
    assert state.step == 0
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.params))
    assert not any(leaf.any() for leaf in moments)
    equal(begin(tmp_path / "b", train__lookahead_steps=2).slow, expected)
    start = json.loads((tmp_path / "a" / "config.json").read_text())["init_from"]
    sums, _ = digests(restore.load_variables(first, mesh=ONE)[2])
    assert start == {
        "source": first,
        "checkpoint": "best",
        "step": result["best"]["step"],
        "digests": {part: digest.bits for part, digest in sums.items()},
        "new": [],
    }


@pytest.mark.slow
def test_averages_are_taken_where_the_source_keeps_them(tmp_path):
    source = tmp_path / "source"
    run(tiny(train__ema_decay=0.5, train__epochs=1), source)
    look = Look()
    run(tiny(init_from=str(source), train__epochs=1), tmp_path / "next", look)
    equal(look.state.variables, state_of(source))
    assert look.state.ema is None


@pytest.mark.slow
def test_imported_weights(first, tmp_path):
    """They stay as they are: that a run started from them is in its config."""
    source, variables = tmp_path / "imported", state_of(first)
    start.run_of_weights(tiny(train__ema_decay=0.5), source, variables)
    look = Look()
    run(tiny(init_from=str(source), train__epochs=1), tmp_path / "next", look)
    equal(look.state.variables, variables)
    with pytest.raises(UserError, match=f"--config.init_from={source} --workdir=NEW"):
        run(tiny(train__ema_decay=0.5), source)


@pytest.mark.slow
def test_a_resumption_needs_no_source(moving, first, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    config = tiny(init_from=str(moving))
    run(config, whole)
    with pytest.raises(Interrupted):
        run(config, halves, SignalAt(2))
    shutil.rmtree(moving)
    run(config, halves)
    ours, theirs = (read_lines(f / "metrics.jsonl") for f in (halves, whole))
    assert without_times(ours) == without_times(theirs)
    random = read_lines(pathlib.Path(first) / "metrics.jsonl")
    assert ours[0]["train_loss"] != random[0]["train_loss"]
    assert "init_from" in json.loads((halves / "config.json").read_text())


@pytest.mark.slow
def test_a_source_that_changed_before_the_first_checkpoint(moving, first, tmp_path):
    config, workdir = tiny(init_from=str(moving)), tmp_path / "next"
    with pytest.raises(RuntimeError, match="on purpose"):
        run(config, workdir, Fail())
    shutil.rmtree(moving)
    with pytest.raises(UserError, match=r"init_from is .*first': .*first contains no run"):
        run(config, workdir)
    variables = jax.tree.map(np.array, state_of(first))  # copies, which can be written to
    variables["params"]["fc3"]["bias"][0] += 1
    start.run_of_weights(tiny(), moving, variables)
    (workdir / "metrics.jsonl").write_text('{"epoch": 1}\n')  # killed before its checkpoint
    with pytest.raises(UserError, match=r"other weights .*step 6; now it has step 0") as error:
        run(config, workdir)
    assert "choose another --workdir" in str(error.value)
    shutil.rmtree(moving)
    shutil.copytree(first, moving)
    assert run(config, workdir)["last"]["epoch"] == 2


@pytest.mark.slow
def test_another_number_of_classes(first):
    """All weights but the classifier's, and that is said."""
    config = tiny(init_from=first, data__name="cifar100")
    initial = start.initial_weights(config, ONE)
    new = ["params/fc3/bias", "params/fc3/kernel"]
    assert initial.facts
    assert initial.facts["new"] == new
    assert "the classifier is new: cifar100 has 100 classes, synthetic 10" in initial.text
    model = create_model("vgg_a_bn", num_classes=100, width=0.05)

    def state(**options):
        made = create_state(model, make_optimizer("sgd", 0.1), 0, **options)
        return flatten_dict(made.variables, sep="/")

    random, found = state(), state(weights=initial.weights)
    given = flatten_dict(state_of(first), sep="/")
    assert found.keys() == random.keys() == given.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], (random if name in new else given)[name])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model__activation": "gelu"}, "config.model.activation is 'gelu'; that run had 'relu'"),
        ({"data__mean": (0.5,) * 3}, "config.data.mean is (0.5, 0.5, 0.5); that run had ()"),
        ({"data__protocol": "holdout"}, "trained on the images that this one holds out"),
    ],
)
def test_what_else_differs_is_said(first, fields, said):
    assert said in start.initial_weights(tiny(init_from=first, **fields), ONE).text
    assert start.initial_weights(tiny(init_from=first), ONE).text.count("\n") == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__width": 0.1}, r"a vgg_a_bn of width 0\.05, .* a vgg_a_bn of width 0\.1: .*shape"),
        (
            {"model__name": "vgg_a"},
            r"vgg_a of width 0\.05: 32 unknown \(.*, …\)\. Set config\.model",
        ),
        ({"model__name": "resnet18"}, r"\d+ missing \(.*, …\), \d+ unknown .*Set config\.model"),
        ({"model__name": "resnet18", "data__name": "cifar100"}, r"\d+ missing .*, \d+ unknown"),
    ],
)
def test_weights_of_another_network_are_refused(first, tmp_path, fields, message):
    with pytest.raises(UserError, match=message) as error:
        run(tiny(init_from=first, **fields), tmp_path / "runs" / "next")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    assert not list(tmp_path.iterdir())


def test_what_is_no_source(tmp_path, first):
    (tmp_path / "weights.pt").touch()
    shutil.copytree(first, tmp_path / "bare", ignore=lambda *_: ["checkpoints"])
    for name, message in (
        ("nowhere", "nowhere contains no run"),
        ("weights.pt", "a file. Make it a run first: jaxcifar import .* --model=vgg_a_bn"),
        ("bare", "is a finished run without its checkpoints"),
    ):
        with pytest.raises(UserError, match=message):
            run(tiny(init_from=str(tmp_path / name)), tmp_path / "next")
    with pytest.raises(UserError, match="not a local path"):
        run(tiny(init_from="gs://bucket/run"), tmp_path / "next")
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("protocol", ["test", "holdout"])
def test_held_out_images_that_an_earlier_run_of_the_line_was_trained_on(tmp_path, protocol):
    """The one that it starts from has not seen them, but what that started from."""
    variables = abstract_variables(task.create_model(tiny(), 10, "cpu"))
    weights = jax.tree.map(lambda x: np.ones(x.shape), variables)
    start.run_of_weights(tiny(data__protocol=protocol), tmp_path / "a", weights)
    start.run_of_weights(tiny(data__protocol="holdout"), tmp_path / "b", weights)
    path = tmp_path / "b" / "config.json"
    origin = {"source": str(tmp_path / "a"), "digests": {}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_from": origin}))
    for name in ("a", "b"):
        config = tiny(data__protocol="holdout", init_from=str(tmp_path / name))
        said = start.initial_weights(config, ONE).text
        assert ("images that this one holds out for validation" in said) == (protocol == "test")
    shutil.rmtree(tmp_path / "a")  # then nothing is known
    assert "holds out" not in start.initial_weights(config, ONE).text


def test_a_run_of_other_epochs_says_how_to_go_on(first, stopped, tmp_path):
    with pytest.raises(UserError) as error:
        run(tiny(train__epochs=3), first)
    lines = str(error.value).splitlines()
    assert "  train.epochs: 2 -> 3" in lines
    assert "A run keeps its number of epochs, because its schedule depends on it." in lines
    assert lines[-1].endswith(f"--config.init_from={first} --workdir=NEW")
    # Where the weights would not fit, or the run is one that starts from weights already.
    for fields in ({"model__width": 0.1}, {"model__name": "vgg_a"}, {"init_from": "x"}):
        with pytest.raises(UserError, match="another config") as error:
            run(tiny(**fields), first)
        assert "new run" not in str(error.value)
    with pytest.raises(UserError, match="init_from: '' -> ") as error:
        run(tiny(init_from=first), shutil.copytree(stopped, tmp_path / "run"))


@pytest.mark.slow
def test_a_replay_starts_from_the_same_weights(first, tmp_path):
    start.run_of_weights(tiny(), tmp_path / "huge", huge(state_of(first)))
    config = tiny(init_from=str(tmp_path / "huge"))
    with pytest.raises(UserError, match="loss of step 1 is not finite"):
        run(config, tmp_path / "next")
    assert replay(tmp_path / "next", mesh=ONE, say=lambda _: None) == 1


def test_on_the_command_line():
    given = cli.COMMANDS["train"].translate(["row9", "--init_from=runs/x"])
    assert given[1:] == ["--config.init_from=runs/x"]


@pytest.mark.slow
def test_a_resumption_is_another_attempt_from_where_the_images_are_now(tmp_path):
    with pytest.raises(Interrupted):
        run(tiny(data__dir="/before"), tmp_path, SignalAt(2))
    signs.fail(tmp_path, "No space left on device")
    run(tiny(data__dir="/now"), tmp_path)
    assert signs.failure(tmp_path) == ""
    assert restore.load_variables(tmp_path, "last", mesh=mesh(1))[0].data.dir == "/now"
