"""The benchmark: what it times, in which order, and the arithmetic of its table. No speed."""

import json

import pytest

from experiments import benchmark
from experiments.cost import forward_multiply_adds
from jaxcifar.errors import exit_code


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


def test_measurements_beside_the_better_of_pytorchs_layouts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "ceilings", lambda: {"copy_gb_per_second": 5.0})
    facts = {"init_seconds": 1.0, "compile_seconds": 2.0, "dtype": "float32"}
    monkeypatch.setattr(benchmark, "jax_timer", lambda *_: (lambda: 30.0, facts))
    rates = {False: 40.0, True: 60.0}
    monkeypatch.setattr(
        benchmark, "torch_timer", lambda m, b, d, channels_last, s: lambda: rates[channels_last]
    )
    out = tmp_path / "speed.json"
    benchmark.main(["--models=resnet18", "--against=torch", "--repeats=1", f"--out={out}"])
    (result,) = json.loads(out.read_text())["results"]
    assert result["ratio"] == 0.5
    # A step is three forward passes, a multiply-add two operations.
    assert result["gflops"] == pytest.approx(30 * 3 * 2 * forward_multiply_adds("resnet18") / 1e9)
    printed = capsys.readouterr().out
    assert "| resnet18 | jaxcifar | 30.0 | 30.0 … 30.0 | 0.50× | 100 | 1.0 s | 2.0 s |" in printed
    assert "| resnet18 | torch channels_last | 60.0 |" in printed


def test_it_runs_the_training_step(monkeypatch):
    made = []
    real = benchmark.Programs.train

    def counted(self, steps, *arguments):
        made.append(steps)
        return real(self, steps, *arguments)

    monkeypatch.setattr(benchmark.Programs, "train", counted)
    timer, facts = benchmark.jax_timer("vgg_a", 8, "float32", "weak", steps=2)
    assert not made  # compiled, and nothing run
    assert timer() > 0
    assert made == [1, 1, 1]  # the first is not timed
    assert facts["dtype"] == "float32"
    assert facts["compile_seconds"] > 0


def test_a_turn_times_all_steps_but_its_first(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(benchmark.time, "monotonic", lambda: clock[0])

    def make(steps):
        clock[0] += 100.0 if steps == 1 else 0.5 * steps

    assert benchmark._rate(make, 4) == 2.0


@pytest.mark.parametrize("option", ["--models=vgg", "--batch=0", "--out=nowhere/a.json"])
def test_bad_options(option, capsys):
    assert exit_code(lambda: benchmark.main([option])) == 2
    assert capsys.readouterr().err
