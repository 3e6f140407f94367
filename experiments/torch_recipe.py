"""Trains the recipe of configs/fast.py in PyTorch, as a check of ours on the same images.

    python -m experiments.torch_recipe --out=results/torch_recipe

Only the images are read by this project's code. The rest is written in plain PyTorch from Jordan,
"94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv 2404.00498), and the hyperparameters
of his script, in their own terms: the sum of the losses of a batch, a learning rate divided by
1,024 images and by 1 + 1 / (1 − momentum), a decay for each group of parameters, a table of
learning rates. It prints a line per epoch, which is also in OUT/metrics.jsonl. The same command
resumes it after the last whole epoch.
"""

import json
import pathlib
import sys
import time
from typing import Any

import numpy as np

from jaxcifar import data, options
from jaxcifar.errors import UserError, note
from jaxcifar.files import replace
from jaxcifar.signals import exit_code

try:
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from experiments import torch_models
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name != "torch":
        raise
    note("This needs PyTorch: pip install 'jaxcifar[torch]'.")
    sys.exit(2)

EPOCHS, BATCH = 10, 1024
RATE, DECAY, MOMENTUM, BIAS_SCALE = 11.5, 0.0153, 0.85, 64.0
SMOOTHING, PAD = 0.2, 2


def create_model(images: Tensor, width: float = 1.0) -> nn.Module:
    """Returns the network as its training begins: whitening, and convolutions that copy."""
    model = torch_models.create("airbench94", activation="gelu", width=width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.reset_parameters()
            nn.init.dirac_(module.weight.data[: module.in_channels])
    whitening: Any = model.whitening
    nn.init.zeros_(whitening.bias)
    patches = F.unfold(images[:5000], 2).transpose(1, 2).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / torch.sqrt(values + 5e-4)).T.flip(0).reshape(12, 3, 2, 2)
    whitening.weight.data.copy_(torch.cat([filters, -filters]))
    return model.to(memory_format=torch.channels_last)  # faster on CPUs


def create_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Returns SGD for the sum of the losses of a batch, at its highest learning rate."""
    kilostep = 1024 * (1 + 1 / (1 - MOMENTUM))
    rate, decay = RATE / kilostep, DECAY * BATCH / kilostep
    biases, others = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (biases if "norm" in name else others).append(parameter)
    groups = [
        {"params": group, "initial_lr": highest, "weight_decay": decay / highest}
        for group, highest in ((biases, rate * BIAS_SCALE), (others, rate))
    ]
    return torch.optim.SGD(groups, lr=rate, momentum=MOMENTUM, nesterov=True)


def learning_rates(steps: int) -> np.ndarray:
    """Returns the share of the highest learning rate at each step, 0 … steps."""
    return np.interp(np.arange(steps + 1), [0, int(0.23 * steps), steps], [0.2, 1.0, 0.07])


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    slow: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    step: int,
    rates: np.ndarray,
) -> tuple[Tensor, float]:
    """Makes step `step`, from 0, with Lookahead; returns the logits and the sum of the losses."""
    for group in optimizer.param_groups:
        group["lr"] = float(group["initial_lr"] * rates[step])  # torch.load refuses NumPy's
    logits = model(images)
    loss = F.cross_entropy(logits, labels, label_smoothing=SMOOTHING, reduction="sum")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if (step + 1) % 5 == 0:
        decay = 0.95**5 * ((step + 1) / (len(rates) - 1)) ** 3
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                value.copy_(slow[name].lerp_(value, 1 - decay))
    return logits, float(loss.detach())


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each image [N, C, 32, 32] by up to two pixels over its reflected border."""
    padded = F.pad(images, (PAD,) * 4, "reflect")
    rows, columns = torch.randint(0, 2 * PAD + 1, (2, len(images)), generator=generator)
    out = torch.empty_like(images)
    for row in range(2 * PAD + 1):
        for column in range(2 * PAD + 1):
            chosen = (rows == row) & (columns == column)
            out[chosen] = padded[chosen, :, row : row + 32, column : column + 32]
    return out


