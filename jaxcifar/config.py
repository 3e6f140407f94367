"""Every field of a run's config, its default, and what it means.

A run's folder outlives the code: a saved config is laid over today's defaults (`complete`). So the
rule for a new field is that its default is what was computed before the field existed.

A config file returns `base_config()` with its differences:

    from jaxcifar.config import base_config

    def get_config():
        config = base_config()
        config.model.name = "densenet121"
        return config
"""

import math
from typing import Any

from ml_collections import ConfigDict

from jaxcifar.errors import UserError, nearest

Config = Any  # an ml_collections.ConfigDict, whose fields a type checker cannot know


class _Group(ConfigDict):
    """A ConfigDict that refuses True for a float, and stores an np.float64 as a float."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, bool) and isinstance(self.get(key), float):
            raise TypeError(f"{key} is {value}; it must be a number, such as {self[key]!r}.")
        if isinstance(value, float):  # np.float64 too, which no option could change later
            value = float(value)
        super().__setitem__(key, value)


def base_config() -> Config:
    """Returns the defaults: row 1 of the original report's Table 3."""
    config: Config = _Group()
    config.seed = 0  # initialisation, batch order, augmentation and dropout all follow from it
    config.init_from = ""  # the folder of a run, or of imported weights, whose best checkpoint
    #                        provides the initial weights; if the number of classes differs, those
    #                        of all but the last layer. The optimizer state, any weight averages and
    #                        the schedule start afresh. "": random weights

    config.model = _Group()
    config.model.name = "resnet18"  # one of jaxcifar.models.MODELS
    config.model.activation = "relu"  # "relu" "gelu" "silu" "leaky_relu" "mish"
    config.model.dropout_rate = 0.2  # ResNet: before the last layer; DenseNet: in each dense layer;
    #                 VGG: before the two hidden linear layers; Wide ResNet: in each block; Airbench
    #                 has none
    config.model.width = 1.0  # multiplies every channel count, rounded down; at least 1/24 (1/16
    #                           for resnet20, resnet56 and wideresnet28_10)
    config.model.remat = "auto"  # DenseNet: "on" needs a third of the memory or less and recomputes
    #               cheap layers; "off"; "auto": "on" on CPUs, where it is also faster, else "off"
    config.model.dtype = "auto"  # of the computation: "float32" "bfloat16"; "auto": bfloat16 on
    #        GPUs and TPUs. Parameters, statistics and logits are always float32. Float32
    #        products use TF32 on GPUs and bfloat16 on TPUs, unless the environment variable
    #        JAX_DEFAULT_MATMUL_PRECISION is float32

    config.data = _Group()
    config.data.name = "cifar10"  # "cifar10" "cifar100" "digits" "synthetic"
    config.data.dir = ""  # the CIFAR folder; "": $JAXCIFAR_DATA, else ~/.cache/jaxcifar/data
    config.data.augment = "weak"  # "none"; "weak": random crop and flip, and cutout if it is on;
    #    "strong": random crop, flip, color jitter, rotation, shift and erasing
    config.data.protocol = "test"  # "test": the best epoch is chosen on the test set, as in
    #                   Table 3 of the original report; "holdout": on a tenth of the training set,
    #                   and the test set is used once
    config.data.mean = ()  # per-channel mean for normalising images, with pixels from 0 to 1;
    #                        (): that of the training pixels (for CIFAR, of the official images).
    #                        Set it for weights that were trained with a different mean
    config.data.std = ()  # per-channel standard deviation, likewise
    config.data.test_augment = "none"  # views of a test image whose logits are averaged: "none"
    #                   (the image alone) "mirror_translate" (six)

    config.augment = _Group()  # the strengths; "weak" uses padding, flip and cutout, "strong" all
    #                    but cutout; mixup and CutMix work with any of them, even "none"
    config.augment.padding = 4  # pixels on each side before the random crop
    config.augment.padding_mode = "zeros"  # what is added: "zeros" "reflect"
    config.augment.flip = "random"  # horizontal: "random" "alternating" (each image every other
    #                                 epoch) "none"
    config.augment.cutout = 0  # side of the square that "weak" erases, within the image, in pixels;
    #                            0: none
    config.augment.brightness = 0.2  # factors are drawn from 1 ± this
    config.augment.contrast = 0.2  # likewise
    config.augment.saturation = 0.2  # likewise
    config.augment.hue = 0.1  # turns of the color wheel, ± this
    config.augment.rotation = 15.0  # degrees, ± this
    config.augment.translation = 0.1  # of the image's side, ± this
    config.augment.erasing_probability = 0.25  # probability that a rectangle of an image is erased
    config.augment.erasing_area = (0.02, 0.33)  # area of that rectangle, as a fraction of the
    #                                             image: smallest, largest
    config.augment.erasing_ratio = (0.3, 3.3)  # its height / width: smallest, largest
    config.augment.mixup = 0.0  # the α of Beta(α, α), from which the mixing weight is drawn; 0: no
    #              mixing. The training accuracy counts an image's own label, which often has the
    #              smaller weight
    config.augment.cutmix = 0.0  # the same, for the area that is pasted. If both are on, each batch
    #                              uses one of them, drawn at random

    config.optim = _Group()
    config.optim.name = "adam"  # "adam" "adamw" "sgd"
    config.optim.learning_rate = 1e-3  # the peak, from which the schedule lowers it
    config.optim.momentum = 0.0  # for SGD only
    config.optim.nesterov = False  # for SGD only: whether the momentum is Nesterov's
    config.optim.weight_decay = 0.0  # for AdamW only: decoupled, w ← w − lr · decay · w
    config.optim.l1 = 0.0  # strength of λ Σ|w|
    config.optim.l2 = 0.0  # strength λ of λ Σw², whose gradient is 2λw: set it to half of PyTorch's
    #                        weight_decay
    config.optim.penalize = "all"  # which parameters L1, L2 and the decay affect: "all" "kernels"
    config.optim.schedule = "cosine"  # "cosine" (stepped per epoch) "cosine_per_step" "constant"
    #                     "triangular" (rises in the warm-up, then falls, both per step) "multistep"
    #                     (falls at each milestone)
    config.optim.start_factor = 0.0  # for "triangular" only: the first rate, relative to the peak
    config.optim.end_factor = 0.0  # for "triangular" only: the rate that would be reached one step
    #                                after the last, relative to the peak
    config.optim.milestones = ()  # for "multistep" only: the epochs after which the rate is
    #                               multiplied by decay_factor, counted from the start of the run:
    #                               (60, 120, 160). A shorter run needs its own
    config.optim.decay_factor = 0.1  # for "multistep" only
    config.optim.bias_scale = 1.0  # for SGD only: multiplies the gradients of BatchNorm's biases,
    #                                and so their learning rate, but not their L2
    config.optim.clip_norm = 0.0  # the norm that the whole gradient is clipped to, before the
    #                              penalties are added; 0: no limit
    config.optim.warmup_epochs = 0.0  # epochs of rising learning rate, fewer than train.epochs,
    #                                   before the schedule begins (the milestones of "multistep"
    #                                   count these epochs too)

    config.train = _Group()
    config.train.batch_size = 256  # images per step, over all devices together; must be a multiple
    #                                of the number of devices
    config.train.epochs = 50  # passes over the training set
    config.train.limit_train_images = 0  # use only the first N; 0: all
    config.train.label_smoothing = 0.0  # fraction of each target spread evenly over all classes
    config.train.ema_decay = 0.0  # decay of a moving average of weights and statistics, which then
    #                               decides the best epoch; 0: none
    config.train.lookahead_steps = 0  # every this many steps, the weights are set to an average of
    #                                   their past values (Lookahead), which cannot be combined
    #                                   with ema_decay; 0: never
    config.train.eval_batch_size = 512  # images per evaluation step; as for batch_size, a multiple
    #                                     of the number of devices
    config.train.steps_per_call = 0  # training steps per compiled call; must divide the steps of an
    #    epoch. 0: 1 on CPUs, elsewhere the divisor nearest to 50 (batch 256: 39 of 195; batch 512:
    #    all 97)
    config.train.log_norms = False  # whether the norms of gradients and updates are logged
    config.train.checkpoint_minutes = 10.0  # minutes between saves within a long epoch (between
    #                                       calls); the end of each epoch is also saved
    return config


