"""Trains or evaluates by a config file.

python -m jaxcifar.main --config=configs/row9.py [--config.train.epochs=3 …]
python -m jaxcifar.main --mode=eval --workdir=runs/row9 [--checkpoint=last]
"""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from jaxcifar import train
from jaxcifar.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, such as configs/row9.py; its fields are --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder; runs/NAME for configs/NAME.py.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", ["best", "last"], "Which one to evaluate.")
_CACHE = flags.DEFINE_bool(
    "compilation_cache", True, "Keep compiled programs in ~/.cache/jaxcifar/xla for later runs."
)


def main(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every save
    if _CACHE.value:
        use_compilation_cache()
    workdir, config = _WORKDIR.value, _CONFIG.value
    if _MODE.value == "eval":
        if not workdir:
            raise UserError("--mode=eval needs the folder of a run: --workdir=runs/NAME.")
        found = train.evaluate_workdir(workdir, _CHECKPOINT.value, config)
        print(
            f"{found['checkpoint']} checkpoint (step {found['step']}): accuracy "
            f"{found['accuracy']:.2%}, loss {found['loss']:.4f} ({found['images']:,} test images)"
        )
        return
    if config is None:
        raise UserError("Name a config file, such as --config=configs/quickstart.py.")
    file: Any = flags.FLAGS["config"]
    workdir = workdir or f"runs/{pathlib.Path(file.config_filename).stem}"
    result = train.train_and_evaluate(config, workdir)
    print(train.summary(result, config, workdir))


def use_compilation_cache() -> None:
    """Lets JAX keep compiled programs in a private folder of the user's."""
    folder = pathlib.Path("~/.cache/jaxcifar/xla").expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        print(f"jaxcifar: compiling without a cache: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run() -> None:
    """The command: one message and exit code 2 for what a user can mend, no traceback."""
    try:
        app.run(main, flags_parser=_parse_flags)
    except UserError as error:
        sys.exit(_fail(str(error), 2))
    except train.Interrupted as stopped:
        sys.exit(_fail(str(stopped), 128 + stopped.signum))


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that failed to load says so when first used
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections wraps a KeyError that knows the nearest name in an AttributeError.
        reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        words = str(reason.args[0] if isinstance(reason, KeyError) else reason)
        raise UserError(f"A flag or the config cannot be used: {words}") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is no flag. Flags are --NAME=VALUE; see --help.")
    return rest


def _fail(message: str, code: int) -> int:
    print(f"jaxcifar: {message}", file=sys.stderr)
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    run()
