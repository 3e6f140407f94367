"""The loss around a trained network, computed by hand at some points."""

import json
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.landscape import slices
from experiments.landscape.__main__ import main
from jaxcifar import augment, data, losses, programs, restore
from jaxcifar.models import create_model
from jaxcifar.signals import exit_code
from tests import tiny
from tests.sweeps import write_fake_runs

pytestmark = pytest.mark.usefixtures("one_device")


def cut(run, out, *more):
    arguments = ["slice", str(run), f"--out={out}", "--points=3", "--images=96", *more]
    return exit_code(lambda: main(arguments))


def load(path):
    with np.load(path) as content:
        return dict(content)


@pytest.mark.parametrize("command", ["smoothness", "slice"])
def test_help_says_where_to_find_the_fields_of_a_config(command, capsys):
    assert exit_code(lambda: main([command, "--help"])) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("docs/config.md" in said) == (command == "smoothness")  # slice takes none
    assert "default results/landscape" in said


def test_directions_have_the_norms_of_their_filters():
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 5)),
                       "bias": jnp.ones(5)}, "fc": {"kernel": jnp.ones((4, 3))}}  # fmt: skip
    direction = slices.filter_normalized_direction(jax.random.key(0), params)
    for layer in ("conv", "fc"):
        for filters in range(params[layer]["kernel"].shape[-1]):
            one, other = (np.asarray(t[layer]["kernel"])[..., filters] for t in (params, direction))
            assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=1e-5)
    assert not np.any(direction["conv"]["bias"])
    assert np.abs(np.asarray(direction["fc"]["kernel"]) - 1).max() > 0.1


@pytest.mark.slow
def test_slice_by_hand(swept, tmp_path):
    run = swept / "vgg6" / "seed0"
    assert cut(run, tmp_path, "--extent=0.5") == 0
    found = load(tmp_path / "slices" / "vgg6_seed0_2d_kept.npz")
    np.testing.assert_allclose(found["coordinates"], [-0.5, 0, 0.5])
    assert found["loss"].shape == (3, 3)
    _, _, variables = restore.load_variables(run)
    subset = data.load("synthetic", "train").take(slice(96), "96")
    x = augment.normalize(jnp.asarray(subset.images), subset.mean, subset.std)
    model = create_model("vgg_a_bn", width=0.05)
    one, two = (
        slices.filter_normalized_direction(key, variables["params"])
        for key in jax.random.split(jax.random.key(0), 2)
    )
    evaluate = jax.jit(lambda v, x: model.apply(v, x, train=False))
    for i, j in ((1, 1), (2, 0)):
        a, b = found["coordinates"][[i, j]]
        moved = (one, a), (two, b)
        params = variables["params"]
        for direction, by in moved:
            params = jax.tree.map(lambda p, d, by=by: p + by * d, params, direction)
        logits = evaluate(variables | {"params": params}, x)
        expected = float(losses.cross_entropy(logits, subset.labels).mean())
        assert found["loss"][i, j] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "slices" / "vgg6_seed0_2d_kept.png").exists()


@pytest.mark.slow
def test_the_loss_is_of_the_images_even_where_a_run_is_evaluated_on_views(tmp_path):
    config = tiny.tiny(data__test_augment="mirror_translate", train__epochs=1)
    tiny.run(config, tmp_path / "run")
    assert cut(tmp_path / "run", tmp_path, "--dimensions=1") == 0
    (path,) = (tmp_path / "slices").glob("*.npz")
    _, _, variables = restore.load_variables(tmp_path / "run")
    images = tiny.first_images(96)
    x = augment.normalize(jnp.asarray(images.images), images.mean, images.std)
    logits = create_model("vgg_a_bn", width=0.05).apply(variables, x, train=False)
    expected = float(losses.cross_entropy(logits, images.labels).mean())
    assert load(path)["loss"][1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_stopped_slice_goes_on(swept, tmp_path, monkeypatch, capsys):
    run = swept / "vgg2" / "seed0"
    assert cut(run, tmp_path / "whole", "--dimensions=1") == 0
    real, calls = programs.evaluate, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) < 3:
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(programs, "evaluate", counted)
    for saved in (1, 2):
        assert cut(run, tmp_path / "stopped", "--dimensions=1") == 128 + signal.SIGTERM
        assert f"Stopped; {saved} point" in capsys.readouterr().err
    assert cut(run, tmp_path / "stopped", "--dimensions=1") == 0
    assert len(calls) == 3  # each point once
    name = "slices/vgg2_seed0_1d_kept.npz"
    content = load(tmp_path / "stopped" / name)
    settings = json.loads(str(content["settings"]))
    # As a file of another machine.
    changed = json.dumps(settings | {"dtype": "bfloat16"})
    np.savez(tmp_path / "stopped" / name, **content | {"settings": changed})
    assert cut(run, tmp_path / "stopped", "--dimensions=1") == 2
    # What is complete still says what computed it.
    by = json.dumps(json.loads(str(content["environment"])) | {"commit": "0123"})
    np.savez(tmp_path / "stopped" / name, **content | {"environment": by})
    assert cut(run, tmp_path / "stopped", "--dimensions=1") == 0
    assert "commit 0123," in slices.caption(tmp_path / "stopped" / name)
    whole, stopped = load(tmp_path / "whole" / name), load(tmp_path / "stopped" / name)
    np.testing.assert_array_equal(whole["loss"], stopped["loss"])
    best = json.loads((run / "result.json").read_text())["best"]
    assert json.loads(str(whole["settings"]))["step"] == best["step"]


def test_the_title_says_what_the_run_is(tmp_path):
    (folder,) = write_fake_runs(tmp_path, rows=["vgg6"], seeds=1, epochs=50).glob("vgg6/*")
    found = {"settings": {"model": "vgg_a_bn", "step": 390, "images": 512, "batch_norm": "kept"}}
    found["loss"] = np.ones((3, 3))
    assert len(slices.title_of(found, folder).splitlines()) == 2
    (folder / "result.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:10]))
    assert slices.title_of(found, folder).splitlines()[2] == "UNFINISHED: epoch 10 of 50"


def test_images_that_have_moved(swept, tmp_path, monkeypatch):
    folders, load_splits = [], data.load_splits

    def from_folder(name, data_dir="", **options):
        folders.append(data_dir)
        return load_splits(name, **options)

    monkeypatch.setattr(data, "load_splits", from_folder)
    arguments = ("--dimensions=1", "--data-dir=/moved")
    assert cut(swept / "vgg2" / "seed0", tmp_path, *arguments) == 0
    assert folders == ["/moved"]


@pytest.mark.slow
def test_slices_refuse(swept, tmp_path, capsys):
    run = swept / "vgg2" / "seed0"
    for arguments, message in (
        (("--points=4",), "odd"),
        (("--extent=0",), "positive"),
        (("--images=5000",), "there are 100 training images"),  # of train.limit_train_images
    ):
        assert cut(run, tmp_path, *arguments) == 2
        assert re.search(message, capsys.readouterr().err)
    assert cut(tmp_path / "nothing", tmp_path) == 2
    assert "contains no run" in capsys.readouterr().err
    assert cut(run, tmp_path, "--dimensions=1") == 0
    assert cut(run, tmp_path, "--dimensions=1", "--extent=2") == 2
    assert "other settings" in capsys.readouterr().err
