"""DenseNet-BC for 32×32 images. Huang et al., "Densely Connected Convolutional Networks", 2017.

The stem is one 3×3 convolution of stride 1 without pooling; the growth rate is 24.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.models import initializers, layers
from jaxcifar.models.layers import BatchNorm, Conv, Linear, Moments, moments


class DenseLayer(nn.Module):
    """BN, activation, 1×1 convolution to 4k; BN, activation, 3×3 to k; dropout; [input, new]."""

    growth: int
    dropout_rate: float
    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, known: Moments | None, *, train: bool
    ) -> tuple[jax.Array, Moments | None]:
        y = self.act(self.norm(name="norm1")(x, train=train, batch_moments=known))
        y = self.conv(4 * self.growth, 1, name="conv1")(y)
        y = self.act(self.norm(name="norm2")(y, train=train))
        y = self.conv(self.growth, 3, name="conv2")(y)
        y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
        if known is not None:
            # Each channel's moments are computed once, not again in every layer that sees it.
            known = jax.tree.map(lambda *each: jnp.concatenate(each), known, moments(y))
        return jnp.concatenate([x, y], axis=-1), known


class Transition(nn.Module):
    """BN, activation, 1×1 convolution to half the channels, 2×2 average pooling."""

    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, known: Moments | None, *, train: bool) -> jax.Array:
        x = self.act(self.norm(name="norm")(x, train=train, batch_moments=known))
        x = self.conv(x.shape[-1] // 2, 1, name="conv")(x)
        return layers.avg_pool(x)


class DenseNet(nn.Module):
    """A densely connected network; dropout after the second convolution of each dense layer.

    Attributes:
      block_sizes: dense layers in each of the four blocks.
      growth: k, the channels that a dense layer adds (before `width`).
      others: see `jaxcifar.models.create_model`.
    """

    block_sizes: tuple[int, ...]
    growth: int = 24
    num_classes: int = 10
    activation: str = "relu"
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    width: float = 1.0
    unbiased_variance: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images [N, 32, 32, 3] to logits [N, num_classes] float32."""
        act = layers.ACTIVATIONS[self.activation]
        kernel_init = initializers.kaiming_normal_fan_out(self.activation)
        conv = partial(Conv, kernel_init=kernel_init, dtype=self.dtype)
        norm = partial(BatchNorm, unbiased_variance=self.unbiased_variance, dtype=self.dtype)

        x = conv(int(64 * self.width), name="conv0")(x)
        x = act(norm(name="norm0")(x, train=train))
        for block, size in enumerate(self.block_sizes, start=1):
            # Else XLA sums the gradients of all layers' uses of x once for each of its own uses.
            x = jax.lax.optimization_barrier(x)
            known = moments(x) if train else None
            for layer in range(1, size + 1):
                x, known = DenseLayer(
                    growth=int(self.growth * self.width),
                    dropout_rate=self.dropout_rate,
                    act=act,
                    conv=conv,
                    norm=norm,
                    name=f"denseblock{block}_layer{layer}",
                )(x, known, train=train)
            if block < len(self.block_sizes):
                transition = Transition(act, conv, norm, name=f"transition{block}")
                x = transition(x, known, train=train)
        x = act(norm(name="norm5")(x, train=train, batch_moments=known))
        x = layers.global_average(x)
        init = initializers.torch_uniform(x.shape[-1])
        return Linear(self.num_classes, kernel_init=init, name="classifier")(x)
