"""Checks of a config that need no data: impossible values, and settings without effect."""

import inspect
import math
from collections.abc import Collection

from jax.sharding import Mesh

from jaxcifar import augment, data, kernels, optim
from jaxcifar.config import Config, base_config, changed_fields, flatten, validate
from jaxcifar.errors import UserError, choose
from jaxcifar.task import Task, create_model

# The fields that name one of several.
_CHOICES = {
    "data.name": data.DATASETS,
    "data.augment": augment.AUGMENTATIONS,
    "data.test_augment": augment.VIEWS,
    "augment.padding_mode": augment.PADDING_MODES,
    "augment.flip": augment.FLIPS,
    "data.protocol": data.PROTOCOLS,
    "optim.name": optim.OPTIMIZERS,
    "optim.schedule": optim.SCHEDULES,
    "optim.penalize": optim.MASKS,
}


def _taken(recipe: str) -> Collection[str]:
    """The arguments of an augmentation, which are fields of config.augment."""
    return inspect.signature(augment.AUGMENTATIONS[recipe]).parameters


# The fields that only some choices use: {field: (the choosing field, the choices that use it)}.
_ONLY_FOR = {
    **{
        f"optim.{option}": ("optim.name", users)
        for option in base_config().optim
        if (users := tuple(name for name in optim.OPTIMIZERS if option in optim.options_of(name)))
    },
    "optim.start_factor": ("optim.schedule", ("triangular",)),
    "optim.end_factor": ("optim.schedule", ("triangular",)),
    "optim.milestones": ("optim.schedule", ("multistep",)),
    "optim.decay_factor": ("optim.schedule", ("multistep",)),
    **{
        f"augment.{option}": ("data.augment", users)
        for option in ("padding_mode", "flip", "cutout")
        if (users := tuple(name for name in augment.AUGMENTATIONS if option in _taken(name)))
    },
}


def check_config(config: Config, mesh: Mesh | None = None, *, training: bool = True) -> None:
    """Checks everything of a config that can be checked without data.

    Args:
      config: of the run.
      mesh: of the devices that share its batches; None skips the checks that need it.
      training: whether it is to be trained here; devices that cannot train it may evaluate it.

    Raises:
      UserError: an unknown field or name, or an impossible value.
    """
    validate(config)
    create_model(config, 10, kernels.platform_of(mesh) if mesh else "cpu")
    given, unset = flatten(config), flatten(base_config())
    for field, names in _CHOICES.items():
        choose(field, given[field], names)
    for field, (chooser, users) in _ONLY_FOR.items():
        if given[field] != unset[field] and given[chooser] not in users:
            raise UserError(
                f"config.{field} is {given[field]!r}, which is only for "
                f"{' and '.join(map(repr, users))}, but {chooser} is {given[chooser]!r}. Change "
                f"{chooser}, or set {field} to {unset[field]!r}."
                + (
                    f" The weight_decay of PyTorch's {config.optim.name} is optim.l2, of half the "
                    "strength."
                    if field == "optim.weight_decay"
                    else ""
                )
            )
    if config.train.lookahead_steps and config.train.ema_decay:
        raise UserError(
            f"config.train.lookahead_steps is {config.train.lookahead_steps} and train.ema_decay "
            f"{config.train.ema_decay}: both average the weights. Set one of them to 0."
        )
    if config.optim.schedule == "multistep" and not config.optim.milestones:
        raise UserError(
            "config.optim.schedule is 'multistep', but optim.milestones is (). Give epochs, such "
            "as --config.optim.milestones=60,120,160."
        )
    if config.optim.warmup_epochs >= config.train.epochs:
        raise UserError(
            f"config.optim.warmup_epochs is {config.optim.warmup_epochs}, but the run has only "
            f"{config.train.epochs} epochs (train.epochs). Choose a smaller value."
        )
    devices = mesh.size if mesh else 1
    fields = ("batch_size", "eval_batch_size") if training else ("eval_batch_size",)
    shared = math.gcd(*(config.train[field] for field in fields))
    for field in fields:
        if config.train[field] % devices:
            fewer = max(number for number in range(1, devices) if shared % number == 0)
            raise UserError(
                f"config.train.{field} is {config.train[field]}, which {devices} devices cannot "
                f"share equally. Use {fewer} of them (such as with CUDA_VISIBLE_DEVICES), or "
                f"choose a multiple of {devices}."
            )


def unused(config: Config) -> list[str]:
    """Names what is set and has no effect, with the reason: "augment.hue, because …"."""
    recipe = config.data.augment
    # What is not an argument of it is a field of the task, as mixup is.
    taken = {f"augment.{name}" for name in (*_taken(recipe), *Task.__dataclass_fields__)}
    lines = [
        f"{field}, because data.augment is {recipe!r}"
        for field in changed_fields(base_config(), config)
        if field.startswith("augment.") and field not in taken
    ]
    unpadded = "augment.padding" in taken and not config.augment.padding
    if unpadded and config.augment.padding_mode != "zeros":
        lines.append("augment.padding_mode, because augment.padding is 0")
    if config.optim.name == "adamw" and not config.optim.weight_decay:
        lines.append("optim.name 'adamw', because optim.weight_decay is 0: it is 'adam'")
    strengths = config.optim.l1, config.optim.l2, config.optim.weight_decay
    if config.optim.penalize != "all" and not any(strengths):
        lines.append("optim.penalize, because optim.l1, l2 and weight_decay are 0")
    if late := [epoch for epoch in config.optim.milestones if epoch >= config.train.epochs]:
        lines.append(
            f"optim.milestones {', '.join(map(str, late))}, because the run has "
            f"{config.train.epochs} epochs"
        )
    if config.optim.nesterov and not config.optim.momentum:
        lines.append("optim.nesterov, because optim.momentum is 0")
    if config.optim.start_factor and not config.optim.warmup_epochs:
        lines.append("optim.start_factor, because optim.warmup_epochs is 0")
    model = create_model(config, 10, "cpu")
    given = changed_fields(base_config(), config)
    if "model.dropout_rate" in given and config.model.dropout_rate and not model.has_dropout:
        lines.append(f"model.dropout_rate, because {config.model.name} has no dropout")
    if config.optim.bias_scale != 1 and not model.batch_norm:
        lines.append(f"optim.bias_scale, because {config.model.name} has no BatchNorm")
    return lines
