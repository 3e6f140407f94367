"""Whole runs: what they leave, resuming, refusing, and that they compute what they say."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import data, metrics, optim, programs, sharding, train, workdirs
from jaxcifar.checkpoint import Checkpointer
from jaxcifar.config import base_config
from jaxcifar.errors import UserError
from jaxcifar.models import create_model
from jaxcifar.optim import make_optimizer
from jaxcifar.programs import Programs, compiled_programs, static_part
from jaxcifar.state import create_state
from jaxcifar.step import make_eval_step, make_train_step


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    """Runs of this file use one of the eight devices, unless they ask for more."""
    use_devices(monkeypatch, 1)


def use_devices(monkeypatch, n):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:n]), (sharding.BATCH_AXIS,))
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)


def tiny(**fields):
    """A narrow VGG on 96 made-up images: three steps an epoch, two epochs."""
    config = base_config()
    config.model.name = "vgg_a_bn"
    config.model.width = 0.05
    config.data.name = "synthetic"
    config.train.batch_size = 32
    config.train.limit_train_images = 100  # 4 are left over in each epoch
    config.train.epochs = 2
    config.train.eval_batch_size = 96  # 256 images in 96 + 96 + 64
    for field, value in fields.items():
        group, _, name = field.partition("__")
        config[group][name] = value
    return config


def run(config, workdir):
    return train.train_and_evaluate(config, workdir, quiet=True)


def state_of(workdir):
    """The last checkpoint's variables."""
    return jax.device_get(train.load_variables(workdir, "last")[2])


def without_times(records):
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in r.items() if k not in timed} for r in records]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of `tiny()`, never interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        return workdir, run(tiny(), workdir)


# --- what a run leaves ------------------------------------------------------------------------


def test_a_run_leaves_its_files(finished):
    workdir, result = finished
    left = {path.name for path in workdir.iterdir()}
    assert left >= {
        "config.json", "metrics.jsonl", "steps.jsonl", "result.json", "history.png",
        "tensorboard", "checkpoints",
    }  # fmt: skip
    records = metrics.read_lines(workdir / "metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2]
    assert [record["step"] for record in records] == [3, 6]
    assert set(records[0]) == {
        "epoch", "step", "train_loss", "train_ce", "train_accuracy", "val_loss", "val_accuracy",
        "learning_rate", "images_per_second", "seconds",
    }  # fmt: skip
    rates = [record["learning_rate"] for record in records]
    assert rates == pytest.approx([1e-3, 0.5e-3])  # cosine over two epochs
    for record, steps in zip(records, metrics.read_lines(workdir / "steps.jsonl"), strict=True):
        assert record["train_loss"] == pytest.approx(np.mean(steps["loss"]), rel=1e-5)
        assert len(steps["loss"]) == 3
    config = json.loads((workdir / "config.json").read_text())
    assert config["config"]["model"]["width"] == 0.05
    environment = config["environment"]
    assert set(environment) >= {"jax", "flax", "optax", "jaxcifar", "commit", "device"}
    in_force = [environment[name] for name in ("dtype", "steps_per_call", "remat")]
    assert in_force == ["float32", 1, False]  # not "auto", 0, "auto"
    assert result == json.loads((workdir / "result.json").read_text())
    assert result["data"]["train"]["images"] == 100
    assert result["last"] == records[-1]
    assert result["best"] in records
    variables = state_of(workdir)
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(variables["params"]))
    assert next((workdir / "tensorboard").iterdir()).stat().st_size > 500
    assert (workdir / "history.png").read_bytes()[:4] == b"\x89PNG"


def test_running_again_returns_the_result(finished, monkeypatch):
    workdir, result = finished
    monkeypatch.setattr(Programs, "train", None)  # nothing is trained
    assert run(tiny(), workdir) == result


def test_evaluation_of_the_workdir(finished):
    workdir, result = finished
    for which in ("best", "last"):
        found = train.evaluate_workdir(workdir, which)
        assert found["images"] == 256
        assert found["accuracy"] == result[which]["val_accuracy"]
        assert found["loss"] == pytest.approx(result[which]["val_loss"], rel=1e-6)
    with pytest.raises(UserError, match="best, last"):
        train.evaluate_workdir(workdir, "first")


