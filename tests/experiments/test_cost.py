"""The arithmetic of a network, counted by hand."""

import flax.linen as nn
import pytest

from experiments import cost
from jaxcifar.models.network import Network


def test_multiply_adds_by_hand():
    # VGG-A: 3×3 convolutions at their resolutions, and three linear layers.
    convolutions = (
        *((3, 64, 32), (64, 128, 16), (128, 256, 8), (256, 256, 8)),
        *((256, 512, 4), (512, 512, 4), (512, 512, 2), (512, 512, 2)),
    )
    total = sum(9 * i * o * side**2 for i, o, side in convolutions)
    assert cost.forward_multiply_adds("vgg_a") == total + 512 * 512 * 2 + 512 * 10
    # "0.56 GFLOPs", as ResNet-18 for CIFAR is known.
    assert cost.forward_multiply_adds("resnet18") == pytest.approx(0.555e9, rel=2e-3)
    # Two-by-two patches whitened, and two convolutions in each of three blocks, the first of each
    # before the pooling: 31, 15, 15, 7, 7 and 3 pixels wide; and a linear layer.
    blocks = (24, 64, 31), (64, 64, 15), (64, 256, 15), (256, 256, 7), (256, 256, 7), (256, 256, 3)
    total = 4 * 3 * 24 * 31**2 + sum(9 * i * o * side**2 for i, o, side in blocks) + 256 * 10
    assert cost.forward_multiply_adds("airbench94") == total


class Depthwise(Network):
    """3×3 filters for one channel each, and a linear layer for each pixel, both Flax's."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (3, 3), feature_group_count=3)(x)
        return nn.Dense(10)(x).mean((1, 2))


def test_the_layers_of_flax_are_counted(monkeypatch):
    monkeypatch.setattr(cost, "create_model", lambda name, width: Depthwise())
    assert cost.forward_multiply_adds("depthwise") == 32 * 32 * (9 * 6 + 6 * 10)
