"""What is done with checkpoints; and that a saved run outlives the code that wrote it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import data, replay, restore, sharding, start, task
from jaxcifar.config import base_config, flatten
from jaxcifar.errors import UserError
from jaxcifar.files import read_lines
from jaxcifar.interop import export
from jaxcifar.interop import torch as interop
from jaxcifar.run import about
from jaxcifar.run.checkpoint import Checkpointer, Saved
from jaxcifar.run.digest import sha256
from jaxcifar.state import abstract_variables
from tests.tiny import mesh, run, state_of, tiny, without_times

ONE = mesh(1)


def copy(workdir, to, edit=lambda config: None):
    """Copies a run; `edit` changes its saved config."""
    shutil.copytree(workdir, to, dirs_exist_ok=True)
    content = json.loads((to / "config.json").read_text())
    edit(content["config"])
    (to / "config.json").write_text(json.dumps(content))
    return to


def test_evaluation_of_the_workdir(finished):
    workdir, result = finished
    for which in ("best", "last"):
        found = restore.evaluate_workdir(workdir, which, mesh=ONE)
        assert found["images"] == 256
        assert (found["checkpoint"], found["step"]) == (which, result[which]["step"])
        assert found["accuracy"] == result[which]["val_accuracy"]
        assert found["loss"] == pytest.approx(result[which]["val_loss"], rel=1e-6)
        assert found["data"] == data.load("synthetic", "test").provenance
    with pytest.raises(UserError, match="best, last"):
        restore.evaluate_workdir(workdir, "first", mesh=ONE)


def test_evaluation_by_a_config(finished):
    workdir, result = finished
    found = restore.evaluate_workdir(workdir, "last", tiny(train__eval_batch_size=64), mesh=mesh(8))
    assert found["accuracy"] == result["last"]["val_accuracy"]
    with pytest.raises(UserError, match=r"model\.width: 0\.05 -> 0\.1") as error:
        restore.evaluate_workdir(workdir, "last", tiny(model__width=0.1), mesh=ONE)
    assert "resume" not in str(error.value)


def test_evaluation_in_another_dtype(finished, tmp_path, capsys):
    folder = copy(finished[0], tmp_path)
    content = json.loads((folder / "config.json").read_text())
    content["environment"]["dtype"] = "bfloat16"  # as if on a GPU
    (folder / "config.json").write_text(json.dumps(content))
    restore.evaluate_workdir(folder, mesh=ONE)
    said = "was trained in bfloat16 and is evaluated in float32 here; --model.dtype=bfloat16"
    assert said in capsys.readouterr().err
    restore.evaluate_workdir(folder, config=tiny(model__dtype="bfloat16"), mesh=ONE)
    assert capsys.readouterr().err == ""


def test_imported_weights_were_trained_in_no_dtype(tmp_path, capsys):
    variables = abstract_variables(task.create_model(tiny(), 10, "cpu"))
    start.run_of_weights(tiny(), tmp_path, jax.tree.map(lambda x: np.ones(x.shape), variables))
    content = json.loads((tmp_path / "config.json").read_text())
    content["environment"]["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(content))
    restore.evaluate_workdir(tmp_path, "last", mesh=ONE)
    assert "was trained in" not in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_of_nothing(tmp_path, stopped):
    with pytest.raises(UserError, match="contains no run"):
        restore.evaluate_workdir(tmp_path, mesh=ONE)
    with pytest.raises(UserError, match="contains no best checkpoint yet"):
        restore.evaluate_workdir(stopped, "best", mesh=ONE)
    assert restore.evaluate_workdir(stopped, "last", mesh=ONE)["step"] == 2


def test_a_finished_run_that_came_without_its_checkpoints(finished, tmp_path):
    """Such as one of the kept results: to train it on would do nothing."""
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match=r"finished run without its checkpoints/. Restore them"):
        restore.load_variables(workdir, mesh=ONE)


def test_test_images_without_labels(finished, monkeypatch):
    def kaggle(name, split, **_):
        raise data.Unlabelled("they have no labels; use --config.data.protocol=holdout")

    monkeypatch.setattr(data, "load", kaggle)
    with pytest.raises(
        UserError, match=r"accuracy on .*result\.json.*computed from test images needs their labels"
    ):
        restore.test_images(finished[0], tiny(data__protocol="holdout"))


def test_imported_weights_are_not_tested_on_training_images(tmp_path, monkeypatch):
    """As where a file was copied over another: no training has compared the two."""
    variables = abstract_variables(task.create_model(tiny(), 10, "cpu"))
    start.run_of_weights(tiny(), tmp_path, jax.tree.map(lambda x: np.ones(x.shape), variables))
    load = data.load
    monkeypatch.setattr(data, "load", lambda name, split, **more: load(name, "train", **more))
    with pytest.raises(UserError, match="test images in generated are training images too"):
        restore.evaluate_workdir(tmp_path, mesh=ONE)


def test_a_checkpoint_knows_its_config(finished, tmp_path, capsys):
    folder = copy(finished[0], tmp_path, lambda config: config["model"].update(width=0.1))
    found = restore.evaluate_workdir(folder, mesh=ONE)
    assert found["accuracy"] == finished[1]["best"]["val_accuracy"]
    assert "model.width: 0.05 -> 0.1" in capsys.readouterr().err


def test_variables_are_restored_whatever_the_optimizer(finished, tmp_path):
    """Of Adam's run, though its config says SGD: nothing but the variables is read."""
    folder = copy(finished[0], tmp_path, lambda config: config["optim"].update(name="sgd"))
    for path in folder.glob("checkpoints/*/progress/metadata"):
        content = json.loads(path.read_text())
        del content["sha256"]
        content["progress"]["about"]["config"]["optim"]["name"] = "sgd"  # which is believed
        path.write_text(json.dumps(content | {"sha256": sha256(content)}))
    assert restore.load_variables(folder, mesh=ONE)[0].optim.name == "sgd"
    jax.tree.map(np.testing.assert_array_equal, state_of(folder), state_of(finished[0]))