def test_same_seed_same_run_other_seed_another(finished, tmp_path):
    again = run(tiny(), tmp_path / "again")
    assert without_times([again["last"]]) == without_times([finished[1]["last"]])
    config = tiny()
    config.seed = 1
    other = run(config, tmp_path / "other")
    assert other["last"]["train_loss"] != again["last"]["train_loss"]


# --- stopping and resuming --------------------------------------------------------------------


@pytest.mark.parametrize("calls", [2, 3, 5])  # within an epoch, at its end, in the second
def test_stopped_and_resumed_is_the_same_run(finished, tmp_path, monkeypatch, calls):
    whole, _ = finished
    original, count = Programs.train, 0

    def stop_after(self, *args):
        nonlocal count
        count += 1
        if count == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(Programs, "train", stop_after)
    with pytest.raises(train.Interrupted, match=f"saved at step {calls}") as stopped:
        run(tiny(), tmp_path)
    assert stopped.value.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # put back
    monkeypatch.setattr(Programs, "train", original)
    run(tiny(), tmp_path)
    for name in ("metrics.jsonl", "steps.jsonl"):
        ours, theirs = (metrics.read_lines(folder / name) for folder in (tmp_path, whole))
        assert without_times(ours) == without_times(theirs)
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path), state_of(whole))


def test_stopped_while_evaluating(finished, tmp_path, monkeypatch):
    whole, _ = finished
    original = Programs.evaluate

    def stop_first(self, *args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Programs, "evaluate", stop_first)
    with pytest.raises(train.Interrupted, match="saved at step 3"):
        run(tiny(), tmp_path)
    assert not metrics.read_lines(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(Programs, "evaluate", original)
    run(tiny(), tmp_path)
    ours, theirs = (metrics.read_lines(f / "metrics.jsonl") for f in (tmp_path, whole))
    assert without_times(ours) == without_times(theirs)


def test_killed_and_resumed(finished, tmp_path):
    """SIGKILL, when the first epoch is on disk: nothing is lost, nothing appears twice."""
    whole, _ = finished
    script = (
        "import sys, time; from tests.test_train import tiny; from jaxcifar import train;"
        "from jaxcifar.programs import Programs; slow = Programs.train;"
        "Programs.train = lambda *a: (time.sleep(0.3), slow(*a))[1];"
        "train.train_and_evaluate(tiny(), sys.argv[1], quiet=True)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    root = os.path.dirname(os.path.dirname(__file__))
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, env=environment
    )
    deadline = time.monotonic() + 120
    while not metrics.read_lines(tmp_path / "metrics.jsonl"):
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    run(tiny(), tmp_path)
    ours, theirs = (metrics.read_lines(f / "metrics.jsonl") for f in (tmp_path, whole))
    for one, other in zip(without_times(ours), without_times(theirs), strict=True):
        assert one == pytest.approx(other, rel=1e-4)  # the killed process had one device


def test_checkpoint_within_an_epoch(tmp_path, monkeypatch):
    monkeypatch.setattr(train._Run, "_checkpoint_due", lambda self: True)
    saved = []
    original = Checkpointer.save

    def record(self, step, state, progress, val_accuracy):
        saved.append((step, val_accuracy is not None, len(progress["steps"].get("loss", []))))
        original(self, step, state, progress, val_accuracy)

    monkeypatch.setattr(Checkpointer, "save", record)
    run(tiny(), tmp_path)
    assert saved == [
        (1, False, 1), (2, False, 2), (3, False, 3), (3, True, 0),
        (4, False, 1), (5, False, 2), (6, False, 3), (6, True, 0),
    ]  # fmt: skip


def test_best_and_last_are_kept(tmp_path):
    state = create_state(create_model("vgg_a", width=0.05), make_optimizer("sgd", 0.1), 0)
    checkpoints = Checkpointer(tmp_path / "c")
    for step, accuracy in ((1, 0.3), (2, 0.5), (3, None), (4, 0.5), (5, 0.4), (6, None)):
        checkpoints.save(step, state, {"at": step}, accuracy)
    checkpoints.close()
    reader = Checkpointer(tmp_path / "c", read_only=True)
    assert (reader.best(), reader.last()) == (5, 12)  # the first of equals
    assert reader.restore(state, 5)[1] == {"at": 2}
    assert {int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()} == {5, 12}


# --- refusing ---------------------------------------------------------------------------------


def test_another_config_is_refused_by_its_differences(finished):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"train\.epochs: 2 -> 3") as error:
        run(tiny(train__epochs=3), workdir)
    assert "another --workdir" in str(error.value)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_other_images_are_refused(tmp_path, monkeypatch):
    original = Programs.train
    monkeypatch.setattr(Programs, "train", lambda *a: os.kill(os.getpid(), 15) or original(*a))
    with pytest.raises(train.Interrupted):
        run(tiny(), tmp_path)
    real = data.load
    monkeypatch.setattr(
        data, "load", lambda *a, **k: real(*a, **k).take(slice(None, None, -1), "turned around")
    )
    with pytest.raises(UserError, match="other train images"):
        run(tiny(), tmp_path)


