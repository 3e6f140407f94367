"""How a run shows its progress: a live bar in a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import rich.console
import rich.progress

from jaxcifar.errors import note, unread
from jaxcifar.run.log import Record, averaged


class _Stdout:
    """Standard output whose closed pipe or full disk does not end what runs."""

    def write(self, text: str) -> int:
        # What a terminal's encoding lacks, ASCII's for example, must not end the run.
        text = text.encode(self.encoding, "replace").decode(self.encoding)
        return self._try(lambda stdout: stdout.write(text)) or 0

    def flush(self) -> None:
        self._try(lambda stdout: stdout.flush())

    def isatty(self) -> bool:
        isatty = getattr(sys.stdout, "isatty", None)  # it may be None, or anything with a `write`
        return bool(isatty and isatty())

    @property
    def encoding(self) -> str:
        return getattr(sys.stdout, "encoding", None) or "utf-8"

    def _try(self, use: Callable[[Any], Any]) -> Any:
        # While a bar is shown, rich has its own file there, around the real one.
        stdout = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
        if stdout is None:
            return None
        try:
            return use(stdout)
        except OSError as error:
            unread(stdout)
            note(
                f"Standard output cannot be written to ({error.strerror}). The work goes on "
                "without showing progress."
            )
            return None


def console(*, quiet: bool = False) -> rich.console.Console:
    """Returns a console on standard output that outlives whoever reads or stores it."""
    stdout: Any = _Stdout()
    return rich.console.Console(
        file=stdout, quiet=quiet, highlight=False, soft_wrap=True, emoji=False
    )


def is_live(console: rich.console.Console) -> bool:
    """Whether lines on it can be replaced; with FORCE_COLOR, rich takes a file for a terminal."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def say(text: str) -> None:
    """Prints a line on such a console."""
    console().print(text, markup=False)


def _share_a_file() -> bool:
    """Whether stdout and stderr are the same file, or terminal."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False


class Progress:
    """Shows a run in a `with` block: while it compiles, and in another one while it trains."""

    _EVERY_TERMINAL, _EVERY_PLAIN = 0.25, 20.0  # seconds between updates within an epoch

    def __init__(self, epochs: int, steps_per_epoch: int, epochs_done: int, quiet: bool = False):
        self._console = console(quiet=quiet)
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._live = not quiet and is_live(self._console)
        self._every = self._EVERY_TERMINAL if self._live else self._EVERY_PLAIN
        self._shown = self._started = time.monotonic()
        self._first_step: int | None = None
        self._epochs_left = epochs - epochs_done
        self._evaluations, self._evaluation_began, self._evaluation_seconds = 0, 0.0, 0.0
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._live,
            transient=True,
            # What goes to a file, or to another terminal, must not be shown above the bar instead.
            redirect_stderr=_share_a_file(),
        )
        self._task = self._bar.add_task(
            f"epoch {min(epochs_done + 1, epochs)}/{epochs}",
            total=epochs * steps_per_epoch,
            status="compiling",
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        self._console.print(text, markup=False)

    def due(self) -> bool:
        """Whether it is time to show the step again, for which the caller fetches its metrics."""
        return time.monotonic() - self._shown >= self._every

    def started(self, step: int) -> None:
        """Notes that training starts or resumes after `step` steps, to estimate the time left."""
        self._first_step, self._started = step, time.monotonic()
        self._bar.update(self._task, completed=step, status="", refresh=True)

    def step(
        self, step: int, steps: dict[str, list[float]], seconds: float, batch_size: int
    ) -> None:
        """Shows how far within an epoch the run is.

        Args:
          step: training steps started so far.
          steps: the metrics of the epoch's finished steps.
          seconds: how long those took.
          batch_size: images in a step.
        """
        self._shown = time.monotonic()
        epoch, within = divmod(step - 1, self._steps_per_epoch)
        done = len(steps["loss"])
        rate = done * batch_size / seconds
        text = (
            f"step {within + 1}/{self._steps_per_epoch}  loss {steps['loss'][-1]:.4f}  "
            f"accuracy {sum(steps['accuracy']) / done:.2%}  "
            f"{rate:,.0f} images/s  {self._left(epoch * self._steps_per_epoch + done)}"
        )
        name = f"epoch {epoch + 1}/{self._epochs}"
        self._bar.update(self._task, completed=step, description=name, status=text)
        if not self._live:
            self.say(f"{name}  {text}")

    def evaluating(self) -> None:
        """Notes that an epoch's steps are done, and its evaluation begins."""
        self._evaluation_began = time.monotonic()
        self._bar.update(self._task, status="evaluating", refresh=True)

    def epoch(self, record: Record) -> None:
        """Prints the line of a finished epoch."""
        self._shown, record = time.monotonic(), averaged(record)
        self._evaluation_seconds += self._shown - self._evaluation_began
        self._evaluations += 1
        self._epochs_left -= 1
        self._bar.update(self._task, completed=record["step"], status="", refresh=True)
        penalty = record["train_loss"] - record["train_ce"]
        self.say(
            f"epoch {record['epoch']:>{len(str(self._epochs))}}/{self._epochs}  "
            f"train loss {record['train_loss']:.4f}"
            + (f" (cross-entropy {record['train_ce']:.4f})" if penalty else "")
            + f"  accuracy {record['train_accuracy']:.2%}  "
            f"val loss {record['val_loss']:.4f}  accuracy {record['val_accuracy']:.2%}  "
            f"{record['images_per_second']:,.0f} images/s  {self._left(record['step'])}"
        )

    def _left(self, step: int) -> str:
        """Estimates the time left after `step` steps, all of them finished."""
        if self._first_step is None or step <= self._first_step:
            return ""
        # Timed apart, since a run may resume a few steps before an evaluation.
        training = time.monotonic() - self._started - self._evaluation_seconds
        each = training / (step - self._first_step)
        evaluation = self._evaluation_seconds / max(self._evaluations, 1)
        steps_left = self._epochs * self._steps_per_epoch - step
        return f"{duration(each * steps_left + evaluation * self._epochs_left)} left"


def duration(seconds: float) -> str:
    """Returns 42s, 3m05s or 2h07m."""
    if round(seconds) < 60:
        return f"{round(seconds)}s"
    if round(seconds) < 3600:
        return "{}m{:02d}s".format(*divmod(round(seconds), 60))
    return "{}h{:02d}m".format(*divmod(round(seconds / 60), 60))
