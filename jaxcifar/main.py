"""Trains or evaluates a network as specified by a config file.

    python -m jaxcifar.main --config=configs/row9.py --config.train.epochs=3
    python -m jaxcifar.main --mode=eval --workdir=runs/row9 --checkpoint=last

Any field of the config is an option: --config.FIELD=VALUE.
"""

if __name__ == "__main__":
    from jaxcifar.signals import end_by_signals

    end_by_signals()  # even during the imports below, which take seconds

import argparse
import contextlib
import os
import pathlib
import uuid
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxcifar import launch, options, processes, restore, train
from jaxcifar.config import Config, base_config, flatten
from jaxcifar.errors import UserError, nearest, note
from jaxcifar.hooks import Hook, Profile, Run
from jaxcifar.kernels import compilation
from jaxcifar.run import about, lock
from jaxcifar.run.log import averaged
from jaxcifar.run.progress import duration
from jaxcifar.signals import exit_code, finish


class Origin(Hook):
    """Writes origin.json into a run's folder: its config before options changed it.

    Args:
      file: the config file.
      config: what it returns.
    """

    def __init__(self, file: pathlib.Path, config: Config):
        self._file, self._config = file, config

    def start(self, run: Run) -> None:
        """Writes it, once the folder has accepted the run.

        A resumed run keeps it: the config file may have been edited since, for another run.
        """
        resumed = run.step and (run.workdir / options.ORIGIN).exists()
        if processes.is_first() and not resumed:
            options.write_origin(run.workdir, self._file, self._config)


# What `jaxcifar train` and `jaxcifar eval` set themselves, or have no use for.
_NOT_FOR = {
    "train": ("config", "mode", "checkpoint"),
    "eval": ("config", "mode", "workdir", "profile", "distributed", "coordinator_address")
    + ("num_processes", "process_id", "start_timeout"),
}


def _parser(verb: str = "") -> argparse.ArgumentParser:
    parser = options.Parser(
        "python -m jaxcifar.main",
        __doc__,
        epilog="The fields of a config are in docs/config.md, and shown by jaxcifar train --help.",
    )

    def add(name: str, help: str, **settings: Any) -> None:
        shown = argparse.SUPPRESS if name in _NOT_FOR.get(verb, ()) else help
        parser.add_argument(f"--{name}", help=shown, **settings)

    add(
        "config",
        "a config file, such as configs/row9.py; the name of one that comes with the package, such "
        "as row9; or the folder of a run, to resume it",
        action="append",
        metavar="FILE",
    )
    add("workdir", "the run's folder (default runs/NAME, for a config NAME.py)", metavar="DIR")
    add("mode", "what to do (default train)", choices=("train", "eval"), default="train")
    add(
        "checkpoint",
        "which checkpoint to evaluate (default best)",
        choices=restore.WHICH,
        default="best",
    )
    add(
        "profile",
        "trace at least this many training steps (whole calls) into profile/ in the run's folder, "
        "for ui.perfetto.dev",
        type=int,
        metavar="STEPS",
    )
    add(
        "distributed",
        "whether several processes share the run; auto (default) detects Slurm's srun, Open MPI "
        "and TPU slices",
        choices=launch.MODES,
        default="auto",
    )
    add(
        "coordinator_address",
        "the address at which the first process listens for the others",
        metavar="HOST:PORT",
    )
    add("num_processes", "how many processes share the run", type=int, metavar="N")
    add("process_id", "the number of this process, from 0", type=int, metavar="I")
    add(
        "start_timeout",
        "how long to wait for the other processes (default 300)",
        type=float,
        default=300.0,
        metavar="SECONDS",
    )
    add(
        "nocompilation_cache",
        "do not keep compiled programs in ~/.cache/jaxcifar/xla for later runs",
        action="store_true",
    )
    return parser


