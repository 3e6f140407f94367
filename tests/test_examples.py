"""The examples run, and show what they say."""

import contextlib
import io
import pathlib
import runpy

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from tests.sweeps import on_one_device

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name, folder):
    """Runs an example as a script in a folder; returns its names, and what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(plt, "show", lambda: None)
        patch.setenv("QUICK", "1")
        patch.chdir(folder)
        return runpy.run_path(str(EXAMPLES / name)), out.getvalue()


def pictures(printed):
    """The pictures that an example says it wrote."""
    found = [line.removeprefix("wrote ") for line in printed.splitlines() if "wrote " in line]
    for path in found:
        with Image.open(path) as picture:
            assert picture.width > 400
    return [pathlib.Path(path).name for path in found]


@pytest.fixture(scope="module")
def batchnorm(tmp_path_factory):
    with on_one_device():
        yield run("batchnorm.py", tmp_path_factory.mktemp("batchnorm"))
    plt.close("all")


@pytest.mark.slow
def test_batchnorm(batchnorm):
    found, printed = batchnorm
    (axes,) = found["figure"].axes
    for line in axes.lines:
        losses = np.asarray(line.get_ydata())
        assert np.isfinite(losses).all()
        # At distance 0 is the network itself, whose validation loss was printed.
        assert f"epoch 1: loss {losses[len(losses) // 2]:.3f}" in printed
    assert np.shape(found["hook"].found) == (128 // 64, 4)
    assert pictures(printed) == ["batchnorm_gradient.png", "batchnorm_slice.png"]


@pytest.mark.slow
def test_a_cell_of_batchnorm_can_be_run_again(batchnorm):
    """It trains in new folders, where a run that is done would return at once."""
    found, trained = batchnorm[0], []
    (cell,) = [
        cell
        for cell in (EXAMPLES / "batchnorm.py").read_text().split("# %%")
        if "class AlongGradient" in cell
    ]

    def train(config, workdir, *, hooks, quiet):
        assert not pathlib.Path(workdir).exists()
        trained.append(config.model.name)
        hooks[0].found = found["hook"].found

    exec(cell, found | {"train_and_evaluate": train})
    assert trained == ["vgg_a", "vgg_a_bn"]


@pytest.mark.slow
def test_regularizers(tmp_path):
    found, printed = run("regularizers.py", tmp_path)
    assert pictures(printed) == ["regularizers.png"]
    wrong = found["w_true"] == 0
    w = found["fitted"]
    np.testing.assert_array_equal(w["proximal L1"] == 0, wrong)
    assert np.abs(w["proximal L1"] - found["w_true"]).max() < 0.2
    assert np.abs(w["L1"][wrong]).max() < 0.01
    for name in ("no penalty", "L2"):
        assert np.abs(w[name][wrong]).max() > 0.1


@pytest.mark.slow
def test_seeds(tmp_path):
    found, printed = run("seeds.py", tmp_path)
    assert pictures(printed) == ["seeds.png"]
    assert found["losses"].shape == (4, 2, 1442 // 64)
    assert printed.count("over 2 seeds") == 4
    # Side by side they are what each is alone.
    train_one = jax.jit(found["train_one"])
    alone, classes = train_one(found["RATES"][1], np.uint32(1), found["digits"])
    np.testing.assert_allclose(found["losses"][1, 1], alone, rtol=1e-3)
    assert (found["found"][1, 1] == classes).mean() > 0.98
    assert not np.allclose(found["losses"][1, 0], alone, rtol=1e-2)  # another seed
