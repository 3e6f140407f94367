"""Trains or evaluates a network as a config file says.

python -m jaxcifar.main --config=configs/row9.py [--config.train.epochs=3 …]
python -m jaxcifar.main --mode=eval --workdir=runs/row9 [--checkpoint=last --config.data.dir=…]
"""

import os
import pathlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from jaxcifar import launch, options, processes, restore, train
from jaxcifar.config import Config, base_config, flatten
from jaxcifar.errors import UserError, reason
from jaxcifar.hooks import Hook, Profile, Run
from jaxcifar.kernels import compilation
from jaxcifar.run.folder import saved_config
from jaxcifar.run.log import averaged
from jaxcifar.run.progress import duration
from jaxcifar.signals import exit_code

_ARGV: list[str] = []  # where ml_collections looks for the fields that the command line sets
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A config file, such as configs/row9.py, or the name of one that comes with the package, such "
    "as row9; --config.FIELD=VALUE sets its fields.",
    sys_argv=_ARGV,
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "The run's folder; runs/NAME for configs/NAME.py by default."
)
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
_CHECKPOINT = flags.DEFINE_enum(
    "checkpoint", "best", restore.WHICH, "Which checkpoint to evaluate."
)
_PROFILE = flags.DEFINE_integer(
    "profile",
    None,
    "Trace at least this many training steps (whole calls) into profile/ in the run's folder, for "
    "ui.perfetto.dev.",
    lower_bound=1,
)
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    launch.MODES,
    "Whether several processes share the run; auto detects Slurm (srun), Open MPI and TPU slices.",
)
_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT at which the first process listens for the others."
)
_COUNT = flags.DEFINE_integer("num_processes", None, "How many processes share the run.")
_INDEX = flags.DEFINE_integer("process_id", None, "The number of this process, from 0.")
_WAIT = flags.DEFINE_float("start_timeout", 300.0, "Seconds to wait for the other processes.")
_CACHE = flags.DEFINE_bool(
    "compilation_cache", True, "Keep compiled programs in ~/.cache/jaxcifar/xla for later runs."
)


class Origin(Hook):
    """Keeps in a run's folder what its config was before options changed it.

    Args:
      file: the config file.
    """

    def __init__(self, file: pathlib.Path):
        # One that comes with the package has the same name on every machine.
        packaged = file.resolve().parent == options.CONFIGS.resolve()
        self._file, self._config = file.stem if packaged else file, options.load(file)

    def start(self, run: Run) -> None:
        """Only now is it certain that the folder is this run's.

        What the file says when the run is resumed may be meant for another one.
        """
        resumed = run.step and (run.workdir / options.ORIGIN).exists()
        if processes.is_first() and not resumed:
            options.write_origin(run.workdir, self._file, self._config)


