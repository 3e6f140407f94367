"""Trains a row of the report's Table 4 in PyTorch, as a check of ours on the same images.

    python -m experiments.torch_rows vgg4 --out=results/torch_vgg4
    python -m experiments.torch_rows vgg4 --epochs=10 --out=results/torch_vgg4

Only the images are read by this project's code. The rest is plain PyTorch, written from the report:
networks by their paper, Adam, a learning rate that falls by a cosine over 50 epochs, batches of 256
of which the last of each epoch has 80, random crop and flip. With --epochs it stops early. It
prints a line per epoch, which is also in OUT/metrics.jsonl. The same command resumes it after the
last whole epoch.
"""

import math
import pathlib
import sys

from jaxcifar import options
from jaxcifar.errors import note
from jaxcifar.signals import exit_code

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from experiments import torch_models, torch_training
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name != "torch":
        raise
    note("This needs PyTorch: pip install 'jaxcifar[torch]'.")
    sys.exit(2)

EPOCHS, BATCH = 50, 256
MODELS = {"vgg_a": (1, 2, 3, 4), "vgg_a_bn": (5, 6, 7, 8)}
RATES = 3e-3, 1e-3, 5e-4, 1e-4
# Of each row: the model and the highest learning rate.
ROWS = {
    f"vgg{number}": (model, rate)
    for model, numbers in MODELS.items()
    for number, rate in zip(numbers, RATES, strict=True)
}


def learning_rate(highest: float, epoch: int) -> float:
    """Returns the learning rate in an epoch, counted from 0."""
    return highest * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Crops images [N, C, 32, 32] from a border of 4 black pixels, and mirrors half of them."""
    images = torch_training.crop(images, generator, padding=4, mode="constant")
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def evaluate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Returns the mean loss and the accuracy."""
    loss, right = 0.0, 0
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):
        logits = model(x)
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
        right += int((logits.argmax(1) == y).sum())
    return {"val_loss": loss / len(labels), "val_accuracy": right / len(labels)}


def train(row: str, out: pathlib.Path, data_dir: str, seed: int, epochs: int = EPOCHS) -> None:
    """Trains to the given epoch, from the start or after the last epoch that was saved."""
    images = torch_training.read(data_dir)
    (pixels, labels), (test_pixels, test_labels) = images.train, images.test
    test_images = images.normalize(test_pixels)
    name, highest = ROWS[row]
    torch.manual_seed(seed)
    model = torch_models.create(name).to(memory_format=torch.channels_last)  # faster on CPUs
    optimizer = torch.optim.Adam(model.parameters(), lr=highest)

    def step(epoch: int, _: int, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, float]:
        optimizer.param_groups[0]["lr"] = learning_rate(highest, epoch)
        x = images.normalize(augment(pixels[rows], generator))
        logits = model(x.contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return logits, float(loss.detach()) * len(rows)

    torch_training.run(
        out,
        {"model": model, "optimizer": optimizer},
        labels,
        step,
        lambda _: evaluate(model, test_images, test_labels),
        kind={"row": row, "seed": seed, "images": images.digests},
        epochs=epochs,
        batch_size=BATCH,
        images_per_epoch=len(labels),
    )


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser("python -m experiments.torch_rows", __doc__)
    parser.add_argument("row", choices=ROWS, metavar="ROW", help="one of " + " ".join(ROWS))
    parser.add_argument("--out", type=options.user_path, required=True, help="a folder")
    parser.add_argument("--data-dir", default="", help="of the images, as --config.data.dir")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--epochs",
        type=int,
        choices=range(1, EPOCHS + 1),
        metavar="N",
        default=EPOCHS,
        help=f"to stop after, of {EPOCHS}",
    )
    args = parser.parse_args(argv)
    train(args.row, args.out, args.data_dir, args.seed, args.epochs)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
