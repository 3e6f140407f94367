"""The loss along the gradient of each step's batch, while a network trains.

Santurkar et al. 2018, "How Does Batch Normalization Help Optimization?", figure 4: the range of the
loss and of the gradient's change over a range of step sizes, and the largest ratio of the
gradient's change to the distance. `experiments.landscape` is the command.
"""

import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.landscape.directions import distance, moved
from experiments.runs import marks, names
from experiments.runs.configs import row_config
from experiments.runs.read import read_json, read_records
from experiments.runs.rows import ROWS
from jaxcifar import compilation, losses, metrics, plots, programs, sharding, train, workdirs
from jaxcifar.checkpoint import Checkpointer
from jaxcifar.config import Config, complete, differences, flatten
from jaxcifar.data import Dataset
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.programs import Programs, hyperparams_of, static_part

# Step sizes of plain gradient descent: half to four times 0.1, the range of Santurkar et al.
STEP_SIZES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)


class Probe:
    """The loss of one step's batch as a function of the parameters, and its gradient.

    In training mode, as the step saw it: the same images, draws and batch statistics.
    """

    def __init__(self, made: Programs):
        def loss(params, state, images, labels, order):
            rows = order[state.step % made.steps_per_epoch]
            keys = jax.random.split(jax.random.fold_in(state.key, state.step))
            variables = {"params": params, "batch_stats": state.batch_stats}
            inputs = made.prepare(keys[0], images[rows])
            more = {"mutable": ["batch_stats"], "rngs": {"dropout": keys[1]}}
            logits, _ = made.model.apply(variables, inputs, train=True, **more)
            return losses.cross_entropy(logits, labels[rows]).mean()

        self._gradient = compilation.jit(jax.value_and_grad(loss))

    def __call__(self, state, *batch: jax.Array, step_sizes: Sequence[float]) -> dict[str, Any]:
        """Looks along the gradient of the step that `state` is about to make.

        Args:
          state: of the run.
          batch: images, labels and order of the epoch.
          step_sizes: η, of params − η · gradient.

        Returns:
          {"step", "loss", "gradient_norm", "losses", "gradient_changes"}, the last two a value for
          each step size: the loss there, and ‖gradient there − gradient here‖.
        """
        here, gradient = self._gradient(state.params, state, *batch)
        found: list[tuple[jax.Array, jax.Array]] = []
        for size in step_sizes:
            there, other = self._gradient(moved(state.params, gradient, -size), state, *batch)
            found.append((there, distance(other, gradient)))
        numbers = jax.device_get((here, distance(gradient), found))
        return {
            "step": int(state.step),
            "loss": float(numbers[0]),
            "gradient_norm": float(numbers[1]),
            "losses": [float(loss) for loss, _ in numbers[2]],
            "gradient_changes": [float(change) for _, change in numbers[2]],
        }


def effective_smoothness(record: dict[str, Any], step_sizes: Sequence[float]) -> float:
    """Returns the largest ratio of the gradient's change to the distance moved: "effective β"."""
    if record["gradient_norm"] == 0:
        return 0.0
    distances = [size * record["gradient_norm"] for size in step_sizes]
    return max(c / d for c, d in zip(record["gradient_changes"], distances, strict=True))


