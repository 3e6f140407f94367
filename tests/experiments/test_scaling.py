"""How devices share a batch: bytes counted by hand, and the arithmetic of the table."""

import math

import pytest

from experiments.cost import forward_multiply_adds
from experiments.scaling import (
    CHIPS,
    LINKS,
    all_reduce_seconds,
    break_even,
    exchanged,
    main,
    scaling,
)
from jaxcifar.models import MODELS, create_model
from jaxcifar.signals import exit_code


def test_ring_all_reduce():
    assert all_reduce_seconds(1e9, 1, 1e9) == 0
    assert all_reduce_seconds(1e9, 2, 1e9) == 1
    assert all_reduce_seconds(1e9, 8, 100e9) == pytest.approx(2 * 7 / 8 / 100)


def test_bytes_exchanged_in_a_step():
    params, size = exchanged("vgg_a_bn", "float32")
    assert params == 9_756_426
    moments = 2 * (64 + 128 + 2 * 256 + 4 * 512)  # of eight BatchNorms
    assert size == 4 * (params + moments)
    # Convolutions computed in bfloat16 have gradients of two bytes.
    assert exchanged("vgg_a_bn")[1] < 0.6 * size
    # A DenseNet computes the moments of each feature once: those of the stem before and after its
    # activation, of 58 layers' two convolutions, of three transitions.
    params, size = exchanged("densenet121", "float32")
    assert size == 4 * (params + 2 * (2 * 64 + 58 * (96 + 24) + 104 + 196 + 386))


def test_break_even_halves_with_twice_the_bandwidth():
    slow, fast = (break_even("resnet18", link, 8, 1e14) for link in (1e9, 2e9))
    assert slow == pytest.approx(2 * fast)
    arithmetic = slow * 6 * forward_multiply_adds("resnet18") / 1e14
    assert arithmetic == pytest.approx(all_reduce_seconds(exchanged("resnet18")[1], 8, 1e9))


@pytest.fixture
def models(monkeypatch):
    """The first of each family, in place of all."""
    names = {type(create_model(name)): name for name in reversed(MODELS)}.values()
    monkeypatch.setattr("experiments.scaling.MODELS", tuple(names))
    return names


@pytest.mark.slow
def test_scaling_names_every_model(models, capsys):
    assert exit_code(lambda: main([])) == 0
    out = capsys.readouterr().out
    assert "computed, not measured" in out
    assert "half at (v5e ring) |" in out
    assert all(f"| {model} |" in out for model in models)
    assert len(models) == 6


@pytest.mark.slow
@pytest.mark.usefixtures("models")
def test_efficiency_at_the_break_even_is_one_half():
    half = math.ceil(break_even("airbench94", LINKS["10 Gbit/s"], 8, 0.4 * CHIPS["v5e"].flops))
    for batch, efficiency in ((half, "50%"), (9 * half, "90%")):
        grid = scaling(8, "v5e", 0.4, batch)
        assert f"Efficiency with {batch:,} images per device: 8 devices" in grid.title
        (line,) = (line for line in grid.lines if line[0] == "airbench94")
        assert line[grid.header.index("efficiency (10 Gbit/s)")] == efficiency
