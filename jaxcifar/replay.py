"""Recomputes the steps after a run's last checkpoint, to find where numbers stop being finite.

jaxcifar replay WORKDIR [--data-dir=FOLDER]

The run is only read. A step depends on nothing but the checkpoint and its own number, so the step
at which the run diverged is reproduced: bit for bit on the same number of CPU cores, elsewhere
except for rounding. (GPUs may add in a different order each time, and the step is examined in
a call of one step, which rounds differently from a call of many.)
"""

import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from jaxcifar import programs, sharding, train
from jaxcifar.checks import check_config
from jaxcifar.errors import UserError
from jaxcifar.kernels import compilation
from jaxcifar.options import Parser, user_path
from jaxcifar.run.about import (
    check_alike,
    check_initial_weights,
    note_changes,
    of_checkpoint,
    of_run,
)
from jaxcifar.run.checkpoint import Checkpointer
from jaxcifar.run.digest import leaves
from jaxcifar.run.machine import environment
from jaxcifar.start import initial_weights
from jaxcifar.state import TrainState
from jaxcifar.task import Task, build, hyperparams


def replay(
    workdir: str | pathlib.Path,
    *,
    data_dir: str = "",
    mesh: Mesh | None = None,
    say: Callable[[str], None] = print,
) -> int | None:
    """Trains from the last checkpoint to the first step that yields a non-finite number.

    For that step it reports the batch, the learning rate, and the largest value and the number of
    non-finite values of, in order of computation: the parameters, the inputs, the output of each
    layer, the loss, and the gradient of each parameter.

    Args:
      workdir: the run's folder.
      data_dir: the folder of the images; "" is that of the run's last start.
      mesh: the devices to use; None means all of them.
      say: called with each line of the report.

    Returns:
      The number of the step, counted from 1; that of an epoch's last step if only its validation
      loss is not finite; None if all numbers are finite.

    Raises:
      UserError: there is no run, it was never trained, it cannot be computed here as it was (see
        `jaxcifar.run.about.check_alike`), or the checkpoint cannot be read.
    """
    workdir, mesh = pathlib.Path(workdir), sharding.make_mesh(mesh)
    about, checkpoints = of_run(workdir), Checkpointer(workdir / "checkpoints")
    if not about.data:
        raise UserError(f"{workdir} holds imported weights: there is no step to replay.")
    last = checkpoints.last()
    if last:
        about = of_checkpoint(about, checkpoints.progress(last), workdir)
    config = about.config
    config.data.dir = data_dir or config.data.dir
    last_start = about.environments[-1]  # its settings, as others would round differently
    config.model.dtype = about.environments[0]["dtype"]  # "auto" is another one elsewhere
    if last_start["device"] == mesh.devices.flat[0].device_kind and "remat" in last_start:
        config.train.steps_per_call = last_start["steps_per_call"]
        config.model.remat = "on" if last_start["remat"] else "off"
    check_config(config, mesh)
    splits = train.load_splits(config)
    task = build(config, splits.train, mesh)
    now = environment(task.in_force, mesh)
    check_alike(about, config, splits.provenance, now, workdir)
    note_changes(last_start, now, "replayed")
    numbers = sharding.replicate(hyperparams(config), mesh)
    images, labels = programs.on_devices(splits.train, mesh)
    validation = programs.on_devices(splits.validation, mesh)
    if last:
        state, _ = checkpoints.restore(programs.abstract_state(task), last)
    else:
        seed = sharding.replicate(np.uint32(config.seed), mesh)
        initial = initial_weights(config, mesh)
        check_initial_weights(about.init_from, initial.facts, workdir)
        state = programs.init(task)(seed, numbers, images, initial.weights)
    first = int(state.step)
    say(f"{workdir}: from the checkpoint of step {first}" if last else f"{workdir}: from step 0")
    end = config.train.epochs * task.steps_per_epoch
    if last and not last.evaluated and _diverges(task, state, validation, say):
        return first
    if first >= end:
        raise UserError(
            f"All {end} steps of the run in {workdir} are done: there is nothing to replay."
        )
    step = singly_until = first  # up to there, each step is a call of its own
    while step < end:
        epoch, place = divmod(step, task.steps_per_epoch)
        order = programs.order(task)(state.key, epoch + 1)
        # As many as the run's call had; then that call again, step by step, if it diverged.
        steps = 1 if step < singly_until else task.steps_from(step)
        before = jax.tree.map(jax.numpy.copy, state)  # the call donates `state`
        state, metrics = programs.train(task, steps)(state, numbers, images, labels, order)
        if np.isfinite(metrics["loss"]).all() and _all_finite(state.variables):
            step += steps
            if step == singly_until != first:
                say(f"step {step}: finite step by step; the run, in one call, rounded differently")
            if _diverges(task, state, validation, say):
                return step
            continue
        if steps > 1:
            state, singly_until = before, step + steps
            continue
        indices = np.asarray(order)[place]
        say(f"step {step + 1}, epoch {epoch + 1}: loss {float(metrics['loss'][0])}")
        say(f"learning rate {float(metrics['learning_rate'][0]):.6g}")
        say(f"images of its batch (indices in the training set): {', '.join(map(str, indices))}")
        looked = _look(task, before, images, labels, order)
        found = [*_sizes("before the step", before.variables), *looked]
        for line in _report([*found, *_sizes("after the step", state.variables)]):
            say(line)
        return step + 1
    say(f"steps {first + 1} to {end}: all numbers are finite")
    return None