def smoothness(
    config: Config, folder: pathlib.Path, *, steps: int, every: int, step_sizes: Sequence[float]
) -> list[dict[str, Any]]:
    """Trains by `config` and measures at each `every`th step.

    Args:
      config: of the run; its own learning rate trains, `step_sizes` only look.
      folder: gets settings.json, measurements.jsonl (what `Probe` returns) and checkpoints/, from
        which an interrupted call resumes.
      steps: training steps; 0 is all that the config says.
      every: steps between measurements; 0 is a fiftieth of `steps`.
      step_sizes: see `Probe`.

    Returns:
      The measurements.

    Raises:
      UserError: the folder holds measurements with other settings, or the config cannot be used.
      Interrupted: SIGINT or SIGTERM came; everything so far is saved.
    """
    train.check_config(config)
    images, _, _ = train.load_data(config)
    mesh = sharding.make_mesh()
    made = programs.compiled_programs(
        static_part(config), len(images), (images.mean, images.std), mesh
    )
    steps = steps or config.train.epochs * made.steps_per_epoch
    every = every or max(1, steps // 50)
    settings = {"steps": steps, "every": every, "step_sizes": list(step_sizes)}
    with workdirs.lock(folder):
        path = folder / "settings.json"
        if path.exists():
            check_settings(path, config, settings, images.provenance)
        else:
            write_settings(path, config, settings, images.provenance)
        return _measure(config, folder, made, images, settings, mesh)


def _measure(
    config: Config,
    folder: pathlib.Path,
    made: Programs,
    images: Dataset,
    settings: dict[str, Any],
    mesh: jax.sharding.Mesh,
) -> list[dict[str, Any]]:
    path = folder / "measurements.jsonl"
    found = read_records(path)
    if len(found) == -(-settings["steps"] // settings["every"]):
        return found
    arrays = sharding.replicate((images.images, images.labels), mesh)
    hyperparams = sharding.replicate(hyperparams_of(config), mesh)
    checkpoints = Checkpointer(folder / "checkpoints")
    number = checkpoints.last()
    if number is None:
        state = made.init(sharding.replicate(np.uint32(config.seed), mesh), hyperparams)
    else:
        state, _ = checkpoints.restore(made.abstract_state, number)
    step = int(state.step)
    found = [record for record in found if record["step"] < step]
    path.write_text("".join(json.dumps(record) + "\n" for record in found))

    def order_of(epoch: int) -> jax.Array:
        return made.order(state.key, sharding.replicate(np.int32(epoch), mesh))

    def save_and_stop() -> Interrupted:
        checkpoints.save(step, state, {}, None)
        checkpoints.wait()
        message = f"Stopped and saved at step {step} in {folder}. Run the same command to resume."
        return Interrupted(stopped[0], message)

    probe, stopped = Probe(made), []
    began, first, saved = time.monotonic(), step, time.monotonic()
    order = order_of(step // made.steps_per_epoch + 1)
    last = (settings["steps"] - 1) // settings["every"] * settings["every"]
    with workdirs.interruptible(stopped.append):
        while True:
            if stopped:
                raise save_and_stop()
            if step % settings["every"] == 0:
                if time.monotonic() - saved > 120:
                    checkpoints.save(step, state, {}, None)
                    saved = time.monotonic()
                record = probe(state, *arrays, order, step_sizes=settings["step_sizes"])
                if not math.isfinite(record["loss"]):
                    raise UserError(
                        f"The loss of step {step + 1} is not finite in {folder}. A smaller "
                        "--config.optim.learning_rate may help, in another --out."
                    )
                with path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                found.append(record)
                each = (time.monotonic() - began) / (step - first) if step > first else 0
                left = f", {metrics.duration(each * (last - step))} left" if each else ""
                beta = effective_smoothness(record, settings["step_sizes"])
                text = f"step {step}/{settings['steps']}  loss {record['loss']:.4f}  β {beta:.3g}"
                print(f"{text}{left}", flush=True)
            if step == last:
                break
            state, _ = made.train(1, state, hyperparams, *arrays, order)
            step += 1
            if step % made.steps_per_epoch == 0:
                order = order_of(step // made.steps_per_epoch + 1)
    checkpoints.close()
    return found


def write_settings(
    path: pathlib.Path, config: Config, settings: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Writes what is measured."""
    content = {"config": config.to_dict(), "settings": settings, "data": provenance}
    metrics.write_json(path, content | {"environment": workdirs.environment({})})


def check_settings(
    path: pathlib.Path, config: Config, settings: dict[str, Any], provenance: dict[str, Any]
) -> None:
    """Checks that what is to be measured is what was measured there before.

    Raises:
      UserError: it is not.
    """
    saved = read_json(path)
    changed = differences(complete(saved["config"]), config.to_dict())
    now = settings | {"images": provenance["sha256"]}
    then = saved["settings"] | {"images": saved["data"]["sha256"]}
    changed += [f"{k}: {then.get(k)} -> {v}" for k, v in now.items() if then.get(k) != v]
    if changed:
        listed = "\n  ".join(changed)
        raise UserError(
            f"{path.parent} contains measurements with other settings (there -> here):\n  {listed}"
            "\nUse the same values to resume them, or another --out."
        )


def draw(folder: pathlib.Path) -> list[pathlib.Path]:
    """Draws the measurements below `folder`, all in one picture; returns its files."""
    paths = plots.png_and_pdf(folder, "smoothness")
    shown = []
    for path in sorted(folder.glob("*/settings.json")):
        settings, found = read_json(path), read_records(path.parent / "measurements.jsonl")
        if found:
            label = names.model_name(settings["config"]["model"]["name"])
            shown.append((f"{label}, {path.parent.name.replace('_', ', ')}", settings, found))
    if not shown:
        raise UserError(f"{folder} contains no measurements.")
    notes = sorted({note_of(path) for path in folder.glob("*/settings.json")} - {""})
    sizes = shown[0][1]["settings"]["step_sizes"]
    title = f"Along the gradient, step sizes {sizes[0]:g} to {sizes[-1]:g}"
    title += "".join(f"\n{note}" for note in notes)
    with plots.drawing(*paths, size=(12, 4), title=title) as figure:
        panels = figure.subplots(1, 3)
        for i, (label, settings, found) in enumerate(shown):
            sizes = settings["settings"]["step_sizes"]
            steps = [record["step"] for record in found]
            rate = settings["config"]["optim"]["learning_rate"]
            text, style = f"{label} (trained at {rate:g})", plots.LINES[(2, 1, 3, 0)[i % 4]]
            band = {"color": style["color"], "hatch": "//" if i % 2 == 0 else ""}
            for axes, quantity in ((panels[0], "losses"), (panels[1], "gradient_changes")):
                values = np.array([record[quantity] for record in found])
                plots.gap(axes, steps, values.T, label=text, **band)
            beta = [effective_smoothness(record, sizes) for record in found]
            panels[2].plot(steps, beta, label=text, **style)
        panels[0].set_title("loss: lowest to highest")
        panels[1].set_title("gradient: how far it moves")
        panels[2].set_title("effective β-smoothness")
        panels[0].set_ylabel("cross-entropy of the batch (nats)")
        panels[1].set_ylabel("‖∇ there − ∇ here‖ (nats / unit weight)")
        panels[2].set_ylabel("largest ‖∇ there − ∇ here‖ / distance")
        for axes in panels:
            axes.set(xlabel="training step", yscale="log")
            plots.grid(axes)
            axes.legend(fontsize=8)
    return paths


def note_of(path: pathlib.Path) -> str:
    """Says what sets measurements apart from their row's full training, by their settings.json."""
    content, name = read_json(path), path.parent.name.rsplit("_seed", 1)[0]
    config, settings = flatten(complete(content["config"])), content["settings"]
    parts = [marks.mark(flatten(row_config(name)), config)] if name in ROWS else []
    steps = config["train.epochs"] * (content["data"]["images"] // config["train.batch_size"])
    if settings["steps"] < steps:
        parts.append(f"SHORTENED: {settings['steps']:,} of {steps:,} steps")
    done = len(read_records(path.parent / "measurements.jsonl"))
    if done < -(-settings["steps"] // settings["every"]):
        parts.append(f"UNFINISHED: {done} measurements")
    return "; ".join(filter(None, parts))
