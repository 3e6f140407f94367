"""Trains a small network of each family for twenty steps, and prints digests of what it computed.

    python -m experiments.golden --out=/tmp/before

Run it before and after a change that is to keep all numbers, on the same machine with the same
versions: the lines must be equal. Each names a case, with a digest of the losses of all steps and
one of the last checkpoint's variables.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from jaxcifar import options, restore, train
from jaxcifar.config import Config, base_config
from jaxcifar.errors import UserError, choose
from jaxcifar.files import read_lines
from jaxcifar.kernels import compilation
from jaxcifar.run.digest import digests, sha256
from jaxcifar.signals import exit_code

# Every family and kind of block, augmentation and optimizer, and what else changes numbers. The one
# that takes longest to compile is the last.
CASES: dict[str, dict[str, dict[str, Any]]] = {
    "resnet18": {
        "model": {"name": "resnet18", "width": 0.0625},
        "optim": {
            "l1": 1e-5,
            "penalize": "kernels",
            "schedule": "cosine_per_step",
            "warmup_epochs": 0.5,
        },
    },
    "resnet20": {
        "model": {"name": "resnet20", "width": 0.0625},
        "augment": {"flip": "none"},
        "optim": {"schedule": "multistep", "milestones": (1.5,), "decay_factor": 0.2},
    },
    "resnet50": {
        "model": {"name": "resnet50", "width": 0.0625, "activation": "gelu"},
        "data": {"augment": "strong"},
        "augment": {"cutmix": 1.0},
        "optim": {"l2": 1e-4, "schedule": "constant"},
    },
    "vgg_a": {
        "model": {"name": "vgg_a", "width": 0.125},
        "augment": {"mixup": 0.2},
        "optim": {"name": "adamw", "weight_decay": 0.01, "clip_norm": 1.0},
        "train": {"ema_decay": 0.9},
    },
    "vgg_a_bn": {
        "model": {"name": "vgg_a_bn", "width": 0.125},
        "data": {"augment": "strong"},
        "optim": {"name": "sgd", "momentum": 0.9, "nesterov": True, "learning_rate": 0.01},
    },
    "wideresnet28_10": {
        "model": {"name": "wideresnet28_10", "width": 0.0625},
        "data": {"augment": "none"},
        "optim": {"name": "sgd", "momentum": 0.9, "clip_norm": 1.0, "l2": 1e-4},
    },
    "airbench94": {
        "model": {"name": "airbench94", "width": 0.25},
        "augment": {"flip": "alternating", "padding_mode": "reflect", "cutout": 8},
        "optim": {
            "name": "sgd",
            "learning_rate": 0.1,
            "bias_scale": 8.0,
            "schedule": "triangular",
            "warmup_epochs": 0.5,
            "start_factor": 0.2,
            "end_factor": 0.07,
        },
        "train": {"label_smoothing": 0.2, "lookahead_steps": 5},
    },
    "densenet121": {
        "model": {"name": "densenet121", "width": 0.125},
        "data": {"augment": "strong"},
    },
}


def config_of(case: str) -> Config:
    """Returns the config of a case: ten steps an epoch, two epochs, on made-up images."""
    config = base_config()
    config.data.name = "synthetic"
    config.train.batch_size, config.train.epochs = 32, 2
    config.train.limit_train_images = 320
    for group, fields in CASES[case].items():
        for field, value in fields.items():
            config[group][field] = value
    return config


def digests_of(config: Config, workdir: pathlib.Path) -> tuple[str, str]:
    """Trains a config; returns the digests of its steps' losses and of its variables."""
    train.train_and_evaluate(config, workdir, quiet=True)
    losses = [epoch["loss"] for epoch in read_lines(workdir / "steps.jsonl")]
    _, _, variables = restore.load_variables(workdir, "last")
    found, _ = digests(variables)
    return sha256({"losses": losses})[:16], sha256(found)[:16]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = options.Parser("python -m experiments.golden", __doc__)
    parser.add_argument("--out", type=options.user_path, required=True, help="a new folder")
    parser.add_argument("--cases", default=",".join(CASES), help="which, by comma (default all)")
    arguments = parser.parse_args(argv)
    cases = [choose("A case in --cases", case, CASES) for case in arguments.cases.split(",")]
    if arguments.out.exists():
        raise UserError(f"{arguments.out} already exists. Give a new folder.")
    compilation.use_cache()
    for case in cases:
        losses, variables = digests_of(config_of(case), arguments.out / case)
        print(f"{case:<11}  losses {losses}  variables {variables}", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
