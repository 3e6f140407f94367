"""Configs: what is refused before any work starts, and what is said to be without effect."""

import pytest

from jaxcifar import checks
from jaxcifar.config import base_config, flatten
from jaxcifar.errors import UserError
from tests.tiny import mesh, tiny


def changed(**fields):
    config = base_config()
    for field, value in fields.items():
        group, _, name = field.partition("__")
        with config.unlocked(), config.ignore_type():
            if name:
                config[group][name] = value
            else:
                config[group] = value
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model__nam": "resnet18"}, r"config\.model\.nam is not a field.*'model\.name'"),
        ({"epochs": 3}, r"config\.epochs is not a field.*'train\.epochs'"),
        ({"model__name": "resnet19"}, "Did you mean 'resnet18'"),
        ({"model__activation": "gleu"}, "Did you mean 'gelu'"),
        ({"model__dtype": "float16"}, "bfloat16"),
        ({"model__remat": "yes"}, r"model\.remat.*'yes'.*auto, on, off"),
        ({"model__remat": True}, "must be a string"),
        ({"model__name": "vgg_a", "model__remat": "on"}, "only these support it: densenet121,"),
        ({"data__name": "cifar"}, "Did you mean 'cifar10'"),
        ({"data__augment": "storng"}, "Did you mean 'strong'"),
        ({"data__protocol": "hold-out"}, "Did you mean 'holdout'"),
        ({"optim__name": "adamax"}, "Did you mean 'adam'"),
        ({"optim__schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"optim__penalize": "kernel"}, "Did you mean 'kernels'"),
        ({"optim__l1": -1e-4}, r"optim\.l1 is -0\.0001; it must be at least 0\.0"),
        ({"optim__l2": float("nan")}, r"optim\.l2 is nan"),
        ({"optim__learning_rate": 0.0}, "above 0.0"),
        ({"optim__learning_rate": float("inf")}, "learning_rate is inf"),
        (
            {"optim__momentum": 0.9},
            "momentum is 0.9, which is only for 'sgd', but optim.name is 'adam'",
        ),
        (
            {"optim__nesterov": True},
            "nesterov is True, .* for 'sgd', but .* set .*nesterov to False",
        ),
        (
            {"optim__weight_decay": 0.1},
            "for 'adamw', .* to 0.0. The weight_decay of .* optim.l2",
        ),
        ({"optim__warmup_epochs": 50.0}, r"warmup_epochs is 50\.0, but the run has only 50 epochs"),
        ({"optim__clip_norm": -1.0}, "at least 0.0"),
        ({"train__label_smoothing": 1.5}, "at most 1.0"),
        ({"train__ema_decay": 1.0}, "at most 0.999999"),
        ({"augment__mixup": -0.2}, "at least 0.0"),
        ({"train__epochs": 0}, r"train\.epochs is 0; it must be at least 1"),
        ({"train__epochs": 2.5}, "whole number"),
        ({"train__batch_size": 0}, "at least 1"),
        ({"train__batch_size": 12}, "multiple of 8"),
        ({"train__eval_batch_size": 12}, "multiple of 8"),
        ({"train__checkpoint_minutes": 0.0}, "above 0.0"),
        ({"model__dropout_rate": 1.0}, "at most 0.99"),
        ({"augment__erasing_area": (0.5, 0.1)}, "first must not be larger"),
        ({"augment__erasing_area": 0.5}, "two numbers"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_impossible_configs(fields, message):
    with pytest.raises(UserError, match=message):
        checks.check_config(changed(**fields), mesh(8))


@pytest.mark.parametrize("field", flatten(base_config()))
def test_every_number_has_a_range_and_every_name_a_list(field):
    default = flatten(base_config())[field]
    group, _, name = field.rpartition(".")
    impossible = {
        str: "no such name",
        bool: "yes",
        int: -1,
        float: float("inf"),
        tuple: (0.5, float("nan")),
    }
    config = base_config()
    with config.ignore_type():
        (config[group] if group else config)[name] = impossible[type(default)]
    if field in ("data.dir", "init_from"):  # any folder
        checks.check_config(config, mesh(8))
        return
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        checks.check_config(config, mesh(8))


def test_the_defaults_are_possible():
    checks.check_config(base_config(), mesh(8))
    checks.check_config(base_config())


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({}, []),
        ({"data__augment": "strong", "augment__rotation": 90.0}, []),
        ({"augment__padding": 2, "augment__mixup": 0.2}, []),
        (
            {"augment__rotation": 90.0, "augment__erasing_area": (0.1, 0.2)},
            [
                f"augment.{name}, because data.augment is 'weak'"
                for name in ("erasing_area", "rotation")
            ],
        ),
        (
            {"data__augment": "none", "augment__padding": 2},
            ["augment.padding, because data.augment is 'none'"],
        ),
        (
            {"optim__name": "sgd", "optim__nesterov": True},
            ["optim.nesterov, because optim.momentum is 0"],
        ),
        ({"optim__name": "sgd", "optim__nesterov": True, "optim__momentum": 0.9}, []),
        (
            {"optim__schedule": "triangular", "optim__start_factor": 0.2},
            ["optim.start_factor, because optim.warmup_epochs is 0"],
        ),
        (
            {"augment__padding": 0, "augment__padding_mode": "reflect"},
            ["augment.padding_mode, because augment.padding is 0"],
        ),
        (
            {"optim__penalize": "kernels"},
            ["optim.penalize, because optim.l1, l2 and weight_decay are 0"],
        ),
        ({"optim__penalize": "kernels", "optim__l1": 1e-4}, []),
        (
            {"model__name": "vgg_a", "optim__name": "sgd", "optim__bias_scale": 64.0},
            ["optim.bias_scale, because vgg_a has no BatchNorm"],
        ),
        ({"model__name": "vgg_a_bn", "optim__name": "sgd", "optim__bias_scale": 64.0}, []),
        (
            {"model__name": "airbench94", "model__dropout_rate": 0.5},
            ["model.dropout_rate, because airbench94 has no dropout"],
        ),
        (
            {"optim__name": "adamw"},
            ["optim.name 'adamw', because optim.weight_decay is 0: it is 'adam'"],
        ),
        ({"optim__name": "adamw", "optim__weight_decay": 0.01}, []),
        ({"model__name": "airbench94"}, []),  # whose 0.2 is the default
    ],
)
def test_what_has_no_effect_is_named(fields, lines):
    config = tiny(**fields)
    checks.check_config(config)
    assert checks.unused(config) == lines


def test_how_many_of_the_devices_could_share_the_batches():
    """Another batch size would be another experiment."""
    for sizes, devices, fewer in (((32, 96), 7, 4), ((32, 100), 8, 4), ((9, 25), 7, 1)):
        config = tiny(train__batch_size=sizes[0], train__eval_batch_size=sizes[1])
        with pytest.raises(UserError, match=rf"{devices} devices cannot.* Use {fewer} of them"):
            checks.check_config(config, mesh(devices))


def test_devices_that_cannot_train_may_evaluate():
    config = tiny(train__batch_size=12)
    checks.check_config(config)  # nobody asked about devices
    checks.check_config(config, mesh(8), training=False)
    with pytest.raises(UserError, match="batch_size is 12, which 8 devices"):
        checks.check_config(config, mesh(8))
