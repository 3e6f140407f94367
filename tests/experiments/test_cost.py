"""The arithmetic of a network, counted by hand."""

import pytest

from experiments import cost


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
