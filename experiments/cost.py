"""The arithmetic of a network, counted from its layers."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.models import create_model
from jaxcifar.state import abstract_variables


@functools.lru_cache
def forward_multiply_adds(model: str, width: float = 1.0) -> int:
    """Returns the multiply-adds of one image's forward pass in the layers that have a kernel.

    These are the convolutions and linear layers of this package, and Flax's `Conv`, also grouped,
    and `Dense`. Other layers of Flax that have a kernel may be counted wrongly.

    A training step takes about three times as many. (Counts of "FLOPs" are twice this, or this,
    depending on whom you ask.)
    """
    total = 0

    def count(
        call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
    ) -> Any:
        nonlocal total
        out = call(*args, **kwargs)
        if context.method_name == "__call__":
            # The kernel of `Whitening` is not trained, and so among the statistics.
            for part in context.module.variables.values():
                if isinstance(kernel := part.get("kernel"), jax.ShapeDtypeStruct | jax.Array):
                    total += kernel.size * out.size // out.shape[-1]
        return out

    module = create_model(model, width=width)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = abstract_variables(module)
    with nn.intercept_methods(count):
        jax.eval_shape(functools.partial(module.apply, train=False), variables, images)
    return total
