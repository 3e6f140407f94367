"""The average of the weights: by PyTorch's rule, and through a whole run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import programs, restore, sharding, train
from jaxcifar.config import base_config
from jaxcifar.hooks import Hook
from jaxcifar.models import create_model
from jaxcifar.optim import make_optimizer
from jaxcifar.run.log import best_record, read_lines
from jaxcifar.state import create_state
from jaxcifar.step import make_loss, make_train_step


def tiny(**fields):
    config = base_config()
    config.model.name, config.model.width = "vgg_a_bn", 0.05
    config.data.name = "synthetic"
    config.train.batch_size, config.train.limit_train_images = 32, 96
    config.train.epochs, config.train.ema_decay = 2, 0.5
    for field, value in fields.items():
        config.train[field] = value
    return config


@pytest.fixture(scope="module")
def mesh():
    return jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))


def test_the_average_is_pytorchs():
    model = create_model("vgg_a_bn", width=0.05)
    tx = make_optimizer("sgd", 0.05)
    loss = make_loss(model, lambda key, images, labels: (images, labels))
    step = jax.jit(make_train_step(loss, tx, ema_decay=0.9))
    state = create_state(model, tx, 0, keep_ema=True)
    seen = [jax.device_get(state.variables)]
    images, labels = jax.random.normal(jax.random.key(0), (8, 32, 32, 3)), jnp.arange(8)
    for _ in range(4):
        state, _ = step(state, images, labels)
        seen.append(jax.device_get(state.variables))
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    average = torch.optim.swa_utils.get_ema_avg_fn(0.9)
    expected = seen[0]
    for variables in seen[1:]:
        expected = jax.tree.map(
            lambda a, b: average(torch.tensor(a), torch.tensor(b), 1).numpy(), expected, variables
        )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.ema, expected
    )


@pytest.mark.slow
def test_a_run_is_judged_by_its_average_and_resumes(tmp_path, mesh):
    class StopAt(Hook):
        def before_step(self, run):
            if run.step == 4:
                run.stop.request("by the test")

    whole = train.train_and_evaluate(tiny(), tmp_path / "a", mesh=mesh, quiet=True)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(tiny(), tmp_path / "b", mesh=mesh, quiet=True, hooks=[StopAt()])
    resumed = train.train_and_evaluate(tiny(), tmp_path / "b", mesh=mesh, quiet=True)
    for name in ("best", "last"):
        for field in ("val_loss", "ema_val_loss", "ema_val_accuracy", "train_loss"):
            assert whole[name][field] == resumed[name][field]
        found = restore.evaluate_workdir(tmp_path / "a", name, mesh=mesh)
        assert found["accuracy"] == whole[name]["ema_val_accuracy"]
    assert whole["last"]["ema_val_loss"] != whole["last"]["val_loss"]
    records = read_lines(tmp_path / "a" / "metrics.jsonl")
    assert whole["best"] == max(records, key=lambda r: (r["ema_val_accuracy"], -r["epoch"]))


def test_the_best_is_by_the_average_where_there_is_one():
    plain = [{"epoch": 1, "val_accuracy": 0.5}, {"epoch": 2, "val_accuracy": 0.4}]
    assert best_record(plain)["epoch"] == 1
    averaged = [r | {"ema_val_accuracy": 0.1 * r["epoch"]} for r in plain]
    assert best_record(averaged)["epoch"] == 2


def test_without_it_nothing_is_kept_or_computed(mesh):
    from jaxcifar import data, task

    config = tiny(ema_decay=0.0)
    made = task.build(config, data.load("synthetic", "train"), mesh)
    assert programs.abstract_state(made).ema is None