def main(changed: Sequence[str]) -> None:
    """Trains or evaluates, alone or as one of the processes of a run.

    Args:
      changed: the program's name, then options that change the config of the run in --workdir.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    place = launch.place(os.environ, _DISTRIBUTED.value, _ADDRESS.value, _COUNT.value, _INDEX.value)
    if _MODE.value == "eval" and place and place.count > 1:
        raise UserError(
            f"Evaluation runs in one process, but this is one of {place.count}. Start it once, "
            "without srun, mpirun and the flags of several processes, or with --distributed=off. "
            "On a TPU slice set JAX_PLATFORMS=cpu as well, to use the CPUs of one host."
        )
    with processes.together(place, _WAIT.value):
        _main(changed)


def _main(changed: Sequence[str]) -> None:
    if _CACHE.value:
        compilation.use_cache()
    config = _CONFIG.value
    if _MODE.value == "eval":
        if _PROFILE.value:
            raise UserError("--profile traces training steps; --mode=eval makes none.")
        if not _WORKDIR.value:
            raise UserError("--mode=eval needs the folder of a run: --workdir=runs/NAME.")
        workdir = options.user_path(_WORKDIR.value)
        if changed[1:] and (saved := saved_config(workdir)):
            config = options.with_options(saved, changed[1:])
        found = restore.evaluate_workdir(workdir, _CHECKPOINT.value, config)
        _say(
            f"{found['checkpoint']} checkpoint (step {found['step']}): accuracy "
            f"{found['accuracy']:.2%}, loss {found['loss']:.4f} ({found['images']:,} test images)"
        )
        return
    if config is None:
        raise UserError("Name a config file, such as --config=configs/quickstart.py.")
    flag: Any = flags.FLAGS["config"]
    file = pathlib.Path(flag.config_filename)
    workdir = options.user_path(_WORKDIR.value or f"runs/{file.stem}")
    profile = Profile(_PROFILE.value) if _PROFILE.value else None
    hooks = [Origin(file), *([profile] if profile else [])]
    result = train.train_and_evaluate(config, workdir, hooks=hooks)
    _say(summary(result, config, workdir))
    if profile and profile.traced:
        _say(f"a trace of {profile.traced} steps is in {workdir / 'profile'}")
    elif profile:
        _say("no step was left to trace: give a new --workdir")


def _say(text: str) -> None:
    if processes.is_first():
        print(text)


def summary(result: dict[str, Any], config: Config, workdir: str | pathlib.Path) -> str:
    """Returns the lines that are printed at the end of a run.

    Args:
      result: what `jaxcifar.train.train_and_evaluate` returned.
      config: the run's config.
      workdir: the run's folder.
    """
    lines = [
        f"{name} epoch {record['epoch']}: validation accuracy {record['val_accuracy']:.2%}, "
        f"loss {record['val_loss']:.4f}"
        for name, record in ((name, averaged(result[name])) for name in ("best", "last"))
    ]
    if "test" in result:
        test = result["test"]
        lines.append(
            f"test set, once, at the best epoch: accuracy {test['accuracy']:.2%}, "
            f"loss {test['loss']:.4f} ({test['images']:,} images)"
        )
    elif config.data.protocol == "test":
        lines.append(
            "(validated on the test set, which also chose the best epoch, as in the original "
            "report)"
        )
    took = [
        f"training {duration(result['train_seconds'])}",
        f"compiling {duration(result['compile_seconds'])}",
    ]
    if peak := result["peak_memory_bytes"]:  # else an earlier run of this process had a higher one
        took.append(f"peak memory {peak / 2**30:.1f} GiB")
    lines.append(", ".join(took))
    lines.append(f"everything is in {workdir}: result.json, metrics.jsonl, history.png, …")
    return "\n".join(lines)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; what the user can fix ends in one message and exit code 2, no traceback.

    Args:
      arguments: of the command line; None means those of this process.
    """
    argv = sys.argv if arguments is None else [sys.argv[0], *arguments]
    command = lambda: app.run(main, argv=list(argv), flags_parser=_parse_flags)  # noqa: E731
    return exit_code(command, processes.leave)


def options_help() -> str:
    """Returns the flags of the command, and the fields of a config with their defaults."""
    fields = [f"  --{name}={value}" for name, value in flatten(base_config()).items()]
    return "\n".join(
        [
            flags.FLAGS.module_help(sys.modules[__name__]),
            "",
            "Fields of the config with their defaults, which a row may change. jaxcifar/config.py "
            "explains them:",
            "",
            *fields,
        ]
    )


def _forget() -> None:
    """Undoes an earlier command of this process, whose flags absl would keep."""
    for name in list(flags.FLAGS):
        if name.startswith("config."):  # it came with the config
            delattr(flags.FLAGS, name)
    for flag in flags.FLAGS.get_flags_for_module(sys.modules[__name__]):
        flag.unparse()


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the flags; returns the program's name, and options for the config of a saved run."""
    _forget()
    program, *arguments = argv
    files = [argument for argument in arguments if argument.startswith("--config=")]
    of_run: list[str] = []
    if len(files) > 1:
        raise UserError(f"Give one config file; these are {len(files)}: {' '.join(files)}")
    for argument in files:
        file = options.config_file(options.user_path(argument.removeprefix("--config=")))
        if ":" in str(file):
            raise UserError(
                f"The path of the config file {file} has a colon, after which ml_collections "
                "expects an argument. Rename it, or run the command from its folder."
            )
        options.load(file)  # for its messages about what is wrong with the file
        arguments[arguments.index(argument)] = f"--config={file}"
    if not files and "--mode=eval" in arguments:
        of_run = [argument for argument in arguments if argument.startswith("--config.")]
        arguments = [argument for argument in arguments if argument not in of_run]
    _ARGV[:] = [program, *arguments]
    try:
        with warnings.catch_warnings():
            # ml_collections loads the file in a deprecated way.
            warnings.simplefilter("ignore", DeprecationWarning)
            rest = flags.FLAGS(_ARGV)
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that failed to load raises only when used
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(
            f"A flag or the config cannot be used: {reason(error)}{options.hint(arguments)}"
        ) from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag. Flags are --NAME=VALUE; see --help.")
    return [program, *of_run]


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(run())
