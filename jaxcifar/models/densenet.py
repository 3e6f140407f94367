"""DenseNet-BC for 32×32 images. Huang et al., "Densely Connected Convolutional Networks", 2017.

The stem is one 3×3 convolution of stride 1 without pooling; the growth rate is 24.
"""

from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name

from jaxcifar.errors import UserError
from jaxcifar.kernels.features import Features
from jaxcifar.models import initializers, layers
from jaxcifar.models.network import Network


class DenseLayer(nn.Module):
    """BN, activation, 1×1 convolution to 4k; BN, activation, 3×3 to k; dropout."""

    growth: int
    dropout_rate: float
    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, features: Features, train: bool) -> jax.Array:
        y = self.act(self.norm(name="norm1")(features, train=train))
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
    def __call__(self, features: Features, train: bool) -> jax.Array:
        x = self.act(self.norm(name="norm")(features, train=train))
        # Both are linear and commute: pooled first, the convolution has a quarter of the pixels.
        return self.conv(x.shape[-1] // 2, 1, name="conv")(layers.avg_pool(x))


class DenseNet(Network, kw_only=True):
    """A densely connected network; dropout after the second convolution of each dense layer.

    Attributes:
      block_sizes: dense layers in each of the four blocks.
      growth: k, the channels that a dense layer adds (before `width`).
      remat: whether to keep for the gradients only what the first convolutions return, and to
        compute the rest again (concatenation, normalisation, activation). Pleiss et al.,
        "Memory-Efficient Implementation of DenseNets", 2017.
    """

    block_sizes: tuple[int, ...]
    growth: int = 24
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        act, conv, norm = self.act, self.conv(), self.norm()
        height, width, halved = *x.shape[1:3], len(self.block_sizes) - 1
        if min(height, width) < 2**halved:  # else it would average over no pixel
            raise UserError(
                f"The images have {height}×{width} pixels, and this DenseNet halves them {halved} "
                f"times. Give it {2**halved}×{2**halved} or more."
            )
        dense_layer = DenseLayer
        if self.remat:
            kept = jax.checkpoint_policies.save_only_these_names("conv1")
            dense_layer = nn.remat(DenseLayer, static_argnums=(2,), policy=kept)  # 2: train

        def near(x: jax.Array, *name: str) -> jax.Array | None:
            """The running mean of a map in the layer that sees it first, as its last channels.

            All that see it have the same one, since they have averaged the same moments.
            """
            found: Any = self.variables.get("batch_stats", {})
            for part in name:
                found = found.get(part, {})
            return found["mean"][-x.shape[-1] :] if found else None

        x = conv(int(64 * self.width), name="conv0")(x)
        x = act(norm(name="norm0")(x, train=train))
        none = features = Features((), (), self.platform)
        for block, size in enumerate(self.block_sizes, start=1):
            names = [(f"denseblock{block}_layer{layer}", "norm1") for layer in range(1, size + 1)]
            last = block == len(self.block_sizes)
            names.append(("norm5",) if last else (f"transition{block}", "norm"))
            features = none.append(x, train=train, near=near(x, *names[0]))
            for layer in range(1, size + 1):
                features = features.for_a_layer()
                y = dense_layer(
                    growth=int(self.growth * self.width),
                    dropout_rate=self.dropout_rate,
                    act=act,
                    conv=conv,
                    norm=norm,
                    name=f"denseblock{block}_layer{layer}",
                )(features, train)
                features = features.append(y, train=train, near=near(y, *names[layer]))
            if not last:
                transition = Transition(act, conv, norm, name=f"transition{block}")
                x = transition(features, train)
        x = act(norm(name="norm5")(features, train=train))
        x = layers.global_average(x)
        init = initializers.torch_uniform(x.shape[-1])
        return layers.Linear(self.num_classes, kernel_init=init, name="classifier")(x)