def _diverges(
    task: Task,
    state: TrainState,
    validation: tuple[jax.Array, jax.Array],
    say: Callable[[str], None],
) -> bool:
    """Whether an epoch has ended, and its evaluation is not finite; reports that."""
    epoch, rest = divmod(int(state.step), task.steps_per_epoch)
    if rest or not epoch:
        return False
    for variables in (state.variables, state.ema):
        scores = variables and programs.evaluate(task.inference, variables, *validation)
        if scores and not np.isfinite(scores["loss"]):
            say(f"step {state.step}, epoch {epoch}: the validation loss is not finite")
            for line in _report(_sizes("after the step", variables)):
                say(line)
            return True
    return False


_Size = tuple[str, float, int]  # name, largest absolute value, how many are not finite


def _look(
    task: Task, state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array
) -> list[_Size]:
    """What the step after `state` computes, in order."""
    # Rematerialised layers cannot be observed from outside.
    model = task.model.clone(remat=False) if getattr(task.model, "remat", False) else task.model
    loss, names = programs.loss(task, model), []

    def watched(params: Any, state: TrainState, batch: tuple[jax.Array, jax.Array]):
        values = []

        def note(name: str, value: Any) -> None:
            for leaf in jax.tree.leaves(value):
                if isinstance(leaf, jax.Array):
                    names.append(name)
                    values.append(_size(leaf))

        def watch(
            call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any
        ) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            if not context.module.path:
                note("images, augmented and normalised", args[0])
            found = call(*args, **kwargs)
            note(f"output of {'/'.join(context.module.path) or 'the network'}", found)
            return found

        names.clear()
        with nn.intercept_methods(watch):
            ce, _ = loss(params, state, *batch)
        note("cross-entropy", ce)
        return ce, values

    def run(state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array):
        batch = programs.batch(task, state, images, labels, order)
        gradient, values = jax.grad(watched, has_aux=True)(state.params, state, batch)
        return values, gradient

    values, gradient = compilation.jit(run, platform=task.platform)(state, images, labels, order)
    sizes = [(name, *map(float, value)) for name, value in zip(names, values, strict=True)]
    return [(name, size, int(bad)) for name, size, bad in sizes] + _sizes("gradient", gradient)


def _size(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    finite = jax.numpy.isfinite(array)
    return jax.numpy.abs(array).max(where=finite, initial=0), (~finite).sum()


def _sizes(what: str, tree: Any) -> list[_Size]:
    found = []
    for name, leaf in leaves(jax.device_get(tree)).items():
        finite = np.isfinite(leaf)
        size = float(np.abs(leaf).max(where=finite, initial=0))
        found.append((f"{name} {what}", size, int((~finite).sum())))
    return found


def _all_finite(tree: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(tree)))


def _report(found: list[_Size]) -> list[str]:
    """A line for each, with an arrow at the first that has non-finite values."""
    lines, first = [], True
    for name, size, bad in found:
        mark, first = ("->", False) if bad and first else ("  ", first)
        lines.append(f"{mark} {name}: at most {size:.4g}" + (f", {bad} not finite" if bad else ""))
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = Parser("jaxcifar replay", __doc__)
    parser.add_argument("workdir", type=user_path)
    parser.add_argument(
        "--data-dir", "--data.dir", type=user_path, help="the folder of CIFAR, if it has moved"
    )
    arguments = parser.parse_args(argv)
    compilation.use_cache()
    replay(arguments.workdir, data_dir=str(arguments.data_dir or ""))
