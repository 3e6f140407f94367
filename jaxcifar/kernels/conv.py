"""The convolution of the models.

On GPU and TPU it is XLA's. On CPUs some are computed as matrix products, and wide 3×3 ones by
`jaxcifar.kernels.winograd`, where XLA's are slower. XLA's own need the options of
`jaxcifar.kernels.compilation` to be fast there.
"""

import jax
import jax.numpy as jnp

from jaxcifar.kernels import winograd

# One product with more rows than this is slower than several, each staying in cache.
_ROWS = 2**14
_LAYOUT = "NHWC", "HWIO", "NHWC"


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1, *, platform: str) -> jax.Array:
    """2-D convolution with symmetric zero padding of (size − 1) / 2: `plain_conv2d`.

    Args:
      x: [N, H, W, I].
      kernel: [size, size, I, O] of the same dtype; the size is odd.
      stride: of both axes.
      platform: what the program is built for, see `jaxcifar.kernels.platform_of`.

    Returns:
      [N, ⌈H / stride⌉, ⌈W / stride⌉, O].
    """
    if platform != "cpu":
        return plain_conv2d(x, kernel, stride)
    # The barriers keep XLA from recomputing what led to x, and in the gradient what led to dy,
    # in every loop that copies them to another layout, in the worst order for the cache.
    x = jax.lax.optimization_barrier(x)
    if kernel.shape[0] == 1 or min(x.shape[1:3]) < kernel.shape[0]:
        # XLA has no fast convolution for images smaller than the kernel.
        y = _as_product(x, kernel, stride, pad=(kernel.shape[0] - 1) // 2)
    elif stride == 1 and winograd.is_faster(x, kernel):
        y = winograd.conv3x3(x, kernel)
    else:
        y = plain_conv2d(x, kernel, stride)
    return jax.lax.optimization_barrier(y)


def plain_conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """XLA's convolution; arguments and result are those of `conv2d`."""
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((pad, pad), (pad, pad)), dimension_numbers=_LAYOUT
    )


def valid_conv2x2(x: jax.Array, kernel: jax.Array, *, platform: str) -> jax.Array:
    """2×2 convolution without padding: [N, H, W, I] and [2, 2, I, O] to [N, H − 1, W − 1, O].

    It is computed in the full precision of its arguments.
    """
    if platform == "cpu":
        return _as_product(x, kernel, 1, pad=0)
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "VALID", dimension_numbers=_LAYOUT, precision="highest"
    )


def _as_product(x: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """im2col: one matrix product of the pixels that each tap of the kernel sees and the kernel."""
    n, *lengths, _ = x.shape
    size, _, _, features = kernel.shape
    height, width = ((length + 2 * pad - size) // stride + 1 for length in lengths)
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    patches = jnp.concatenate(
        [
            x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            for i in range(size)
            for j in range(size)
        ],
        axis=-1,
    )
    y = _product(patches.reshape(n * height * width, -1), kernel.reshape(-1, features))
    return y.reshape(n, height, width, features)


_Saved = tuple[jax.Array, jax.Array]  # for the gradient


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x · kernel, [rows, I] and [I, O], whose gradient is fast for many rows."""
    return x @ kernel


def _product_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Saved]:
    return _product(x, kernel), (x, kernel)


def _product_backward(saved: _Saved, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    pieces = 1
    while len(x) > _ROWS * pieces and len(x) % (2 * pieces) == 0:
        pieces *= 2
    x, dy_pieces = (a.reshape(pieces, -1, a.shape[-1]) for a in (x, dy))
    return dy @ kernel.T, jnp.einsum("pri,pro->pio", x, dy_pieces).sum(0)


_product.defvjp(_product_forward, _product_backward)
