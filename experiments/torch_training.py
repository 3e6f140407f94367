"""What trainings in plain PyTorch share: this project's images, a random crop, and resuming."""

import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from jaxcifar import data
from jaxcifar.errors import UserError
from jaxcifar.files import replace

# Trains on the images at the given places of a batch: (epoch, batch, places, generator), counted
# from 0. Returns the logits and the sum of the losses.
Step = Callable[[int, int, Tensor, torch.Generator], tuple[Tensor, float]]


class Images(NamedTuple):
    """The images of a data set: [N, 3, H, W] float32 in the range 0 … 1, and [N] int64 labels."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    mean: Tensor  # [3, 1, 1]
    std: Tensor
    digests: list[str]

    def normalize(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


def read(data_dir: str) -> Images:
    """Returns the images of CIFAR-10."""
    parts = [data.load("cifar10", name, data_dir=data_dir) for name in ("train", "test")]
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (parts[0].mean, parts[0].std))
    train, test = (
        (
            torch.from_numpy(part.images).permute(0, 3, 1, 2) / 255,
            torch.from_numpy(part.labels).long(),
        )
        for part in parts
    )
    return Images(train, test, mean, std, [part.provenance["sha256"] for part in parts])


def crop(images: Tensor, generator: torch.Generator, *, padding: int, mode: str) -> Tensor:
    """Moves each image [N, C, H, W] by up to `padding` pixels over its border, see `F.pad`."""
    height, width = images.shape[2:]
    padded = F.pad(images, (padding,) * 4, mode)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, len(images)), generator=generator)
    out = torch.empty_like(images)
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            chosen = (rows == row) & (columns == column)
            out[chosen] = padded[chosen, :, row : row + height, column : column + width]
    return out


def run(
    out: pathlib.Path,
    parts: Mapping[str, Any],
    labels: Tensor,
    step: Step,
    evaluate: Callable[[int], dict[str, float]],
    *,
    kind: dict[str, Any],
    epochs: int,
    batch_size: int,
    images_per_epoch: int,
) -> None:
    """Trains to the last of `epochs`, from the start or after the last epoch that was saved.

    Args:
      out: the folder; it gets a line per epoch in metrics.jsonl, and what resumes it.
      parts: by name, the model, the optimizer and whatever else has a state_dict that changes.
      labels: [N] int64.
      step: trains on a batch.
      evaluate: returns what is measured after an epoch.
      kind: what a run is of, its "seed" among it; `out` may hold no run of another kind.
      epochs: the number of epochs.
      batch_size: in images. If it does not divide `images_per_epoch`, the last batch is smaller.
      images_per_epoch: of the N.

    Raises:
      UserError: `out` holds another run.
    """
    out.mkdir(parents=True, exist_ok=True)
    model, records = parts["model"], []
    if (out / "state.pt").exists():
        saved = torch.load(out / "state.pt", weights_only=True)
        if (found := saved.get("kind", {})) != kind:  # an earlier version had none
            names = ", ".join(name for name in kind if found.get(name) != kind[name])
            raise UserError(f"{out} holds a run that differs in {names}. Choose another --out.")
        records = saved["records"]
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        _write(records, out)  # which may have been lost, or not written yet
    for epoch in range(len(records), epochs):
        began = time.monotonic()
        generator = torch.Generator().manual_seed(1000 * kind["seed"] + epoch)
        order = torch.randperm(len(labels), generator=generator)[:images_per_epoch]
        loss_sum, right = 0.0, 0
        model.train()
        for batch, rows in enumerate(order.split(batch_size)):
            logits, loss = step(epoch, batch, rows, generator)
            loss_sum += loss
            right += int((logits.argmax(1) == labels[rows]).sum())
        seconds = time.monotonic() - began
        model.eval()
        with torch.no_grad():
            measured = evaluate(epoch)
        record = {
            "epoch": epoch + 1,
            "train_ce": loss_sum / images_per_epoch,
            "train_accuracy": right / images_per_epoch,
            **measured,
            "images_per_second": images_per_epoch / seconds,
        }
        records.append(record)
        print({name: round(value, 4) for name, value in record.items()}, flush=True)
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({"kind": kind, "records": records, "parts": states}, out / "state.tmp")
        (out / "state.tmp").replace(out / "state.pt")
        _write(records, out)


def _write(records: list[dict[str, float]], out: pathlib.Path) -> None:
    replace(out / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in records))
