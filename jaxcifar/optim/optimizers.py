"""The chain: L1 and L2, then Adam or SGD, then the learning rate."""

from collections.abc import Callable

import jax
import optax

from jaxcifar.errors import choose
from jaxcifar.optim.regularizers import Mask, Regularizer, l1, l2


def _adam(momentum: float) -> optax.GradientTransformation:
    del momentum
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)


def _sgd(momentum: float) -> optax.GradientTransformation:
    return optax.trace(decay=momentum) if momentum else optax.identity()


# What config.optim.name names.
_SCALINGS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "adam": _adam,
    "sgd": _sgd,
}
OPTIMIZERS = tuple(_SCALINGS)
WITH_MOMENTUM = ("sgd",)


def regularizers(
    l1_strength: float | jax.Array, l2_strength: float | jax.Array, mask: Mask | None = None
) -> tuple[Regularizer, ...]:
    """Returns L1 and L2, whose transforms head the chain and whose penalties are reported."""
    return l1(l1_strength, mask), l2(l2_strength, mask)


def make_optimizer(
    name: str,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float = 0.0,
    regularize: tuple[Regularizer, ...] = (),
) -> optax.GradientTransformation:
    """Returns the regularizers' gradients, then the optimizer.

        tx = make_optimizer("sgd", 0.1, momentum=0.9, regularize=regularizers(0.0, 1e-4))

    Every number but `momentum` may be traced, so that runs that differ only in numbers share one
    compiled step.

    Args:
      name: "adam" (Kingma & Ba 2014: b1 0.9, b2 0.999, eps 1e-8 outside the square root) or
        "sgd" (plain, or with PyTorch's momentum: m ← μm + g, w ← w − lr·m).
      learning_rate: a number or a schedule.
      momentum: μ, for "sgd" only.
      regularize: coupled penalties, such as `regularizers` returns.

    Raises:
      UserError: there is no such optimizer.
    """
    choose("optim.name", name, OPTIMIZERS)
    return optax.chain(
        *(regularizer.transform for regularizer in regularize),
        _SCALINGS[name](momentum),
        optax.scale_by_learning_rate(learning_rate),
    )
