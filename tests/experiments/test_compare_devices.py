"""Comparing devices: what is compared, and what is found if they differ."""

import json
import re

import jax
import pytest

from experiments import compare_devices, golden
from jaxcifar.errors import UserError
from jaxcifar.run import plots
from tests.tiny import write_numbers


@pytest.mark.slow
def test_eight_devices_and_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "plot_history", write_numbers)
    out = tmp_path / "out"
    assert compare_devices.main([f"--out={out}", "--cases=vgg_a"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("8 × cpu and a CPU")
    (line,) = re.findall(r"^\| vgg_a \|.*", printed, re.MULTILINE)
    _, loss, first, second, farthest, again, resumed = line.strip("| ").split(" | ")
    assert 0 <= float(first) < 1e-6  # of a sum in another order
    assert float(second) < 1e-5
    assert max(float(first), float(second)) <= float(farthest) < 0.01
    assert (again, resumed) == ("equal", "equal")
    # Each was trained where, and as often, as the table says.
    runs = {path.name: path for path in (out / "vgg_a").iterdir()}
    devices = {
        name: json.loads((path / "config.json").read_text())["environment"]["devices"]
        for name, path in runs.items()
    }
    assert devices == {"cpu": 1, "devices": 8, "again": 8, "resumed": 8}
    epochs = (runs["cpu"] / "steps.jsonl").read_text().splitlines()
    assert f"{json.loads(epochs[0])['loss'][0]:.5f}" == loss
    assert len(json.loads((runs["resumed"] / "config.json").read_text())["resumed"]) == 1


def test_a_device_that_computes_something_else(tmp_path, monkeypatch, capsys):
    """Its losses differ from the second step on, and from run to run."""
    runs = []

    def trained(config, workdir, mesh, *, stop=False):
        runs.append((config.model.dtype, mesh.size, stop))
        losses = [2.0, 2.0] + [1.9] * 18
        if mesh.size == 8:
            losses[1] += 0.001 * len(runs)
        return compare_devices.Trained(losses, network="")

    monkeypatch.setattr(compare_devices, "trained", trained)
    assert compare_devices.main([f"--out={tmp_path / 'a'}", "--cases=vgg_a"]) == 1
    assert runs == [
        ("float32", n, stop) for n, stop in ((1, False), (8, False), (8, False), (8, True))
    ]
    printed = capsys.readouterr().out
    assert "| vgg_a | 2.00000 | 0.0e+00 | 1.0e-03 | 1.0e-03 | different | different |" in printed
    assert "Not within 0.0001 in the first two steps: vgg_a." in printed
    runs.clear()
    options = [f"--out={tmp_path / 'b'}", "--cases=vgg_a", "--dtype=bfloat16"]
    assert compare_devices.main(options) == 0
    assert runs[0][0] == "bfloat16"
    runs.clear()
    options = [f"--out={tmp_path / 'c'}", "--cases=vgg_a", "--tolerance=0.01"]
    assert compare_devices.main(options) == 0


def test_a_loss_that_is_not_a_number_is_not_close(tmp_path, monkeypatch):
    def trained(config, workdir, mesh, *, stop=False):
        return compare_devices.Trained([2.0, float("nan")] + [2.0] * 18, network="")

    monkeypatch.setattr(compare_devices, "trained", trained)
    assert compare_devices.main([f"--out={tmp_path / 'a'}", "--cases=vgg_a"]) == 1


@pytest.mark.slow
def test_a_case_that_diverges_ends_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plots, "plot_history", write_numbers)
    monkeypatch.setitem(golden.CASES["vgg_a"]["optim"], "learning_rate", 100.0)
    monkeypatch.setitem(golden.CASES["vgg_a"]["optim"], "clip_norm", 0.0)
    monkeypatch.setitem(golden.CASES["vgg_a"]["optim"], "name", "sgd")
    monkeypatch.setitem(golden.CASES["vgg_a"]["optim"], "weight_decay", 0.0)
    out = tmp_path / "out"
    assert compare_devices.main([f"--out={out}", "--cases=vgg_a,vgg_a_bn"]) == 1
    printed = capsys.readouterr()
    assert "| vgg_a | failed |" in printed.out
    assert "vgg_a: The training loss of step" in printed.err
    assert re.search(r"^\| vgg_a_bn \| \d", printed.out, re.MULTILINE)
    assert printed.out.rstrip().endswith("Not within 0.0001 in the first two steps: vgg_a.")


@pytest.mark.usefixtures("one_device")
def test_a_cpu_is_not_compared_with_itself(tmp_path):
    """Which JAX falls back to where it cannot use a GPU."""
    with pytest.raises(UserError, match="JAX has only one CPU device here"):
        compare_devices.main([f"--out={tmp_path / 'new'}"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cases=vgg"], "'vgg'"),
        (["--tolerance=0"], "--tolerance is 0.0; it must be above 0 and below 1"),
    ],
)
def test_wrong_options(options, message, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        compare_devices.main([f"--out={tmp_path / 'new'}", *options])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_exists(tmp_path):
    with pytest.raises(UserError, match="already exists"):
        compare_devices.main([f"--out={tmp_path}"])


def test_without_a_cpu(tmp_path, monkeypatch):
    def devices(*_):
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda,cpu"):
        compare_devices.main([f"--out={tmp_path / 'new'}"])