def test_a_damaged_checkpoint_is_named(finished, tmp_path):
    folder = copy(finished[0], tmp_path)
    for path in (folder / "checkpoints" / "13" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"checkpoints/13 .*best checkpoint may be intact"):
        restore.load_variables(folder, "last", mesh=ONE)


@pytest.mark.slow
def test_imported_weights_are_the_start(finished, tmp_path):
    workdir, result = finished
    config, _, variables = restore.load_variables(workdir, "last", mesh=ONE)
    start.run_of_weights(config, tmp_path, jax.device_get(variables))
    found = restore.evaluate_workdir(tmp_path, mesh=ONE)
    assert (found["step"], found["accuracy"]) == (0, result["last"]["val_accuracy"])
    with pytest.raises(UserError, match="already holds a run"):
        start.run_of_weights(config, tmp_path, variables)


def test_weights_are_imported_where_the_devices_could_not_share_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda of=None: mesh(3))
    config = base_config()
    config.model.name, config.model.width = "vgg_a", 0.05
    variables = abstract_variables(task.create_model(config, 10, "cpu"))
    start.run_of_weights(config, tmp_path, jax.tree.map(lambda x: np.ones(x.shape), variables))
    assert Checkpointer(tmp_path / "checkpoints").last() == Saved(0, False)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float64])
def test_weights_of_another_dtype_are_made_float32(tmp_path, dtype):
    config = base_config()
    config.model.name, config.model.width = "vgg_a", 0.05
    shapes = abstract_variables(task.create_model(config, 10, "cpu"))
    weights = jax.tree.map(lambda x: np.full(x.shape, 0.5, dtype), shapes)
    start.run_of_weights(config, tmp_path, weights)
    _, _, variables = restore.load_variables(tmp_path, mesh=ONE)
    jax.tree.map(np.testing.assert_array_equal, variables, weights)


