"""Pictures of one run: its network's first layer and mistakes, and what it was trained on."""

import functools
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from experiments.report.pictures import signed_by_run
from experiments.runs.images import training_images
from experiments.runs.read import Run, Sweep
from jaxcifar import augment, programs, restore, sharding
from jaxcifar.config import Config
from jaxcifar.data import Dataset
from jaxcifar.errors import UserError
from jaxcifar.models import layers
from jaxcifar.run import about, plots
from jaxcifar.task import Inference, build_inference, normalization


def _load(
    workdir: pathlib.Path, data_dir: str
) -> tuple[Config, dict[str, Any], Dataset, Inference]:
    mesh = sharding.make_mesh()
    config, _, variables = restore.load_variables(workdir, "best", mesh=mesh)
    config.data.dir = data_dir
    test = restore.test_images(workdir, config)
    return config, variables, test, build_inference(config, test, mesh)


def predictions(run: Run) -> tuple[Dataset, np.ndarray]:
    """Returns the test set and the best checkpoint's probabilities for it, [N, classes]."""
    return _predictions(run.folder, run.config["data.dir"])


@functools.lru_cache(maxsize=2)
def _predictions(workdir: pathlib.Path, data_dir: str) -> tuple[Dataset, np.ndarray]:
    _, variables, test, inference = _load(workdir, data_dir)
    return test, programs.probabilities(inference, variables, test.images)


# --- figure 2 ---------------------------------------------------------------------------------


def fig2(part: Sweep, paths: list[pathlib.Path], image: int = 0) -> None:
    """Draws the first convolution's kernels, and what it makes of one test image.

    The feature maps are those after the convolution, after the normalisation (where the network
    has one) and after the activation; each map is scaled to its own range.
    """
    (run,) = part.runs
    config, variables, test, inference = _load(run.folder, run.config["data.dir"])
    if not 0 <= image < len(test):
        raise UserError(f"--image is {image}; the test images are 0 to {len(test) - 1:,}.")
    called: dict[str, type] = {}  # the layers outside of blocks, in the order of their calls

    def is_outside(module: Any, _: str) -> bool:
        if len(module.path) != 1 or not isinstance(module, layers.Conv | layers.BatchNorm):
            return False
        called[module.path[0]] = type(module)
        return True

    _, captured = inference.model.apply(
        variables,
        inference.normalize(jnp.asarray(test.images[image : image + 1])),
        train=False,
        mutable=["intermediates"],
        capture_intermediates=is_outside,
    )
    outputs = {
        name: np.asarray(captured["intermediates"][name]["__call__"][0][0], np.float32)
        for name in called
    }
    if not outputs:
        raise UserError(
            f"{run.folder}: {config.model.name} has no convolution outside its blocks to draw. "
            "Give the folder of a run with another network."
        )
    conv, *rest = outputs
    stages = {"after the convolution": outputs[conv]}
    if (
        rest
        and called[rest[0]] is layers.BatchNorm
        and outputs[rest[0]].shape == outputs[conv].shape
    ):
        stages["after the normalisation"] = outputs[rest[0]]
    # A Wide ResNet's first block begins with the normalisation, and the activation behind it.
    if len(stages) > 1 or not inference.model.batch_norm:
        act, last = layers.ACTIVATIONS[config.model.activation], list(stages.values())[-1]
        stages[f"after the activation ({config.model.activation})"] = np.asarray(act(last))

    kernels = np.asarray(variables["params"][conv]["kernel"])  # [3, 3, 3, features]
    title = f"First layer of {config.model.name}, and test image {image} "
    title += f"({test.class_names[test.labels[image]]}); colours and maps each to its own range"
    with plots.drawing(*paths, size=(13, 8.8), **signed_by_run(part, title)) as figure:
        panels = figure.subplots(2, 3).flat
        color = kernels - kernels.min((0, 1, 2))
        color = color / np.maximum(color.max((0, 1, 2)), 1e-12)
        panels[0].imshow(mosaic(np.moveaxis(color, -1, 0)))
        panels[0].set_title("kernels, in colour")
        mean = np.moveaxis(kernels.mean(2), -1, 0)
        limit = float(np.abs(mean).max())
        shown = panels[1].imshow(mosaic(mean), cmap="gray", vmin=-limit, vmax=limit)
        panels[1].set_title("kernels, mean of the channels")
        figure.colorbar(shown, ax=panels[1], shrink=0.8, label="weight")
        panels[2].imshow(test.images[image])
        panels[2].set_title(f"test image {image}: {test.class_names[test.labels[image]]}")
        for axes, (name, maps) in zip(list(panels)[3:], stages.items(), strict=False):
            maps = np.moveaxis(maps, -1, 0)
            low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
            axes.imshow(mosaic((maps - low) / np.maximum(high - low, 1e-12)), cmap="gray")
            axes.set_title(f"feature maps {name}")
        for axes in figure.axes[:6]:
            axes.set_axis_off()


