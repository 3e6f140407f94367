"""DenseNet-BC for 32×32 images. Huang et al., "Densely Connected Convolutional Networks", 2017.

The stem is one 3×3 convolution of stride 1 without pooling; the growth rate is 24.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxcifar.models import initializers, layers
from jaxcifar.models.layers import BatchNorm, Conv, Linear, Moments, moments

Features = list[jax.Array]


def _concatenate(features: Features, known: list[Moments]) -> tuple[jax.Array, Moments | None]:
    """The feature maps so far as one, and its moments where those of each are known."""
    x = jnp.concatenate(features, axis=-1)
    return x, jax.tree.map(lambda *each: jnp.concatenate(each), *known) if known else None


class DenseLayer(nn.Module):
    """BN, activation, 1×1 convolution to 4k; BN, activation, 3×3 to k; dropout."""

    growth: int
    dropout_rate: float
    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, features: Features, known: list[Moments], train: bool) -> jax.Array:
        x, known_of_x = _concatenate(features, known)
        y = self.act(self.norm(name="norm1")(x, train=train, batch_moments=known_of_x))
        y = self.conv(4 * self.growth, 1, name="conv1")(y)
        y = checkpoint_name(y, "conv1")
        y = self.act(self.norm(name="norm2")(y, train=train))
        y = self.conv(self.growth, 3, name="conv2")(y)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(y)


class Transition(nn.Module):
    """BN, activation, 1×1 convolution to half the channels, 2×2 average pooling."""

    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, known: Moments | None, *, train: bool) -> jax.Array:
        x = self.act(self.norm(name="norm")(x, train=train, batch_moments=known))
        # Both are linear and commute: pooled first, the convolution has a quarter of the pixels.
        return self.conv(x.shape[-1] // 2, 1, name="conv")(layers.avg_pool(x))


class DenseNet(nn.Module):
    """A densely connected network; dropout after the second convolution of each dense layer.

    Attributes:
      block_sizes: dense layers in each of the four blocks.
      growth: k, the channels that a dense layer adds (before `width`).
      remat: whether to keep for the gradients what the convolutions return only, and to compute
        the rest again (concatenation, normalisation, activation). Pleiss et al., "Memory-Efficient
        Implementation of DenseNets", 2017.
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
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images [N, 32, 32, 3] to logits [N, num_classes] float32."""
        act = layers.ACTIVATIONS[self.activation]
        kernel_init = initializers.kaiming_normal_fan_out(self.activation)
        conv = partial(Conv, kernel_init=kernel_init, dtype=self.dtype)
        norm = partial(BatchNorm, unbiased_variance=self.unbiased_variance, dtype=self.dtype)

        dense_layer = DenseLayer
        if self.remat:
            kept = jax.checkpoint_policies.save_only_these_names("conv1")
            dense_layer = nn.remat(DenseLayer, static_argnums=(3,), policy=kept)  # 3: train

        x = conv(int(64 * self.width), name="conv0")(x)
        x = act(norm(name="norm0")(x, train=train))
        for block, size in enumerate(self.block_sizes, start=1):
            # Each channel's moments are computed once, not again in every layer that sees it.
            features, known = [x], [moments(x)] if train else []
            for layer in range(1, size + 1):
                # The gradient of each feature map is then one running sum, else XLA keeps the
                # gradients of all its uses until the last.
                features = jax.lax.optimization_barrier(features)
                y = dense_layer(
                    growth=int(self.growth * self.width),
                    dropout_rate=self.dropout_rate,
                    act=act,
                    conv=conv,
                    norm=norm,
                    name=f"denseblock{block}_layer{layer}",
                )(features, known, train)
                features.append(y)
                if train:
                    known.append(moments(y))
            x, known = _concatenate(features, known)
            if block < len(self.block_sizes):
                transition = Transition(act, conv, norm, name=f"transition{block}")
                x = transition(x, known, train=train)
        x = act(norm(name="norm5")(x, train=train, batch_moments=known))
        x = layers.global_average(x)
        init = initializers.torch_uniform(x.shape[-1])
        return Linear(self.num_classes, kernel_init=init, name="classifier")(x)
