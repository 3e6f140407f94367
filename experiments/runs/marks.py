"""How a run's config differs from the one it started from.

Both are flat ({"model.name": …}). The seed never counts, nor do the fields that change only how a
run is carried out. `model.dtype` does not count either: "auto" means another dtype on each kind of
device, and the one in force is in a run's environment. Nor does `init_from` where each run starts
from the run of its own seed.
"""

import re
from typing import Any

from jaxcifar.config import changed_fields

UNOFFICIAL = "images NOT verified as the official files"
_LIMIT = "train.limit_train_images"
_TRAIN_IMAGES = {  # (data.name, data.protocol): all that a run can train on
    ("cifar10", "test"): 50_000,
    ("cifar100", "test"): 50_000,
    ("cifar10", "holdout"): 45_000,
    ("cifar100", "holdout"): 45_000,
}


def differing(original: dict[str, Any], config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns {field: (original value, value)} for each field that differs and counts."""
    found = changed_fields(original, config)
    own = [
        re.sub(rf"\bseed{each['seed']}\b", "seed", each["init_from"]) for each in (original, config)
    ]
    alike = {"seed", "model.dtype"} | ({"init_from"} if own[0] == own[1] else set())
    return {field: pair for field, pair in found.items() if field not in alike}


def shortened(original: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    """Returns what a run has less of than its original: {"train.epochs": "3 of 50 epochs", …}."""
    less = {}
    if config["train.epochs"] < original["train.epochs"]:
        less["train.epochs"] = f"{config['train.epochs']} of {original['train.epochs']} epochs"
    images, whole = _images(original, config)
    if images and not whole:
        less[_LIMIT] = f"{images:,} images"
    elif 0 < images < whole:
        less[_LIMIT] = f"{images:,} of {whole:,} images"
    return less


def _images(original: dict[str, Any], config: dict[str, Any]) -> tuple[int, int]:
    """How many images a run and its original train on; 0 is all of an unknown number."""
    known = _TRAIN_IMAGES.get((config["data.name"], config["data.protocol"]), 0)
    images, whole = (each[_LIMIT] or known for each in (config, original))
    return images, whole


def changed(original: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Returns how else a run differs from its original: ["model.name vgg_a -> resnet18", …]."""
    images, whole = _images(original, config)
    said = {*shortened(original, config), *([_LIMIT] if images == whole else [])}
    return [
        f"{field} {before} -> {after}"
        for field, (before, after) in differing(original, config).items()
        if field not in said
    ]


def mark(original: dict[str, Any] | None, config: dict[str, Any]) -> str:
    """Says how a run differs from its original, if that is known; "" for a full run of it."""
    if original is None:
        return "nothing says which config it was trained by, or whether it was shortened"
    parts = []
    if less := shortened(original, config):
        parts.append(f"SHORTENED: {', '.join(less.values())}")
    if other := changed(original, config):
        parts.append(f"changed: {', '.join(other)}")
    return "; ".join(parts)


def options(original: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Returns the options that make such a run of its original: ["--config.…=…", …]."""
    found = []
    for field, (_, value) in changed_fields(original, config).items():
        if field == "seed":
            continue
        found.append(f"--config.{field}={value}")
    return found
