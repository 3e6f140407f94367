"""The loss along the gradient of each step's batch, while a network trains.

Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?", figure 4: the range of the
loss and of the gradient's change over a range of step sizes, and the largest ratio of the
gradient's change to the distance. `experiments.landscape` is the command.
"""

import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.runs import kinds, marks, names
from experiments.runs.kinds import check_keys
from experiments.runs.provenance import checksum
from experiments.runs.read import origin, read_json, read_records
from experiments.runs.resuming import check_same
from experiments.runs.table import Table
from jaxcifar import programs, sharding, task, train
from jaxcifar.checks import check_config
from jaxcifar.config import Config, complete, flatten
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import append, replace, write_json
from jaxcifar.hooks import Hook, Run
from jaxcifar.kernels import compilation
from jaxcifar.options import ORIGIN, write_origin
from jaxcifar.run import plots
from jaxcifar.run.machine import environment
from jaxcifar.run.progress import duration, say
from jaxcifar.state import TrainState

# Step sizes of plain gradient descent: half to four times 0.1, the range of Santurkar et al.
STEP_SIZES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


_moved = jax.jit(optax.tree.add_scale)


@jax.jit
def _distance(one: Any, other: Any = None) -> jax.Array:
    """Returns the Euclidean norm of one − other, over all leaves."""
    return optax.tree.norm(one if other is None else optax.tree.sub(one, other))


@functools.lru_cache(4)  # so that runs that differ in their seed, or are resumed, share it
def _gradient_of(made: task.Task) -> Callable[..., Any]:
    """Returns (params, state, images, labels, order) -> ((loss, …), gradient) of a step's batch.

    In float32, however the run trains: a small step changes few of bfloat16's weights.
    """
    loss = programs.loss(made, made.model.clone(dtype=jnp.float32))

    def loss_of_batch(params: Any, state: TrainState, *images_labels_order: jax.Array):
        batch = programs.batch(made, state, *images_labels_order)
        with jax.default_matmul_precision("float32"):
            return loss(params, state, *batch)

    gradient = jax.value_and_grad(loss_of_batch, has_aux=True)
    return compilation.jit(gradient, platform=made.platform)


class AlongGradient(Hook):
    """Measures along the gradient of each `every`th step's batch, and keeps what it found.

    In training mode, as the step sees it: the same images, draws and batch statistics.

    Args:
      folder: of the run; gets measurements.jsonl.
      steps: how many of the run's first steps to cover; it stops after the last measurement.
      every: training steps from one measurement to the next.
      step_sizes: η, of params − η · gradient.

    Attributes:
      found: the measurements: {"step", "loss", "gradient_norm", "losses", "gradient_changes"}, the
        last two a value for each step size: the loss there, and ‖gradient there − gradient here‖.
    """

    def __init__(
        self, folder: pathlib.Path, *, steps: int, every: int, step_sizes: Sequence[float]
    ):
        self._path = folder / "measurements.jsonl"
        self._steps, self._every, self._sizes = steps, every, step_sizes
        self._last = (_count(steps, every) - 1) * every
        self._began, self._first = time.monotonic(), 0
        self._gradient: Any = None
        self.found = read_records(self._path)

    @property
    def complete(self) -> bool:
        """Whether there is a measurement of each step that is to be measured."""
        return len(self.found) == _count(self._steps, self._every)

    def start(self, run: Run) -> None:
        """Drops what was measured after the checkpoint that the run resumes from."""
        self.found = [record for record in self.found if record["step"] < run.step]
        wanted = range(0, min(run.step, self._last + 1), self._every)
        if [record["step"] for record in self.found] != list(wanted):
            raise UserError(
                f"{self._path} lacks measurements before step {run.step}, from which the run "
                f"continues. Restore the file, or delete {run.workdir} to start over."
            )
        replace(self._path, "".join(json.dumps(record) + "\n" for record in self.found))
        self._began, self._first = time.monotonic(), run.step
        self._gradient = _gradient_of(run.task)

    def before_call(self, run: Run) -> None:
        """Measures, where it is time to."""
        if run.step % self._every == 0 and run.step <= self._last:
            self._measure(run)
        if run.step >= self._last:
            run.stop.request("because all is measured")

    def _measure(self, run: Run) -> None:
        record = self._along(run)
        if not math.isfinite(record["loss"]):
            raise UserError(
                f"The loss of step {run.step + 1} is not finite in {run.workdir}. A smaller "
                "--config.optim.learning_rate may help, in another --out."
            )
        append(self._path, json.dumps(record))
        self.found.append(record)
        each = (time.monotonic() - self._began) / max(run.step - self._first, 1)
        left = (
            f", {duration(each * (self._last - run.step))} left" if run.step > self._first else ""
        )
        beta = effective_smoothness(record, self._sizes)
        text = f"step {run.step}/{self._steps}  loss {record['loss']:.4f}  β {beta:.3g}"
        say(f"{text}{left}")

    def _along(self, run: Run) -> dict[str, Any]:
        rest = run.state, run.images, run.labels, run.order
        (here, _), gradient = self._gradient(run.state.params, *rest)
        found: list[tuple[jax.Array, jax.Array]] = []
        for size in self._sizes:
            (there, _), other = self._gradient(_moved(run.state.params, -size, gradient), *rest)
            found.append((there, _distance(other, gradient)))
        numbers = jax.device_get((here, _distance(gradient), found))
        return {
            "step": run.step,
            "loss": float(numbers[0]),
            "gradient_norm": float(numbers[1]),
            "losses": [float(loss) for loss, _ in numbers[2]],
            "gradient_changes": [float(change) for _, change in numbers[2]],
        }


