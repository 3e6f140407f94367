"""What the architectures share: convolution, BatchNorm, linear layer, pooling, activations."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.errors import UserError
from jaxcifar.kernels.activation import gelu
from jaxcifar.kernels.conv import conv2d
from jaxcifar.kernels.features import Features
from jaxcifar.kernels.norm import at_least_float32, moments, scale_and_shift
from jaxcifar.models.initializers import Initializer, xavier_normal

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": gelu,
    "silu": nn.silu,
    "leaky_relu": nn.leaky_relu,
    "mish": jax.nn.mish,
}


class Conv(nn.Module):
    """2-D convolution of [N, H, W, C] with explicit symmetric padding of ⌊(size − 1) / 2⌋.

    "SAME" at stride 2 would pad (0, 1) instead of (1, 1), which is another network.

    Raises:
      UserError: the kernel size is even and the stride above 2, as for patches: this padding would
        leave out the last pixels.

    Attributes:
      dtype: of the computation; the parameters are float32.
      platform: what the program is built for, see `jaxcifar.kernels.platform_of`.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    use_bias: bool = False
    kernel_init: Initializer = xavier_normal()
    dtype: Any = jnp.float32
    platform: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kernel_size % 2 == 0 and self.stride > 2:
            raise UserError(
                f"A kernel of size {self.kernel_size} at stride {self.stride} would leave out the "
                "last pixels of each row and column, as the padding is the same on each side. For "
                "patches, use flax.linen.Conv with padding='VALID'."
            )
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        y = conv2d(
            x.astype(self.dtype), kernel.astype(self.dtype), self.stride, platform=self.platform
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            # Added in float32, so that its gradient, a sum over all pixels, is one of float32.
            y = (at_least_float32(y) + bias[None, None, None]).astype(self.dtype)
        return y


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last. Ioffe & Szegedy, "Batch Normalization", 2015.

    In training it normalises by the mean and the biased variance of the batch, and moves the
    running statistics towards its mean and unbiased variance, as PyTorch does (`flax.linen` takes
    the biased one): running ← momentum · running + (1 − momentum) · batch. On accelerators the
    variance is computed about the running mean, see `jaxcifar.kernels.norm.moments`. Statistics and
    scale are float32 whatever the dtype of the input. Over a sharded batch they are those of the
    whole batch under `jax.jit`, and each device's own inside `jax.shard_map`; see
    `jaxcifar.kernels`.

    Attributes:
      momentum: 0.9 here is momentum=0.1 in PyTorch's convention.
      epsilon: added to the variance.
      use_scale: whether there is a trained scale after the normalisation.
      dtype: of the output.
      platform: what the program is built for, see `jaxcifar.kernels.platform_of`.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    dtype: Any = jnp.float32
    platform: str = ""

    @nn.compact
    def __call__(self, x: jax.Array | Features, *, train: bool) -> jax.Array:
        """Normalises [N, …, C], or feature maps that bring their moments."""
        known = None
        if isinstance(x, Features):
            x, known = x.concatenated, x.moments
        features = (x.shape[-1],)
        bias = self.param("bias", nn.initializers.zeros, features, jnp.float32)
        ra_mean = self.variable("batch_stats", "mean", jnp.zeros, features, jnp.float32)
        ra_var = self.variable("batch_stats", "var", jnp.ones, features, jnp.float32)
        if train:
            mean, var = known or moments(x, self.platform, near=ra_mean.value)
            if not self.is_initializing():
                n = x.size // x.shape[-1]
                correction = n / (n - 1) if n > 1 else 1.0
                ra_mean.value = self.momentum * ra_mean.value + (1 - self.momentum) * mean
                ra_var.value = self.momentum * ra_var.value + (1 - self.momentum) * correction * var
        else:
            mean, var = ra_mean.value, ra_var.value
        scale = jax.lax.rsqrt(var + self.epsilon)
        if self.use_scale:
            scale = scale * self.param("scale", nn.initializers.ones, features, jnp.float32)
        y: Any = scale_and_shift(x, mean, scale, bias, self.platform)
        return y.astype(self.dtype)


class Linear(nn.Module):
    """x · kernel + bias: [N, inputs] to [N, features], in float32 where the input is bfloat16."""

    features: int
    kernel_init: Initializer = xavier_normal()
    bias_init: Initializer = nn.initializers.zeros
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        # The default precision of a float32 product is lower on GPU (TF32) and TPU (bfloat16).
        y = jnp.matmul(at_least_float32(x), kernel, precision="highest")
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32)[None]
        return y


def global_average(x: jax.Array) -> jax.Array:
    """Averages [N, H, W, C] over H and W, in float32: [N, C]."""
    return at_least_float32(x).mean(axis=(1, 2))


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the largest of each 2×2 of [N, H, W, C]: [N, ⌊H/2⌋, ⌊W/2⌋, C].

    If the height or width is odd, the last row or column is left out, as in PyTorch.

    Of equal maxima the first in reading order gets the gradient, and NaN is larger than any number,
    as in PyTorch. (The gradient of XLA's reduce_window, a select-and-scatter, is slow on CPUs.)
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)

    def larger(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where((a >= b) | jnp.isnan(a), a, b)

    upper = larger(x[:, :, 0, :, 0], x[:, :, 0, :, 1])
    return larger(upper, larger(x[:, :, 1, :, 0], x[:, :, 1, :, 1]))


def avg_pool(x: jax.Array) -> jax.Array:
    """Averages each 2×2 of [N, H, W, C]: [N, ⌊H/2⌋, ⌊W/2⌋, C]; see `max_pool` for odd sizes."""
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