def options_help(verb: str) -> str:
    """Returns the options of `jaxcifar train` or `eval`, and a config's fields and defaults."""
    parser = _parser(verb)
    parser.description = parser.epilog = None
    what = "CONFIG|RUN" if verb == "train" else "RUN"
    parser.usage = f"jaxcifar {verb} {what} [options] [--FIELD=VALUE …]"
    if verb == "eval":
        about_fields = (
            "Fields that do not change the network, such as --data.dir=DIR: docs/config.md"
        )
        return "\n".join([parser.format_help().strip(), "", about_fields])
    fields = [f"  --{name}={value}" for name, value in flatten(base_config()).items()]
    about_fields = (
        "Fields of a config, with the defaults that a config may change. docs/config.md explains "
        "them:"
    )
    return "\n".join([parser.format_help().strip(), "", about_fields, "", *fields])


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options of the command, and those of the config."""
    parser = _parser()
    arguments, fields = parser.parse_known_args(argv)
    files = arguments.config or []
    if len(files) > 1:
        raise UserError(f"Give one config file; these are {len(files)}: {', '.join(files)}")
    arguments.config = files[0] if files else None
    for before, field in zip(["", *fields], fields, strict=False):
        is_value = before.startswith("--config.") and "=" not in before  # --config.FIELD VALUE
        if not field.startswith("--config.") and not is_value:
            name = field.partition("=")[0] if field.startswith("-") else field
            known = [f"--{known}" for known in vars(arguments)]
            meant = options.hint([field]) or nearest(name, known)
            raise UserError(f"{name!r} is not an option.{meant} --help lists them all.")
    if arguments.profile is not None and arguments.profile < 1:
        raise UserError(f"--profile is {arguments.profile}; give the number of steps, 1 or more.")
    if not 0 < arguments.start_timeout <= 1e6:
        raise UserError(
            f"--start_timeout is {arguments.start_timeout}; give seconds, above 0 and at most "
            "1,000,000."
        )
    return arguments, fields


def main(argv: Sequence[str] | None = None) -> None:
    """Trains or evaluates, alone or as one of the processes of a run."""
    arguments, fields = _parse(argv)
    original, config = None, None
    if arguments.config is not None:
        file = _file(arguments.config)
        if file.is_dir():  # that of a run
            config = options.with_options(about.of_run(file).config, fields)
        else:
            original = options.load(file)
            config = options.with_options(original, fields)
    place = launch.place(
        os.environ,
        arguments.distributed,
        arguments.coordinator_address,
        arguments.num_processes,
        arguments.process_id,
    )
    if arguments.mode == "eval" and place and place.count > 1:
        raise UserError(
            f"Evaluation runs in one process, but this is one of {place.count}. Start it once, "
            "without srun, mpirun or the flags for several processes, or with --distributed=off. "
            "On a TPU slice set JAX_PLATFORMS=cpu as well, to use the CPUs of one host."
        )
    with processes.together(place, arguments.start_timeout):
        if not arguments.nocompilation_cache:
            compilation.use_cache()
        _check_cache()
        if arguments.mode == "eval":
            _evaluate(arguments, config, fields)
        else:
            _train(arguments, config, original)


def _check_cache() -> None:
    """Keeps the cache of compiled programs only where all processes of the run have the same.

    On GPUs they compile a program together: one that finds it in its own cache would not take part,
    and the others would wait for it.
    """
    folder, *others = processes.gather(jax.config.jax_compilation_cache_dir)  # pyright: ignore
    shared = set(others) <= {folder}
    if shared and others and folder and "://" not in folder:
        # A file of this run alone, as others may begin in the same folder at the same time.
        name = processes.share(lambda: f".shared-{uuid.uuid4().hex}")
        try:
            shared = all(lock.see(pathlib.Path(folder, name)))
        except UserError:  # the first cannot write there
            shared = False
        if processes.is_first():
            with contextlib.suppress(OSError):
                pathlib.Path(folder, name).unlink()
    if not shared:
        jax.config.update("jax_compilation_cache_dir", None)
        compilation_cache.reset_cache()  # it may be in use already, for what the processes agree on
        if processes.is_first():
            note(
                "compiling without a cache, since the processes of this run do not share theirs. "
                "Set JAX_COMPILATION_CACHE_DIR to a folder that all of them see."
            )


def _file(name: str) -> pathlib.Path:
    path = options.user_path(name)
    # "row9/" and "./row9" are the folder of a run, though their path is that of the name "row9".
    return path if "/" in name and path.is_dir() else options.config_file(path)


def _train(arguments: argparse.Namespace, config: Config | None, original: Config | None) -> None:
    if config is None:
        raise UserError("Name a config file, such as --config=configs/quickstart.py.")
    if arguments.checkpoint != "best":
        raise UserError(f"--checkpoint={arguments.checkpoint} is for --mode=eval.")
    file, given = _file(arguments.config), arguments.workdir
    if original is None and given is not None:
        raise UserError(
            f"{file} is the folder of a run, which is resumed in it: omit --workdir. For a new "
            "run, name a config instead."
        )
    if original is None and (file / "settings.json").exists():
        raise UserError(
            f"{file} is resumed by the command of jaxcifar landscape smoothness that began it: "
            "this one would not measure."
        )
    usual = str(file) if original is None else f"runs/{file.stem}"
    workdir = options.user_path(usual if given is None else given)
    profile = Profile(arguments.profile) if arguments.profile else None
    hooks: list[Hook] = [profile] if profile else []
    if original is not None:
        hooks.insert(0, Origin(file, original))
    result = train.train_and_evaluate(config, workdir, hooks=hooks)
    _say(summary(result, config, workdir))
    if profile and profile.traced:
        _say(f"a trace of {profile.traced} steps is in {workdir / 'profile'}")
    elif profile and not profile.began:
        _say("no step was left to trace: give a new --workdir")


def _evaluate(arguments: argparse.Namespace, config: Config | None, fields: Sequence[str]) -> None:
    if arguments.profile:
        raise UserError("--profile traces training steps; --mode=eval runs none.")
    if not arguments.workdir:
        raise UserError("--mode=eval needs the folder of a run: --workdir=runs/NAME.")
    workdir = options.user_path(arguments.workdir)
    if config is None and fields:  # then these are changes to the run's own config
        config = options.with_options(about.of_run(workdir).config, fields)
    found = restore.evaluate_workdir(workdir, arguments.checkpoint, config)
    _say(
        f"{found['checkpoint']} checkpoint (step {found['step']}): accuracy "
        f"{found['accuracy']:.2%}, loss {found['loss']:.4f} ({found['images']:,} test images, "
        f"{found['dtype']})"
    )
    if found["data"]["official"] is False:
        _say(f"the images of {found['data']['source']} are not verified as the official files")


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
        lines.append("(validated on the test set, which also chose the best epoch)")
    took = [f"training {duration(result['train_seconds'])}"]
    if result["compile_seconds"] is not None:  # else this start had nothing to compile
        took.append(f"compiling {duration(result['compile_seconds'])}")
    if peak := result["peak_memory_bytes"]:  # else an earlier run of this process had a higher one
        took.append(f"peak memory {peak / 2**30:.1f} GiB")
    lines.append(", ".join(took))
    lines.append(f"everything is in {workdir}: result.json, metrics.jsonl, history.png, …")
    return "\n".join(lines)


def run(argv: Sequence[str] | None = None) -> int:
    """Runs the command; what the user can fix ends in one message and exit code 2, no traceback.

    Args:
      argv: the options; None means those of this process.
    """
    return exit_code(lambda: main(argv), processes.leave)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    finish(run())
