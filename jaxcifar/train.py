"""The training loop: a config and a folder in, a trained network and its history out.

Everything random depends only on the seed and the step, so a run that is stopped and resumed draws
the same numbers. docs/reliability.md says where its results are equal to the bit.
"""

import contextlib
import functools
import math
import pathlib
import shlex
import signal
import time
from collections.abc import Generator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxcifar import data, processes, programs, sharding
from jaxcifar.checks import check_config, unused
from jaxcifar.config import Config, flatten
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.hooks import Hook, Hooks, Run
from jaxcifar.run import signs
from jaxcifar.run.checkpoint import Damaged, NotFinite
from jaxcifar.run.folder import Position, RunFolder
from jaxcifar.run.log import best_record, score
from jaxcifar.run.machine import PeakMemory, numerics, runtime
from jaxcifar.run.progress import Progress, say
from jaxcifar.signals import Stop, interruptible
from jaxcifar.start import InitialWeights, initial_weights
from jaxcifar.state import TrainState
from jaxcifar.task import build, hyperparams


def train_and_evaluate(
    config: Config,
    workdir: str | pathlib.Path,
    *,
    hooks: Sequence[Hook] = (),
    mesh: Mesh | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Trains as `config` says, in `workdir`: from the start, or from where it was stopped.

    A damaged checkpoint is set aside, and the run continues from the one before it. Other files of
    the workdir that are damaged or lost are restored from the checkpoint. Each such repair is
    reported in a line on stderr.

    Args:
      config: starts from `jaxcifar.config.base_config()`.
      workdir: the run's folder, created if necessary. Afterwards it holds config.json,
        metrics.jsonl (one line per epoch), steps.jsonl (the metrics of each step), result.json,
        history.png, tensorboard/ and checkpoints/.
      hooks: called while it trains, see `jaxcifar.hooks`.
      mesh: the devices to use; None means all of them.
      quiet: do not show progress.

    Returns:
      The content of result.json.

    Raises:
      UserError: the config, the data or the workdir cannot be used, the disk is full, every
        checkpoint is damaged, or the loss is not finite.
      Interrupted: a signal or a hook ended the training, and everything so far is saved.
      RuntimeError: a hook failed.
    """
    mesh = sharding.make_mesh(mesh)
    check_config(config, mesh)
    per_host = ("data.dir", "train.checkpoint_minutes")  # these may differ between hosts
    fields = {name: value for name, value in flatten(config).items() if name not in per_host}
    processes.check_same("config", fields)
    processes.check_same("environment", numerics() | runtime(mesh))
    all_hooks = Hooks(hooks)
    with RunFolder(pathlib.Path(workdir)) as folder:
        all_hooks.call("locked", folder.path)
        if result := folder.result(config):
            if not quiet and processes.is_first():
                say(f"{folder.path} is finished: nothing is left to train.")
            return result
        memory = PeakMemory(mesh)
        _check_sizes(config, mesh)
        initial = InitialWeights() if folder.last() else initial_weights(config, mesh)
        splits = load_splits(config)
        checksums = {name: part["sha256"] for name, part in splits.provenance.items()}
        processes.check_same("data (SHA-256)", checksums)
        task = build(config, splits.train, mesh)
        numbers = sharding.replicate(hyperparams(config), mesh)
        images, labels = programs.on_devices(splits.train, mesh)
        validation = programs.on_devices(splits.validation, mesh)
        # In this order: `open` refuses another config or other images before anything is changed,
        # `restore` may set checkpoints aside, `start_log` replaces what was logged after the one
        # that it found.
        folder.open(config, splits.provenance, task.in_force, mesh, initial.facts)
        restored = folder.restore(programs.abstract_state(task))
        if restored is None:
            seed = sharding.replicate(np.uint32(config.seed), mesh)
            restored = programs.init(task)(seed, numbers, images, initial.weights), Position()
        state, position = restored
        records = folder.start_log(position.epochs_done)

        step = first = position.step(task.steps_per_epoch)
        order = programs.order(task)(state.key, position.epochs_done + 1)
        run = Run(
            config=config,
            workdir=folder.path,
            task=task,
            hyperparams=numbers,
            images=images,
            labels=labels,
            position=position,
            step=step,
            state=state,
            order=order,
            stop=Stop(),
        )
        epochs, compile_seconds = config.train.epochs, None
        quiet = quiet or not processes.is_first()
        progress = Progress(epochs, task.steps_per_epoch, position.epochs_done, quiet)
        _announce(run, splits, progress)
        if initial.text:
            progress.say(initial.text)
        if initial.held_out not in ("", checksums["validation"]):
            progress.say(
                "that run held out other images, for example because it read them in another "
                "order: it may have been trained on some that this one holds out for validation"
            )
        if position.epochs_done < epochs:
            began = time.monotonic()
            with progress:
                programs.train(task, task.steps_per_call)
                programs.evaluate_batch(task.inference, len(splits.validation))
            compile_seconds = time.monotonic() - began
            progress.say(f"compiled in {compile_seconds:.1f}s")
        # Outside this block, where nothing is unsaved, a signal ends the process at once.
        with interruptible() as run.stop, all_hooks.closing(run), progress:
            progress.started(step)
            all_hooks.call("start", run)
            for epoch in range(position.epochs_done + 1, epochs + 1):
                run.order = programs.order(task)(run.state.key, epoch)
                _train_epoch(run, all_hooks, folder, progress)
                progress.evaluating()
                all_hooks.call("before_evaluation", run)
                scores = _evaluate(run, validation)
                if scores is None:  # the resumed run evaluates
                    raise _stopped(run, folder)
                if not all(
                    math.isfinite(scores[name]) for name in scores if name.endswith("_loss")
                ):
                    what = f"The validation loss after epoch {epoch}"
                    raise _diverged(what, run.step, run, folder)
                record = _record(epoch, run, scores)
                records.append(record)
                folder.log(record, run.position.steps)
                run.position = Position(epochs_done=epoch)
                _save(run, folder, score(record))
                progress.epoch(record)
                all_hooks.call("after_epoch", run, dict(record))
            folder.wait()
        # A start that trained no step reports no peak: what it needed is not what the run needed.
        peak = memory.read() if run.step > first else None
        result = _result(run, splits, records, compile_seconds, peak, folder)
        all_hooks.call("end", run, dict(result))
        return result


def _train_epoch(run: Run, all_hooks: Hooks, folder: RunFolder, progress: Progress) -> None:
    """Trains to the end of the epoch."""
    task, position = run.task, run.position
    metrics = _EpochMetrics(position)
    # Kept here, since other threads may train so many other tasks that `programs` forgets this one.
    program = functools.cache(lambda steps: programs.train(task, steps))
    end = (position.epochs_done + 1) * task.steps_per_epoch
    while run.step < end:
        # Time is not counted while hooks keep the device waiting. One that does not read the state
        # works at the same time as the device.
        waits = all_hooks.any_reads_state
        if waits:
            jax.block_until_ready(run.state)
        with metrics.paused() if waits else contextlib.nullcontext():
            all_hooks.call("before_call", run)
        if _stop_is_agreed(run):
            _settle(run, metrics, folder)
            raise _stopped(run, folder)
        steps = task.steps_from(run.step)
        with metrics.paused():  # compiles for a `steps_per_call` that was changed in mid-epoch
            run_steps = program(steps)
        named = jax.profiler.StepTraceAnnotation("train", step_num=run.step)
        # A hidden copy to or from the host is an error.
        with named, jax.transfer_guard("disallow"):
            run.state, step_metrics = run_steps(
                run.state, run.hyperparams, run.images, run.labels, run.order
            )
        run.step += steps
        metrics.add(step_metrics)
        if progress.due() and metrics.fetch(but_last=True):
            progress.step(run.step, position.steps, position.seconds, task.batch_size)
        due = time.monotonic() - folder.saved_at > 60 * run.config.train.checkpoint_minutes
        save, diverged = processes.agree("save", due and processes.is_first(), not metrics.finite)
        if save or diverged:
            _settle(run, metrics, folder)  # which raises in all processes if a loss is not finite
            with metrics.paused():
                _save(run, folder)
    _settle(run, metrics, folder)


def _stop_is_agreed(run: Run) -> bool:
    """Whether to stop because some process of the run was asked to."""
    (wish,) = processes.agree("stop", run.stop.signum + 1 if run.stop else 0)
    if wish > 1:
        run.stop.request(f"by {signal.Signals(wish - 1).name}", wish - 1)
    elif wish:
        run.stop.request("by another process")
    return bool(wish)


class _EpochMetrics:
    """Moves the metrics of an epoch's steps from the device to the run's position."""

    def __init__(self, position: Position):
        self.finite = True  # the losses fetched so far
        self._position = position
        self._calls: list[dict[str, jax.Array]] = []  # not fetched yet
        self._began = time.monotonic()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a call, and waits until the call before it is done.

        So the device works on this call while the host prepares the next one: the device never
        idles, and a signal never has to wait for a long queue.
        """
        self._calls.append(metrics)
        if len(self._calls) > 1:
            jax.block_until_ready(self._calls[-2])

    def fetch(self, *, but_last: bool = False) -> bool:
        """Fetches the metrics of all calls, or of all but the last; returns if there were any."""
        calls = self._calls[:-1] if but_last else self._calls[:]
        for call in jax.device_get(calls):
            self.finite &= bool(np.isfinite(call["loss"]).all())
            for name, values in call.items():
                self._position.steps.setdefault(name, []).extend(values.tolist())
        del self._calls[: len(calls)]
        now = time.monotonic()
        self._position.seconds += now - self._began
        self._began = now
        return bool(calls)

    @contextlib.contextmanager
    def paused(self) -> Generator[None]:
        """Excludes what happens inside from the epoch's training time."""
        began = time.monotonic()
        yield
        self._began += time.monotonic() - began


def load_splits(config: Config) -> data.Splits:
    """Returns the images that a config names, split into training, validation and test sets.

    Raises:
      UserError: the data are missing or damaged, or there are fewer than the config asks for.
    """
    where = config.data
    limit = config.train.limit_train_images
    return data.load_splits(where.name, where.dir, protocol=where.protocol, limit=limit)


def _check_sizes(config: Config, mesh: Mesh) -> None:
    """Checks what depends on the number of images, if that is known before any are read.

    Raises:
      UserError: there are too few, or their number does not fit other fields.
    """
    where = config.data
    if not data.is_counted(where.name):
        return  # `build` will check it
    limit = config.train.limit_train_images
    sizes = data.splits_without_images(where.name, where.dir, protocol=where.protocol, limit=limit)
    build(config, sizes.train, mesh)


def _announce(run: Run, splits: data.Splits, progress: Progress) -> None:
    mesh, name = run.task.mesh, splits.train.provenance["name"]
    progress.say(
        f"{run.config.model.name} ({_parameter_count(run.state):,} parameters) on {name} "
        f"({len(splits.train):,} images), {mesh.size} × {mesh.devices.flat[0].device_kind}, "
        f"in {run.workdir}"
    )
    parts = splits.provenance
    others = [part for part, facts in parts.items() if facts["official"] is False]
    sources = " and ".join(dict.fromkeys(parts[part]["source"] for part in others or parts))
    if others:
        which = "" if len(others) == len(parts) else f", {' and '.join(others)} images"
        progress.say(
            f"{sources}{which}: not verified as the official files (no checksum matches); "
            "published accuracies may not be comparable. result.json says so too."
        )
    elif parts["train"]["official"]:
        progress.say(f"{sources}: verified as the official files")
    for line in unused(run.config):
        progress.say(f"without effect: {line}")
    if run.step:
        progress.say(f"resumed after epoch {run.position.epochs_done}, step {run.step}")


def _evaluate(run: Run, validation: tuple[jax.Array, jax.Array]) -> dict[str, float] | None:
    """The validation part of an epoch's record; None if the run was stopped meanwhile."""
    found = {}
    for prefix, variables in (("val", run.state.variables), ("ema_val", run.state.ema)):
        if variables is not None:
            scores = programs.evaluate(
                run.task.inference, variables, *validation, stop=lambda: _stop_is_agreed(run)
            )
            if scores is None:
                return None
            found |= {f"{prefix}_{name}": scores[name] for name in scores if name != "images"}
    return found


def _record(epoch: int, run: Run, scores: dict[str, float]) -> dict[str, Any]:
    """The line of an epoch in metrics.jsonl."""
    position = run.position
    means = {name: float(np.mean(values)) for name, values in position.steps.items()}
    del means["learning_rate"]
    return {
        "epoch": epoch,
        "step": run.step,
        **{f"train_{name}": means.pop(name) for name in ("loss", "ce", "accuracy")},
        **means,  # such as the norms
        **scores,
        # That of the epoch's last step, with as many digits as a float32 has.
        "learning_rate": float(f"{position.steps['learning_rate'][-1]:.7g}"),
        "images_per_second": run.task.steps_per_epoch * run.task.batch_size / position.seconds,
        "seconds": position.seconds,  # of training, without evaluation
    }


# --- how a run ends ---------------------------------------------------------------------------


def _save(run: Run, folder: RunFolder, val_accuracy: float | None = None) -> None:
    try:
        folder.save(run.step, run.state, run.position, val_accuracy)
    except NotFinite as error:
        what = f"A parameter after step {run.step}"
        raise _diverged(what, run.step, run, folder) from error


def _stopped(run: Run, folder: RunFolder) -> Interrupted:
    """Saves the run; returns what to raise."""
    _save(run, folder)
    folder.wait()
    stopped = Interrupted(
        run.stop.signum,
        f"Stopped {run.stop.reason} and saved at step {run.step} in {run.workdir}. "
        "The same command resumes it.",
    )
    stopped.agreed = True
    return stopped


def _settle(run: Run, metrics: "_EpochMetrics", folder: RunFolder) -> None:
    """Waits for all steps, and checks their losses: what follows may be saved."""
    metrics.fetch()
    position = run.position
    losses = position.steps.get("loss", [])
    # Not the norms of a part of the epoch, where `train.log_norms` was changed on resuming.
    position.steps = {
        name: values for name, values in position.steps.items() if len(values) == len(losses)
    }
    bad = np.flatnonzero(~np.isfinite(losses))
    if bad.size:
        step = position.epochs_done * run.task.steps_per_epoch + int(bad[0]) + 1
        raise _diverged(f"The training loss of step {step}", step, run, folder)


def _diverged(what: str, step: int, run: Run, folder: RunFolder) -> UserError:
    """Returns the error to raise, which says what it takes to look at the step (from 1)."""
    folder.wait()
    last, steps_per_epoch = folder.last(), run.task.steps_per_epoch
    kept = (
        f"The last good checkpoint, of step {last.step}, is in {run.workdir / 'checkpoints'}."
        if last
        else "There is no earlier checkpoint."
    )
    optimization, numbers = run.task.optimization, hyperparams(run.config)
    rate = float(optimization.make_schedule(numbers, steps_per_epoch)(step - 1))
    place = (step - 1) % steps_per_epoch
    indices = np.asarray(run.order)[place]
    # After the last step of an epoch there may be none any more: they are in steps.jsonl.
    losses = run.position.steps.get("loss", [])[: place + 1][-10:]
    shown = ", ".join(f"{loss:.4g}" for loss in losses)
    diverged = UserError(
        f"{what} is not finite (epoch {(step - 1) // steps_per_epoch + 1}). {kept} "
        "To find the first number that is not finite, here or in the gradient of the step before: "
        f"jaxcifar replay {shlex.quote(str(run.workdir))}. A smaller "
        f"optim.learning_rate than {run.config.optim.learning_rate:g}, in another workdir, may "
        "help.\n"
        + (f"  losses of the last steps: {shown}\n" if losses else "")
        + f"  learning rate of the step: {rate:.6g}\n"
        f"  images of its batch (indices in the training set): {', '.join(map(str, indices))}"
    )
    diverged.agreed = True
    if processes.is_first():
        signs.fail(run.workdir, str(diverged))  # for `jaxcifar runs`
    return diverged


def _result(
    run: Run,
    splits: data.Splits,
    records: list[dict[str, Any]],
    compile_seconds: float | None,
    peak_memory: int | None,
    folder: RunFolder,
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "best": best_record(records),
        "last": records[-1],
        "parameters": _parameter_count(run.state),
        "protocol": run.config.data.protocol,
        "data": splits.provenance,
        "compile_seconds": compile_seconds and round(compile_seconds, 3),
        "train_seconds": sum(record["seconds"] for record in records),
        "peak_memory_bytes": peak_memory,
    }
    record, best = result["best"], folder.best()
    if best is None or best.step != record["step"]:
        raise UserError(
            f"{folder.path} is damaged: the best epoch is {record['epoch']} (step "
            f"{record['step']}), but the best checkpoint is of step {best.step if best else 'none'}"
            ". Restore the folder from a copy, or train again in another workdir."
        )
    if splits.test is not None:
        try:
            state = folder.state(programs.abstract_state(run.task), best)
        except Damaged as error:
            raise UserError(
                f"The checkpoint of the best epoch, {record['epoch']}, is lost, and with it the "
                f"accuracy on the test set: {error} Restore it from a copy, or train again in "
                "another workdir."
            ) from error
        test = programs.on_devices(splits.test, run.task.mesh)
        result["test"] = programs.evaluate(run.task.inference, state.averaged, *test)
    return folder.finish(result)


def _parameter_count(state: TrainState) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))
