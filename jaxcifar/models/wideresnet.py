"""Wide ResNet for 32×32 images. Zagoruyko & Komodakis, "Wide Residual Networks", 2016.

Pre-activation blocks, four in each of three stages for a depth of 28; dropout within the blocks.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxcifar.models import initializers, layers
from jaxcifar.models.network import Network


class PreActivationBlock(nn.Module):
    """BN, activation, 3×3 convolution with the stride, BN, activation, dropout, 3×3 convolution."""

    features: int
    stride: int
    dropout_rate: float
    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = self.act(self.norm(name="bn1")(x, train=train))
        if x.shape[-1] != self.features:  # the shortcut then starts behind the activation
            x = self.conv(self.features, 1, self.stride, name="downsample_conv")(y)
        y = self.conv(self.features, 3, self.stride, name="conv1")(y)
        y = self.act(self.norm(name="bn2")(y, train=train))
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        return x + self.conv(self.features, 3, name="conv2")(y)


class WideResNet(Network, kw_only=True):
    """A wide residual network of depth 6 · blocks + 4.

    Attributes:
      blocks: in each of the three stages.
      widening: k, which multiplies the 16, 32 and 64 channels of the stages.
    """

    narrowest: ClassVar[int] = 16

    blocks: int
    widening: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act, conv, norm = self.act, self.conv(), self.norm()
        x = conv(int(16 * self.width), name="conv1")(x)
        for stage in range(3):
            for i in range(self.blocks):
                x = PreActivationBlock(
                    features=int(16 * self.widening * self.width * 2**stage),
                    stride=2 if stage > 0 and i == 0 else 1,
                    dropout_rate=self.dropout_rate,
                    act=act,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{i}",
                )(x, train)
        x = layers.global_average(act(norm(name="bn")(x, train=train)))
        init = initializers.torch_uniform(x.shape[-1])
        return layers.Linear(self.num_classes, kernel_init=init, name="fc")(x)
