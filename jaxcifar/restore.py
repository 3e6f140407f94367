"""Working with a run's checkpoints: load the variables, evaluate them, make a run of given ones."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcifar import data, kernels, models, programs, sharding
from jaxcifar.config import Config, complete, differences
from jaxcifar.errors import UserError, choose, note
from jaxcifar.run.checkpoint import Checkpointer, Damaged
from jaxcifar.run.folder import (
    Position,
    RunFolder,
    check_finished,
    check_images,
    check_same,
    read_about,
)
from jaxcifar.state import abstract_variables, first_state
from jaxcifar.task import (
    Inference,
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
      workdir: the run's folder. The run may still be training.
      which: "best" (highest validation accuracy) or "last".
      mesh: the devices that receive the variables; None means all of them.

    Raises:
      UserError: there is no run or no such checkpoint, or the checkpoint is damaged. Another
        checkpoint is never used in its place.
    """
    about, step, variables = _load(pathlib.Path(workdir), which, mesh)
    return complete(about["config"]), step, variables


def _load(
    workdir: pathlib.Path, which: str, mesh: Mesh | None
) -> tuple[dict[str, Any], int, dict[str, Any]]:
    """Returns (the content of config.json, the step, the variables) of a checkpoint."""
    choose("checkpoint", which, WHICH)
    mesh = sharding.make_mesh() if mesh is None else mesh
    if workdir.is_file():
        raise UserError(f"{workdir} is a file, not the folder of a run.")
    about = read_about(workdir)
    if about is None:
        raise UserError(f"{workdir} contains no run (no config.json). Train first.")
    checkpoints = Checkpointer(workdir / "checkpoints", read_only=True)
    tried = saved = None
    while True:
        try:
            saved = checkpoints.best() if which == "best" else checkpoints.last()
            if saved is None:
                raise UserError(
                    f"{workdir} contains no {which} checkpoint yet. Train it for an epoch first."
                )
            check_finished(workdir, which, saved)
            about = of_checkpoint(about, checkpoints.progress(saved), workdir)
            config = complete(about["config"])
            check_config(config)
            like = _abstract_variables(config, mesh)
            found = checkpoints.restore_variables(sharding.of_this_process(like), saved)
            return about, saved.step, sharding.of_all(found, like)
        except Damaged as error:
            if saved == tried or saved in checkpoints.all():
                other = "last" if which == "best" else "best"
                raise UserError(
                    f"{error} The {other} checkpoint may be intact: --checkpoint={other}. The "
                    "command that trained the run resumes from the newest intact one."
                ) from error
            tried = saved  # a run in progress may have replaced it meanwhile


def of_checkpoint(
    about: dict[str, Any], progress: dict[str, Any], workdir: pathlib.Path
) -> dict[str, Any]:
    """The run's description: the one saved in the checkpoint if it has one, else config.json."""
    there = progress.get("about", about)
    if changed := differences(there["config"], about["config"]):
        note(
            f"{workdir / 'config.json'} differs from the config saved with the checkpoint; the "
            f"checkpoint's is used: {', '.join(changed)}"
        )
        return there
    return about


