"""Trains or evaluates by a config file.

python -m jaxcifar.main --config=configs/row9.py [--config.train.epochs=3 …]
python -m jaxcifar.main --mode=eval --workdir=runs/row9 [--checkpoint=last]
"""

import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from jaxcifar import restore, train
from jaxcifar.config import Config
from jaxcifar.errors import UserError, exit_code, reason
from jaxcifar.kernels import compilation
from jaxcifar.run.progress import duration

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A config file, such as configs/row9.py; its fields are --config.FIELD=VALUE."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "The run's folder; runs/NAME for configs/NAME.py.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "What to do.")
_CHECKPOINT = flags.DEFINE_enum("checkpoint", "best", restore.WHICH, "Which one to evaluate.")
_CACHE = flags.DEFINE_bool(
    "compilation_cache", True, "Keep compiled programs in ~/.cache/jaxcifar/xla for later runs."
)


def main(_: Sequence[str]) -> None:
    logging.set_verbosity(logging.ERROR)  # Orbax logs every save
    if _CACHE.value:
        compilation.use_cache()
    workdir, config = _WORKDIR.value, _CONFIG.value
    if _MODE.value == "eval":
        if not workdir:
            raise UserError("--mode=eval needs the folder of a run: --workdir=runs/NAME.")
        found = restore.evaluate_workdir(workdir, _CHECKPOINT.value, config)
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
    print(summary(result, config, workdir))


def summary(result: dict[str, Any], config: Config, workdir: str | pathlib.Path) -> str:
    """Returns the lines that end a run.

    Args:
      result: of `jaxcifar.train.train_and_evaluate`.
      config: of the run.
      workdir: of the run.
    """
    lines = [
        f"{name} epoch {record['epoch']}: validation accuracy {record['val_accuracy']:.2%}, "
        f"loss {record['val_loss']:.4f}"
        for name, record in (("best", result["best"]), ("last", result["last"]))
    ]
    if "test" in result:
        test = result["test"]
        lines.append(
            f"test set, once, at the best epoch: accuracy {test['accuracy']:.2%}, "
            f"loss {test['loss']:.4f} ({test['images']:,} images)"
        )
    elif config.data.protocol == "test":
        lines.append(
            "(validated on the test set, as in the original report: it chose the best epoch too)"
        )
    lines.append(
        f"training {duration(result['train_seconds'])}, "
        f"compiling {duration(result['compile_seconds'])}, "
        f"peak memory {result['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
    lines.append(f"everything is in {workdir}: result.json, metrics.jsonl, history.png, …")
    return "\n".join(lines)


def run() -> int:
    """The command: one message and exit code 2 for what the user can fix, no traceback."""
    return exit_code(lambda: app.run(main, flags_parser=_parse_flags))


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
        if _CONFIG.value is not None:
            _CONFIG.value.keys()  # a config file that failed to load says so when first used
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(f"A flag or the config cannot be used: {reason(error)}") from error
    if len(rest) > 1:
        raise UserError(f"{rest[1]!r} is not a flag. Flags are --NAME=VALUE; see --help.")
    return rest


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(run())