def test_a_run_of_another_device_is_not_gone_on_with_in_another_dtype(tmp_path, monkeypatch):
    original = Programs.train
    monkeypatch.setattr(Programs, "train", lambda *a: os.kill(os.getpid(), 15) or original(*a))
    with pytest.raises(train.Interrupted):
        run(tiny(), tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["environment"]["dtype"] = "bfloat16"  # as on a GPU
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"run in bfloat16, .*'auto', which is float32 on"):
        run(tiny(), tmp_path)


def test_imported_weights_are_recorded_as_of_where_they_are_trained(tmp_path):
    workdirs.write_config(tiny(), tmp_path, {}, {"dtype": "float32"})
    facts = {"train": {"sha256": "a", "source": "here"}}
    workdirs.write_config(tiny(), tmp_path, facts, {"dtype": "bfloat16"})
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["data"] == facts
    assert content["environment"]["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="a run in bfloat16"):
        workdirs.write_config(tiny(), tmp_path, facts, {"dtype": "float32"})


@pytest.mark.parametrize(
    ("backend", "remat", "expected"),
    [
        ("cpu", "auto", True),
        ("cpu", "off", False),
        ("gpu", "auto", False),
        ("gpu", "on", True),
    ],
)
def test_densenets_compute_again_on_cpus(monkeypatch, backend, remat, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = programs.create_model(tiny(model__name="densenet121", model__remat=remat))
    assert model.remat is expected


def test_a_held_workdir_is_refused(tmp_path):
    with (tmp_path / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="Another process"):
            run(tiny(), tmp_path)


def test_checkpoint_of_another_model_is_refused(finished, tmp_path):
    workdir, _ = finished
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", workdir, copy], check=True)
    content = json.loads((copy / "config.json").read_text())
    content["config"]["model"]["width"] = 0.1
    (copy / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"another model.*has shape \(3,\) there.*\(6,\)"):
        train.evaluate_workdir(copy)


def test_batch_larger_than_the_training_set(tmp_path):
    with pytest.raises(UserError, match="batch_size is 128, more than the 100"):
        run(tiny(train__batch_size=128), tmp_path)
    with pytest.raises(UserError, match="there are 1,024 training"):
        run(tiny(train__limit_train_images=2000), tmp_path)
    with pytest.raises(UserError, match="one of 1, 3, or 0"):
        run(tiny(train__steps_per_call=2), tmp_path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    original = Programs.train

    def spoiled(self, steps, state, *args):
        state, step_metrics = original(self, steps, state, *args)
        if spoiled.calls == 4:  # the second step of the second epoch
            nan = jax.device_put(np.full(1, np.nan, np.float32))
            step_metrics = step_metrics | {"loss": nan}
        spoiled.calls += 1
        return state, step_metrics

    spoiled.calls = 0
    monkeypatch.setattr(Programs, "train", spoiled)
    with pytest.raises(UserError, match="is not finite") as error:
        run(tiny(), tmp_path)
    message = str(error.value)
    assert "training loss of step 5 is not finite (epoch 2)" in message
    assert "last good checkpoint is of step 3" in message
    assert "smaller optim.learning_rate than 0.001" in message
    assert Checkpointer(tmp_path / "checkpoints", read_only=True).last() == 7  # step 3, evaluated
    assert [line["epoch"] for line in metrics.read_lines(tmp_path / "metrics.jsonl")] == [1]


def test_a_run_that_really_diverges(tmp_path):
    config = tiny(model__name="vgg_a", optim__name="sgd", optim__learning_rate=100.0,
                  train__epochs=20)  # fmt: skip
    with pytest.raises(UserError, match="is not finite"):
        run(config, tmp_path)


# --- that it computes what it says ------------------------------------------------------------


def test_holdout_uses_the_test_set_once(tmp_path, monkeypatch):
    evaluated = []
    original = Programs.evaluate

    def record(self, variables, images, labels, **options):
        evaluated.append(len(labels))
        return original(self, variables, images, labels, **options)

    monkeypatch.setattr(Programs, "evaluate", record)
    result = run(tiny(data__protocol="holdout"), tmp_path)
    held = len(data.split_holdout(data.load("synthetic", "train"))[1])
    assert evaluated == [held, held, 256]
    found = train.evaluate_workdir(tmp_path, "best")
    assert result["test"]["accuracy"] == found["accuracy"]
    assert result["data"]["validation"]["subset"] == "held-out part"


class Constant(nn.Module):
    """The same logits for every image."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        return jnp.tile(jnp.array([0.0, 2.0, 1.0]), (len(x), 1))


def test_evaluation_by_hand():
    step = make_eval_step(Constant(), prepare=lambda images: images)
    labels, mask = jnp.array([0, 1, 1, 2, 1]), jnp.array([True, True, True, True, False])
    sums = step({}, jnp.zeros((5, 32, 32, 3)), labels, mask)
    log_sum = np.log(1 + np.e**2 + np.e)
    assert sums["loss"] == pytest.approx(4 * log_sum - (0 + 2 + 2 + 1), rel=1e-6)
    assert (sums["correct"], sums["count"]) == (2, 4)


def test_evaluation_counts_every_image_once(finished):
    workdir, _ = finished
    config, _, variables = train.load_variables(workdir)
    test = data.load("synthetic", "test")
    images = (test.images / 255 - np.array(test.mean)) / np.array(test.std)
    model = create_model("vgg_a_bn", width=0.05)
    logits = np.asarray(model.apply(variables, images.astype(np.float32), train=False))
    programs = compiled_programs(
        static_part(config), 32, (test.mean, test.std), sharding.make_mesh()
    )
    found = programs.evaluate(variables, test.images, test.labels)
    assert found["images"] == 256
    assert found["accuracy"] == (logits.argmax(-1) == test.labels).mean()


def test_train_step_is_of_seed_and_step_alone():
    model = create_model("vgg_a", width=0.05, dropout_rate=0.5)
    tx = make_optimizer("adam", 1e-3)
    noise = lambda key, x: x + jax.random.normal(key, x.shape)  # noqa: E731
    step = jax.jit(make_train_step(model, tx, prepare=noise))
    images, labels = jax.random.normal(jax.random.key(0), (8, 32, 32, 3)), jnp.arange(8)
    state = create_state(model, tx, 0)
    _, once = step(state, images, labels)
    _, again = step(state, images, labels)
    assert once["loss"] == again["loss"]
    later, _ = state.replace(step=jnp.int32(7)), None
    assert step(later, images, labels)[1]["loss"] != once["loss"]
    assert step(state, images, labels)[0].step == 1


def test_objective_contains_the_penalty_and_cross_entropy_does_not(tmp_path):
    result = run(tiny(optim__l1=1e-3, train__epochs=1), tmp_path)
    record = result["last"]
    assert record["train_loss"] > record["train_ce"] + 0.01
    # The same as without, to the first step's cross-entropy: the penalty is of the parameters.
    plain = run(tiny(train__epochs=1), tmp_path / "plain")
    first = [metrics.read_lines(f / "steps.jsonl")[0] for f in (tmp_path, tmp_path / "plain")]
    assert first[0]["ce"][0] == first[1]["ce"][0]
    assert plain["last"]["train_loss"] == plain["last"]["train_ce"]


def test_order_is_a_fresh_permutation_of_seed_and_epoch():
    config = tiny(train__batch_size=25)
    programs = Programs(static_part(config), 100, ((0.0,) * 3, (1.0,) * 3), sharding.make_mesh())
    one, two = (np.asarray(programs.order(jax.random.key(0), np.int32(e))) for e in (1, 2))
    assert one.shape == (4, 25)
    assert sorted(one.ravel()) == sorted(two.ravel()) == list(range(100))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, programs.order(jax.random.key(0), np.int32(1)))
    assert not np.array_equal(one, programs.order(jax.random.key(1), np.int32(1)))


def test_the_host_fetches_once_an_epoch(tmp_path, monkeypatch):
    fetched = []
    original = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or original(x))
    run(tiny(), tmp_path)
    # Each epoch: the metrics of its three steps at once, and the sums of its three evaluation
    # batches at once. (Saving fetches too.)
    lists = [x for x in fetched if isinstance(x, list) and x and isinstance(x[0], dict)]
    ours = [x for x in lists if x[0].keys() & {"ce", "count"}]
    assert [(len(calls), "ce" in calls[0]) for calls in ours] == [
        (3, True), (3, False), (3, True), (3, False)
    ]  # fmt: skip


def test_several_steps_a_call_are_the_same_run(finished, tmp_path):
    whole, _ = finished
    run(tiny(train__steps_per_call=3), tmp_path)
    ours, theirs = (metrics.read_lines(f / "steps.jsonl") for f in (tmp_path, whole))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=2e-4)


@pytest.mark.parametrize("augmentation", ["weak", "strong"])
def test_one_and_eight_devices_give_the_same_losses(tmp_path, monkeypatch, augmentation):
    losses = []
    for devices in (1, 8):
        use_devices(monkeypatch, devices)
        run(tiny(data__augment=augmentation, train__epochs=1), tmp_path / str(devices))
        losses += metrics.read_lines(tmp_path / str(devices) / "steps.jsonl")
    np.testing.assert_allclose(losses[0]["loss"], losses[1]["loss"], rtol=1e-4)


def test_runs_that_differ_in_numbers_share_one_compiled_step(tmp_path):
    one = tiny(train__epochs=1)
    run(one, tmp_path / "one")
    other = tiny(optim__learning_rate=3e-3, optim__l1=1e-4, train__epochs=3)
    other.seed = 5
    assert static_part(one) == static_part(other)
    assert static_part(one) != static_part(tiny(model__activation="gelu"))
    result = run(other, tmp_path / "other")
    assert result["compile_seconds"] == 0
    assert result["last"]["learning_rate"] == pytest.approx(3e-3 * 0.25)


@pytest.mark.parametrize(
    "fields",
    [
        {"optim__l1": 1e-2, "optim__l2": 2e-2},
        {"optim__name": "sgd", "optim__momentum": 0.9, "optim__learning_rate": 0.1,
         "optim__l2": 0.05, "optim__penalize": "kernels"},
    ],
)  # fmt: skip
def test_a_run_is_the_optimizer_of_its_config(tmp_path, fields):
    """Its losses are those of `make_train_step` with the numbers written in."""
    config = tiny(**fields, train__epochs=1, data__augment="none")
    run(config, tmp_path)
    (found,) = metrics.read_lines(tmp_path / "steps.jsonl")

    options = config.optim
    mask = optim.kernels_only if options.penalize == "kernels" else None
    tx = make_optimizer(options.name, options.learning_rate, momentum=options.momentum,
                        l1=options.l1, l2=options.l2, mask=mask)  # fmt: skip
    model = create_model("vgg_a_bn", width=0.05, dropout_rate=0.2)
    state = create_state(model, tx, config.seed)
    images_of = lambda _, images: (images / 255.0 - 0.5) / 0.25  # noqa: E731
    penalty = lambda params: (  # noqa: E731
        optim.l1_penalty(params, options.l1, mask) + optim.l2_penalty(params, options.l2, mask)
    )
    step = jax.jit(make_train_step(model, tx, prepare=images_of, penalty=penalty))
    train_set = data.load("synthetic", "train").take(slice(100), "100")
    programs = Programs(static_part(config), 100, ((0.5,) * 3, (0.25,) * 3), sharding.make_mesh())
    for i, rows in enumerate(np.asarray(programs.order(state.key, np.int32(1)))):
        images, labels = jnp.asarray(train_set.images[rows]), jnp.asarray(train_set.labels[rows])
        state, expected = step(state, images, labels)
        for name in ("loss", "ce", "accuracy"):
            assert found[name][i] == pytest.approx(float(expected[name]), rel=1e-4), (name, i)
    assert found["loss"][0] > found["ce"][0]


def test_resumed_with_another_number_of_steps_a_call(tmp_path, monkeypatch, finished):
    """Stopped at step 2 of 3 by one step a call, gone on by three: eight devices, bfloat16."""
    use_devices(monkeypatch, 8)
    original, calls = Programs.train, []

    def stop_at_second(self, steps, *args):
        calls.append(steps)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, steps, *args)

    monkeypatch.setattr(Programs, "train", stop_at_second)
    config = tiny(model__dtype="bfloat16", data__augment="weak")
    with pytest.raises(train.Interrupted):
        run(config, tmp_path)
    config.train.steps_per_call = 3
    run(config, tmp_path)
    assert calls == [1, 1, 1, 3]
    lines = metrics.read_lines(tmp_path / "steps.jsonl")
    assert [len(line["loss"]) for line in lines] == [3, 3]
    assert [r["step"] for r in metrics.read_lines(tmp_path / "metrics.jsonl")] == [3, 6]
    assert train.load_variables(tmp_path, "last")[1] == 6  # by the device's own count


def test_bfloat16_trains(tmp_path):
    result = run(tiny(model__dtype="bfloat16", train__epochs=1), tmp_path)
    assert np.isfinite(result["last"]["train_loss"])
    variables = state_of(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}


def test_imported_weights_are_the_start(finished, tmp_path):
    workdir, result = finished
    config, _, variables = train.load_variables(workdir, "last")
    train.start_from(config, tmp_path, jax.device_get(variables))
    found = train.evaluate_workdir(tmp_path)
    assert (found["step"], found["accuracy"]) == (0, result["last"]["val_accuracy"])
    with pytest.raises(UserError, match="holds a run already"):
        train.start_from(config, tmp_path, variables)
    assert run(tiny(), tmp_path)["last"]["epoch"] == 2


def test_interrupted_reader_of_lines(tmp_path):
    path = tmp_path / "lines"
    path.write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert metrics.read_lines(path) == [{"epoch": 1}, {"epoch": 2}]
    assert metrics.read_lines(tmp_path / "none") == []


def test_real_cifar10_trains(cifar10_dir, tmp_path):
    config = tiny(data__name="cifar10", model__width=0.25, train__epochs=2)
    config.data.dir = cifar10_dir
    config.data.augment = "none"
    config.train.limit_train_images = 1024
    config.train.batch_size = 64
    result = run(config, tmp_path)
    records = metrics.read_lines(tmp_path / "metrics.jsonl")
    assert records[1]["train_loss"] < records[0]["train_loss"]
    assert result["best"]["val_accuracy"] > 0.15
    assert result["data"]["validation"]["images"] == 10_000
