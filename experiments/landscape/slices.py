"""The loss around a trained network, along random filter-normalised directions.

Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets". `experiments.landscape` is the
command.
"""

import json
import pathlib
import time
import zipfile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.colors import LogNorm

from experiments.runs import names
from experiments.runs.images import training_images
from experiments.runs.kinds import anything, check_keys, count, flag, or_none, text
from experiments.runs.provenance import checksum
from experiments.runs.read import read_json, read_run
from experiments.runs.resuming import check_same
from jaxcifar import programs, restore, sharding
from jaxcifar.errors import Interrupted, UserError, in_short, of_file
from jaxcifar.files import replacing
from jaxcifar.models import create_model
from jaxcifar.run import plots
from jaxcifar.run.machine import environment
from jaxcifar.run.progress import duration
from jaxcifar.signals import interruptible
from jaxcifar.task import build_inference

_moved = jax.jit(optax.tree.add_scale)


def filter_normalized_direction(key: jax.Array, params: Any) -> Any:
    """Draws a direction whose every filter has the norm of the parameters' filter.

    A filter is what makes one output: [h, w, in] of a convolution, [in] of a linear layer. Biases
    and BatchNorm's scales stay where they are. Li et al. 2018, section 4.

    Args:
      key: a PRNG key.
      params: the parameters of a network.

    Returns:
      A tree like `params`.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))

    def of_leaf(key: jax.Array, leaf: jax.Array) -> jax.Array:
        if leaf.ndim < 2:
            return jnp.zeros_like(leaf)
        direction = jax.random.normal(key, leaf.shape, leaf.dtype)
        axes = tuple(range(leaf.ndim - 1))
        norms = [jnp.sqrt(jnp.sum(jnp.square(x), axes, keepdims=True)) for x in (leaf, direction)]
        return direction * (norms[0] / norms[1])

    drawn = [of_leaf(key, leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


class Slice(NamedTuple):
    """Where the loss is evaluated, and how.

    Attributes:
      dimensions: 1, a line; or 2, a square grid.
      points: along each direction.
      extent: from −extent to extent, in units of the filters' norms.
      images: the loss is the mean over so many images: the first that the run was trained on, not
        augmented.
      checkpoint: "best" or "last".
      seed: of the directions.
    """

    dimensions: int
    points: int
    extent: float
    images: int
    checkpoint: str
    seed: int


def slice_around(
    workdir: pathlib.Path, path: pathlib.Path, what: Slice, data_dir: str
) -> dict[str, Any]:
    """Evaluates the loss on a line or a square grid around a run's checkpoint.

    BatchNorm has the checkpoint's running statistics at every point.

    Args:
      workdir: of the run.
      path: an .npz file, written every half minute; an interrupted call resumes from it.
      what: is evaluated.
      data_dir: the folder of the images; "" is the run's.

    Returns:
      What the file holds: "coordinates" [points], "loss" and "accuracy" [points] or
      [points, points] (the first direction along the first axis), "done" of the same shape, and
      the dicts "settings" and "environment".

    Raises:
      UserError: the file has other settings, the run has no such checkpoint or was trained on
        other images, or there are too few of them.
      Interrupted: SIGINT or SIGTERM came; everything so far is saved.
    """
    mesh = sharding.make_mesh()
    config, step, variables = restore.load_variables(workdir, what.checkpoint, mesh=mesh)
    config.data.test_augment = "none"  # the loss is of the images themselves
    config.data.dir = data_dir or config.data.dir
    images = training_images(workdir, config)
    if what.images > len(images):
        raise UserError(f"--images is {what.images:,}; there are {len(images):,} training images.")
    images = images.take(slice(what.images), f"the first {what.images}")
    inference = build_inference(config, images, mesh)
    settings = {
        "run": "/".join(workdir.resolve().parts[-2:]),
        "started": read_json(workdir / "config.json")["environment"]["started"],
        "model": config.model.name,
        "step": step,
        **what._asdict(),
        "batch_norm": "kept",  # earlier versions could also recompute the statistics at each point
        "sha256": images.provenance["sha256"],
        "official": images.provenance["official"],
        "dtype": (dtype := jnp.dtype(inference.model.dtype).name),
        "test_augment": "none",
    }
    coordinates = np.linspace(-what.extent, what.extent, what.points)
    about = {
        "coordinates": coordinates,
        "settings": np.array(json.dumps(settings)),
        "environment": np.array(json.dumps(environment({"dtype": dtype}, mesh))),
    }
    shape = (what.points,) * what.dimensions
    found = _saved(path, settings, shape)
    if found["done"].all():
        return read(path)  # not written again: it says what computed it
    path.parent.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        with replacing(path) as temporary:
            np.savez(temporary, **about, **found)

    keys = jax.random.split(jax.random.key(what.seed), what.dimensions)
    directions = [filter_normalized_direction(key, variables["params"]) for key in keys]
    arrays = programs.on_devices(images, mesh)
    todo = [index for index in np.ndindex(shape) if not found["done"][index]]
    began = saved_at = time.monotonic()
    with interruptible() as stop:
        for count, index in enumerate(todo, start=1):
            params = variables["params"]
            for i, direction in zip(index, directions, strict=True):
                params = _moved(params, float(coordinates[i]), direction)
            there = variables | {"params": params}
            here = programs.evaluate(inference, sharding.replicate(there, mesh), *arrays)
            assert here is not None
            found["loss"][index], found["accuracy"][index] = here["loss"], here["accuracy"]
            found["done"][index] = True
            now = time.monotonic()
            if stop or now - saved_at > 30:
                write()
                saved_at = now
                left = duration((now - began) / count * (len(todo) - count))
                print(f"{count}/{len(todo)} points, {left} left", flush=True)
            if stop:
                message = f"Stopped; {found['done'].sum()} points are saved in {path}. "
                raise Interrupted(stop.signum, message + "Run the same command to resume.")
    write()
    return read(path)


def _saved(
    path: pathlib.Path, settings: dict[str, Any], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Returns what the file holds so far: nothing yet if there is none."""
    if not path.exists():
        found = {name: np.full(shape, np.nan) for name in ("loss", "accuracy")}
        return found | {"done": np.zeros(shape, bool)}
    saved = read(path)
    check_same(path, saved["settings"], settings)
    return {name: saved[name] for name in ("loss", "accuracy", "done")}


