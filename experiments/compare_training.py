"""Trains networks on two versions of the same images: what does training on the other cost?

    python -m experiments.compare_training original.npz --out=FILE.json --configs=fast
    python -m experiments.compare_training original.npz --out=FILE.json --rows=vgg6 --folds=5

FILE.npz holds another version of some training images, as for `experiments.compare_images`. Those
images are divided into folds. Each fold is left out in turn: two networks are trained on the other
folds, one on the data set's own images and one on those of the file, from the same initial weights
and with the same draws. Both are tested on the fold, in both versions. So each image is tested, and
nothing but the pixels differs.

The same command resumes it after the last network that was trained. Options such as
--config.train.epochs=40 change the config; few images need many epochs, and a small batch. All
images of the file are used: data.protocol and train.limit_train_images have no effect.
"""

import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.compare_images import read_images
from experiments.runs.configs import named
from experiments.runs.read import read_json
from experiments.runs.resuming import check_same
from experiments.runs.stats import estimate
from experiments.runs.table import Table
from jaxcifar import checks, data, programs, sharding, task
from jaxcifar.config import Config, flatten
from jaxcifar.data.dataset import fingerprint
from jaxcifar.errors import UserError
from jaxcifar.files import write_json
from jaxcifar.kernels import compilation
from jaxcifar.options import Parser, user_path, with_options
from jaxcifar.run.machine import environment
from jaxcifar.signals import exit_code

VERSIONS = "ours", "theirs"


def fit(config: Config, images: data.Dataset) -> tuple[task.Inference, dict[str, Any], float]:
    """Trains a network; returns what evaluates it, its variables, and the last step's loss.

    They are the weights after the last step, or their average if the config keeps one.

    Raises:
      UserError: the loss is not finite.
    """
    mesh = sharding.make_mesh()
    built = task.build(config, images, mesh)
    numbers = sharding.replicate(task.hyperparams(config), mesh)
    rows, labels = programs.on_devices(images, mesh)
    seed = sharding.replicate(np.uint32(config.seed), mesh)
    state, metrics = programs.init(built)(seed, numbers, rows), {}
    for epoch in range(1, config.train.epochs + 1):
        order, step = programs.order(built)(state.key, epoch), 0
        while step < built.steps_per_epoch:
            steps = built.steps_from(step)
            state, metrics = programs.train(built, steps)(state, numbers, rows, labels, order)
            step += steps
    if not math.isfinite(loss := float(metrics["loss"][-1])):
        raise UserError(
            f"The loss is {loss} after the last step. Lower --config.optim.learning_rate, which is "
            f"{config.optim.learning_rate}."
        )
    return built.inference, state.variables if state.ema is None else state.ema, loss


def folds(n: int, count: int) -> list[np.ndarray]:
    """Returns `count` parts of 0 … n − 1 of about equal size, drawn at random, but always alike."""
    return np.array_split(np.random.default_rng(0).permutation(n), count)


def compare(
    config: Config,
    versions: dict[str, data.Dataset],
    left_out: np.ndarray,
    trained_on: str,
) -> dict[str, Any]:
    """Trains on one version of the images but those left out, and tests on both versions of these.

    Returns:
      {"loss": of the last step, "ours", "theirs": the accuracies}.
    """
    rest = np.setdiff1d(np.arange(len(versions[trained_on])), left_out)
    inference, variables, loss = fit(config, versions[trained_on].take(rest, "some folds"))
    found: dict[str, Any] = {"loss": loss}
    for tested_on, images in versions.items():
        answers = programs.probabilities(inference, variables, images.images[left_out]).argmax(1)
        found[tested_on] = float(np.mean(answers == images.labels[left_out]))
    return found