# Fields that change how a run is carried out, never what it computes (but for rounding): a run may
# be resumed with other values of them. (The data folder is here because the images themselves are
# compared.)
EXECUTION_FIELDS = (
    "data.dir",
    "model.remat",
    "train.eval_batch_size",
    "train.steps_per_call",
    "train.log_norms",
    "train.checkpoint_minutes",
)

# field: (lowest allowed, highest allowed, whether the lowest itself is excluded)
RANGES = {
    "seed": (0, 2**32 - 1, False),
    "model.dropout_rate": (0.0, 0.99, False),
    "model.width": (0.0, 16.0, True),
    "data.mean": (-1.0, 1.0, False),  # shares of 255: 0.49, not 125
    "data.std": (0.0, 1.0, True),
    "augment.padding": (0, 32, False),
    "augment.cutout": (0, 32, False),
    "augment.brightness": (0.0, 1.0, False),
    "augment.contrast": (0.0, 1.0, False),
    "augment.saturation": (0.0, 1.0, False),
    "augment.hue": (0.0, 0.5, False),
    "augment.rotation": (0.0, 180.0, False),
    "augment.translation": (0.0, 1.0, False),
    "augment.erasing_probability": (0.0, 1.0, False),
    "augment.erasing_area": (0.0, 1.0, True),
    "augment.erasing_ratio": (0.0, 100.0, True),
    "augment.mixup": (0.0, 100.0, False),
    "augment.cutmix": (0.0, 100.0, False),
    "optim.learning_rate": (0.0, 100.0, True),
    "optim.momentum": (0.0, 0.9999, False),
    "optim.weight_decay": (0.0, 100.0, False),
    "optim.l1": (0.0, 100.0, False),
    "optim.l2": (0.0, 100.0, False),
    "optim.start_factor": (0.0, 1.0, False),
    "optim.end_factor": (0.0, 1.0, False),
    "optim.milestones": (0.0, 100_000.0, True),
    "optim.decay_factor": (0.0, 1.0, True),
    "optim.bias_scale": (0.0, 10_000.0, True),
    "optim.clip_norm": (0.0, 1e9, False),
    "optim.warmup_epochs": (0.0, 100_000.0, False),
    "train.batch_size": (1, 2**20, False),
    "train.epochs": (1, 100_000, False),
    "train.limit_train_images": (0, 2**31, False),
    "train.label_smoothing": (0.0, 1.0, False),
    "train.ema_decay": (0.0, 0.999999, False),
    "train.lookahead_steps": (0, 10_000, False),
    "train.eval_batch_size": (1, 2**20, False),
    "train.steps_per_call": (0, 2**20, False),
    "train.checkpoint_minutes": (0.0, 10_000.0, True),
}


