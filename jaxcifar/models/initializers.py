"""The distributions that weights start from, and how all of them are drawn at once."""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Initializer = nn.initializers.Initializer


def kaiming_normal_fan_out(activation: str) -> Initializer:
    """N(0, gain² / fan_out), gain √2 for ReLU and 1 otherwise. He et al. 2015, eq. 14."""
    gain = math.sqrt(2) if activation == "relu" else 1.0

    def init(key, shape, dtype=jnp.float32):
        *taps, _, features = shape
        return _normal(key, shape, dtype) * (gain / math.sqrt(math.prod(taps) * features))

    return init


def xavier_normal(key, shape, dtype=jnp.float32) -> jax.Array:
    """N(0, 2 / (fan_in + fan_out)). Glorot & Bengio 2010."""
    *taps, inputs, features = shape
    return _normal(key, shape, dtype) * math.sqrt(2 / (math.prod(taps) * (inputs + features)))


def torch_uniform(fan_in: int) -> Initializer:
    """U(−1/√fan_in, 1/√fan_in), PyTorch's default for a linear layer's weight and bias."""
    bound = 1 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def init_from_one_draw(model: nn.Module, key: jax.Array, images: jax.Array) -> Any:
    """Returns `model.init(key, images, train=False)`, other numbers of the same distributions.

    XLA compiles each draw anew, and DenseNet-201 has two hundred weights: here, to be called under
    `jax.jit`, they are parts of one draw.
    """
    init = lambda: model.init(key, images, train=False)  # noqa: E731
    with _taking_from(None) as count:
        jax.eval_shape(init)
    # The barrier keeps XLA from drawing anew for each part.
    numbers = jax.lax.optimization_barrier(jax.random.normal(key, (count.taken,)))
    with _taking_from(numbers):
        return init()


class _Draw:
    """Standard normal numbers, to be taken in turn; None where only their count is wanted."""

    def __init__(self, numbers: jax.Array | None):
        self.numbers, self.taken = numbers, 0

    def take(self, shape: tuple[int, ...]) -> jax.Array:
        first = self.taken
        self.taken += math.prod(shape)
        if self.numbers is None:
            return jnp.zeros(shape)
        return self.numbers[first : self.taken].reshape(shape)


_draw: contextvars.ContextVar[_Draw | None] = contextvars.ContextVar("draw", default=None)


@contextlib.contextmanager
def _taking_from(numbers: jax.Array | None) -> Iterator[_Draw]:
    token = _draw.set(_Draw(numbers))
    try:
        yield _draw.get()  # type: ignore[misc]
    finally:
        _draw.reset(token)


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    draw = _draw.get()
    return jax.random.normal(key, shape, dtype) if draw is None else draw.take(shape).astype(dtype)
