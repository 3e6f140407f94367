"""The convolution of the models.

On GPU and TPU it is XLA's. On CPUs, XLA computes some of its parts far below the speed of a matrix
product: weight gradients of 3×3 convolutions, all of 1×1 ones, and 3×3 ones of very small images.
There those parts are written as products; `tests/test_models.py` compares both.
"""

from functools import partial

import jax
import jax.numpy as jnp

# The weight gradient takes the batch in pieces of this many elements, small enough to stay in cache
# while nine products read them; but in no more pieces than that, as each adds to compile time.
_PIECE, _MOST_PIECES = 2**19, 8
# Pixels of an image up to which a 3×3 convolution is faster as a product with all nine taps.
_SMALL = 16


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """2-D convolution with symmetric zero padding of (size − 1) / 2.

    Args:
      x: [N, H, W, I].
      kernel: [size, size, I, O] of the same dtype; the size is odd.
      stride: of both axes.

    Returns:
      [N, ⌈H / stride⌉, ⌈W / stride⌉, O].
    """
    if jax.default_backend() != "cpu":
        return _xla(x, kernel, stride)
    if kernel.shape[0] == 1:
        return jnp.einsum("nhwi,io->nhwo", x[:, ::stride, ::stride], kernel[0, 0])
    return _for_cpu(x, kernel, stride)


def _xla(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = (kernel.shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _for_cpu(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`_xla` by matrix products where XLA's convolution is slow."""
    _, height, width, _ = x.shape
    if height * width > _SMALL:
        return _xla(x, kernel, stride)
    size = kernel.shape[0]
    out_height, out_width = -(-height // stride), -(-width // stride)
    taps = _taps(x, size, stride, out_height, out_width)
    patches = jnp.concatenate([tap for row in taps for tap in row], axis=-1)
    return jnp.einsum("nhwi,io->nhwo", patches, kernel.reshape(-1, kernel.shape[-1]))


def _forward(x, kernel, stride):
    return _for_cpu(x, kernel, stride), (x, kernel)


def _backward(stride, saved, dy):
    x, kernel = saved
    if stride == 1:  # the gradient is itself such a convolution, with the kernel turned around
        dx = _for_cpu(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1)
    else:
        (dx,) = jax.linear_transpose(lambda x: _xla(x, kernel, stride), x)(dy)
    return dx, _kernel_gradient(x, dy, kernel.shape[0], stride)


_for_cpu.defvjp(_forward, _backward)


def _taps(x: jax.Array, size: int, stride: int, height: int, width: int) -> list[list[jax.Array]]:
    """The pixels [N, height, width, I] that each tap of the kernel sees, by row and column."""
    pad = (size - 1) // 2
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return [
        [
            x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            for j in range(size)
        ]
        for i in range(size)
    ]


def _kernel_gradient(x: jax.Array, dy: jax.Array, size: int, stride: int) -> jax.Array:
    """dL/dkernel [size, size, I, O]: for each tap, the product of the pixels it saw and dy."""
    n, height, width, _ = dy.shape
    images = max(_PIECE // (x[0].size + dy[0].size), -(-n // _MOST_PIECES))
    total = jnp.zeros((size, size, x.shape[-1], dy.shape[-1]), x.dtype)
    for first in range(0, n, images):
        piece = slice(first, first + images)
        taps = _taps(x[piece], size, stride, height, width)
        products = [[jnp.einsum("nhwi,nhwo->io", tap, dy[piece]) for tap in row] for row in taps]
        total += jnp.stack([jnp.stack(row) for row in products])
    return total
