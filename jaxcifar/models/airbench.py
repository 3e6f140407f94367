"""The networks of "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", Jordan, 2024.

A frozen layer that whitens 2×2 patches, then three groups of 3×3 convolutions that begin as the
identity, each convolution followed by a BatchNorm without scale (arXiv 2404.00498, and its code,
https://github.com/KellerJordan/cifar10-airbench).
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.kernels.conv import valid_conv2x2
from jaxcifar.kernels.norm import at_least_float32
from jaxcifar.models import initializers, layers
from jaxcifar.models.initializers import Normal
from jaxcifar.models.network import Network

IMAGES = 5000  # whose patches the first layer whitens; Jordan's code takes as many
EPSILON = 5e-4  # added to the variances, so that directions of almost no variance stay small


def whitening_kernel(images: jax.Array) -> jax.Array:
    """Returns the convolution that makes the 2×2 patches of images white, and its negation.

    Filter i is an eigenvector of the covariance of the patches over the root of its eigenvalue;
    the largest comes first. Page, "How to Train Your ResNet 8", 2019. An eigenvector has no sign of
    its own, and each device's library returns another; ours is positive in a fixed direction, so
    that a seed's network begins alike on every device.

    Args:
      images: [N, H, W, C] float32, normalised.

    Returns:
      [2, 2, C, 8C] float32.
    """
    _, height, width, channels = images.shape
    patches = jnp.stack(
        [images[:, i : height - 1 + i, j : width - 1 + j] for i in (0, 1) for j in (0, 1)], axis=3
    ).reshape(-1, 4 * channels)
    patches -= patches.mean(axis=0, keepdims=True)
    covariance = jnp.matmul(patches.T, patches, precision="highest") / len(patches)
    variances, directions = jnp.linalg.eigh(covariance)
    # Without a pattern, as a direction that has one is at right angles to the edges in patches.
    fixed = np.sin(np.arange(1, len(directions) + 1) ** 2).astype(directions.dtype)
    along = jnp.matmul(fixed, directions, precision="highest")
    directions *= jnp.where(along < 0, -1, 1)[None]
    kernel = (directions / jnp.sqrt(variances + EPSILON)[None])[:, ::-1]
    return jnp.concatenate([kernel, -kernel], axis=1).reshape(2, 2, channels, -1)


class Whitening(nn.Module):
    """A 2×2 convolution without padding: a frozen kernel and a trained bias.

    The kernel is a statistic of the training images, and is kept with those of BatchNorm. Until
    `Airbench.fitted` has measured it, it is random.
    """

    normal: Normal
    dtype: Any
    platform: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, H, W, C] to [N, H − 1, W − 1, 8C]."""
        shape = (2, 2, x.shape[-1], 8 * x.shape[-1])
        random = initializers.kaiming_normal_fan_out("linear", self.normal)
        kernel = self.variable(
            "batch_stats", "kernel", lambda: random(jax.random.key(0), shape, jnp.float32)
        )
        bias = self.param("bias", nn.initializers.zeros, shape[-1:], jnp.float32)
        # In float32: what scales directions of little variance up does so to rounding as well.
        y = valid_conv2x2(at_least_float32(x), kernel.value, platform=self.platform)
        return (y + bias[None, None, None]).astype(self.dtype)


class Group(nn.Module):
    """Convolution, 2×2 max-pooling, BN, activation; then convolutions, each with BN, activation.

    With `residual`, the input of the later convolutions is added before the last
    activation.
    """

    features: int
    convolutions: int
    residual: bool
    act: Any
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = layers.max_pool(self.conv(self.features, name="conv1")(x))
        x = shortcut = self.act(self.norm(name="norm1")(x, train=train))
        for number in range(2, self.convolutions + 1):
            x = self.conv(self.features, name=f"conv{number}")(x)
            x = self.norm(name=f"norm{number}")(x, train=train)
            if self.residual and number == self.convolutions:
                x = x + shortcut
            x = self.act(x)
        return x


class Airbench(Network, kw_only=True):
    """The network of airbench94, or with other sizes of airbench96. It has no dropout.

    Attributes:
      features: of the convolutions in each of the three groups.
      convolutions: in each group.
      residual: whether a group adds the input of its later convolutions.
      momentum: of BatchNorm's running statistics; see `jaxcifar.models.layers.BatchNorm`.
    """

    has_dropout: ClassVar[bool] = False

    features: tuple[int, int, int]
    convolutions: int
    residual: bool
    momentum: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv = self.conv(kernel_init=initializers.dirac())
        norm = self.norm(momentum=self.momentum, epsilon=1e-12, use_scale=False)
        x = self.act(Whitening(self.normal, self.dtype, self.platform, name="whitening")(x))
        for number, features in enumerate(self.features, start=1):
            x = Group(
                features=int(features * self.width),
                convolutions=self.convolutions,
                residual=self.residual,
                act=self.act,
                conv=conv,
                norm=norm,
                name=f"group{number}",
            )(x, train)
        x = x.max(axis=(1, 2))
        init = initializers.torch_uniform(x.shape[-1])
        head = layers.Linear(self.num_classes, kernel_init=init, use_bias=False, name="fc")
        return head(x) / 9

    @nn.nowrap
    def fitted(self, variables: dict[str, Any], images: jax.Array) -> dict[str, Any]:
        """Returns variables whose first layer whitens the patches of the first `IMAGES` images."""
        kernel = whitening_kernel(images[:IMAGES])
        stats = {**variables["batch_stats"], "whitening": {"kernel": kernel}}
        return {**variables, "batch_stats": stats}
