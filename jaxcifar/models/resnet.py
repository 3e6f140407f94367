"""ResNet v1 for 32×32 images. He et al., "Deep Residual Learning for Image Recognition", 2016.

The stem is one 3×3 convolution of stride 1 without pooling. All stages but the first halve the
resolution. ResNet-18 to -152 have the four stages of the paper's networks for ImageNet; ResNet-20
and -56 are its networks for CIFAR (section 4.2), three stages from 16 channels on, but with a
projection where the shape changes (its option B), in place of zeros (A).
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxcifar.models import initializers, layers
from jaxcifar.models.network import Network


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, the first with the stride."""

    features: int
    stride: int
    act: Any
    conv: Any
    norm: Any
    expansion = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.conv(self.features, 3, self.stride, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, name="conv2")(y)
        y = self.norm(name="bn2")(y, train=train)
        return self.act(y + _shortcut(self, x, train=train))


class BottleneckBlock(nn.Module):
    """1×1, 3×3 (with the stride) and 1×1 convolutions; the last is four times as wide."""

    features: int
    stride: int
    act: Any
    conv: Any
    norm: Any
    expansion = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.conv(self.features, 1, name="conv1")(x)
        y = self.act(self.norm(name="bn1")(y, train=train))
        y = self.conv(self.features, 3, self.stride, name="conv2")(y)
        y = self.act(self.norm(name="bn2")(y, train=train))
        y = self.conv(self.features * self.expansion, 1, name="conv3")(y)
        y = self.norm(name="bn3")(y, train=train)
        return self.act(y + _shortcut(self, x, train=train))


def _shortcut(block: BasicBlock | BottleneckBlock, x: jax.Array, *, train: bool) -> jax.Array:
    """The identity, or a 1×1 convolution and BatchNorm where the shape changes."""
    features = block.features * block.expansion
    if block.stride == 1 and x.shape[-1] == features:
        return x
    x = block.conv(features, 1, block.stride, name="downsample_conv")(x)
    return block.norm(name="downsample_bn")(x, train=train)


class ResNet(Network, kw_only=True):
    """A residual network; dropout before the final linear layer.

    Attributes:
      stage_sizes: blocks in each stage.
      block: `BasicBlock` or `BottleneckBlock`.
      features: channels of the stem and of the first stage; each stage doubles them.
    """

    stage_sizes: tuple[int, ...]
    block: Any
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act, conv, norm = self.act, self.conv(), self.norm()
        x = conv(int(self.features * self.width), name="conv1")(x)
        x = act(norm(name="bn1")(x, train=train))
        for stage, size in enumerate(self.stage_sizes):
            for i in range(size):
                x = self.block(
                    features=int(self.features * self.width * 2**stage),
                    stride=2 if stage > 0 and i == 0 else 1,
                    act=act,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        x = layers.global_average(x)
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        init = initializers.torch_uniform(x.shape[-1])
        return layers.Linear(self.num_classes, kernel_init=init, bias_init=init, name="fc")(x)


class NarrowResNet(ResNet, kw_only=True):
    """One that begins with 16 channels."""

    narrowest: ClassVar[int] = 16

    features: int = 16
