"""Training on two versions of the same images: what is trained on what, and resumed."""

import itertools
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import compare_training
from jaxcifar import data
from jaxcifar.errors import UserError
from jaxcifar.files import read_lines
from jaxcifar.signals import exit_code
from tests.tiny import first_images, run, state_of, tiny

TINY = [
    *("--rows=vgg6", "--config.data.name=synthetic", "--config.model.width=0.05"),
    *("--config.train.batch_size=16", "--config.train.epochs=2", "--folds=2"),
]


@pytest.fixture
def file(tmp_path):
    """Another version of 64 training images, in which each class is one colour."""
    train = data.load("synthetic", "train")
    places = np.arange(64)[::-1]
    colours = (25 * train.labels[places]).astype(np.uint8)
    images = np.broadcast_to(colours[:, None, None, None], (64, 32, 32, 3))
    path = tmp_path / "other.npz"
    np.savez(path, image=images, label=train.labels[places], index=places)
    return path


def command(file, *more):
    return [str(file), f"--out={file.with_name('out.json')}", *TINY, *more]


def test_folds_are_each_image_once():
    parts = compare_training.folds(23, 5)
    assert sorted(np.concatenate(parts)) == list(range(23))
    assert [len(part) for part in parts] == [5, 5, 5, 4, 4]
    again = compare_training.folds(23, 5)
    assert all((one == other).all() for one, other in zip(parts, again, strict=True))


def test_the_table_by_hand():
    results = [
        {"fold": fold, "trained_on": trained, "loss": 1.0, "ours": ours, "theirs": theirs}
        for fold, trained, ours, theirs in (
            *((0, "ours", 0.5, 0.4), (0, "theirs", 0.3, 0.6)),
            *((1, "ours", 0.7, 0.6), (1, "theirs", 0.5, 0.9)),
            (2, "ours", 0.0, 0.0),  # its second network is still to come
        )
    ]
    found = compare_training.table(results)
    assert found.lines[0] == ["0", "50.00", "40.00", "30.00", "60.00", "10.00"]
    assert found.lines[1][-1] == "20.00"
    # Of 10 and 20: 12.706 standard errors of 5.
    assert found.lines[2] == [
        *("mean", "60.00 ± 127.06", "50.00 ± 127.06", "40.00 ± 127.06"),
        *("75.00 ± 190.59", "15.00 ± 63.53"),
    ]
    assert len(found.lines) == 3


def test_what_the_documents_say_is_what_was_kept():
    root = pathlib.Path(__file__).parents[2]
    kept = json.loads((root / "experiments/results/encoding/fast.json").read_text())
    *of_versions, gain = compare_training.table(kept["results"]).lines[-1][1:]
    pages = ((root / "docs" / name).read_text() for name in ("recipe.md", "results.md"))
    recipe, results = (" ".join(page.split()) for page in pages)
    for shown in of_versions:
        assert f" {shown.replace(' ±', '% ±')} |" in recipe
    assert f"gives {gain} points more" in recipe
    assert gain in results


@pytest.mark.slow
def test_a_network_is_trained_as_a_run_trains_it(tmp_path):
    config = tiny()
    images = first_images(100)
    _, variables, loss = compare_training.fit(config, images)
    run(config, tmp_path / "run", devices=8)
    trained = state_of(tmp_path / "run")
    for part in ("params", "batch_stats"):
        jax.tree.map(np.testing.assert_array_equal, variables[part], trained[part])
    steps = read_lines(tmp_path / "run" / "steps.jsonl")[-1]
    assert loss == pytest.approx(steps["loss"][-1], rel=1e-5)


@pytest.mark.slow
def test_a_network_that_diverged_is_not_tested(file):
    unstable = ("--rows=vgg2", "--config.optim.name=sgd", "--config.optim.learning_rate=100")
    with pytest.raises(UserError, match=r"The loss is (nan|inf) .*learning_rate, which is 100"):
        compare_training.main(command(file, *unstable))
    assert not file.with_name("out.json").exists()


def test_weights_that_have_seen_the_images_are_refused(file):
    with pytest.raises(UserError, match="init_from is 'runs/x', but these networks start from"):
        compare_training.main(command(file, "--rows=vgg2", "--config.init_from=runs/x"))


@pytest.mark.slow
def test_each_version_is_trained_on_and_tested_and_a_stop_loses_nothing(file, monkeypatch, capsys):
    fit, seen = compare_training.fit, []

    def watched(config, images):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(images)
        return fit(config, images)

    monkeypatch.setattr(compare_training, "fit", watched)
    with pytest.raises(KeyboardInterrupt):
        compare_training.main(command(file))
    monkeypatch.setattr(compare_training, "fit", fit)
    out = file.with_name("out.json")
    content = json.loads(out.read_text())
    assert len(content["results"]) == 3
    assert content["settings"].pop("dtype") == "float32"
    other = content | {"settings": content["settings"] | {"dtype": "bfloat16"}}
    out.write_text(json.dumps(other))  # as of a GPU
    with pytest.raises(UserError, match="dtype: 'bfloat16' -> 'float32'"):
        compare_training.main(command(file))
    out.write_text(json.dumps(content))  # of an earlier version
    compare_training.main(command(file))
    content = json.loads(out.read_text())
    order = [(result["fold"], result["trained_on"]) for result in content["results"]]
    assert order == list(itertools.product((0, 1), ("ours", "theirs")))
    # The networks of a fold had the same images in two versions, and none of the fold's.
    ours, theirs, of_next = seen
    assert len(ours) == len(theirs) == 32
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (theirs.images == (25 * theirs.labels)[:, None, None, None]).all()
    assert not {*map(bytes, ours.images)} & {*map(bytes, of_next.images)}
    assert "| mean |" in capsys.readouterr().out
    compare_training.main(command(file))  # nothing is left but to show the table
    assert len(json.loads(out.read_text())["results"]) == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--folds=1",), "--folds is 1; give 2 to 64"),
        (("--rows=vgg2,vgg6",), "Name one config; these are 2"),
        (("--config.train.batch_size=0",), "batch_size"),
        (("--out=no/such/folder/out.json",), "There is no folder no/such/folder to write"),
    ],
)
def test_wrong_options(file, more, message):
    with pytest.raises(UserError, match=message):
        compare_training.main(command(file, *more))
    assert not file.with_name("out.json").exists()


@pytest.mark.parametrize("content", [{"settings": {"train.epochs": 3}}, {"another": "file"}])
def test_results_of_other_settings_are_kept(file, content, capsys):
    out = file.with_name("out.json")
    out.write_text(json.dumps(content))
    assert exit_code(lambda: compare_training.main(command(file))) == 2
    before = content.get("settings", {}).get("train.epochs")
    assert f"train.epochs: {before} -> 2" in capsys.readouterr().err
    assert json.loads(out.read_text()) == content