def read(path: pathlib.Path) -> dict[str, Any]:
    """Returns what the .npz file of a slice holds; "settings" and "environment" as dicts.

    Raises:
      UserError: it is damaged, or cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file) as saved:
            facts = {name: json.loads(str(saved[name])) for name in ("settings", "environment")}
            return dict(saved) | facts
    except OSError as error:
        raise of_file(error, path) from error
    except (EOFError, ValueError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is damaged ({in_short(error)}). Delete it, and evaluate the slice again."
        ) from error


# --- what was evaluated ----------------------------------------------------------------------


def _statistics_note(settings: dict[str, Any]) -> str:
    """Says which BatchNorm statistics a slice used; "" for a network without."""
    has_statistics = create_model(settings["model"]).batch_norm
    return f", BN statistics {settings['batch_norm']}" if has_statistics else ""


_SETTINGS = {
    **{"checkpoint": text, "step": count, "images": count, "seed": count, "sha256": text},
    **{"official": or_none(flag), "model": text, "batch_norm": anything},
}
_MACHINE = {"commit": anything, "devices": count, "device": text}


def caption(path: pathlib.Path) -> str:
    """Says what the picture of a slice shows, by its .npz file, and where it comes from."""
    saved = read(path)
    settings, machine = saved["settings"], saved["environment"]
    check_keys(path, settings, _SETTINGS)
    check_keys(path, machine, _MACHINE)
    return (
        f"After Li et al. 2018: {path.stem}. Checkpoint {settings['checkpoint']} at step "
        f"{settings['step']}, {settings['images']:,} training images"
        f"{_statistics_note(settings)}, directions of seed {settings['seed']}. "
        f"{checksum(settings)}; commit {machine['commit']}, "
        f"{machine['devices']} × {machine['device']}."
    )


def run_name(workdir: pathlib.Path) -> str:
    """Returns the name of a run in the names of files: "vgg6_seed0"."""
    return "_".join(workdir.resolve().parts[-2:])


def title_of(found: dict[str, Any], workdir: pathlib.Path) -> str:
    """Returns the title of a picture of what `slice_around` returned for a run."""
    settings = found["settings"]
    run = run_name(workdir)
    center = tuple(n // 2 for n in found["loss"].shape)
    title = (
        f"Loss around {names.shown(settings['model'])} ({run}, step {settings['step']}): "
        f"{found['loss'][center]:.3f}\non {settings['images']:,} training images"
        f"{_statistics_note(settings)}"
    )
    of = read_run(workdir)
    parts = [of.mark, "" if of.result or of.imported else f"UNFINISHED: {of.progress}"]
    return "\n".join([title, *filter(None, parts)])


def draw(found: dict[str, Any], path: pathlib.Path, title: str) -> list[pathlib.Path]:
    """Draws what `slice_around` returns, beside its file; returns the pictures' files."""
    paths = plots.png_and_pdf(path.parent, path.stem)
    settings = found["settings"]
    along = found["coordinates"]
    if settings["dimensions"] == 1:
        with plots.drawing(*paths, size=(6, 4), title=title) as figure:
            axes = figure.subplots()
            axes.plot(along, found["loss"], label="loss", **plots.LINES[1])
            axes.set(xlabel="along a filter-normalised direction", ylabel="cross-entropy (nats)")
            plots.grid(axes)
            right = axes.twinx()
            right.plot(along, 100 * found["accuracy"], label="accuracy", **plots.LINES[2])
            right.set_ylabel("training accuracy (%)")
            right.spines["right"].set_visible(True)
            figure.legend(loc="outside lower center", ncols=2)
        return paths
    loss = np.maximum(found["loss"], 1e-12).T  # the first direction to the right
    known = loss[np.isfinite(loss)]
    loss = np.where(np.isfinite(loss), loss, known.max())  # it overflowed: as high as is known
    levels = np.geomspace(known.min(), max(known.max(), known.min() * 1.001), 22)
    norm = LogNorm(levels[0], levels[-1])
    with plots.drawing(*paths, size=(11, 4.8), title=title) as figure:
        flat = figure.add_subplot(1, 2, 1)
        filled = flat.contourf(along, along, loss, levels=levels, norm=norm, cmap="viridis")
        lines = flat.contour(along, along, loss, levels=levels[::3], colors="white", linewidths=0.6)
        flat.clabel(lines, fontsize=7, fmt="%.3g")
        flat.plot(0, 0, "*", color="white", markeredgecolor="black", markersize=11)
        flat.set(xlabel="first direction (filter norms)", ylabel="second direction (filter norms)")
        flat.set_aspect("equal")
        flat.locator_params(nbins=5)
        solid: Any = figure.add_subplot(1, 2, 2, projection="3d")
        x, y = np.meshgrid(along, along)
        solid.plot_surface(x, y, np.log10(loss), cmap="viridis", rstride=1, cstride=1, lw=0)
        solid.set(xlabel="first direction", ylabel="second direction", zlabel="log₁₀ loss")
        solid.set(xticks=(-along[-1], 0, along[-1]), yticks=(-along[-1], 0, along[-1]))
        scale = {"label": "cross-entropy (nats)", "ticks": levels[::3], "format": "%.3g"}
        figure.colorbar(filled, ax=flat, **scale)
    return paths
