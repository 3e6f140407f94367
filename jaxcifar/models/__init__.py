"""ResNet, DenseNet, VGG-A, Wide ResNet and Airbench for 32×32 images, as Flax linen modules."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxcifar.errors import UserError, choose
from jaxcifar.models.airbench import Airbench
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.layers import ACTIVATIONS
from jaxcifar.models.network import Network
from jaxcifar.models.resnet import BasicBlock, BottleneckBlock, NarrowResNet, ResNet
from jaxcifar.models.vgg import VGG
from jaxcifar.models.wideresnet import WideResNet

__all__ = ["ACTIVATIONS", "MODELS", "Network", "can_remat", "create_model"]

_BUILDERS: dict[str, "partial[Network]"] = {
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BottleneckBlock),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), block=BottleneckBlock),
    "resnet152": partial(ResNet, stage_sizes=(3, 8, 36, 3), block=BottleneckBlock),
    "densenet121": partial(DenseNet, block_sizes=(6, 12, 24, 16)),
    "densenet169": partial(DenseNet, block_sizes=(6, 12, 32, 32)),
    "densenet201": partial(DenseNet, block_sizes=(6, 12, 48, 32)),
    "densenet264": partial(DenseNet, block_sizes=(6, 12, 64, 48)),
    "vgg_a": partial(VGG, batch_norm=False),
    "vgg_a_bn": partial(VGG, batch_norm=True),
    "wideresnet28_10": partial(WideResNet, blocks=4, widening=10),
    "airbench94": partial(
        Airbench, features=(64, 256, 256), convolutions=2, residual=False, momentum=0.6
    ),
    "airbench96": partial(
        Airbench, features=(128, 384, 512), convolutions=3, residual=True, momentum=0.9
    ),
    "resnet20": partial(NarrowResNet, stage_sizes=(3, 3, 3), block=BasicBlock),
    "resnet56": partial(NarrowResNet, stage_sizes=(9, 9, 9), block=BasicBlock),
}

MODELS: tuple[str, ...] = tuple(_BUILDERS)


def create_model(
    name: str,
    *,
    num_classes: int = 10,
    activation: str = "relu",
    dropout_rate: float = 0.0,
    dtype: Any = jnp.float32,
    width: float = 1.0,
    remat: bool = False,
    platform: str | None = None,
) -> Network:
    """Returns the linen module `name`.

        model = create_model("resnet18")
        variables = model.init(key, images, train=False)       # images [N, 32, 32, 3] float
        logits = model.apply(variables, images, train=False)   # [N, num_classes] float32
        logits, updates = model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    Images on a mesh of `jax.make_mesh` need axes of type Auto (`axis_types=(AxisType.Auto,)`), or
    `jax.sharding.auto_axes` around the call: where every array's sharding is part of its type, the
    reshapes and products here are refused. The same goes for the transforms of `jaxcifar.augment`.

    The first layer of "airbench94" and "airbench96" is not trained, and whitens: before training,
    `variables = model.fitted(variables, images)`, with normalised images, or `create_state` with
    `images`.

    Args:
      name: one of MODELS.
      num_classes, activation, dropout_rate, dtype, width: see `jaxcifar.models.network.Network`.
      remat: whether to keep less in memory for the gradients, and to compute more; for networks
        that `can_remat` names.
      platform: what its programs are built for ("cpu", "gpu", "tpu"); None is JAX's default
        backend. It changes how things are computed, and no result but for rounding. A network
        with BatchNorm or GELU, or for CPUs, has no forward-mode derivative (`jax.jvp`).

    Raises:
      UserError: an unknown name or activation, a width that leaves no channel, or `remat` for a
        network without it.
    """
    choose("model.name", name, MODELS)
    choose("model.activation", activation, ACTIVATIONS)
    kind: Any = _BUILDERS[name].func
    if not 1 <= kind.narrowest * width < math.inf:
        raise UserError(
            f"model.width is {width}; it must be finite, and at least {1 / kind.narrowest:.4f}."
        )
    if remat and not can_remat(name):
        having = ", ".join(filter(can_remat, MODELS))
        raise UserError(
            f"model.remat is on, but model.name is {name!r}. Set it to 'auto' or 'off'; only these "
            f"support it: {having}."
        )
    return _BUILDERS[name](
        num_classes=num_classes,
        activation=activation,
        dropout_rate=dropout_rate,
        dtype=dtype,
        width=width,
        platform=platform or jax.default_backend(),
        **({"remat": True} if remat else {}),
    )


def can_remat(name: str) -> bool:
    """Returns whether the network `name` can compute again in the backward pass, to save memory."""
    return hasattr(_BUILDERS[name].func, "remat")
