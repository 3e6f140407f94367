"""The program `jaxcifar`, and its commands.

Each calls a function of a module. `jaxcifar train row9` is also `python -m jaxcifar.main
--config=configs/row9.py`, the form for `srun` and `mpirun`.
"""

import importlib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from jaxcifar.errors import UserError, nearest

CHECKOUT = pathlib.Path(__file__).parents[1]  # unless the package was installed from a wheel


class Command(NamedTuple):
    """A command, and the module that carries it out.

    Attributes:
      module: has a function that takes arguments and returns the exit code, or None for 0.
      does: what the command does, in a few words.
      examples: example arguments.
      translate: turns the command's arguments into the module's.
      function: the function's name.
    """

    module: str
    does: str
    examples: tuple[str, ...]
    translate: Callable[[Sequence[str]], list[str]] = list
    function: str = "main"


def _one(arguments: Sequence[str], option: str, takes: str, give: str) -> list[str]:
    """Puts an option's name before the one argument that has none, and "config." before fields.

    Raises:
      UserError: not exactly one value of the option is given.
    """
    named = [word if word.startswith("-") else f"--{option}={word}" for word in arguments]
    values = [word.partition("=")[2] for word in named if word.startswith(f"--{option}=")]
    if len(values) != 1:
        given = f"{len(values)} are named: {', '.join(values)}" if values else "none is named"
        raise UserError(f"{takes}, but {given}. Give {give}. Options are --NAME=VALUE.")
    return _fields(named)


def _fields(arguments: Sequence[str], outside: Sequence[str] = ("seed", "init_from")) -> list[str]:
    """Puts "config." before the options that are fields of a config.

    Args:
      arguments: of a command.
      outside: the fields that are in no group, and so have no dot by which they are known.
    """
    found = []
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        field = ("." in name and not name.startswith("config.")) or name in outside
        field &= argument.startswith("-")  # else it is a path, or a value
        found.append(f"--config.{argument.lstrip('-')}" if field else argument)
    return found


COMMANDS = {
    "train": Command(
        "jaxcifar.main",
        "train a config, or resume a run",
        (
            "row9",
            "row9 --optim.learning_rate=3e-4 --workdir=runs/slower",
            "mine.py --seed=1",
            "runs/slower",
        ),
        lambda given: _one(
            given,
            "config",
            "train takes one config",
            "its name, a file, or a run's folder to resume",
        ),
        "run",
    ),
    "eval": Command(
        "jaxcifar.main",
        "evaluate a run on the test set",
        ("runs/row9", "runs/row9 --checkpoint=last --data.dir=/data"),
        lambda given: ["--mode=eval", *_one(given, "workdir", "eval takes one run", "its folder")],
        "run",
    ),
    "predict": Command(
        "jaxcifar.predict",
        "classify images with a run's network",
        ("runs/row9 cat.png", "runs/row9 pictures/ --top=5 --json"),
    ),
    "runs": Command("jaxcifar.runs", "list the runs below a folder", ("", "results/ --json")),
    "replay": Command(
        "jaxcifar.replay", "inspect the step at which a run diverged", ("runs/row9",)
    ),
    "import": Command(
        "jaxcifar.interop.torch",
        "create a run from PyTorch weights",
        ("weights.pt --model=resnet18 --workdir=runs/imported",),
    ),
    "export": Command(
        "jaxcifar.interop.export",
        "write a run's network for use elsewhere",
        ("runs/row9 --to=npz", "runs/row9 --to=safetensors --out=weights.safetensors"),
    ),
    "sweep": Command(
        "experiments.sweep.__main__",
        "train several configs with several seeds",
        (
            "--rows=1-12 --seeds=0-2 --out=results/table3",
            "--rows=9 --seeds=0-4 --optim.learning_rate=3e-4 --out=results/slower",
        ),
        _fields,
    ),
    "report": Command(
        "experiments.report.__main__",
        "write tables, verdicts, figures, or a page of everything",
        ("results/", "tables results/ --against=row9"),
    ),
    "landscape": Command(
        "experiments.landscape.__main__",
        "measure the loss along the gradient, or around a network",
        ("slice results/table4/vgg6/seed0 --out=results/landscape",),
        lambda arguments: _fields(arguments, outside=("init_from",)),  # it has a --seed of its own
    ),
}


def usage() -> str:
    """Returns what `jaxcifar --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: jaxcifar COMMAND …",
            "",
            *lines,
            "",
            "jaxcifar COMMAND --help lists the options of a command. For example:",
            "",
            "  jaxcifar train quickstart",
            "  jaxcifar eval runs/quickstart",
            "  jaxcifar runs",
        ]
    )


def help_of(name: str) -> str:
    """Returns what a command does, with examples."""
    command = COMMANDS[name]
    examples = "\n".join(f"  jaxcifar {name} {example}".rstrip() for example in command.examples)
    return f"jaxcifar {name}: {command.does}. For example:\n\n{examples}\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    if os.name == "nt":
        sys.exit("jaxcifar needs Linux or macOS; on Windows, use WSL.")
    from jaxcifar.signals import exit_code

    arguments = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run(arguments))


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *arguments = words
    if name == "--version":
        from jaxcifar.version import __version__

        print(f"jaxcifar {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(
            f"There is no command {name!r}.{nearest(name, COMMANDS)} The commands are "
            f"{', '.join(COMMANDS)}."
        )
    command = COMMANDS[name]
    asked = any(argument in ("-h", "--help") for argument in arguments)
    if asked:
        print(help_of(name))
    if command.module.startswith("experiments"):
        find_experiments(name)
    module: Any = importlib.import_module(command.module)
    if asked and command.module == "jaxcifar.main":
        print(module.options_help(name))
        return 0
    return getattr(module, command.function)(command.translate(arguments)) or 0


def command() -> NoReturn:
    """Ends this process with the exit code of its command."""
    code = main()
    from jaxcifar.signals import finish  # on Windows, `main` has ended before this

    finish(code)


def find_experiments(command: str) -> None:
    """Makes experiments/ importable, whatever the current folder.

    Raises:
      UserError: jaxcifar runs from an installed package, not from a checkout.
    """
    if not (CHECKOUT / "experiments" / "__init__.py").is_file():
        raise UserError(
            f"{command} needs a checkout: experiments/ is not part of the installed package. Clone "
            "the repository, and install it with pip install -e ."
        )
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))


if __name__ == "__main__":
    command()