def mosaic(tiles: np.ndarray) -> np.ndarray:
    """Lays tiles [n, h, w, …] out as a near-square picture with white gaps."""
    columns = int(np.ceil(np.sqrt(len(tiles))))
    lines = -(-len(tiles) // columns)
    height, width = tiles.shape[1] + 1, tiles.shape[2] + 1
    fill = np.nan if tiles.ndim == 3 else 1.0
    picture = np.full((lines * height - 1, columns * width - 1, *tiles.shape[3:]), fill)
    for i, tile in enumerate(tiles):
        y, x = height * (i // columns), width * (i % columns)
        picture[y : y + tiles.shape[1], x : x + tiles.shape[2]] = tile
    return picture


# --- predictions ------------------------------------------------------------------------------


def confusion(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws which classes are taken for which, as shares of the true class."""
    test, found = predictions(part.runs[0])
    counts = np.zeros(2 * (len(test.class_names),), int)  # [true class, predicted class]
    np.add.at(counts, (test.labels, found.argmax(1)), 1)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)  # a class may have none
    title = f"Confusion on {len(test):,} test images, accuracy {np.trace(counts) / len(test):.2%}"
    ticks, few = range(len(counts)), len(counts) <= 20  # whose numbers can be read
    side = max(6.4, (0.35 if few else 0.16) * len(counts))
    with plots.drawing(*paths, size=(1.125 * side, side), **signed_by_run(part, title)) as figure:
        axes = figure.subplots()
        shown = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        for i, line in enumerate(percent if few else ()):
            for j, value in enumerate(line):
                color = "white" if value > 55 else "black" if value >= 0.5 else "0.7"
                axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=color, fontsize=9)
        turned = {"rotation": 45, "ha": "right"} if few else {"rotation": 90}
        axes.set_xticks(ticks, test.class_names, fontsize=_font(side, len(counts)), **turned)
        axes.set_yticks(ticks, test.class_names, fontsize=_font(side, len(counts)))
        axes.set(xlabel="predicted", ylabel="true")
        axes.spines[:].set_visible(False)
        figure.colorbar(shown, ax=axes, label="of the true class (%)")


def _font(inches: float, lines: int) -> float:
    """Returns a size, in points, at which labels fit beside an axis of a picture so high."""
    return min(10.0, 40 * inches / lines)


def classes(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws the accuracy of each class, with the 95% interval of so many images (Wilson 1927)."""
    test, found = predictions(part.runs[0])
    right = found.argmax(1) == test.labels
    order = []
    for label, name in enumerate(test.class_names):
        of_class = right[test.labels == label]
        if not len(of_class):  # as in a small set of one's own
            continue
        share = float(of_class.mean())
        interval = scipy.stats.binomtest(int(of_class.sum()), len(of_class)).proportion_ci(
            method="wilson"
        )
        order.append((share, name, share - interval.low, interval.high - share))
    order.sort()
    shares, labels, below, above = zip(*order, strict=True)
    errors = 100 * np.maximum(np.array([below, above]), 0)  # rounding can make a 0 negative
    title = f"Accuracy of each class on {len(test):,} test images"
    height = max(4, 0.18 * len(labels))
    with plots.drawing(*paths, size=(7, height), **signed_by_run(part, title)) as figure:
        axes = figure.subplots()
        axes.barh(labels, 100 * np.array(shares), xerr=errors, color="#2f6db5", capsize=3)
        axes.tick_params(axis="y", labelsize=_font(height, len(labels)))
        axes.margins(y=0.01)
        axes.axvline(100 * right.mean(), color="black", ls="--", lw=1, label="mean")
        axes.set(xlabel="accuracy (%), 95% interval", xlim=(0, 100))
        plots.grid(axes)
        axes.legend(loc="lower right", frameon=True)


def mistakes(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws the 40 test images that were classified wrongly with the highest probability."""
    test, found = predictions(part.runs[0])
    predicted, confidence = found.argmax(1), found.max(1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:40]
    title = f"The most confident of {len(wrong):,} mistakes: predicted (probability), true class"
    with plots.drawing(*paths, size=(12, 8.4), **signed_by_run(part, title)) as figure:
        panels = figure.subplots(5, 8)
        for axes in panels.flat:
            axes.set_axis_off()
        for axes, i in zip(panels.flat, worst, strict=False):
            axes.imshow(test.images[i])
            text = f"{test.class_names[predicted[i]]} ({confidence[i]:.0%})"
            axes.set_title(f"{text}\ntrue: {test.class_names[test.labels[i]]}", fontsize=8)


# --- augmentation -----------------------------------------------------------------------------


def augmentations(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws what each transform, with the run's strengths, does to eight training images."""
    (run,) = part.runs
    config = about.of_run(run.folder).config
    config.data.dir = run.config["data.dir"]
    train_set = training_images(run.folder, config)
    images = train_set.images[:8]
    given = config.augment.to_dict()
    mean = 255 * jnp.asarray(normalization(config, train_set)["mean"])[None, None, None]

    def recipe(transform: Callable[..., jax.Array], key: jax.Array, images: jax.Array) -> jax.Array:
        """As in training, in an epoch that mirrors every other image if the run alternates."""
        own = inspect.signature(transform).parameters
        strengths = {name: value for name, value in given.items() if name in own}
        if given["flip"] == "alternating":
            images = jnp.where(odd, images[:, :, ::-1], images)
        centered = lambda x: x.astype(jnp.float32) - mean  # noqa: E731
        return mean + transform(key, images, normalize=centered, **strengths)

    odd = (jnp.arange(len(images)) % 2 == 1)[:, None, None, None]

    jitter = {name: given[name] for name in ("brightness", "contrast", "saturation", "hue")}
    erasing = {"area": given["erasing_area"], "ratio": given["erasing_ratio"], "fill": mean}
    probability = given["erasing_probability"]
    transforms: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
        "original": lambda _, images: images,
        "random_crop": functools.partial(
            augment.random_crop, padding=given["padding"], padding_mode=given["padding_mode"]
        ),
        "random_flip": augment.random_flip,
        "color_jitter": functools.partial(augment.color_jitter, **jitter),
        "random_rotation": functools.partial(augment.random_rotation, degrees=given["rotation"]),
        "random_affine": functools.partial(augment.random_affine, translation=given["translation"]),
        f"random_erasing\n(every image; {probability:g}\nof them in training)": functools.partial(
            augment.random_erasing, probability=1.0, **erasing
        ),
        "weak": functools.partial(recipe, augment.weak),
        "strong": functools.partial(recipe, augment.strong),
    }
    title = "Augmentation: one draw for each image"
    with plots.drawing(*paths, size=(9, 9.6), **signed_by_run(part, title)) as figure:
        panels = figure.subplots(len(transforms), len(images))
        key = jax.random.key(0)
        for line, (name, transform) in zip(panels, transforms.items(), strict=True):
            changed = np.asarray(transform(key, jnp.asarray(images)), np.float32) / 255
            for axes, image in zip(line, changed, strict=True):
                axes.imshow(np.clip(image, 0, 1))
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center")