def _count(steps: int, every: int) -> int:
    """Returns how many measurements there are: of step 0, and each `every`th."""
    return -(-steps // every)


def effective_smoothness(record: dict[str, Any], step_sizes: Sequence[float]) -> float:
    """Returns the largest ratio of the gradient's change to the distance moved: "effective β"."""
    if record["gradient_norm"] == 0:
        return 0.0
    distances = [size * record["gradient_norm"] for size in step_sizes]
    return float(np.max(np.divide(record["gradient_changes"], distances)))  # NaN if one is


class Plan(NamedTuple):
    """What is to be measured, see `plan`."""

    config: Config
    folder: pathlib.Path
    settings: dict[str, Any]  # {"steps", "every", "step_sizes"}
    provenance: dict[str, Any]  # of the images it trains on


def plan(
    config: Config,
    folder: pathlib.Path,
    *,
    steps: int,
    every: int,
    step_sizes: Sequence[float],
) -> Plan:
    """Checks what `smoothness` is to do, and writes nothing.

    Args:
      config: of the run; its own learning rate trains, `step_sizes` only measure.
      folder: of the run.
      steps: training steps; 0 is all that the config says.
      every: steps between measurements; 0 is a fiftieth of `steps`.
      step_sizes: see `AlongGradient`.

    Raises:
      UserError: the folder holds measurements with other settings, or the config cannot be used.
    """
    mesh = sharding.make_mesh()
    check_config(config, mesh)
    images = train.load_splits(config).train
    whole = config.train.epochs * task.build(config, images, mesh).steps_per_epoch
    if steps > whole:
        raise UserError(f"--steps is {steps:,}; the config trains for {whole:,}.")
    steps = steps or whole
    every = every or max(1, steps // 50)
    settings = {"steps": steps, "every": every, "step_sizes": list(step_sizes)}
    path = folder / "settings.json"
    if path.exists():
        check_settings(path, config, settings, images.provenance)
    return Plan(config, folder, settings, images.provenance)


def smoothness(plan: Plan, original: tuple[str | pathlib.Path, Config]) -> None:
    """Trains as planned, and measures at each `every`th step; an interrupted call resumes.

    Args:
      plan: see `plan`; its folder gets settings.json and measurements.jsonl beside the run's files.
      original: the config file, and what it returned before options changed it, which tells
        pictures and tables whether the run was shortened.

    Raises:
      UserError: measurements are lost, or a loss is not finite.
      Interrupted: a signal came; everything so far is saved.
    """
    config, folder, settings, provenance = plan
    path = folder / "settings.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_settings(path, config, settings, provenance)
    if not (folder / ORIGIN).exists():  # the file may have been edited since
        write_origin(folder, *original)
    hook = AlongGradient(folder, **settings)
    if not hook.complete:
        config = config.copy_and_resolve_references()
        config.train.steps_per_call = 1  # so that each step can be measured
        try:
            train.train_and_evaluate(config, folder, hooks=[hook])
        except Interrupted as error:
            if error.signum or not hook.complete:  # else the hook itself asked for the end
                raise


def write_settings(
    path: pathlib.Path, config: Config, settings: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Writes what is measured."""
    content = {"config": config.to_dict(), "settings": settings, "data": provenance}
    write_json(path, content | {"environment": environment({"dtype": "float32"})})


def check_settings(
    path: pathlib.Path, config: Config, settings: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Checks that what is to be measured is what was measured there before.

    Raises:
      UserError: it is not.
    """
    saved = read_json(path)
    there = flatten(complete(saved["config"])) | saved["settings"]
    here = flatten(config) | settings
    images = {"images": saved["data"]["sha256"]}, {"images": provenance["sha256"]}
    check_same(path.parent, there | images[0], here | images[1])


# --- what was measured -----------------------------------------------------------------------


class Measured(NamedTuple):
    """The measurements of one run, as read from their folder."""

    folder: pathlib.Path
    config: dict[str, Any]  # of the run; flat
    settings: dict[str, Any]  # {"steps", "every", "step_sizes"}
    provenance: dict[str, Any]  # of the images it trained on
    environment: dict[str, Any]
    original: dict[str, Any] | None  # the flat config that options changed; None where unknown
    dtype: str  # of the training; `environment` is of the measurements
    records: list[dict[str, Any]]  # see `AlongGradient.found`

    @property
    def betas(self) -> list[float]:
        """The effective β-smoothness of each measurement."""
        sizes = self.settings["step_sizes"]
        return [effective_smoothness(record, sizes) for record in self.records]

    @property
    def complete(self) -> bool:
        """Whether all is measured."""
        return len(self.records) == _count(self.settings["steps"], self.settings["every"])

    @property
    def note(self) -> str:
        """Says what sets the measurements apart from a full training of their row or config."""
        config = self.config
        parts = [marks.mark(self.original, config)]
        if self.dtype != "float32":
            parts.append(f"trained in {self.dtype}")
        if (loss := plots.training_loss(config)) != "training":
            parts.append(f"the loss is of {loss}")
        whole = config["train.epochs"] * (self.provenance["images"] // config["train.batch_size"])
        if self.settings["steps"] < whole:
            parts.append(f"SHORTENED: {self.settings['steps']:,} of {whole:,} steps")
        if self.provenance["official"] is False:
            parts.append(marks.UNOFFICIAL)
        if not self.complete:
            parts.append(f"UNFINISHED: {len(self.records)} measurements")
        return "; ".join(filter(None, parts))


_SETTINGS = {"steps": kinds.count, "every": kinds.count, "step_sizes": kinds.numbers}
_IMAGES = {"images": kinds.count, "official": kinds.anything, "sha256": kinds.text}
_MACHINE = {"commit": kinds.anything, "devices": kinds.count, "device": kinds.text}
_RECORD = {
    # Far along the gradient a loss may be infinite.
    **{"step": kinds.count, "loss": kinds.anything, "gradient_norm": kinds.anything},
    **{"losses": kinds.numbers, "gradient_changes": kinds.numbers},
}


def measured(folder: pathlib.Path) -> list[Measured]:
    """Reads all measurements below a folder; without those that were stopped before the first.

    Raises:
      UserError: some cannot be read.
    """
    found = []
    for path in sorted(folder.glob("*/settings.json")):
        content, records = read_json(path), read_records(path.parent / "measurements.jsonl")
        if not records:
            continue
        facts = ("settings", "data", "environment")
        check_keys(path, content, dict.fromkeys(("config", *facts), kinds.mapping))
        check_keys(path, content["settings"], _SETTINGS)
        check_keys(path, content["data"], _IMAGES)
        check_keys(path, content["environment"], _MACHINE)
        for record in records:
            check_keys(path.with_name("measurements.jsonl"), record, _RECORD)
        try:
            config = flatten(complete(content["config"]))
        except TypeError as error:
            raise UserError(f"{path} is damaged ({error}). Restore it from a copy.") from error
        original, *_ = origin(path.parent.name.rsplit("_seed", 1)[0], path.parent)
        rest = (content[name] for name in facts)
        dtype = _dtype_of(path.with_name("config.json"), config)
        found.append(Measured(path.parent, config, *rest, original, dtype, records))
    return found


def _dtype_of(path: pathlib.Path, config: dict[str, Any]) -> str:
    """The dtype of a training, by its config.json; without one "auto" is that of CPUs."""
    if path.exists():
        check_keys(path, content := read_json(path), {"environment": kinds.mapping})
        check_keys(path, content["environment"], {"dtype": kinds.text})
        return content["environment"]["dtype"]
    return "float32" if config["model.dtype"] == "auto" else config["model.dtype"]


def table(found: Sequence[Measured]) -> Table:
    """Returns a line for each run that was measured."""
    lines = []
    for one in found:
        # NumPy's, because Python's max and min pass over what is not a number.
        with np.errstate(invalid="ignore"):  # such as infinity less infinity
            ranges = [np.ptp(record["losses"]) for record in one.records]
        changes = [np.max(record["gradient_changes"]) for record in one.records]
        lines.append(
            [
                one.folder.name,
                f"{len(one.records)}, every {one.settings['every']} steps",
                *(f"{np.median(values):.3g}" for values in (ranges, changes, one.betas)),
                f"{np.max(one.betas):.3g}",
                checksum(one.provenance),
                str(one.environment["commit"])[:12],
                f"{one.environment['devices']} × {one.environment['device']}",
                one.note,
            ]
        )
    header = ["Run", "Measurements", "Median loss range", "Median gradient change"]
    header += ["Median effective β", "Largest", "Images", "Commit", "Machine", "Note"]
    return Table("Along the gradient", header, lines)


_HATCHES = ("//", "", "//", "", "xx", "..", "xx", "..")  # of the runs in a picture, in turn


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the measurements below `folder`, all in one picture; returns its files."""
    paths = plots.png_and_pdf(folder, "smoothness")
    found = measured(folder)
    if not found:
        raise UserError(f"{folder} contains no measurements.")
    spans = list(dict.fromkeys(map(_span, found)))
    title = f"Along the gradient, step sizes {', or '.join(spans)}"
    notes = [one.note for one in found]
    if len(set(notes)) > 1:
        notes = [f"{_label(one)}: {one.note}" if one.note else "" for one in found]
    title += "".join(f"\n{note}" for note in dict.fromkeys(notes) if note)
    if len(found) > len(_HATCHES):
        title += f"\nof {len(found)} runs, each {len(_HATCHES)}th looks the same"
    with plots.drawing(*paths, size=(12, 4), title=title) as figure:
        panels = figure.subplots(1, 3)
        for i, one in enumerate(found):
            steps = [record["step"] for record in one.records]
            sized = f", measured {_span(one)} ahead" if len(spans) > 1 else ""
            label = f"{_label(one)} (trained at {one.config['optim.learning_rate']:g}{sized})"
            style = plots.LINES[(2, 1, 3, 0)[i % 4]]
            band = {"color": style["color"], "hatch": _HATCHES[i % len(_HATCHES)]}
            for axes, quantity in ((panels[0], "losses"), (panels[1], "gradient_changes")):
                values = np.array([record[quantity] for record in one.records])
                plots.gap(axes, steps, values.T, label=label, **band)
                if len(steps) == 1:  # the gap is none
                    axes.vlines(steps, values.min(1), values.max(1), color=style["color"])
            again = i % len(_HATCHES) >= 4  # these have the colours of the four before
            marker = {"marker": "^" if again else "o", "markersize": 3.5}
            few = marker if len(steps) <= 12 or again else {}
            panels[2].plot(steps, one.betas, label=label, **style, **few)
        panels[0].set_title("loss: lowest to highest")
        panels[1].set_title("gradient: ‖∇ there − ∇ here‖")
        panels[2].set_title("effective β-smoothness")
        panels[0].set_ylabel("cross-entropy of the batch (nats)")
        panels[1].set_ylabel("change (nats / unit weight)")
        panels[2].set_ylabel("largest change / distance")
        for axes in panels:
            axes.set(xlabel="training step", yscale="log")
            plots.grid(axes)
        lines = panels[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return paths


def _label(one: Measured) -> str:
    name = ", seed".join(one.folder.name.rsplit("_seed", 1))
    return f"{names.shown(one.config['model.name'])}, {name}"


def _span(one: Measured) -> str:
    sizes = one.settings["step_sizes"]
    return f"{sizes[0]:g} to {sizes[-1]:g}"
