"""Reports on the runs in a folder: that of a sweep, or one that contains several.

    jaxcifar report results/           # one page of everything: results/report.html
    jaxcifar report tables results/    # table.md, table.csv, table.tex in each sweep
    jaxcifar report tables results/mine --against=row9    # and a table beside row 9
    jaxcifar report claims results/    # claims.md, claims.json in each sweep
    jaxcifar report figures results/   # figures/*.png and *.pdf in each sweep
    jaxcifar report figures results/ --only=fig2 --run=results/table4/vgg6/seed0

Every number is computed from the runs' metrics.jsonl; a run that was shortened or changed is marked
everywhere. The page shows the figures that `figures` and `jaxcifar landscape` have already drawn.
`COMMAND --help` has the details.
"""

import argparse
import pathlib
import shlex
import sys
from types import ModuleType

from experiments.report import claims, figures, page, tables
from experiments.runs import provenance
from experiments.runs.read import Sweep, is_part, sweeps
from jaxcifar.errors import UserError, choose
from jaxcifar.files import replace
from jaxcifar.kernels import compilation
from jaxcifar.options import Parser, user_path
from jaxcifar.signals import exit_code


def _finished(folder: pathlib.Path) -> list[Sweep]:
    """Reads the sweeps below `folder` that have a finished run; prints what is not finished.

    Raises:
      UserError: none has, runs cannot be read, or the folder is a part of a sweep.
    """
    found, waiting = [], []
    for sweep in sweeps(folder):
        if is_part(folder, sweep):
            raise UserError(
                f"{folder} is a part of {sweep.folder}, whose tables and figures are of all its "
                f"runs. Give {sweep.folder}."
            )
        if sweep.finished.runs:
            found.append(sweep)
            continue
        begun = [run for run in sweep.runs if not run.imported]
        if begun:
            states = ", ".join(f"{run.name} seed {run.seed}: {run.progress}" for run in begun)
            waiting.append(
                "\n  ".join(
                    [f"No run in {sweep.folder} is finished ({states}). To go on:"]
                    + provenance.commands(sweep)
                )
            )
        waiting += [
            f"{run.folder} holds imported weights, not trained. Evaluate them: jaxcifar eval "
            f"{shlex.quote(str(run.folder))}"
            for run in sweep.runs
            if run.imported
        ]
    if not found:
        raise UserError("\n".join(waiting))
    print("".join(f"{line}\n" for line in waiting), end="")
    return found


def _print(paths: list[pathlib.Path]) -> None:
    for path in paths:
        if path.suffix == ".md":
            print(path.read_text(encoding="utf-8"))
    print("".join(f"wrote {path}\n" for path in paths), end="", flush=True)


def _tables(arguments: argparse.Namespace) -> int:
    found, against = _finished(arguments.folder), arguments.against
    if against:
        names = [name for sweep in found for name in sweep.finished.names]
        choose("--against", against, dict.fromkeys(names))
    for sweep in found:
        names = sweep.finished.names
        if against and (against not in names or len(names) == 1):
            what = f"only {against}" if against in names else f"no finished run of {against}"
            print(
                f"{sweep.folder} has {what}, so there is nothing to compare. Train both in one "
                "folder: a variation is a config file of its own (config = load('row9')), swept "
                "with --configs beside --rows, or a --grid."
            )
        _print(tables.write(sweep, against))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    for sweep in _finished(arguments.folder):
        paths = claims.write(sweep)
        if not paths:
            print(f"{sweep.folder} has no run of the original report's rows, so no claims to test.")
        _print(paths)
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    only = [
        choose("A figure in --only", name.strip(), figures.FIGURES)
        for name in arguments.only.split(",")
    ]
    if arguments.image < 0:
        raise UserError(f"--image is {arguments.image}; it must be at least 0.")
    compilation.use_cache()
    found = _finished(arguments.folder)
    if arguments.data_dir:
        found = [sweep.with_data_in(arguments.data_dir) for sweep in found]
    runs = {run.folder.resolve(): run for sweep in found for run in sweep.runs}
    named = runs.get(arguments.run.resolve()) if arguments.run else None
    if arguments.run and named is None:
        there = [run.folder.resolve() for sweep in sweeps(arguments.folder) for run in sweep.runs]
        if arguments.run.resolve() in there:
            raise UserError(f"Of the runs beside --run={arguments.run}, none is finished yet.")
        raise UserError(f"--run={arguments.run} is not a run below {arguments.folder}.")
    needs_network = not {*only}.isdisjoint(figures.OF_NETWORK)
    if named and needs_network and not (named.folder / "checkpoints").is_dir():
        raise UserError(f"--run={arguments.run} has no checkpoints/ folder to draw from.")
    asked, failed = set(only) != set(figures.FIGURES), False
    for sweep in found:
        chosen, wanted = named or figures.choose_run(sweep), only
        if named and named not in sweep.runs:
            wanted = [name for name in only if name not in figures.OF_ONE_RUN]
        if not wanted:
            continue
        drawn, missing = figures.draw(sweep, wanted, chosen, arguments.image)
        _print(drawn)
        print("".join(f"{line}\n" for line in missing), end="", flush=True)
        failed |= asked and bool(missing)
    return 1 if failed else 0


def _page(arguments: argparse.Namespace) -> int:
    content = page.page(arguments.folder)
    path = arguments.out or arguments.folder / "report.html"
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it: --out={path / 'report.html'}.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} in.")
    replace(path, content)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")
    return 0


COMMANDS = {"tables": _tables, "claims": _claims, "figures": _figures, "page": _page}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in (*COMMANDS, "-h", "--help"):
        if not any(word.startswith("-") for word in argv[:2]) and argv[1:]:  # before the folder
            choose("The command", argv[0], COMMANDS)
        argv = ["page", *argv]  # the command when none is named
    parser = Parser("jaxcifar report", __doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, module: ModuleType) -> argparse.ArgumentParser:
        text = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
        )
        command.set_defaults(run_command=COMMANDS[name])
        command.add_argument(
            "folder", type=user_path, help="the folder of one sweep, or one that holds several"
        )
        return command

    writing = add("tables", tables)
    writing.add_argument(
        "--against", default="", help="compare all with the runs of this name, such as row9"
    )
    add("claims", claims)
    drawing = add("figures", figures)
    every = ", ".join(figures.FIGURES)
    drawing.add_argument("--only", default=",".join(figures.FIGURES), help=f"of {every}")
    drawing.add_argument("--run", type=user_path, help="the run whose network is drawn")
    drawing.add_argument("--image", type=int, default=0, help="the test image of fig2 (default 0)")
    drawing.add_argument(
        "--data-dir", "--data.dir", type=user_path, help="the folder of CIFAR, if it has moved"
    )
    building = add("page", page)
    building.add_argument("--out", type=user_path, help="the file (default FOLDER/report.html)")
    arguments = parser.parse_args(argv)
    return arguments.run_command(arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))
