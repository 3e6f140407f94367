"""Working with a run's checkpoints: load the variables, evaluate them."""

import pathlib
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from jaxcifar import data, kernels, programs, sharding
from jaxcifar.checks import check_config
from jaxcifar.config import Config
from jaxcifar.errors import UserError, choose, note
from jaxcifar.run.about import (
    About,
    check_finished,
    check_images,
    check_same_config,
    of_checkpoint,
    of_run,
    without_weights,
)
from jaxcifar.run.checkpoint import Checkpointer, Damaged
from jaxcifar.state import abstract_variables
from jaxcifar.task import build_inference, create_model

WHICH = ("best", "last")
_AS_TRAINED = (
    "An evaluation may change how it is carried out (data.dir, model.dtype, train.eval_batch_size, "
    "…), not the network or its images. Leave the rest as it is."
)


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
    return about.config, step, variables


def _load(
    workdir: pathlib.Path, which: str, mesh: Mesh | None
) -> tuple[About, int, dict[str, Any]]:
    """Does what `load_variables` does, and returns all that is known of the run with it."""
    choose("checkpoint", which, WHICH)
    mesh = sharding.make_mesh(mesh)
    run = of_run(workdir)
    checkpoints = Checkpointer(workdir / "checkpoints")
    tried = saved = None
    while True:
        try:
            saved = checkpoints.best() if which == "best" else checkpoints.last()
            if saved is None and (workdir / "result.json").exists():
                raise UserError(
                    f"{workdir} is a finished run without its checkpoints/. Restore them, or "
                    "train it again in another folder."
                )
            if saved is None and not run.data:
                raise UserError(without_weights(workdir))
            if saved is None:
                raise UserError(
                    f"{workdir} contains no {which} checkpoint yet. Train it for an epoch first."
                )
            check_finished(workdir, which, saved)
            about = of_checkpoint(run, checkpoints.progress(saved), workdir)
            check_config(about.config)
            classes = data.num_classes(about.config.data.name)
            model = create_model(about.config, classes, kernels.platform_of(mesh))
            like = sharding.abstract(abstract_variables(model), mesh)
            found = checkpoints.restore_variables(sharding.of_this_process(like), saved)
            return about, saved.step, sharding.of_all(found, like)
        except Damaged as error:
            if saved == tried or saved in checkpoints.all():
                other = "last" if which == "best" else "best"
                raise UserError(
                    f"{error} The {other} checkpoint may be intact: eval, predict, export and "
                    f"landscape slice take --checkpoint={other}. The command that trained the run "
                    "resumes from the newest intact one."
                ) from error
            tried = saved  # a run in progress may have replaced it meanwhile


def test_images(workdir: str | pathlib.Path, config: Config) -> data.Dataset:
    """Returns the test images of a run, from where its `config.data.dir` says that they are now.

    Raises:
      UserError: they are missing, or are not those that the run started with.
    """
    workdir = pathlib.Path(workdir)
    return _test_images(of_run(workdir), workdir, config)


def _test_images(about: About, workdir: pathlib.Path, config: Config) -> data.Dataset:
    name, folder = config.data.name, config.data.dir
    try:
        test = data.load(name, "test", data_dir=folder)
    except data.Unlabelled as error:
        known = "The accuracy on the held-out images is in result.json. "
        raise UserError(
            f"The test images in {folder or data.cifar.default_dir()} have no labels. "
            f"{known if config.data.protocol == 'holdout' else ''}Anything computed from test "
            "images needs their labels: set data.dir to a folder that has them."
        ) from error
    part = "test" if config.data.protocol == "holdout" else "validation"
    check_images(about.data, {part: test.provenance}, workdir)
    if part not in about.data:  # as of imported weights: no training has compared the two
        data.check_apart(data.load(name, "train", data_dir=folder), test)
    return test


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
        evaluation is carried out, such as its batch size, its dtype or where the data are.
      mesh: the devices to use; None means all of them.

    Returns:
      {"checkpoint", "step", "loss", "accuracy", "images", "dtype", "data"}.

    Raises:
      UserError: there is no run or no checkpoint, the checkpoint is damaged or belongs to a
        different config, or the test images differ from those that the run started with.
    """
    workdir, mesh = pathlib.Path(workdir), sharding.make_mesh(mesh)
    about, step, variables = _load(workdir, which, mesh)
    config = about.config if config is None else config
    check_config(config, mesh, training=False)
    expected = about.config.copy_and_resolve_references()
    expected.model.dtype = config.model.dtype
    check_same_config(expected, config, workdir, _AS_TRAINED)
    test = _test_images(about, workdir, config)
    inference = build_inference(config, test, mesh)
    before, dtype = about.environments[0]["dtype"], jnp.dtype(inference.model.dtype).name
    if about.data and before != dtype:
        note(
            f"{workdir} was trained in {before} and is evaluated in {dtype} here; "
            f"--model.dtype={before} evaluates it as it was trained."
        )
    scores = programs.evaluate(inference, variables, *programs.on_devices(test, mesh))
    assert scores is not None, "without `stop`, an evaluation always completes"
    return {"checkpoint": which, "step": step, **scores, "dtype": dtype, "data": test.provenance}
