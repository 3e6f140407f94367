"""The chain: L1 and L2, then Adam or SGD, then the learning rate."""

import jax
import optax

from jaxcifar.errors import choose
from jaxcifar.optim.regularizers import Mask, add_l1, add_l2

OPTIMIZERS = ("adam", "sgd")


def make_optimizer(
    name: str,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    momentum: float = 0.0,
    l1: float | jax.Array = 0.0,
    l2: float | jax.Array = 0.0,
    mask: Mask | None = None,
) -> optax.GradientTransformation:
    """Returns coupled L1 and L2, then the optimizer.

    Every number but `momentum` may be traced, so that runs that differ only in numbers share one
    compiled step.

    Args:
      name: "adam" (Kingma & Ba 2014: b1 0.9, b2 0.999, eps 1e-8 outside the square root) or
        "sgd" (plain, or with PyTorch's momentum: m ← μm + g, w ← w − lr·m).
      learning_rate: a number or a schedule.
      momentum: μ, for "sgd" only.
      l1: strength of λ Σ|w|.
      l2: strength of λ Σw².
      mask: which parameters L1 and L2 see; None is all.

    Raises:
      UserError: there is no such optimizer.
    """
    choose("optim.name", name, OPTIMIZERS)
    if name == "adam":
        scale = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)
    else:
        scale = optax.trace(decay=momentum) if momentum else optax.identity()
    return optax.chain(
        add_l1(l1, mask), add_l2(l2, mask), scale, optax.scale_by_learning_rate(learning_rate)
    )
