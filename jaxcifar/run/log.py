"""What a run writes while it trains, and the readers of it."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

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
    logged again as those epochs are trained again: no epoch appears twice.
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
        steps_line = {"epoch": record["epoch"], **rounded}
        for path, line in ((self._steps, steps_line), (self._metrics, record)):
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        for name, value in record.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name.replace("_", "/", 1), value, record["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Closes the TensorBoard file."""
        self._writer.close()


def score(record: Record) -> float:
    """Returns the accuracy that an epoch is judged by: the average's, where one is kept."""
    return record.get("ema_val_accuracy", record["val_accuracy"])


def best_record(records: Iterable[Record]) -> Record:
    """Returns the record of the highest score, the first of equals."""
    return max(records, key=lambda record: (score(record), -record["epoch"]))
