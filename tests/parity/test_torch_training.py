"""The trainings in PyTorch whose results ours are compared with, experiments/torch_*.py."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxcifar import data, options
from jaxcifar.config import base_config, changed_fields
from jaxcifar.errors import UserError
from jaxcifar.files import read_lines

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")

from experiments import torch_models, torch_rows, torch_training  # noqa: E402 - they need torch

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("padding", "mode", "numpys"), [(2, "reflect", "reflect"), (1, "constant", "constant")]
)
def test_a_crop_is_a_slice_of_the_padded_image(padding, mode, numpys):
    """At each of its places, for images with their own draws."""
    images = RANDOM.normal(size=(400, 1, 32, 32)).astype(np.float32)
    generator = torch.Generator().manual_seed(0)
    found = torch_training.crop(torch.tensor(images), generator, padding=padding, mode=mode).numpy()
    padded = np.pad(images, ((0, 0), (0, 0), (padding,) * 2, (padding,) * 2), mode=numpys)
    side = range(2 * padding + 1)
    places = [(row, column) for row in side for column in side]
    taken = []
    for image, result in zip(padded, found, strict=True):
        slices = [image[:, row : row + 32, column : column + 32] for row, column in places]
        (place,) = [i for i, each in enumerate(slices) if np.array_equal(each, result)]
        taken.append(place)
    expected = len(images) / len(places)
    assert np.bincount(taken, minlength=len(places)).min() > expected / 4


def test_the_border_is_black():
    found = torch_rows.augment(torch.ones(100, 3, 32, 32), torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 1.0}


def test_about_half_of_the_images_are_mirrored():
    images = torch.arange(32.0).expand(400, 1, 32, 32)
    found = torch_rows.augment(images, torch.Generator().manual_seed(0))
    falling = (found[:, 0, 16, 8] > found[:, 0, 16, 23]).float().mean()
    assert 0.4 < falling < 0.6


@pytest.mark.parametrize("row", torch_rows.ROWS)
def test_a_row_is_what_its_config_says(row):
    config = options.load(CONFIGS / f"{row}.py")
    assert torch_rows.ROWS[row] == (config.model.name, config.optim.learning_rate)
    assert (config.train.epochs, config.train.batch_size) == (torch_rows.EPOCHS, torch_rows.BATCH)
    assert (config.optim.name, config.data.augment, config.augment.padding) == ("adam", "weak", 4)
    assert config.model.dropout_rate == 0
    named = {"model.name", "model.dropout_rate", "optim.learning_rate"}
    assert changed_fields(base_config(), config).keys() <= named  # all else is as by default


def test_the_learning_rate_is_that_of_pytorchs_schedule():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for epoch in range(50):
        expected = optimizer.param_groups[0]["lr"]
        assert torch_rows.learning_rate(0.3, epoch) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        schedule.step()


def test_evaluation():
    """Of more images than are evaluated at once."""
    logits = torch.tensor(RANDOM.normal(size=(1100, 3)))
    labels = torch.tensor(RANDOM.integers(0, 3, 1100))
    found = torch_rows.evaluate(torch.nn.Identity(), logits, labels)
    shares = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    loss = -np.log(shares[np.arange(1100), labels.numpy()]).mean()
    assert found["val_loss"] == pytest.approx(loss, rel=1e-9)
    assert found["val_accuracy"] == np.mean(shares.argmax(1) == labels.numpy())


def test_each_epoch_shows_the_images_in_its_own_order(tmp_path):
    labels, shown = torch.arange(10) % 3, []

    def step(epoch, batch, rows, generator):
        shown.append((epoch, batch, rows.tolist()))
        return torch.eye(3)[torch.ones_like(rows)], 2.0 * len(rows)

    torch_training.run(
        tmp_path,
        {"model": torch.nn.Identity()},
        labels,
        step,
        lambda epoch: {"measured": epoch},
        kind={"seed": 0},
        epochs=2,
        batch_size=4,
        images_per_epoch=10,
    )
    at = [(epoch, batch, len(rows)) for epoch, batch, rows in shown]
    assert at == [(0, 0, 4), (0, 1, 4), (0, 2, 2), (1, 0, 4), (1, 1, 4), (1, 2, 2)]
    first, second = ([row for *_, rows in part for row in rows] for part in (shown[:3], shown[3:]))
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second
    records = read_lines(tmp_path / "metrics.jsonl")
    assert [each.pop("images_per_second") > 0 for each in records] == [True, True]
    same = {"train_ce": 2.0, "train_accuracy": 0.3}
    assert records == [{"epoch": 1, "measured": 0} | same, {"epoch": 2, "measured": 1} | same]


@pytest.fixture
def small(monkeypatch):
    """Ten images in batches of 4, of which the last has 2, and narrow networks."""
    images = data.load("synthetic", "train", size=10)
    monkeypatch.setattr(data, "load", lambda *_, **__: images)
    create = torch_models.create
    monkeypatch.setattr(torch_models, "create", lambda name: create(name, width=0.0625))
    monkeypatch.setattr(torch_rows, "BATCH", 4)
    return images


@pytest.mark.slow
def test_a_run_that_is_resumed_is_the_run_that_was_not(tmp_path, small):
    def trained(name, *epochs):
        for each in epochs:
            torch_rows.train("vgg6", tmp_path / name, "", 0, each)
        records = read_lines(tmp_path / name / "metrics.jsonl")
        return [{k: v for k, v in each.items() if k != "images_per_second"} for each in records]

    whole = trained("whole", 3)
    assert [each["epoch"] for each in whole] == [1, 2, 3]
    assert trained("resumed", 1, 3) == whole
    (tmp_path / "resumed" / "metrics.jsonl").unlink()  # as a kill between two files leaves it
    assert trained("resumed", 3) == whole


@pytest.mark.slow
def test_a_folder_holds_one_run(tmp_path, small, monkeypatch):
    torch_rows.train("vgg4", tmp_path, "", 0, 1)
    with pytest.raises(
        UserError, match=r"holds a run that differs in row, seed\. Choose another --out"
    ):
        torch_rows.train("vgg3", tmp_path, "", 1, 1)
    other = dataclasses.replace(small, provenance=small.provenance | {"sha256": "0123"})
    monkeypatch.setattr(data, "load", lambda *_, **__: other)
    with pytest.raises(UserError, match="holds a run that differs in images"):
        torch_rows.train("vgg4", tmp_path, "", 0, 1)
