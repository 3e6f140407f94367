"""What a run starts from: random weights, another run's or imported ones (`config.init_from`)."""

import contextlib
import pathlib
import shlex
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from jaxcifar import data, kernels, models, processes, restore, sharding
from jaxcifar.checks import check_config
from jaxcifar.config import Config, changed_fields
from jaxcifar.errors import UserError
from jaxcifar.options import user_path
from jaxcifar.run import about
from jaxcifar.run.digest import digests, shapes
from jaxcifar.run.folder import Position, RunFolder
from jaxcifar.state import abstract_variables, first_state
from jaxcifar.task import create_model, hyperparams, optimization

_LONGEST_LINE = 100  # of runs that start one from the other; folders may have been exchanged


class InitialWeights(NamedTuple):
    """The weights that a run starts from.

    Attributes:
      weights: {"params", "batch_stats"}, or a part of them; None if all are random.
      facts: a record of their origin, for config.json.
      text: where they come from, for the user.
      held_out: the SHA-256 of the images of the same set that the source held out; "" if none.
    """

    weights: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None
    text: str = ""
    held_out: str = ""


def initial_weights(config: Config, mesh: Mesh) -> InitialWeights:
    """Returns the weights that a run without a checkpoint starts from, as `config.init_from` says.

    The weights are those of the source's best checkpoint: the moving average, if it keeps one. If
    the two runs differ in the number of classes, the classifier (every variable whose shape
    depends on that number) is left out.

    Raises:
      UserError: the source does not exist, has no checkpoint or has a different network, or the
        processes of the run do not find the same weights.
    """
    given = config.init_from
    if not given:
        return InitialWeights()
    path = user_path(given)
    if path.is_file():
        raise UserError(
            f"config.init_from is {given!r}, a file. Make it a run first: jaxcifar import "
            f"{shlex.quote(given)} --model={config.model.name} --workdir=runs/imported"
        )
    try:
        source, step, variables = restore.load_variables(path, mesh=mesh)
    except UserError as error:
        raise UserError(f"config.init_from is {given!r}: {error}") from error
    found, _ = digests(sharding.of_this_process(variables))
    sums = {part: digest.bits for part, digest in found.items()}
    processes.check_same("weights (config.init_from)", sums)

    model = create_model(config, data.num_classes(config.data.name), kernels.platform_of(mesh))
    classes = data.num_classes(source.data.name), model.num_classes
    new = _classifier(model) if len(set(classes)) > 1 else set()
    taken = {
        name: leaf for name, leaf in flatten_dict(variables, sep="/").items() if name not in new
    }
    _check_fit(
        f"config.init_from is {given!r}, a {_network(source)}, whose weights do not fit a "
        f"{_network(config)}: ",
        shapes(taken),
        shapes(abstract_variables(model)),
        new,
        "Set config.model to the same values.",
    )
    facts = {
        "source": str(path.absolute()),
        "checkpoint": "best",
        "step": step,
        "digests": sums,
        "new": sorted(new),
    }
    lines = [f"starts from {given}: {source.model.name} on {source.data.name}, step {step}"]
    if new:
        lines.append(
            f"the classifier is new: {config.data.name} has {classes[1]} classes, "
            f"{source.data.name} {classes[0]}"
        )
    protocols = source.data.protocol, config.data.protocol
    if config.data.protocol == "holdout" and any(
        (its.data.name, its.data.protocol) == (config.data.name, "test") for its in _line(path)
    ):
        lines.append(
            "that run, or one that it started from, was trained on the images that this one holds "
            "out for validation"
        )
    for field, (there, here) in changed_fields(source.to_dict(), config.to_dict()).items():
        if field.startswith("model.") or field in ("data.mean", "data.std"):
            lines.append(f"config.{field} is {here!r}; that run had {there!r}")
    held_out = ""
    if source.data.name == config.data.name and protocols == ("holdout", "holdout"):
        held_out = about.of_run(path).data.get("validation", {}).get("sha256", "")
    return InitialWeights(unflatten_dict(taken, sep="/"), facts, "\n".join(lines), held_out)


def _line(workdir: pathlib.Path) -> list[Config]:
    """The configs of a run, of the one that it started from, and so on, as far as they are read."""
    found = [about.of_run(workdir)]
    with contextlib.suppress(UserError, OSError):  # it may be in another user's home
        while (origin := found[-1].init_from) and len(found) < _LONGEST_LINE:
            found.append(about.of_run(pathlib.Path(origin["source"])))
    return [its.config for its in found]


def _classifier(model: models.Network) -> set[str]:
    """Returns the names of all variables whose shape depends on the number of classes."""
    own = shapes(abstract_variables(model))
    other = shapes(abstract_variables(model.clone(num_classes=model.num_classes + 1)))
    return {name for name in own if own[name] != other[name]}


def _network(config: Config) -> str:
    return f"{config.model.name} of width {config.model.width:g}"


def _check_fit(
    opening: str,
    given: dict[str, tuple[int, ...]],
    wanted: dict[str, tuple[int, ...]],
    new: set[str],
    remedy: str,
) -> None:
    missing = [name for name in wanted if name not in given and name not in new]
    unknown = [name for name in given if name not in wanted]
    other = [name for name in given if given[name] != wanted.get(name, given[name])]
    counts = [
        f"{len(names)} {what} ({names[0]}{', …' * (len(names) > 1)})"
        for names, what in ((missing, "missing"), (unknown, "unknown"), (other, "of another shape"))
        if names
    ]
    if counts:
        raise UserError(f"{opening}{', '.join(counts)}. {remedy}")


def run_of_weights(config: Config, workdir: str | pathlib.Path, variables: dict[str, Any]) -> None:
    """Creates a run of given variables, at step 0 and epoch 0.

    It can be evaluated and exported, and other runs can start from it (`config.init_from`).

    Args:
      workdir: the run's folder, created if necessary; it must not hold a run yet.
      variables: {"params", "batch_stats"} of the config's model.

    Raises:
      UserError: the config is invalid, the variables do not fit its model, or the workdir already
        holds a run.
    """
    mesh = sharding.make_mesh()
    check_config(config)  # without a mesh: no batch is split over the devices here
    classes = data.num_classes(config.data.name)
    model = create_model(config, classes, kernels.platform_of(mesh))
    _check_fit(
        f"The weights do not fit a {_network(config)} with {classes} classes: ",
        shapes(variables),
        shapes(abstract_variables(model)),
        set(),
        "Set config.model and config.data.name to those of the weights.",
    )
    with RunFolder(pathlib.Path(workdir)) as folder:
        # An import that was interrupted has left a config, no images and no checkpoint.
        before = about.read(folder.path)
        if before is not None and (before.data or folder.last()):
            raise UserError(f"{workdir} already holds a run. Choose another --workdir.")
        # An optimizer's initial state does not depend on the length of an epoch.
        tx = optimization(config, model).make(hyperparams(config), steps_per_epoch=1)
        state = first_state(
            jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables),
            tx,
            jax.random.split(jax.random.key(np.uint32(config.seed)))[1],
            keep_ema=config.train.ema_decay > 0,
            keep_slow=config.train.lookahead_steps > 0,
        )
        folder.open(config, {}, {"dtype": jnp.dtype(model.dtype).name}, mesh)
        folder.save(0, sharding.replicate(state, mesh), Position())
