"""Hooks, which look into a run while it trains: measurements, profilers, tests.

A hook overrides the methods that it needs:

    from jaxcifar.hooks import Hook
    from jaxcifar.train import train_and_evaluate

    class PrintLoss(Hook):
        def after_epoch(self, run, record):
            print(record["val_loss"])

    train_and_evaluate(config, workdir, hooks=[PrintLoss()])
"""

import dataclasses
import errno
import pathlib
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import jax

from jaxcifar import processes
from jaxcifar.config import Config
from jaxcifar.errors import Interrupted, UserError, in_short, note
from jaxcifar.run.folder import Position
from jaxcifar.signals import Stop
from jaxcifar.state import TrainState
from jaxcifar.task import Hyperparams, Task


@dataclasses.dataclass
class Run:
    """A run in progress. Hooks read it; only the loop writes to it.

    Attributes:
      config, workdir, task, hyperparams: the run's settings, folder, task and traced numbers.
      images, labels: the training set on every device, [N, 3072] uint8 and [N] int32, see
        `jaxcifar.programs.on_devices`; `jaxcifar.programs.batch` takes a step's batch from it.
      position: how far the run is. `position.steps` has the metrics of the epoch's steps as far as
        they have been fetched: during the epoch, those already shown or saved; in
        `before_evaluation`, all; in `after_epoch`, none, because the record has their means.
      step: training steps done.
      state: the state after them. The next step donates its arrays, so a hook must not keep them.
      order: the indices of the images of the epoch's batches [steps_per_epoch, batch].
      stop: `stop.request("why")` ends the run before the next call; it is saved.
    """

    config: Config
    workdir: pathlib.Path
    task: Task
    hyperparams: Hyperparams
    images: jax.Array
    labels: jax.Array
    position: Position
    step: int
    state: TrainState
    order: jax.Array
    stop: Stop


class Hook:
    """Override the methods you need. All are called by the thread that trains.

    Attributes:
      reads_state: set it to False if `before_call` does not read `run.state`; the host then need
        not wait for the devices before each call.
    """

    reads_state = True

    def locked(self, workdir: pathlib.Path) -> None:
        """Once this process has the run's folder, before anything is loaded or compiled."""

    def start(self, run: Run) -> None:
        """Before the first step of this start, or resumption, of the run."""

    def before_call(self, run: Run) -> None:
        """Before each call of the training program, when `run.step` steps are done.

        A call makes `run.task.steps_from(run.step)` steps. If it reads the state (see
        `reads_state`), the devices have finished the previous call, and the time that it takes is
        not counted as training; else the devices work on that call meanwhile.
        """

    def before_evaluation(self, run: Run) -> None:
        """After the last step of an epoch."""

    def after_epoch(self, run: Run, record: dict[str, Any]) -> None:
        """After an epoch is evaluated and logged; `record` is its line in metrics.jsonl.

        Its checkpoint is being written meanwhile, and is there by the next epoch's call or `end`.
        """

    def close(self, run: Run) -> None:
        """After the last step of this start, whether the run is complete, stopped or failed.

        It comes before `end`, and also where a `start` failed.
        """

    def end(self, run: Run, result: dict[str, Any]) -> None:
        """After the run is complete; `result` is the content of result.json."""