@pytest.mark.slow
def test_an_interrupted_import_can_be_repeated(finished, tmp_path):
    """Of a kill, or a full disk, while the checkpoint was written."""
    variables = state_of(finished[0])
    start.run_of_weights(tiny(), tmp_path, variables)
    with pytest.raises(UserError, match="there is no step to replay"):
        replay.replay(tmp_path, mesh=ONE)
    shutil.rmtree(tmp_path / "checkpoints")
    for use in (lambda: restore.load_variables(tmp_path, mesh=ONE), lambda: run(tiny(), tmp_path)):
        with pytest.raises(UserError, match=r"are not there: .* import them again"):
            use()
    start.run_of_weights(tiny(), tmp_path, variables)
    jax.tree.map(np.testing.assert_array_equal, state_of(tmp_path), variables)
    # A run that has images is one, checkpoint or not.
    trained = shutil.copytree(finished[0], tmp_path / "trained")
    shutil.rmtree(trained / "checkpoints")
    with pytest.raises(UserError, match="already holds a run"):
        start.run_of_weights(tiny(), trained, variables)


def test_weights_of_another_model_are_no_start(finished, tmp_path):
    variables = state_of(finished[0])
    with pytest.raises(UserError, match=r"do not fit a vgg_a_bn of width 0\.1 with 10 classes"):
        start.run_of_weights(tiny(model__width=0.1), tmp_path, variables)
    assert not list(tmp_path.iterdir())


# --- a saved run outlives the code ------------------------------------------------------------


def without(*fields):
    """Deletes fields of a saved config, as if an older version had written it."""

    def edit(config):
        for field in fields:
            group, _, name = field.rpartition(".")
            del (config[group] if group else config)[name]

    return edit


def test_a_group_that_was_not_there_has_its_defaults(tmp_path, finished):
    folder = copy(finished[0], tmp_path, lambda config: config.pop("augment"))
    assert flatten(about.read(folder).config) == flatten(tiny())


# One of each kind, of those that the run has at their defaults.
SINCE = ["model.remat", "augment.hue", "optim.penalize", "data.protocol", "train.steps_per_call"]


@pytest.mark.slow
def test_a_run_from_before_some_fields_is_complete(tmp_path, finished):
    """It is not trained again, it is evaluated, and its weights are exported."""
    folder = copy(finished[0], tmp_path / "run", without(*SINCE))
    assert run(tiny(), folder) == finished[1]
    found = restore.evaluate_workdir(folder, mesh=ONE)
    assert found["accuracy"] == finished[1]["best"]["val_accuracy"]
    weights = tmp_path / "weights.npz"
    export.export(folder, "npz", weights, checkpoint="last")
    expected = interop.to_torch("vgg_a_bn", state_of(finished[0]))
    found = np.load(weights)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


@pytest.mark.slow
def test_a_run_from_before_some_fields_goes_on(tmp_path, stopped, finished):
    folder = copy(stopped, tmp_path, without(*SINCE))
    run(tiny(), folder)
    for name in ("metrics.jsonl", "steps.jsonl"):
        ours, theirs = (read_lines(f / name) for f in (folder, finished[0]))
        assert without_times(ours) == without_times(theirs)


@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_a_field_of_a_newer_version_is_refused_by_its_name(tmp_path, finished, stopped, kind):
    workdir = {"finished": finished[0], "stopped": stopped}[kind]
    folder = copy(workdir, tmp_path, lambda config: config["optim"].update(momentun=0.5))
    environment = {"jaxcifar": "9.1", "commit": "0abc"}
    change = json.loads((folder / "config.json").read_text())
    change["environment"] |= environment
    (folder / "config.json").write_text(json.dumps(change))
    message = (
        r"'optim\.momentun'.*Did you mean 'optim\.momentum'.*"
        r"version that wrote it \(jaxcifar 9\.1, commit 0abc\)\.$"
    )
    for use in (
        lambda: run(tiny(), folder),
        lambda: restore.evaluate_workdir(folder, "last", mesh=ONE),
        lambda: about.read(folder),
    ):
        with pytest.raises(UserError, match=message):
            use()
