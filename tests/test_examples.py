"""The examples run, and show what they say."""

import contextlib
import io
import pathlib
import runpy

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.sweeps import on_one_device

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def run(name):
    """Runs an example as a script; returns its names, and what it printed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(plt, "show", lambda: None)
        patch.setenv("QUICK", "1")
        return runpy.run_path(str(EXAMPLES / name)), out.getvalue()


@pytest.fixture(scope="module")
def batchnorm():
    with on_one_device():
        yield run("batchnorm.py")
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


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_cell_of_batchnorm_can_be_run_again(batchnorm):
    """It trains again, where a run that is done would return at once."""
    found = dict(batchnorm[0])
    (cell,) = [
        cell
        for cell in (EXAMPLES / "batchnorm.py").read_text().split("# %%")
        if "class AlongGradient" in cell
    ]
    first = np.array(found["hook"].found)
    exec(cell, found)
    np.testing.assert_array_equal(found["hook"].found, first)


@pytest.mark.slow
def test_regularizers():
    found, _ = run("regularizers.py")
    wrong = found["w_true"] == 0
    w = found["fitted"]
    np.testing.assert_array_equal(w["proximal L1"] == 0, wrong)
    assert np.abs(w["proximal L1"] - found["w_true"]).max() < 0.2
    assert np.abs(w["L1"][wrong]).max() < 0.01
    for name in ("no penalty", "L2"):
        assert np.abs(w[name][wrong]).max() > 0.1
