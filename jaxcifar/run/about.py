"""Reads a run's config.json, and checks that the run can be resumed, evaluated or replayed here."""

import contextlib
import pathlib
import shlex
from typing import Any, NamedTuple

import jax

from jaxcifar.config import Config, changed_fields, complete, differences
from jaxcifar.errors import UserError, in_short, note, of_file
from jaxcifar.files import read_json
from jaxcifar.run.checkpoint import Checkpointer, Damaged, Saved, may_pass


class About(NamedTuple):
    """The content of config.json.

    Attributes:
      content: as it was read.
      config: the run's config, laid over today's defaults.
    """

    content: dict[str, Any]
    config: Config

    @classmethod
    def of(cls, content: dict[str, Any]) -> "About":
        """Returns what a content says.

        Raises:
          UserError: the config has a field that this version does not know.
          KeyError, TypeError, AttributeError: the content is not that of a config.json.
        """
        return cls(content, complete(content["config"], writer_of(content)))

    @property
    def data(self) -> dict[str, dict[str, Any]]:
        """Where the images of each split came from; {} for weights that were never trained here."""
        return self.content["data"]

    @property
    def environments(self) -> list[dict[str, Any]]:
        """What each start ran on, see `jaxcifar.run.machine.environment`."""
        return [self.content["environment"], *self.content.get("resumed", [])]

    @property
    def init_from(self) -> dict[str, Any] | None:
        """Where the initial weights came from; None if they are random."""
        return self.content.get("init_from")

    def resumed(self, environment: dict[str, Any]) -> dict[str, Any]:
        """Returns the content after one more start."""
        return self.content | {"resumed": [*self.content.get("resumed", []), environment]}


def writer_of(content: dict[str, Any]) -> str:
    """Returns the version that wrote a config.json, by its content; "" if it does not say so."""
    by = content.get("environment", {})
    parts = {"jaxcifar": by.get("jaxcifar"), "commit": by.get("commit")}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value)


def read(workdir: pathlib.Path) -> About | None:
    """Returns what config.json says, or its copy in the newest checkpoint that has one.

    Returns:
      None if there is no run.

    Raises:
      UserError: config.json is damaged or missing, and no checkpoint has a copy; or it has a field
        that this version does not know; or it cannot be read now, but may be intact.
    """
    path = workdir / "config.json"
    try:
        about = About.of(content := read_json(path))
        if isinstance(about.environments[0]["dtype"], str) and isinstance(content["data"], dict):
            return about
        wrong = "is damaged"
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except FileNotFoundError:
        wrong = "is missing"
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, OSError) and may_pass(error):
            raise of_file(error, path) from error
        wrong = f"is damaged ({in_short(error)})"
    checkpoints = Checkpointer(workdir / "checkpoints")
    for saved in reversed(checkpoints.all()):
        with contextlib.suppress(Damaged):
            if copy := checkpoints.progress(saved).get("about"):
                note(f"{path} {wrong}; the copy in the checkpoint of step {saved.step} is used.")
                return About.of(copy)
    if wrong == "is missing" and checkpoints.last() is None:
        return None
    raise UserError(
        f"{path} {wrong}, and no checkpoint has a copy of it. Restore it from elsewhere, or choose "
        "another --workdir."
    )


def of_run(workdir: pathlib.Path) -> About:
    """Returns what `read` does, where there must be a run.

    Raises:
      UserError: there is no run, or see `read`.
    """
    if workdir.is_file():
        raise UserError(f"{workdir} is a file, not the folder of a run.")
    about = read(workdir)
    if about is None:
        raise UserError(f"{workdir} contains no run (no config.json). Train first.")
    return about


def without_weights(workdir: pathlib.Path) -> str:
    """What to say of imported weights that are not there."""
    return (
        f"The weights that were imported into {workdir} are not there: the import was interrupted, "
        "or checkpoints/ is missing. Bring it back, or import them again."
    )


def of_checkpoint(about: About, progress: dict[str, Any], workdir: pathlib.Path) -> About:
    """Returns `about`; the checkpoint's copy, with a note, where its config differs from that."""
    there = progress["about"]
    if changed := differences(there["config"], about.content["config"]):
        note(
            f"{workdir / 'config.json'} differs from the config saved with the checkpoint; the "
            f"checkpoint's is used: {', '.join(changed)}"
        )
        return About.of(there)
    return about


# --- checks -----------------------------------------------------------------------------------


RESUME = "Use the same values to resume it, or a new --workdir."


def check_same_config(
    saved: Config,
    config: Config,
    workdir: pathlib.Path,
    way_out: str = RESUME,
    *,
    empty: bool = False,
    can_start_from: bool = False,
) -> None:
    """Checks that a run's config computes the same as `config`.

    Args:
      way_out: what the message says to do.
      empty: whether nothing was trained there, so that the message may suggest to begin anew.
      can_start_from: whether it may suggest a new run that starts from this one's weights.

    Raises:
      UserError: it does not; the message lists the differences.
    """
    if changed := changed_fields(saved.to_dict(), config.to_dict()):
        lines = [
            f"{workdir} holds a run of another config (there -> here):",
            *(f"  {line}" for line in differences(saved.to_dict(), config.to_dict())),
            f"Nothing was trained there: delete {workdir / 'config.json'} to begin anew."
            if empty
            else way_out,
        ]
        if "train.epochs" in changed and not empty:
            lines.append("A run keeps its number of epochs, because its schedule depends on it.")
        if can_start_from and not changed.keys() & {"init_from", "model.name", "model.width"}:
            lines.append(
                "A new run can start from its weights: "
                f"--config.init_from={shlex.quote(str(workdir))} --workdir=NEW"
            )
        raise UserError("\n".join(lines))


