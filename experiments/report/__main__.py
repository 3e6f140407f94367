"""Shows the runs of a results folder: a sweep's, or one above several.

    jaxcifar report results/           # one page of everything: results/report.html
    jaxcifar report tables results/    # table.md, table.csv, table.tex in each sweep
    jaxcifar report tables results/mine --against=row9    # and a table beside row 9
    jaxcifar report claims results/    # claims.md, claims.json in each sweep
    jaxcifar report figures results/   # figures/*.png and *.pdf in each sweep
    jaxcifar report figures results/ --only=fig2 --run=results/table4/vgg6/seed0

Every number is computed from the runs' metrics.jsonl; a run that was shortened or changed is marked
everywhere. The page shows the pictures that `figures` and `experiments.landscape` drew before.
`COMMAND --help` has the details.
"""

import argparse
import sys
from types import ModuleType

from experiments.report import claims, figures, page, tables
from experiments.runs.read import finished_sweeps
from jaxcifar.errors import UserError, choose
from jaxcifar.files import replace, write_json
from jaxcifar.kernels import compilation
from jaxcifar.options import user_path
from jaxcifar.signals import exit_code


def _tables(arguments: argparse.Namespace) -> int:
    paths = tables.write(arguments.folder, arguments.against)
    print("\n".join(path.read_text(encoding="utf-8") for path in paths if path.suffix == ".md"))
    print("\n".join(f"wrote {path}" for path in paths))
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    for sweep in finished_sweeps(arguments.folder):
        if not sweep.rows.runs:
            print(f"{sweep.folder} has no run of the original report's rows, so no claims to test.")
            continue
        records = claims.judge(sweep)
        text = claims.markdown(records, sweep)
        write_json(sweep.folder / "claims.json", records)
        replace(sweep.folder / "claims.md", text)
        print(text)
        print(f"wrote {sweep.folder / 'claims.md'} and claims.json")
    return 0


def _figures(arguments: argparse.Namespace) -> int:
    only = [
        choose("A figure in --only", name.strip(), figures.FIGURES)
        for name in arguments.only.split(",")
    ]
    if arguments.image < 0:
        raise UserError(f"--image is {arguments.image}; it must be at least 0.")
    compilation.use_cache()
    found = finished_sweeps(arguments.folder)
    chosen = {sweep.folder: figures.choose_run(sweep) for sweep in found}
    if arguments.run:
        runs = {run.folder.resolve(): (sweep, run) for sweep in found for run in sweep.runs}
        if arguments.run.resolve() not in runs:
            raise UserError(f"--run={arguments.run} is not a run below {arguments.folder}.")
        sweep, run = runs[arguments.run.resolve()]
        if not (run.folder / "checkpoints").is_dir():
            raise UserError(f"--run={arguments.run} has no checkpoints/ folder to draw from.")
        chosen[sweep.folder] = run
    failed = False
    for sweep in found:
        lines = figures.draw(sweep, only, chosen[sweep.folder], arguments.image)
        print("\n".join(lines), flush=True)
        asked = set(only) != set(figures.FIGURES)
        failed |= asked and any(line.startswith("no ") for line in lines)
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
        if len(argv) > 1 and not argv[1].startswith("-"):  # a word before the folder
            choose("The command", argv[0], COMMANDS)
        argv = ["page", *argv]  # the command when none is named
    parser = argparse.ArgumentParser(
        prog="jaxcifar report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, module: ModuleType) -> argparse.ArgumentParser:
        text = module.__doc__ or ""
        command = commands.add_parser(
            name,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run_command=COMMANDS[name])
        command.add_argument("folder", type=user_path, help="a sweep's, or above several")
        return command

    writing = add("tables", tables)
    writing.add_argument(
        "--against", default="", help="compare all with the runs of this name, such as row9"
    )
    add("claims", claims)
    drawing = add("figures", figures)
    every = ", ".join(figures.FIGURES)
    drawing.add_argument("--only", default=",".join(figures.FIGURES), help=f"of {every}")
    drawing.add_argument("--run", type=user_path, help="whose network to draw")
    drawing.add_argument("--image", type=int, default=0, help="the test image of fig2 (default 0)")
    building = add("page", page)
    building.add_argument("--out", type=user_path, help="the file (default FOLDER/report.html)")
    arguments = parser.parse_args(argv)
    return arguments.run_command(arguments)


if __name__ == "__main__":
    sys.exit(exit_code(main))
