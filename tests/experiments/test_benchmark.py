"""The benchmark: what it times, in which order, and the arithmetic of its table. No speed."""

import json
import re
import runpy
import sys
import types

import pytest

from experiments import benchmark
from experiments.cost import forward_multiply_adds
from jaxcifar import programs
from jaxcifar.errors import UserError


def test_timers_take_turns_after_a_warm_up(monkeypatch):
    monkeypatch.setattr(benchmark.time, "sleep", lambda _: None)
    called = []

    def timer(name):
        def run():
            called.append(name)
            return float(len(called))

        return run

    found = benchmark.in_turns({"a": timer("a"), "b": timer("b")}, repeats=3)
    assert called == ["a", "b"] * 4
    assert found == {"a": [3.0, 5.0, 7.0], "b": [4.0, 6.0, 8.0]}  # the warm-up is left out


def test_without_pytorch(monkeypatch, capsys):
    """Said before anything is compiled, here and by the other commands that need it."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=re.escape("pip install 'jaxcifar[torch]'")):
        benchmark.main(["--against=torch", "--models=resnet18"])
    for name in ("experiments.torch_recipe", "experiments.torch_rows"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delitem(sys.modules, "experiments.torch_training", raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(name, run_name="__main__")
        assert ended.value.code == 2
        assert "pip install 'jaxcifar[torch]'" in capsys.readouterr().err


def torch_on(*, gpu):
    """A stand-in for PyTorch, which may not be installed."""
    cuda = types.SimpleNamespace(is_available=lambda: gpu)
    version = types.SimpleNamespace(cuda="13.0" if gpu else None)
    return types.SimpleNamespace(cuda=cuda, version=version, __version__="2.11.0")


def test_pytorch_on_another_kind_of_device(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch_on(gpu=True))
    message = "JAX computes on a cpu here, and PyTorch (2.11.0) on a gpu. Install both"
    with pytest.raises(UserError, match=re.escape(message)):
        benchmark.main(["--against=torch", "--models=resnet18"])
    monkeypatch.setitem(sys.modules, "torch", torch_on(gpu=False))
    monkeypatch.setattr(benchmark, "platform_of", lambda mesh: "tpu")
    with pytest.raises(UserError, match="JAX computes on a tpu here"):
        benchmark.main(["--against=torch", "--models=resnet18"])


def test_pytorch_is_not_compared_with_several_devices(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", torch_on(gpu=False))
    with pytest.raises(UserError, match="timed on one device, and JAX has 8 here"):
        benchmark.main(["--against=torch", "--models=resnet18"])


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_measurements_beside_the_better_of_pytorchs_layouts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ceilings", lambda: {"copy_gb_per_second": 5.0})

    def ours(*arguments):
        remat = arguments[-1]
        facts = {"init_seconds": 1.0, "compile_seconds": 2.0, "dtype": "float32"}
        facts |= {"calls": 2, "steps_per_call": 3}
        facts["step_memory_bytes"] = (1 if remat == "on" else 3) * 2**20
        return (lambda: 24.0 if remat == "on" else 30.0), (lambda: 2.0), facts

    monkeypatch.setattr(benchmark, "jax_timer", ours)
    rates, asked = {False: 40.0, True: 60.0}, []
    monkeypatch.setattr(
        benchmark,
        "torch_timer",
        lambda m, b, d, settings, *work: (
            lambda: asked.append(work) or rates[settings.channels_last]
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", torch_on(gpu=False))
    out = tmp_path / "speed.json"
    models = "--models=resnet18,densenet121"
    options = ["--against=torch", "--remat", "--digest", "--repeats=1"]
    benchmark.main([models, *options, f"--out={out}"])
    assert set(asked) == {(2, 3)}  # as many steps as ours
    assert json.loads(out.read_text())["environment"]["torch"] == "2.11.0"
    resnet, densenet = (result["timed"] for result in json.loads(out.read_text())["results"])
    assert list(resnet) == ["jaxcifar", "torch", "torch channels_last"]
    assert resnet["jaxcifar"]["ratio"] == 0.5
    # A step is three forward passes, a multiply-add two operations.
    operations = 3 * 2 * forward_multiply_adds("resnet18") / 1e9
    assert resnet["jaxcifar"]["gflops"] == pytest.approx(30 * operations)
    assert resnet["torch"]["gflops"] == pytest.approx(40 * operations)
    assert [densenet[name]["ratio"] for name in densenet] == [0.4, 0.5, None, None]
    printed = capsys.readouterr().out
    for line in (
        "| resnet18 | jaxcifar | 30.0 | 30.0 … 30.0 | 0.50× | 100 | 1.0 s | 2.0 s | 3 MiB |",
        "| resnet18 | torch channels_last | 60.0 | 60.0 … 60.0 |  | 200 |  |  |  |",
        "| densenet121 | jaxcifar, remat on | 24.0 | 24.0 … 24.0 | 0.40× |",
        # Two digests per second; an epoch takes 50,000 / 30 seconds.
        "resnet18, jaxcifar: a digest takes 500 ms, 0.030% of an epoch of 50,000 images.",
        "densenet121, jaxcifar, remat on: a digest takes 500 ms, 0.024% of an epoch",
    ):
        assert line in printed


@pytest.mark.slow
def test_it_runs_the_training_step(monkeypatch, one_device):
    made = []
    real = programs.train

    class Counted:
        def __init__(self, task, steps):
            self.steps, self.program = steps, real(task, steps)
            self.memory_analysis = self.program.memory_analysis

        def __call__(self, *arguments):
            made.append(self.steps)
            return self.program(*arguments)

    monkeypatch.setattr(programs, "train", Counted)
    steps, digests, facts = benchmark.jax_timer("vgg_a", 8, "float32", "weak", steps=2)
    assert not made  # compiled, and nothing run
    assert steps() > 0
    assert made == [1, 1, 1]  # the first is not timed
    assert digests() > 0
    assert len(made) == 3  # a digest is of the state that the steps left
    assert facts["dtype"] == "float32"
    assert facts["compile_seconds"] > 0
    assert facts["step_memory_bytes"] > 8 * 32 * 32 * 64 * 4  # the first convolution's result


def test_a_turn_times_all_steps_but_its_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: clock[0])

    def make(steps):
        clock[0] += 100.0 if steps == 1 else 0.5 * steps

    assert benchmark.rate(make, 4) == 2.0
