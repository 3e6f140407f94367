"""What is done with a run's checkpoints: load the variables, evaluate them, start from others."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcifar import data, kernels, models, programs, sharding
from jaxcifar.config import Config
from jaxcifar.errors import UserError, choose
from jaxcifar.run.checkpoint import Checkpointer
from jaxcifar.run.folder import Position, RunFolder, check_same, saved_config
from jaxcifar.state import TrainState, abstract_variables
from jaxcifar.task import (
    build_inference,
    check_config,
    create_model,
    hyperparams,
    optimization,
)

WHICH = ("best", "last")


def load_variables(
    workdir: str | pathlib.Path, which: str = "best", *, mesh: Mesh | None = None
) -> tuple[Config, int, dict[str, Any]]:
    """Returns a run's config, the step of a checkpoint, and its variables for `model.apply`.

    Args:
      workdir: of a run, which may still be training.
      which: "best" (highest validation accuracy) or "last".
      mesh: of the devices that get the variables; None is all.

    Raises:
      UserError: no run or no such checkpoint there.
    """
    choose("checkpoint", which, WHICH)
    workdir = pathlib.Path(workdir)
    config = saved_config(workdir)
    if config is None:
        raise UserError(f"{workdir} contains no run (no config.json). Train first.")
    check_config(config)
    mesh = sharding.make_mesh() if mesh is None else mesh
    checkpoints = Checkpointer(workdir / "checkpoints", read_only=True)
    saved = checkpoints.best() if which == "best" else checkpoints.last()
    if saved is None:
        raise UserError(
            f"{workdir} contains no {which} checkpoint yet. Train it for an epoch first."
        )
    variables = checkpoints.restore_variables(_abstract_variables(config, mesh), saved)
    checkpoints.close()
    return config, saved.step, variables


def evaluate_workdir(
    workdir: str | pathlib.Path,
    which: str = "best",
    config: Config = None,
    *,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on the test set.

    Args:
      workdir: of a run.
      which: "best" (highest validation accuracy) or "last".
      config: None is the run's own; else it must be the same but for how it is carried out.
      mesh: of the devices; None is all.

    Returns:
      {"checkpoint", "step", "loss", "accuracy", "images", "data"}.

    Raises:
      UserError: no run or no checkpoint there, or one of another config.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    run_config, step, variables = load_variables(workdir, which, mesh=mesh)
    config = run_config if config is None else config
    check_config(config, mesh, training=False)
    check_same(run_config, config, pathlib.Path(workdir))
    test = data.load(config.data.name, "test", data_dir=config.data.dir)
    return {
        "checkpoint": which,
        "step": step,
        **evaluate(config, variables, test, mesh=mesh),
        "data": test.provenance,
    }


def evaluate(
    config: Config, variables: dict[str, Any], images: data.Dataset, *, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Returns {"loss", "accuracy", "images"} of a config's network on an image set.

    Args:
      config: of the network, and how many images at a time.
      variables: of the network.
      images: to evaluate on.
      mesh: of the devices; None is all.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    scores = programs.evaluate(
        build_inference(config, images, mesh),
        sharding.replicate(variables, mesh),
        *programs.on_devices(images, mesh),
    )
    assert scores is not None, "nothing asked it to stop"
    return scores


def start_from(config: Config, workdir: str | pathlib.Path, variables: dict[str, Any]) -> None:
    """Makes a workdir whose run starts from given variables, at step 0 and epoch 0.

    It can be evaluated as it is, or trained on from there.

    Args:
      config: of the run.
      workdir: is made; must hold no run.
      variables: {"params", "batch_stats"} of the config's model.

    Raises:
      UserError: the config cannot be used, or the workdir holds a run.
    """
    mesh = sharding.make_mesh()
    check_config(config, mesh)
    for name, like in _abstract_variables(config, mesh).items():
        wanted, given = (jax.tree.map(lambda x: x.shape, tree) for tree in (like, variables[name]))
        if wanted != given:
            raise UserError(
                f"The {name} given are not of {config.model.name} with "
                f"{data.num_classes(config.data.name)} classes and width {config.model.width:g}: "
                "names or shapes differ."
            )
    with RunFolder(pathlib.Path(workdir)) as folder:
        if saved_config(folder.path) is not None:
            raise UserError(f"{workdir} holds a run already. Choose another --workdir.")
        # The state that an optimizer starts from does not depend on the length of an epoch.
        tx = optimization(config).make(hyperparams(config), steps_per_epoch=1)
        params = jax.tree.map(jnp.asarray, variables["params"])
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(params),
            key=jax.random.split(jax.random.key(np.uint32(config.seed)))[1],
        )
        dtype = jnp.dtype(_model(config, mesh).dtype).name
        folder.open(config, {}, {"dtype": dtype}, mesh)
        folder.save(0, sharding.replicate(state, mesh), Position())


def _abstract_variables(config: Config, mesh: Mesh) -> dict[str, Any]:
    return sharding.abstract(abstract_variables(_model(config, mesh)), mesh)


def _model(config: Config, mesh: Mesh) -> models.Network:
    classes = data.num_classes(config.data.name)
    return create_model(config, classes, kernels.platform_of(mesh))