def check_alike(
    about: About,
    config: Config,
    provenance: dict[str, dict[str, Any]],
    now: dict[str, Any],
    workdir: pathlib.Path,
) -> None:
    """Checks that a run would compute here what it computed before, but for rounding.

    Settings of JAX that an earlier version did not record are not compared. `now` is what
    `jaxcifar.run.machine.environment` returns.

    Raises:
      UserError: the images, the dtype or settings of JAX differ.
    """
    before, dtype = about.environments[0]["dtype"], now["dtype"]
    if before != dtype:
        hint = " (JAX_PLATFORMS=cpu is the CPU)" if before == "float32" else ""
        raise UserError(
            f"{workdir} holds a run in {before}, but model.dtype is {config.model.dtype!r}, "
            f"which is {dtype} on this {jax.default_backend()}. Resume it on a device like the one "
            f"it was started on{hint}, or choose another --workdir."
        )
    check_images(about.data, provenance, workdir)
    last = about.environments[-1]
    for name, setting in _DECISIVE.items():
        if last.get(name, now[name]) != now[name]:
            raise UserError(
                f"{workdir} holds a run with {setting} set to {last[name]}, but here it is "
                f"{now[name]}. Set it as before to resume the run, or choose another --workdir."
            )


# A change in `_DECISIVE` changes what a run computes; one in `_ROUNDING` only rounding, but that
# difference grows during training.
_DECISIVE = {"x64": "jax_enable_x64", "prng": "JAX's random numbers"}
_ROUNDING = (
    *("device", "devices", "processes", "cpus", "cpu", "runtime"),
    *("jax", "jaxlib", "xla_flags", "matmul_precision", "steps_per_call", "remat"),
)
_CODE = ("jaxcifar", "code", "commit", "flax", "optax", "numpy")  # may change either, or nothing


def note_changes(before: dict[str, Any], now: dict[str, Any], what: str = "resumed") -> None:
    """Tells the user what differs from where a checkpoint was computed: rounding, and the code.

    What an earlier version did not record is not compared.

    Args:
      before, now: see `jaxcifar.run.machine.environment`.
      what: is done with the run.
    """
    alike = set()
    if now["cpu"] is None:  # then the number of cores changes nothing
        alike.add("cpus")
    if before.get("code") == now["code"]:  # nor does a commit of other files
        alike.add("commit")
    for names, how in (
        (_ROUNDING, "under conditions that change rounding"),
        (_CODE, "with different code"),
    ):
        changed = [
            f"{name} {before[name]} -> {now[name]}"
            for name in names
            if name in before and before[name] != now[name] and name not in alike
        ]
        if changed:
            note(f"{what} {how}: {', '.join(changed)}")


def check_initial_weights(
    saved: dict[str, Any] | None, now: dict[str, Any] | None, workdir: pathlib.Path
) -> None:
    """Checks that a run without a checkpoint starts from the same weights as before.

    Both are `jaxcifar.start.InitialWeights.facts`, the `saved` ones from config.json.

    Raises:
      UserError: the weights differ.
    """
    if saved and now and saved["digests"] != now["digests"]:
        raise UserError(
            f"{workdir} holds a run that was started from other weights of {saved['source']} (step "
            f"{saved['step']}; now it has step {now['step']}), and has no checkpoint of its own. "
            "Restore those weights, or choose another --workdir."
        )


def check_images(
    saved: dict[str, dict[str, Any]], provenance: dict[str, dict[str, Any]], workdir: pathlib.Path
) -> None:
    """Compares the images of a run, split by split, by `jaxcifar.data.Dataset.provenance`.

    Raises:
      UserError: a split's images differ from the `saved` ones. Splits that only one side has are
        not compared.
    """
    for part, facts in provenance.items():
        if part in saved and saved[part]["sha256"] != facts["sha256"]:
            raise UserError(
                f"{workdir} holds a run on other {part} images, or on the same in another order "
                f"(from {saved[part]['source']}; these are from {facts['source']}): their SHA-256 "
                "differs. Use the same files, or choose another --workdir."
            )


def check_finished(workdir: pathlib.Path, which: str, saved: Saved) -> None:
    """Checks that a finished run's "best" or "last" checkpoint is the one in its result.json.

    Raises:
      UserError: result.json names another step.
    """
    try:
        step = read_json(workdir / "result.json")[which]["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # it is in progress, or the training command will say what is wrong
    if step != saved.step:
        raise UserError(
            f"The {which} checkpoint in {workdir} is of step {saved.step}, but its result.json "
            f"says {step}: a checkpoint was lost or is older, or result.json is damaged. The "
            "command that trained the run repairs what can be repaired, or says what cannot."
        )
