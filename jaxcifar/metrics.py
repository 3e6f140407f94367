"""What a run writes while it trains, how it shows progress, and the readers for experiments."""

import json
import os
import pathlib
import time
from collections.abc import Iterable
from typing import Any

import rich.console
import rich.progress
from tensorboardX import SummaryWriter

Record = dict[str, Any]

# --- files ------------------------------------------------------------------------------------


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes JSON by `replace`."""
    replace(path, json.dumps(content, indent=2) + "\n")


def read_lines(path: pathlib.Path) -> list[Record]:
    """Reads a file of JSON lines; [] where there is none. A half-written last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]  # a whole line ends with \n


def replace(path: pathlib.Path, text: str) -> None:
    """Writes a file so that a reader, or a kill, never meets half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


class RunLog:
    """metrics.jsonl, steps.jsonl and TensorBoard events of a run: one entry for each epoch.

    metrics.jsonl has the means of each epoch; steps.jsonl the metrics of each of its steps, as
    lists. What an interrupted run logged after the checkpoint it resumes from is dropped here, and
    logged anew as those epochs are trained again: no epoch appears twice.
    """

    def __init__(self, workdir: pathlib.Path, epochs_done: int):
        self._metrics, self._steps = workdir / "metrics.jsonl", workdir / "steps.jsonl"
        self.records = self._keep(self._metrics, epochs_done)
        self._keep(self._steps, epochs_done)
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=epochs_done + 1)

    @staticmethod
    def _keep(path: pathlib.Path, epochs_done: int) -> list[Record]:
        kept = [record for record in read_lines(path) if record["epoch"] <= epochs_done]
        replace(path, "".join(json.dumps(record) + "\n" for record in kept))
        return kept

    def write(self, record: Record, steps: dict[str, list[float]]) -> None:
        """Appends one epoch: its record, and the metrics of its steps."""
        rounded = {name: [float(f"{v:.6g}") for v in values] for name, values in steps.items()}
        for path, line in ((self._steps, {"epoch": record["epoch"], **rounded}),
                           (self._metrics, record)):  # fmt: skip
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        self.records.append(record)
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name.replace("_", "/", 1), value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._writer.close()


def best_record(records: Iterable[Record]) -> Record:
    """Returns the record of highest validation accuracy, the first of equals."""
    return max(records, key=lambda record: (record["val_accuracy"], -record["epoch"]))


# --- progress ---------------------------------------------------------------------------------


class Progress:
    """Shows a run: a live bar in a terminal, plain lines elsewhere."""

    _EVERY_TERMINAL, _EVERY_PLAIN = 0.25, 20.0  # seconds between updates within an epoch

    def __init__(self, epochs: int, steps_per_epoch: int, epochs_done: int, quiet: bool = False):
        self._console = rich.console.Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._every = self._EVERY_TERMINAL if self._console.is_terminal else self._EVERY_PLAIN
        self._shown = self._started = time.monotonic()
        self._first_step: int | None = None
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[status]}"),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(
            f"epoch {epochs_done + 1}/{epochs}", total=epochs * steps_per_epoch, status="compiling"
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """Prints one line above the bar."""
        self._console.print(text, markup=False)

    def due(self) -> bool:
        """Whether it is time to show the step again; the caller may then fetch its metrics."""
        return time.monotonic() - self._shown >= self._every

    def started(self, step: int) -> None:
        """Training begins (again) after `step` steps; time left is counted from here."""
        self._first_step, self._started = step, time.monotonic()

    def step(self, step: int, loss: float, accuracy: float, images_per_second: float) -> None:
        """Shows where within an epoch the run is."""
        self._shown = time.monotonic()
        epoch, within = divmod(step - 1, self._steps_per_epoch)
        text = (
            f"step {within + 1}/{self._steps_per_epoch}  loss {loss:.4f}  "
            f"accuracy {accuracy:.2%}  {images_per_second:,.0f} images/s  {self._left(step)}"
        )
        name = f"epoch {epoch + 1}/{self._epochs}"
        self._bar.update(self._task, completed=step, description=name, status=text)
        if not self._console.is_terminal:
            self.say(f"{name}  {text}")

    def epoch(self, record: Record) -> None:
        """Prints the line of a finished epoch."""
        self._shown = time.monotonic()
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
        if self._first_step is None or step <= self._first_step:
            return ""
        each = (time.monotonic() - self._started) / (step - self._first_step)
        seconds = each * (self._epochs * self._steps_per_epoch - step)
        return f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """Returns 42s, 3m05s or 2h07m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes}m{seconds:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"