def table(results: list[dict[str, Any]]) -> Table:
    """Returns the accuracies by fold, and their means where every fold has both networks.

    Args:
      results: what `compare` returned, each with "fold" and "trained_on".
    """
    accuracies: dict[int, dict[tuple[str, str], float]] = {}
    for result in results:
        of_fold = accuracies.setdefault(result["fold"], {})
        of_fold |= {(result["trained_on"], tested): result[tested] for tested in VERSIONS}
    pairs = list(itertools.product(VERSIONS, VERSIONS))
    whole = {fold: found for fold, found in accuracies.items() if len(found) == len(pairs)}
    columns = [[found[pair] for found in whole.values()] for pair in pairs]
    columns.append([b - a for a, b in zip(columns[0], columns[-1], strict=True)])
    lines = [
        [str(fold), *(f"{100 * value:.2f}" for value in values)]
        for fold, *values in zip(whole, *columns, strict=True)
    ]
    if whole:
        means = [estimate(values) for values in columns]
        shown = [f"{100 * mean.mean:.2f} ± {100 * mean.half:.2f}" for mean in means]
        lines.append(["mean", *shown])
    header = [f"{trained} → {tested}" for trained, tested in pairs]
    title = (
        "Accuracy (%), trained on → tested on; the mean with half the width of its 95% interval "
        "over folds (Student's t)"
    )
    return Table(title, ["fold", *header, "theirs → theirs, less ours → ours"], lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = Parser("python -m experiments.compare_training", __doc__)
    parser.add_argument("file", type=user_path, help="the other version, an .npz file")
    parser.add_argument("--rows", help="a row of the original report, such as vgg6")
    parser.add_argument("--configs", help="or a config file")
    parser.add_argument("--folds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--out", type=user_path, required=True, help="a JSON file")
    arguments, options = parser.parse_known_args(argv)
    (source, *others) = named(arguments.rows, arguments.configs)
    if others:
        raise UserError(f"Name one config; these are {1 + len(others)}.")
    if not arguments.out.parent.is_dir():
        raise UserError(f"There is no folder {arguments.out.parent} to write {arguments.out} in.")
    config = with_options(source.config, options)
    mesh = sharding.make_mesh()
    checks.check_config(config, mesh)
    if config.init_from:
        raise UserError(
            f"config.init_from is {config.init_from!r}, but these networks start from random "
            "weights, as others have seen the images that they are tested on. Leave it out."
        )
    train = data.load(config.data.name, "train", data_dir=config.data.dir)
    theirs, places = read_images(arguments.file, train)
    if not 2 <= arguments.folds <= len(places):
        raise UserError(f"--folds is {arguments.folds}; give 2 to {len(places)}.")
    ours = train.take(places, "images of which there is another version")
    other = dataclasses.replace(ours, images=theirs)
    versions = dict(zip(VERSIONS, (ours, other), strict=True))
    settings = flatten(config) | {"name": source.name, "folds": arguments.folds}
    settings |= {"dtype": task.build(config, ours, mesh).in_force["dtype"]}
    settings |= {
        f"sha256_{name}": fingerprint(images.images, images.labels)
        for name, images in versions.items()
    }
    content: dict[str, Any] = {"settings": settings, "environment": [], "results": []}
    if arguments.out.exists():
        content = read_json(arguments.out)
        # Earlier versions recorded no dtype. "auto" is this one on CPUs.
        on_cpu = (content.get("environment") or [{}])[0].get("cpu")
        there = {"dtype": "float32" if on_cpu else settings["dtype"]}
        check_same(arguments.out, there | content.get("settings", {}), settings)
    done = {(result["fold"], result["trained_on"]) for result in content["results"]}
    content["environment"].append(environment({}, mesh))
    compilation.use_cache()
    parts = folds(len(places), arguments.folds)
    for (fold, left_out), version in itertools.product(enumerate(parts), VERSIONS):
        if (fold, version) in done:
            continue
        found = compare(config, versions, left_out, version)
        content["results"].append({"fold": fold, "trained_on": version, **found})
        write_json(arguments.out, content)
        print(
            f"fold {fold}, trained on {version}: loss {found['loss']:.4f}, accuracy "
            f"{found['ours']:.2%} on ours, {found['theirs']:.2%} on theirs",
            flush=True,
        )
    print(table(content["results"]))


if __name__ == "__main__":
    sys.exit(exit_code(main))
