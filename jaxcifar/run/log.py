"""The files that a run writes while it trains, and how to read them."""

import base64
import json
import pathlib
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxcifar.errors import note
from jaxcifar.files import append, read_lines, replace

Record = dict[str, Any]
Steps = dict[str, list[float]]  # the metrics of an epoch's steps


class RunLog:
    """The metrics.jsonl, steps.jsonl and TensorBoard events of a run: one entry per epoch.

    metrics.jsonl has the means over each epoch; steps.jsonl has the metrics of its steps, as lists.
    What an interrupted run logged after the checkpoint that it resumes from is dropped, and logged
    again as those epochs are trained again: no epoch appears twice, and none is missing.

    Args:
      epochs_done: the number of epochs before the checkpoint.
      saved: the `history` in the checkpoint, from which damaged files are restored; None to read
        the files instead (a finished run is repaired, whose result.json has verified them).

    Attributes:
      records: the records of the epochs so far.
      events: the path of the TensorBoard file.
      history: for each epoch its record, the metrics of its steps and, unless it was read from the
        files, the time of its end; JSON-serialisable, as checkpoints keep it.
    """

    def __init__(
        self, workdir: pathlib.Path, epochs_done: int, saved: list[dict[str, Any]] | None = None
    ):
        self._metrics, self._steps = workdir / "metrics.jsonl", workdir / "steps.jsonl"
        if saved is None:
            metrics, steps = (read_lines(p)[:epochs_done] for p in (self._metrics, self._steps))
            saved = [_pack(record, line) for record, line in zip(metrics, steps, strict=True)]
        self.history = list(saved)
        self.records: list[Record] = [epoch["record"] for epoch in saved]
        for path, lines in (
            (self._metrics, map(json.dumps, self.records)),
            (self._steps, map(_steps_line, saved)),
        ):
            _start(path, "".join(line + "\n" for line in lines))
        self._events = _Events(workdir / "tensorboard")
        self.events = self._events.path
        for epoch in self.history:
            self._events.write(epoch["record"], epoch.get("time"))

    def write(self, record: Record, steps: Steps) -> None:
        """Appends an epoch: its record, and the metrics of its steps."""
        epoch = _pack(record, steps) | {"time": time.time()}
        append(self._steps, _steps_line(epoch))
        append(self._metrics, json.dumps(record))
        self.records.append(record)
        self.history.append(epoch)
        self._events.write(record, epoch["time"])

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._events.close()


def _pack(record: Record, steps: Steps) -> dict[str, Any]:
    packed = {
        name: base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()
        for name, values in steps.items()
        if name != "epoch"
    }
    return {"record": dict(record), "steps": packed}


def _steps_line(epoch: dict[str, Any]) -> str:
    line: dict[str, Any] = {"epoch": epoch["record"]["epoch"]}
    for name, packed in epoch["steps"].items():
        values = np.frombuffer(base64.b64decode(packed), "<f4").tolist()
        line[name] = [float(f"{value:.6g}") for value in values]
    return json.dumps(line)


def _start(path: pathlib.Path, text: str) -> None:
    """Makes `text` the content of a file; tells the user if the file did not start with it."""
    try:
        before = path.read_text() if path.exists() else ""
    except ValueError:
        before = "damaged"
    if text and not before.startswith(text):
        note(f"{path} was damaged, and was restored from the checkpoint.")
    elif (dropped := before[len(text) :].count("\n")) > 2:  # more than a kill explains
        note(f"{path}: the checkpoint is {dropped} epochs older; these are trained again.")
    if before != text or not path.exists():
        replace(path, text)


class _Events:
    """A TensorBoard file of all epochs, written synchronously."""

    _SUFFIX = ".jaxcifar"

    def __init__(self, folder: pathlib.Path):
        # tensorboardX imports PyTorch if it can, which takes seconds and is of no use here.
        if hidden := "torch" not in sys.modules:
            sys.modules["torch"] = None  # type: ignore[assignment]
        try:
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2
            from tensorboardX.summary import scalar
        finally:
            if hidden:
                del sys.modules["torch"]

        # Type checkers do not see its classes, which are made at import.
        self._proto: Any = event_pb2
        self._scalar = scalar
        folder.mkdir(exist_ok=True)
        for path in folder.glob(f"events.out.tfevents.*{self._SUFFIX}"):
            if path.is_file():
                path.unlink()  # from an earlier start; all of its content is written again
        self._writer = EventsWriter(str(folder / "events"), self._SUFFIX)
        (self.path,) = (p for p in folder.glob(f"events.*{self._SUFFIX}") if p.is_file())
        # Tells TensorBoard to disregard what earlier versions wrote there.
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._write(step=1, session_log=start)

    def write(self, record: Record, at: float | None = None) -> None:
        """Writes an epoch that ended at the time `at`; None means now."""
        for name, value in record.items():
            if name not in ("epoch", "step"):
                group = re.match(r"(train|val|ema)_", name)  # TensorBoard groups by "train/"
                tag = f"{group[0][:-1]}/{name[group.end() :]}" if group else name
                scalar = self._scalar(tag, value)
                self._write(at, step=record["epoch"], summary=scalar)
        self._writer.flush()

    def _write(self, at: float | None = None, **event: Any) -> None:
        self._writer.write_event(self._proto.Event(wall_time=at or time.time(), **event))

    def close(self) -> None:
        self._writer.close()


def score(record: Record) -> float:
    """Returns the accuracy that an epoch is judged by: that of the moving average, if any."""
    return record.get("ema_val_accuracy", record["val_accuracy"])


def averaged(record: Record) -> Record:
    """Returns a record whose "val_…" are those of the moving average of the weights, if any."""
    average = {
        name.removeprefix("ema_"): value
        for name, value in record.items()
        if name.startswith("ema_")
    }
    return record | average


def best_record(records: Iterable[Record]) -> Record:
    """Returns the record with the highest score, the earliest of equals."""
    return max(records, key=lambda record: (score(record), -record["epoch"]))