class Profile(Hook):
    """Traces the first training steps: where the time goes, on the host and on the devices.

    The trace is written to the run's folder profile/: for TensorBoard, if its plugin xprof is
    installed, and as perfetto_trace.json.gz, which https://ui.perfetto.dev opens. It holds `steps`
    steps or a few more, because it consists of whole calls of the training program, and fewer if
    the run ends before. With several processes, the first writes its own.

    Args:
      steps: at least 1.

    Attributes:
      traced: the steps in the trace, once it is written; else 0.
    """

    def __init__(self, steps: int):
        self.reads_state = True  # at first, as to start a trace may take seconds
        self._steps, self._first = steps, -1
        self._tracing = False
        self.traced = 0

    @property
    def began(self) -> bool:
        """Whether there was a step to trace."""
        return self._first >= 0

    def before_call(self, run: Run) -> None:
        if not self.began and processes.is_first():
            folder = run.workdir / "profile"
            folder.mkdir(exist_ok=True)
            jax.block_until_ready(run.state)
            # Without Python's own calls, which would fill a trace and slow the steps.
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(folder, create_perfetto_trace=True, profiler_options=options)
            self._first, self._tracing = run.step, True
        else:
            self._write_if_done(run)
        # Not while it traces, or there would be gaps between calls that no other run has. Where the
        # next call is the last in the trace, the loop waits for it: it is training.
        after = run.step + run.task.steps_from(run.step)
        self.reads_state = self._tracing and after - self._first >= self._steps

    def before_evaluation(self, run: Run) -> None:
        self._write_if_done(run)

    def close(self, run: Run) -> None:
        self._write(run)

    def _write_if_done(self, run: Run) -> None:
        if run.step - self._first >= self._steps:
            self._write(run)

    def _write(self, run: Run) -> None:
        if not self._tracing:
            return
        self._tracing = False
        with suppress(RuntimeError):  # a step failed, and its state is gone
            jax.block_until_ready(run.state)
        try:
            jax.profiler.stop_trace()
        except Exception as error:  # XLA's own, as of a full disk
            note(f"the trace in {run.workdir / 'profile'} is not written: {in_short(error)}")
            return
        self.traced = run.step - self._first


class Hooks:
    """Calls each hook in turn, and says which one failed."""

    def __init__(self, hooks: Sequence[Hook]):
        self._hooks = hooks

    @property
    def any_reads_state(self) -> bool:
        """Whether a hook reads the state before each call of the training program."""
        return any(
            hook.reads_state and getattr(hook.before_call, "__func__", None) is not Hook.before_call
            for hook in self._hooks
        )

    def call(self, name: str, seen: Run | pathlib.Path, *args: Any) -> None:
        """Calls the method `name` of every hook.

        Args:
          name: a method of `Hook`.
          seen: its first argument: the run, or before there is one its folder.
          args: its other arguments.

        Raises:
          RuntimeError: a hook raised anything but `UserError`, `Interrupted` or the `OSError` of a
            file or disk.
        """
        for hook in self._hooks:
            _call(hook, name, seen, *args)

    @contextmanager
    def closing(self, run: Run) -> Generator[None]:
        """Calls `close` of every hook at the end of the block, however it ends.

        Raises:
          RuntimeError: see `call`; only if nothing else ended the block.
        """
        try:
            yield
        except BaseException as ended:
            for error in self._close(run):
                note(str(error))  # what ended the run matters more
            if getattr(ended, "agreed", False):
                processes.gather(None)  # else who closes first ends the others within seconds
            raise
        first, *others = self._close(run) or [None]
        for error in others:
            note(str(error))
        if first:
            raise first

    def _close(self, run: Run) -> list[Exception]:
        errors = []
        for hook in self._hooks:
            try:
                _call(hook, "close", run)
            except Exception as error:  # the others are closed all the same
                errors.append(error)
        return errors


# Errors of files and pipes, even if they do not name the file.
_OF_FILES = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE, errno.EPIPE)
}


def _is_of_a_file(error: OSError) -> bool:
    # urllib's errors of a server have its address as their file, but no number.
    return bool(error.errno) and (error.filename is not None or error.errno in _OF_FILES)


def _call(hook: Hook, name: str, seen: Run | pathlib.Path, *args: Any) -> None:
    try:
        getattr(hook, name)(seen, *args)
    except (UserError, Interrupted):
        raise
    except Exception as error:
        if isinstance(error, OSError) and _is_of_a_file(error):
            raise
        workdir, when = seen, "before the first step"
        if isinstance(seen, Run):
            workdir, when = seen.workdir, f"at step {seen.step}"
        then = (
            f"The run is complete: {workdir} has its result.json. No hook's `end` is called again, "
            "and those of the hooks after this one were not."
            if name == "end"
            else f"The same command resumes the run in {workdir} from its last checkpoint."
        )
        raise RuntimeError(
            f"The hook {type(hook).__name__}.{name} failed {when} ({type(error).__name__}: "
            f"{error}). {then}"
        ) from error
