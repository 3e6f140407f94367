"""Lists the runs below a folder: what they are, how far along they are, and how well they do.

jaxcifar runs [DIR]

The state is one of
  finished   all epochs are done
  running    a process that is training it showed a sign of life in the last ten minutes
  stale      a process on another machine has shown no sign of life for ten minutes, and did not
             exit normally
  failed     it diverged, or a sweep's last attempt failed; the reason follows
  imported   weights from elsewhere, not trained here
  measured   by `jaxcifar landscape smoothness`, whose command resumes it if anything is left
  stopped    `jaxcifar train RUN` resumes it, or the command that started it
  damaged    a file cannot be read; the command that started it may restore it
"""

import json
import pathlib
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxcifar import options
from jaxcifar.config import base_config, flatten
from jaxcifar.errors import UserError, printable
from jaxcifar.files import read_json, read_lines
from jaxcifar.run import signs
from jaxcifar.run.folder import run_folders
from jaxcifar.run.log import averaged, best_record
from jaxcifar.run.progress import duration


def find(folder: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what is known about each run below a folder, sorted by path.

    Raises:
      UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}. Name one that holds runs.")
    found = [_describe(path, folder) for path in run_folders(folder)]
    if not found:
        raise UserError(f"{folder} contains no runs (no config.json below it).")
    return found


def _describe(workdir: pathlib.Path, top: pathlib.Path) -> dict[str, Any]:
    found: dict[str, Any] = {"run": str(workdir.relative_to(top)), "state": "damaged"}
    try:
        about = read_json(workdir / "config.json")
        # A run of another version is listed too: with unknown fields, or without known ones.
        given = flatten(base_config()) | flatten(about["config"])
        found |= {
            "model": str(given["model.name"]),
            "data": str(given["data.name"]),
            "epochs": given["train.epochs"],
        }
        records = read_lines(workdir / "metrics.jsonl")
        found |= {"epochs done": len(records)}
        if records:
            best, last = averaged(best_record(records)), averaged(records[-1])
            found |= {
                "best": float(best["val_accuracy"]),
                "best epoch": int(best["epoch"]),
                "last": float(last["val_accuracy"]),
                "images per second": float(last["images_per_second"]),
            }
        otherwise = "imported" if not about["data"] and not records else "stopped"
        if (workdir / "settings.json").exists():
            otherwise = "measured"
        found["state"] = _state(workdir, otherwise)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        pass  # what is there is of no run, or damaged
    return found


def _state(workdir: pathlib.Path, otherwise: str) -> str:
    if (workdir / "result.json").exists():
        return "finished"
    sign = signs.running(workdir)
    if sign and sign.alive:
        return f"running on {sign.host}, last sign {duration(sign.age)} ago"
    if why := signs.failure(workdir):
        return f"failed: {why.splitlines()[0]}"
    if sign and not sign.here and not sign.dead:  # here it may be suspended
        return f"stale: {sign.host} fell silent {duration(sign.age)} ago"
    return otherwise


def table(found: list[dict[str, Any]]) -> Table:
    """Returns the runs as a table for a terminal."""
    grid = Table(box=None, header_style="bold")
    names = ("run", "model", "data", "epochs", "best", "last", "images/s", "state")
    for name in names:
        right = name in ("epochs", "best", "last", "images/s")
        grid.add_column(name, justify="right" if right else "left", overflow="fold")
    for run in found:
        epochs = f"{run['epochs done']}/{run['epochs']}" if "epochs done" in run else "–"
        best = f"{run['best']:.2%} ({run['best epoch']})" if "best" in run else "–"
        last = f"{run['last']:.2%}" if "last" in run else "–"
        speed = f"{run['images per second']:,.0f}" if "last" in run else "–"
        what = (run.get("model", "–"), run.get("data", "–"))
        cells = (run["run"], *what, epochs, best, last, speed, run["state"])
        grid.add_row(*map(printable, cells))
    return grid


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser("jaxcifar runs", __doc__)
    parser.add_argument("folder", nargs="?", default="runs", help="where to look (default runs/)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args(argv)
    found = find(options.user_path(arguments.folder))
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        terminal = sys.stdout is not None and sys.stdout.isatty()
        console = Console(width=None if terminal else 200, markup=False, emoji=False)
        console.print(table(found), soft_wrap=True)
    return 0
