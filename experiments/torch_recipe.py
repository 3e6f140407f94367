"""Trains the recipe of configs/fast.py in PyTorch, as a check of ours on the same images.

    python -m experiments.torch_recipe --out=results/torch_recipe

Only the images are read by this project's code. The rest is written in plain PyTorch from Jordan,
"94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv 2404.00498), and the hyperparameters
of his script, in their own terms: the sum of the losses of a batch, a learning rate divided by
1,024 images and by 1 + 1 / (1 − momentum), a decay for each group of parameters, a table of
learning rates. It prints a line per epoch, which is also in OUT/metrics.jsonl. The same command
resumes it after the last whole epoch.
"""

import copy
import pathlib
import sys
from typing import Any

import numpy as np

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


def evaluate(
    model: nn.Module, images: Tensor, labels: Tensor, *, views: bool = True
) -> dict[str, float]:
    """Returns the accuracy on single images, and if `views` on the mean of six views of each."""
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
    read = torch_training.read(data_dir)
    (images, labels), (test_images, test_labels) = (
        (read.normalize(pixels), labels) for pixels, labels in (read.train, read.test)
    )
    torch.manual_seed(seed)
    steps_per_epoch = len(images) // BATCH
    model = create_model(images)
    optimizer, rates = create_optimizer(model), learning_rates(EPOCHS * steps_per_epoch)
    average = copy.deepcopy(model)
    slow = average.state_dict()
    mirrored = torch.rand(len(images)) < 0.5  # in every other epoch

    def step(
        epoch: int, batch: int, rows: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        x = torch_training.crop(images[rows], generator, padding=PAD, mode="reflect")
        turn = mirrored[rows] if epoch % 2 == 0 else ~mirrored[rows]
        x[turn] = x[turn].flip(-1)
        x = x.contiguous(memory_format=torch.channels_last)
        number = epoch * steps_per_epoch + batch
        return train_step(model, optimizer, slow, x, labels[rows], number, rates)

    torch_training.run(
        out,
        {"model": model, "optimizer": optimizer, "slow": average},
        labels,
        step,
        lambda epoch: evaluate(model, test_images, test_labels, views=epoch == EPOCHS - 1),
        kind={"seed": seed, "images": read.digests},
        epochs=EPOCHS,
        batch_size=BATCH,
        images_per_epoch=steps_per_epoch * BATCH,
    )


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
