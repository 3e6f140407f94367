"""3×3 convolution of stride 1 with a quarter of the multiplications, for CPUs.

Winograd's F(4×4, 3×3), after Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
2016: of each tile of 6×6 pixels of x (neighbours overlap by two) and of the kernel, 36 weighted
sums are taken; they are multiplied channel by channel, as 36 matrix products; and of these again
16 weighted sums are the 4×4 pixels of the result. All of it is linear in x and in the kernel, and
the gradients are the same steps backwards.

The weights follow from five points where polynomials are evaluated (Cook–Toom). Those in use,
0, ±5/8 and ±3/2, lose less precision than Lavin's 0, ±1, ±2; see Barabasz et al., "Error analysis
and improving the accuracy of Winograd convolution for deep neural networks", 2018.
"""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import polynomial

TILE = 4
# With fewer, the sums cost more than the products save.
_FEWEST_CHANNELS = 64
_POINTS = (0, 5 / 8, -5 / 8, 3 / 2, -3 / 2)


def _weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cook–Toom's matrices in two dimensions.

    In the letters of Lavin & Gray, whose result is Aᵀ[(G kernel Gᵀ) ⊙ (Bᵀ x B)]A: Bᵀ ⊗ Bᵀ [36, 36],
    its columns in the order of `_patches`; G ⊗ G [36, 9]; and A ⊗ A [36, 16].
    """
    of_x, of_kernel, of_y = np.zeros((6, 6)), np.zeros((6, 3)), np.zeros((6, 4))
    for row, point in enumerate(_POINTS):
        others = [other for other in _POINTS if other != point]
        of_x[row, :5] = polynomial.polyfromroots(others)
        of_kernel[row] = point ** np.arange(3) / np.prod([point - other for other in others])
        of_y[row] = point ** np.arange(4)
    # The sixth point is infinity.
    of_x[5] = polynomial.polyfromroots(_POINTS)
    of_kernel[5, 2] = of_y[5, 3] = 1
    # The order of the pixels in `_patches`.
    order = np.arange(36).reshape(6, 6)
    order = np.concatenate(
        [part.ravel() for half in (order[:4], order[4:]) for part in (half[:, :4], half[:, 4:])]
    )
    return np.kron(of_x, of_x)[:, order], np.kron(of_kernel, of_kernel), np.kron(of_y, of_y)


_OF_X, _OF_KERNEL, _OF_Y = _weights()


def _tiles(length: int) -> int:
    return -(-length // TILE)


def _patches(x: jax.Array) -> jax.Array:
    """The overlapping 6×6 tiles of [N, H, W, C]: [36, N, ⌈H/4⌉, ⌈W/4⌉, C].

    Each pixel of a tile belongs to the tile's own 4×4 or to those of the next tiles, so four
    copies of contiguous channels give them all, and four sums take the gradient back.
    """
    n, height, width, channels = x.shape
    rows, columns = _tiles(height), _tiles(width)
    right = [
        TILE * (tiles + 1) - 1 - length for tiles, length in ((rows, height), (columns, width))
    ]
    x = jnp.pad(x, ((0, 0), (1, right[0]), (1, right[1]), (0, 0)))
    x = x.reshape(n, rows + 1, TILE, columns + 1, TILE, channels).transpose(2, 4, 0, 1, 3, 5)
    halves = x[:, :, :, :rows], x[:2, :, :, 1:]
    parts = [p for half in halves for p in (half[..., :-1, :], half[:, :2, ..., 1:, :])]
    return jnp.concatenate([part.reshape(-1, n, rows, columns, channels) for part in parts])


def _sums(weights: np.ndarray, terms: jax.Array) -> jax.Array:
    """Weighted sums over the leading axis of `terms`."""
    return jax.lax.optimization_barrier(
        jnp.tensordot(weights.astype(terms.dtype), jax.lax.optimization_barrier(terms), axes=1)
    )


def is_faster(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv3x3` can compute this convolution of stride 1, and faster than XLA on CPUs."""
    return (
        kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= _FEWEST_CHANNELS
        and x.dtype in (jnp.float32, jnp.float64)
    )


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolution with zero padding of 1.

    Args:
      x: [N, H, W, I] float32 or float64. Where H or W is no multiple of 4, the last tiles are
        computed whole and cut.
      kernel: [3, 3, I, O] of the same dtype.

    Returns:
      [N, H, W, O]. In float32 it and its gradients are exact to about 1e-6 of their norm.
    """
    return _forward(x, kernel)[0]


_Saved = tuple[jax.Array, jax.Array]  # for the gradient


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, _Saved]:
    n, height, width, channels = x.shape
    rows, columns = _tiles(height), _tiles(width)
    terms = _sums(_OF_X, _patches(x)).reshape(36, -1, channels)
    factors = _sums(_OF_KERNEL, kernel.reshape(9, *kernel.shape[2:]))
    # p: the 36 products; t: the tiles of all images; i, o: the channels of x and of the result.
    y = _sums(_OF_Y.T, jnp.einsum("pti,pio->pto", terms, factors))
    y = y.reshape(TILE, TILE, n, rows, columns, -1).transpose(2, 3, 0, 4, 1, 5)
    y = y.reshape(n, TILE * rows, TILE * columns, -1)[:, :height, :width]
    return y, (terms, factors)


def _backward(saved: _Saved, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    terms, factors = saved
    n, height, width, features = dy.shape
    rows, columns = _tiles(height), _tiles(width)
    dy = jnp.pad(dy, ((0, 0), (0, TILE * rows - height), (0, TILE * columns - width), (0, 0)))
    dy = dy.reshape(n, rows, TILE, columns, TILE, features).transpose(2, 4, 0, 1, 3, 5)
    dproducts = _sums(_OF_Y, dy.reshape(TILE * TILE, -1, features))
    dfactors = jnp.einsum("pti,pto->pio", terms, dproducts)
    dkernel = _sums(_OF_KERNEL.T, dfactors).reshape(3, 3, *dfactors.shape[1:])
    dterms = _sums(_OF_X.T, jnp.einsum("pto,pio->pti", dproducts, factors))
    x = jax.ShapeDtypeStruct((n, height, width, terms.shape[-1]), terms.dtype)
    (dx,) = jax.linear_transpose(_patches, x)(dterms.reshape(36, n, rows, columns, -1))
    return dx, dkernel


conv3x3.defvjp(_forward, _backward)
