"""The benchmark: what it times, in which order, and the arithmetic of its table. No speed."""

import json

import pytest

from experiments import benchmark
from experiments.cost import forward_multiply_adds
from jaxcifar import programs
from jaxcifar.signals import exit_code


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


@pytest.mark.slow
def test_measurements_beside_the_better_of_pytorchs_layouts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ceilings", lambda: {"copy_gb_per_second": 5.0})

    def ours(*arguments):
        remat = arguments[-1]
        facts = {"init_seconds": 1.0, "compile_seconds": 2.0, "dtype": "float32"}
        return (lambda: 24.0 if remat == "on" else 30.0), facts | {
            "step_memory_bytes": (1 if remat == "on" else 3) * 2**20
        }

    monkeypatch.setattr(benchmark, "jax_timer", ours)
    rates = {False: 40.0, True: 60.0}
    monkeypatch.setattr(
        benchmark, "torch_timer", lambda m, b, d, channels_last, s: lambda: rates[channels_last]
    )
    out = tmp_path / "speed.json"
    models = "--models=resnet18,densenet121"
    benchmark.main([models, "--against=torch", "--remat", "--repeats=1", f"--out={out}"])
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
    timer, facts = benchmark.jax_timer("vgg_a", 8, "float32", "weak", steps=2)
    assert not made  # compiled, and nothing run
    assert timer() > 0
    assert made == [1, 1, 1]  # the first is not timed
    assert facts["dtype"] == "float32"
    assert facts["compile_seconds"] > 0
    assert facts["step_memory_bytes"] > 8 * 32 * 32 * 64 * 4  # the first convolution's result


def test_a_turn_times_all_steps_but_its_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: clock[0])

    def make(steps):
        clock[0] += 100.0 if steps == 1 else 0.5 * steps

    assert benchmark.rate(make, 4) == 2.0


@pytest.mark.parametrize("option", ["--models=vgg", "--batch=0", "--out=nowhere/a.json"])
def test_bad_options(option, capsys):
    assert exit_code(lambda: benchmark.main([option])) == 2
    assert capsys.readouterr().err
