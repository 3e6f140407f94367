"""The chain: clipping, bias scale, L1 and L2, then Adam, AdamW or SGD, then the learning rate."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import optax

from jaxcifar.errors import UserError, choose
from jaxcifar.optim.regularizers import Mask, Regularizer, l1, l2, names


def _adam() -> optax.GradientTransformation:
    adam = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        # Optax raises a Python float to the power of an int32, which "strict" forbids.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def _adamw(weight_decay: float | jax.Array, mask: Mask | None) -> optax.GradientTransformation:
    return optax.chain(_adam(), optax.add_decayed_weights(weight_decay, mask))


def _sgd(momentum: float, nesterov: bool, bias_scale: float) -> optax.GradientTransformation:
    del bias_scale  # an argument so that `options_of` lists it; `make_optimizer` applies it
    return optax.trace(decay=momentum, nesterov=nesterov) if momentum else optax.identity()


# What config.optim.name names: gradients to steps of learning rate 1. The arguments are fields of
# config.optim; setting one for an optimizer that does not use it is an error.
_OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
}
OPTIMIZERS = tuple(_OPTIMIZERS)


_INSTEAD = {
    "weight_decay": " In PyTorch's sgd and adam that is regularize=l2(…), of half the strength."
}


def options_of(name: str) -> tuple[str, ...]:
    """Returns the arguments of `make_optimizer` that the optimizer `name` uses."""
    return tuple(inspect.signature(_OPTIMIZERS[name]).parameters)


def _scale_norm_biases(factor: float) -> optax.GradientTransformation:
    """Multiplies the updates of the biases of BatchNorm.

    At the head of a chain with SGD it is a learning rate of their own, with the decay of all.
    """

    def is_one(path: tuple[Any, ...]) -> bool:
        module, leaf = ["", "", *names(path)][-2:]
        return leaf == "bias" and bool(re.search(r"(?i)(^|_)(bn|norm|batch_?norm)", module))

    def init(params: chex.ArrayTree) -> optax.OptState:
        if not any(is_one(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)):
            raise UserError(
                f"bias_scale is {factor}, but no parameter is the bias of a BatchNorm, which is "
                "recognised by a name such as bn1, downsample_bn, norm0 or BatchNorm_0. Leave it "
                "out."
            )
        return optax.MaskedState(optax.EmptyState())  # as in the checkpoints of earlier versions

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params  # which `optax.masked` would compare with updates, of which some may be None
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, u: factor * u if is_one(path) else u, updates
        )
        return scaled, state

    return optax.GradientTransformation(init, update)


def l1_and_l2(
    l1_strength: float | jax.Array, l2_strength: float | jax.Array, mask: Mask | None = None
) -> tuple[Regularizer, ...]:
    """Returns L1 and L2, whose transforms head the chain and whose penalties are reported."""
    return l1(l1_strength, mask), l2(l2_strength, mask)


def make_optimizer(
    name: str,
    learning_rate: float | jax.Array | optax.Schedule,
    *,
    regularize: Regularizer | tuple[Regularizer, ...] = (),
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float | jax.Array = 0.0,
    mask: Mask | None = None,
    bias_scale: float = 1.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """Returns one optax chain: clipping, bias scale, penalties, the optimizer, the learning rate.

        tx = make_optimizer("sgd", 0.1, momentum=0.9, regularize=l1_and_l2(0.0, 1e-4))

    `learning_rate`, `weight_decay` and the strengths of the penalties may be traced, so that runs
    that differ only in those share one compiled step. `optax.inject_hyperparams` needs the other
    arguments as its `static_args`: "momentum", "nesterov", "bias_scale", "clip_norm" and "mask",
    and, unless `name` is "adamw", "weight_decay".

    Args:
      name: "adam" (Kingma & Ba 2014: b1 0.9, b2 0.999, eps 1e-8 outside the square root), "adamw"
        (the same with decoupled decay: w ← w − lr·(adam + λw); Loshchilov & Hutter 2019, and
        PyTorch's AdamW) or "sgd" (plain, or with PyTorch's momentum: m ← μm + g, w ← w − lr·m).
      learning_rate: a number or a schedule.
      regularize: a coupled penalty, such as `l2` returns, or several.
      momentum: μ, for "sgd".
      nesterov: whether "sgd" steps by g + μm instead of m, as PyTorch's does.
      weight_decay: λ of "adamw". (For coupled decay, PyTorch's weight_decay of Adam and SGD, add
        `l2` of half that strength.)
      mask: which parameters decay, see `l1`.
      bias_scale: multiplies the gradients of the biases of BatchNorm, for "sgd". That gives them
        their own learning rate, while L2 applies to them as to the rest. They are recognised by
        their module's name: bn1, downsample_bn, norm0, BatchNorm_0.
      clip_norm: the largest norm of all gradients together; longer ones are scaled to it, before
        all else and so without the penalties, as by PyTorch's clip_grad_norm_ before a step with
        weight_decay. 0 is no limit.

    Raises:
      UserError: there is no such optimizer, or it does not have an option that is given. From
        `init`: `bias_scale` is given, and there is no BatchNorm.
    """
    choose("optim.name", name, OPTIMIZERS)
    if isinstance(regularize, Regularizer):
        regularize = (regularize,)
    options = {
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
        "mask": mask,
        "bias_scale": bias_scale,
    }
    for option, value in options.items():
        unset = inspect.signature(make_optimizer).parameters[option].default
        # A traced number is given, whatever its value.
        if option not in options_of(name) and (isinstance(value, jax.Array) or value != unset):
            users = [other for other in OPTIMIZERS if option in options_of(other)]
            raise UserError(
                f"{option} is {value!r}, which is only for {' and '.join(map(repr, users))}, but "
                f"the optimizer is {name!r}. Leave it out.{_INSTEAD.get(option, '')}"
            )
    return optax.chain(
        *([optax.clip_by_global_norm(clip_norm)] if clip_norm else []),
        *([_scale_norm_biases(bias_scale)] if bias_scale != 1 else []),
        *(regularizer.transform for regularizer in regularize),
        _OPTIMIZERS[name](**{option: options[option] for option in options_of(name)}),
        optax.scale_by_learning_rate(learning_rate),
    )