def flatten(config: Config, prefix: str = "") -> dict[str, Any]:
    """Returns {"model.name": "resnet18", …}: one entry for each leaf; a list of JSON as a tuple."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict | dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = tuple(value) if isinstance(value, list) else value
    return flat


def changed_fields(one: dict[str, Any], other: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {field: (one's value, other's)} for each field that changes what a run computes."""
    one, other = flatten(one), flatten(other)
    pairs = {field: (one.get(field), other.get(field)) for field in {**one, **other}}
    return {
        field: (a, b) for field, (a, b) in pairs.items() if field not in EXECUTION_FIELDS and a != b
    }


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns "field: a -> b" for each field that changes what a run computes."""
    return [f"{field}: {a!r} -> {b!r}" for field, (a, b) in changed_fields(one, other).items()]


def complete(saved: dict[str, Any], writer: str = "") -> Config:
    """Returns a config saved by this or an earlier version, with today's defaults for new fields.

    Args:
      saved: the config.
      writer: the version that saved it, for the message; "" if that is not known.

    Raises:
      UserError: it has a field that is unknown today.
      TypeError: a value is of the wrong type.
    """
    config, known = base_config(), flatten(base_config())
    with config.ignore_type():
        for field, value in flatten(saved).items():
            if field not in known:
                which = writer and f" ({writer})"
                raise UserError(
                    f"The saved config has the field {field!r}, which this version of jaxcifar "
                    f"does not know.{nearest_field(field)} Use the version that wrote "
                    f"it{which}."
                )
            group, _, name = field.rpartition(".")
            place = config[group] if group else config
            try:
                check_type(field, value, known[field])
                place[name] = value
                possible = not isinstance(value, int | float) or math.isfinite(value)
            except (UserError, OverflowError) as error:  # such as of a number of 400 digits
                raise TypeError(str(error)) from error
            if not possible:
                raise TypeError(f"config.{field} is {value}; it must be finite.")
    return config


def validate(config: Config) -> None:
    """Checks that `config` has the fields of `base_config()`, with possible values.

    Names ("resnet18", "adam", …) are checked against the tables of the modules that own them, by
    `jaxcifar.checks.check_config`.

    Raises:
      UserError: an unknown or missing field, a value of the wrong type or out of range.
    """
    expected, given = flatten(base_config()), flatten(config)
    for field in given:
        if field not in expected:
            raise UserError(f"config.{field} is not a field.{nearest_field(field)}")
    for field, default in expected.items():
        if field not in given:
            raise UserError(f"config.{field} is missing. Start from jaxcifar.config.base_config().")
        check_type(field, given[field], default)
        values = given[field] if isinstance(default, tuple) else [given[field]]
        if field in RANGES:
            for value in values:
                _check_range(field, value)
        if isinstance(default, tuple) and len(default) == 2 and values[0] > values[1]:
            raise UserError(f"config.{field} is {values}: the first must not be larger.")


_OF_CHANNELS = (0, 3), "() or three numbers", (0.5, 0.5, 0.5)
# Tuples that are not of a lowest and a highest value: the lengths allowed (none: any), in words,
# and an example.
_TUPLES: dict[str, tuple[tuple[int, ...], str, tuple[float, ...]]] = {
    "data.mean": _OF_CHANNELS,
    "data.std": _OF_CHANNELS,
    "optim.milestones": ((), "a tuple of numbers", (60, 120, 160)),
}


def check_type(field: str, value: Any, default: Any) -> None:
    """Checks that a field's value is of the type of its default.

    Raises:
      UserError: it is not.
    """
    example = default
    if isinstance(default, tuple):
        lengths, wanted, example = _TUPLES.get(field, ((2,), "two numbers", default))
        good = isinstance(value, tuple | list) and (not lengths or len(value) in lengths)
        good = good and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    elif isinstance(default, bool):
        good, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, float):
        good, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    elif isinstance(default, int):
        good, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    else:
        good, wanted = isinstance(value, str), "a string"
    if not good:
        raise UserError(f"config.{field} is {value!r}; it must be {wanted}, such as {example!r}.")


def _check_range(field: str, value: float) -> None:
    low, high, excluded = RANGES[field]
    if not low <= value <= high or (excluded and value == low):  # NaN is not within either
        least = f"above {low}" if excluded else f"at least {low}"
        raise UserError(f"config.{field} is {value}; it must be {least} and at most {high}.")


# What other programs call these fields.
_ALIASES = {
    "lr": "optim.learning_rate",
    "wd": "optim.weight_decay",
    "bs": "train.batch_size",
    "arch": "model.name",
    "model": "model.name",
    "optimizer": "optim.name",
    "optim": "optim.name",
    "dataset": "data.name",
    "data": "data.name",
    "data_dir": "data.dir",
    "dropout": "model.dropout_rate",
    "scheduler": "optim.schedule",
}


def meant_by(field: str) -> str | None:
    """Returns the field that a name without its group, or of another program, stands for."""
    last = field.rpartition(".")[2]
    alike = [name for name in flatten(base_config()) if name.rpartition(".")[2] == last]
    return _ALIASES.get(last) or (alike[0] if len(alike) == 1 else None)


def nearest_field(field: str) -> str:
    """Returns ' Did you mean …?' for the field that `field` comes closest to, else ''."""
    meant = meant_by(field)
    return f" Did you mean {meant!r}?" if meant else nearest(field, flatten(base_config()))
