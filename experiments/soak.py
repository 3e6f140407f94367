"""Trains many tiny epochs in one process, and fails if what the process uses keeps growing.

    python -m experiments.soak --out=/tmp/soak --epochs=2000

Each epoch is evaluated and saved; after it, memory, open files, threads, disk use and CPU time are
read (from /proc, so only on Linux). At the end a table of their medians in each tenth of the epochs
is printed. The exit code is 1 if one of them grows by more than its limit.
"""

import contextlib
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.runs.table import Table
from experiments.torture import share_compiled, tiny_config, where
from jaxcifar import train
from jaxcifar.errors import UserError
from jaxcifar.hooks import Hook, Run
from jaxcifar.options import Parser, user_path
from jaxcifar.signals import exit_code

# What may be added per epoch, on average: what the run remembers of each is about 3 kB. A leak of
# one file in fifty epochs would be noticed, as would be 40 MB in all of 2,000 epochs.
LIMITS = {"RSS, kB": 20, "open files": 0.02, "threads": 0.02, "disk, kB": 8, "CPU time, ms": 0.1}


class Gauges(Hook):
    """Reads after each epoch what the process uses.

    Attributes:
      read: what was read, [epochs][len(LIMITS)], in the units that `LIMITS` names.
    """

    def __init__(self) -> None:
        self.read: list[list[float]] = []
        self._used = time.process_time()

    def after_epoch(self, run: Run, record: dict[str, Any]) -> None:
        used = time.process_time()
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        disk = 0
        for folder, _, names in os.walk(run.workdir):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # Orbax renames its folders
                    disk += os.stat(os.path.join(folder, name)).st_size
        files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
        kilo, cpu = 1e-3 * os.sysconf("SC_PAGE_SIZE"), 1e3 * (used - self._used)
        self.read.append([kilo * pages, files, threads, 1e-3 * disk, cpu])
        epochs = run.config.train.epochs
        if record["epoch"] % max(1, epochs // 10) == 0:
            late = np.median(self.read[-max(1, epochs // 10) :], axis=0)
            used_by_now = ", ".join(
                f"{name} {x:,.0f}" for name, x in zip(LIMITS, late, strict=True)
            )
            print(
                f"{record['epoch']} of {epochs} epochs: {used_by_now}", file=sys.stderr, flush=True
            )
        self._used = time.process_time()  # without what this took


def growth(read: np.ndarray) -> dict[str, float]:
    """Returns by how much each gauge grows per epoch.

    That is the slope of a straight line through all epochs but the first quarter.

    Args:
      read: [epochs, len(LIMITS)].
    """
    late = np.arange(len(read) // 4, len(read))
    return dict(zip(LIMITS, np.polyfit(late, read[late], 1)[0], strict=True))


def growing(read: np.ndarray) -> list[str]:
    """Returns the names of the gauges that grow by more than their limits."""
    return [name for name, slope in growth(read).items() if slope > LIMITS[name]]


def table(read: np.ndarray) -> Table:
    """Returns the medians of each tenth of the epochs, the growth, and the limits."""
    lines = []
    for part in np.array_split(np.arange(len(read)), 10):
        medians = np.median(read[part], axis=0)
        lines.append([f"{part[0] + 1} … {part[-1] + 1}", *(f"{x:,.0f}" for x in medians)])
    for name, numbers in (("growth per epoch", growth(read).values()), ("limit", LIMITS.values())):
        lines.append([name, *(f"{x:.3g}" for x in numbers)])
    grows = growing(read)
    verdict = f"These keep growing: {'; '.join(grows)}" if grows else "Nothing keeps growing"
    title = f"{verdict} ({time.strftime('%Y-%m-%d', time.gmtime())}, {where()})"
    return Table(title, ["epochs", *LIMITS], lines)


def soak(epochs: int, folder: pathlib.Path) -> np.ndarray:
    """Trains so many epochs in this process; returns what it used, [epochs, len(LIMITS)]."""
    config, gauges = tiny_config("test"), Gauges()
    config.train.epochs, config.train.checkpoint_minutes = epochs, 60.0  # saved once per epoch
    shutil.rmtree(folder, ignore_errors=True)
    train.train_and_evaluate(config, folder, hooks=[gauges], quiet=True)
    return np.array(gauges.read)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m experiments.soak", __doc__)
    parser.add_argument("--out", type=user_path, required=True, help="folder for the run")
    parser.add_argument("--epochs", type=int, default=2000)
    arguments = parser.parse_args(argv)
    if arguments.epochs < 20:
        raise UserError(f"--epochs is {arguments.epochs}; it must be at least 20.")
    if not pathlib.Path("/proc/self/statm").exists():
        raise UserError("There is no /proc/self/statm, from which the memory is read: use Linux.")
    share_compiled(arguments.out / "xla")
    read = soak(arguments.epochs, arguments.out / "soak")
    print(table(read))
    return int(bool(growing(read)))


if __name__ == "__main__":
    sys.exit(exit_code(main))