@torch.no_grad()
def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, views: bool = True
) -> dict[str, float]:
    """Returns the accuracy on single images, and if `views` on the mean of six views of each."""
    model.eval()
    single, six = 0, 0
    for x, y in zip(images.split(1000), labels.split(1000), strict=True):

        def mirrored(x: Tensor) -> Tensor:
            return (model(x) + model(x.flip(-1))) / 2

        single += int((model(x).argmax(1) == y).sum())
        if views:
            padded = F.pad(x, (1,) * 4, "reflect")
            moved = mirrored(padded[:, :, :32, :32]) + mirrored(padded[:, :, 2:, 2:])
            six += int(((mirrored(x) / 2 + moved / 4).argmax(1) == y).sum())
    found = {"val_accuracy_one_view": single / len(labels)}
    return found | ({"val_accuracy": six / len(labels)} if views else {})


def train(out: pathlib.Path, data_dir: str, seed: int) -> None:
    """Trains to the last epoch, from the start or after the last epoch that was saved."""
    parts = [data.load("cifar10", name, data_dir=data_dir) for name in ("train", "test")]
    digests = [part.provenance["sha256"] for part in parts]
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (parts[0].mean, parts[0].std))
    (images, labels), (test_images, test_labels) = (
        (
            (torch.from_numpy(part.images).permute(0, 3, 1, 2) / 255 - mean) / std,
            torch.from_numpy(part.labels).long(),
        )
        for part in parts
    )
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    steps_per_epoch = len(images) // BATCH
    model = create_model(images)
    optimizer, rates = create_optimizer(model), learning_rates(EPOCHS * steps_per_epoch)
    slow = {name: value.clone() for name, value in model.state_dict().items()}
    mirrored = torch.rand(len(images)) < 0.5  # in every other epoch
    records: list[dict[str, float]] = []
    if (out / "state.pt").exists():
        saved = torch.load(out / "state.pt", weights_only=True)
        if saved["seed"] != seed:
            raise UserError(f"{out} holds a run of seed {saved['seed']}. Choose another --out.")
        if saved.get("images", digests) != digests:
            raise UserError(f"{out} holds a run on other images. Choose another --out.")
        records, slow, mirrored = saved["records"], saved["slow"], saved["mirrored"]
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        _write(records, out)  # which may have been lost, or not written yet
    for epoch in range(len(records), EPOCHS):
        began, generator = time.monotonic(), torch.Generator().manual_seed(1000 * seed + epoch)
        order = torch.randperm(len(images), generator=generator)
        loss_sum, right = 0.0, 0
        model.train()
        for batch in range(steps_per_epoch):
            rows = order[batch * BATCH : (batch + 1) * BATCH]
            x, y, turn = crop(images[rows], generator), labels[rows], mirrored[rows]
            turn = turn if epoch % 2 == 0 else ~turn
            x[turn] = x[turn].flip(-1)
            x = x.contiguous(memory_format=torch.channels_last)
            step = epoch * steps_per_epoch + batch
            logits, loss = train_step(model, optimizer, slow, x, y, step, rates)
            loss_sum += loss
            right += int((logits.argmax(1) == y).sum())
        seen, seconds = steps_per_epoch * BATCH, time.monotonic() - began
        record = {
            "epoch": epoch + 1,
            "train_ce": loss_sum / seen,
            "train_accuracy": right / seen,
            **evaluate(model, test_images, test_labels, views=epoch == EPOCHS - 1),
            "images_per_second": seen / seconds,
        }
        records.append(record)
        print({name: round(value, 4) for name, value in record.items()}, flush=True)
        torch.save(
            {
                "seed": seed,
                "images": digests,
                "records": records,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "slow": slow,
                "mirrored": mirrored,
            },
            out / "state.tmp",
        )
        (out / "state.tmp").replace(out / "state.pt")
        _write(records, out)


def _write(records: list[dict[str, float]], out: pathlib.Path) -> None:
    replace(out / "metrics.jsonl", "".join(json.dumps(each) + "\n" for each in records))


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser("python -m experiments.torch_recipe", __doc__)
    parser.add_argument("--out", type=options.user_path, required=True, help="a folder")
    parser.add_argument("--data-dir", default="", help="of the images, as --config.data.dir")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    train(args.out, args.data_dir, args.seed)
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
