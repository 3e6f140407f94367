"""How a run differs from its config, in words."""

import pytest

from experiments.runs import marks
from jaxcifar.config import base_config, flatten


def of(epochs=50, images=0, **fields):
    """A flat config."""
    return flatten(base_config()) | {
        "train.epochs": epochs,
        "train.limit_train_images": images,
        **{name.replace("__", "."): value for name, value in fields.items()},
    }


@pytest.mark.parametrize(
    ("original", "run", "mark"),
    [
        (of(), of(seed=7, data__dir="/data"), ""),
        (of(), of(model__dtype="float32"), ""),  # the one in force is in the environment
        (of(), of(epochs=3, images=1000), "SHORTENED: 3 of 50 epochs, 1,000 of 50,000 images"),
        (of(), of(epochs=60), "changed: train.epochs 50 -> 60"),
        (of(), of(images=50_000), ""),
        (of(images=1000), of(images=500), "SHORTENED: 500 of 1,000 images"),
        (of(images=1000), of(images=2000), "changed: train.limit_train_images 1000 -> 2000"),
        (of(images=1000), of(), "changed: train.limit_train_images 1000 -> 0"),
        # All images that are left to train on.
        (of(), of(data__protocol="holdout"), "changed: data.protocol test -> holdout"),
        (
            of(data__protocol="holdout"),
            of(data__protocol="holdout", images=45_000),
            "",
        ),
        (
            of(data__protocol="holdout"),
            of(data__protocol="holdout", images=40_000),
            "SHORTENED: 40,000 of 45,000 images",
        ),
        # How many there are is not known.
        (of(data__name="digits"), of(data__name="digits", images=64), "SHORTENED: 64 images"),
        (
            of(data__name="digits", images=64),
            of(data__name="digits"),
            "changed: train.limit_train_images 64 -> 0",
        ),
    ],
)
def test_mark(original, run, mark):
    assert marks.mark(original, run) == mark