def evaluate_workdir(
    workdir: str | pathlib.Path,
    which: str = "best",
    config: Config = None,
    *,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Evaluates a run's checkpoint on the test set.

    Args:
      workdir: the run's folder.
      which: "best" (highest validation accuracy) or "last".
      config: None means the run's own. Otherwise it may differ from that only in how the
        evaluation is carried out, such as its batch size or where the data are.
      mesh: the devices to use; None means all of them.

    Returns:
      {"checkpoint", "step", "loss", "accuracy", "images", "data"}.

    Raises:
      UserError: there is no run or no checkpoint, the checkpoint is damaged or belongs to a
        different config, or the test images differ from those that the run started with.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    about, step, variables = _load(pathlib.Path(workdir), which, mesh)
    run_config = complete(about["config"])
    config = run_config if config is None else config
    check_config(config, mesh, training=False)
    check_same(run_config, config, pathlib.Path(workdir))
    test = _test_images(about, config, pathlib.Path(workdir))
    return {
        "checkpoint": which,
        "step": step,
        **evaluate(config, variables, test, mesh=mesh),
        "data": test.provenance,
    }


def test_images(workdir: str | pathlib.Path, config: Config) -> data.Dataset:
    """Returns the test images of a run.

    Args:
      workdir: the run's folder.
      config: the run's; `data.dir` says where the images are now.

    Raises:
      UserError: they are missing, or are not those that the run started with.
    """
    return _test_images(read_about(pathlib.Path(workdir)) or {}, config, pathlib.Path(workdir))


def _test_images(about: dict[str, Any], config: Config, workdir: pathlib.Path) -> data.Dataset:
    test = data.load(config.data.name, "test", data_dir=config.data.dir)
    part = "test" if config.data.protocol == "holdout" else "validation"
    check_images(about.get("data", {}), {part: test.provenance}, workdir)
    return test


def evaluate(
    config: Config, variables: dict[str, Any], images: data.Dataset, *, mesh: Mesh | None = None
) -> dict[str, Any]:
    """Returns {"loss", "accuracy", "images"} of a config's network on a set of images.

    Args:
      config: describes the network and sets the batch size (`train.eval_batch_size`).
      variables: the network's {"params", "batch_stats"}.
      images: the images to evaluate on.
      mesh: the devices to use; None means all of them.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    scores = programs.evaluate(
        build_inference(config, images, mesh),
        sharding.replicate(variables, mesh),
        *programs.on_devices(images, mesh),
    )
    assert scores is not None, "without `stop`, an evaluation always completes"
    return scores


def probabilities(
    inference: Inference, variables: dict[str, Any], images: np.ndarray
) -> np.ndarray:
    """Returns a network's class probabilities for images, [N, classes] float32.

    Args:
      inference: see `jaxcifar.task.build_inference`.
      variables: {"params", "batch_stats"} of its model.
      images: [N, 32, 32, 3] uint8, processed in batches of `inference.batch_size`.
    """
    n, of_batch = len(images), programs.probabilities(inference)
    if n == 0:
        return np.zeros((0, inference.model.num_classes), np.float32)
    # All batches have one shape, and few shapes are compiled.
    size = min(1 << (n - 1).bit_length(), inference.batch_size)
    padded = np.resize(images, (-(-n // size) * size, *images.shape[1:]))
    batches = [of_batch(variables, padded[i : i + size]) for i in range(0, n, size)]
    return np.concatenate(jax.device_get(batches))[:n]


def start_from(config: Config, workdir: str | pathlib.Path, variables: dict[str, Any]) -> None:
    """Creates a run that starts from given variables, at step 0 and epoch 0.

    The run can be evaluated as it is, or trained from there.

    Args:
      config: the run's config.
      workdir: the run's folder, created if necessary; it must not hold a run yet.
      variables: {"params", "batch_stats"} of the config's model.

    Raises:
      UserError: the config is invalid, the variables do not fit its model, or the workdir already
        holds a run.
    """
    mesh = sharding.make_mesh()
    check_config(config, mesh)
    for name, like in _abstract_variables(config, mesh).items():
        wanted, given = (jax.tree.map(lambda x: x.shape, tree) for tree in (like, variables[name]))
        if wanted != given:
            raise UserError(
                f"The {name} do not fit {config.model.name} with "
                f"{data.num_classes(config.data.name)} classes and width {config.model.width:g}: "
                "names or shapes differ."
            )
    with RunFolder(pathlib.Path(workdir)) as folder:
        # An import that was interrupted has left a config, no images and no checkpoint.
        about = read_about(folder.path)
        if about is not None and (about.get("data") or folder.has_checkpoint()):
            raise UserError(f"{workdir} already holds a run. Choose another --workdir.")
        # An optimizer's initial state does not depend on the length of an epoch.
        tx = optimization(config).make(hyperparams(config), steps_per_epoch=1)
        state = first_state(
            jax.tree.map(jnp.asarray, variables),
            tx,
            jax.random.split(jax.random.key(np.uint32(config.seed)))[1],
            keep_ema=config.train.ema_decay > 0,
            keep_slow=config.train.lookahead_steps > 0,
        )
        dtype = jnp.dtype(_model(config, mesh).dtype).name
        folder.open(config, {}, {"dtype": dtype}, mesh)
        folder.save(0, sharding.replicate(state, mesh), Position())


def _abstract_variables(config: Config, mesh: Mesh) -> dict[str, Any]:
    return sharding.abstract(abstract_variables(_model(config, mesh)), mesh)


def _model(config: Config, mesh: Mesh) -> models.Network:
    classes = data.num_classes(config.data.name)
    return create_model(config, classes, kernels.platform_of(mesh))
