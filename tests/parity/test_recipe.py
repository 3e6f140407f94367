"""The recipe of configs/fast.py beside its training in PyTorch, experiments/torch_recipe.py."""

import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import data, losses, optim, options
from jaxcifar.files import read_lines
from jaxcifar.interop.torch import from_torch, to_torch
from jaxcifar.models import create_model
from jaxcifar.models.airbench import whitening_kernel
from jaxcifar.state import first_state
from jaxcifar.step import Lookahead, make_loss, make_train_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")

from experiments import torch_recipe  # noqa: E402 - it needs torch

CONFIG = options.load(pathlib.Path(__file__).parents[2] / "configs" / "fast.py")
RANDOM = np.random.default_rng(0)


def nchw(images):
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def schedule(steps):
    share = CONFIG.optim.warmup_epochs / CONFIG.train.epochs
    return optim.make_schedule(
        CONFIG.optim.schedule,
        CONFIG.optim.learning_rate,
        1,
        steps,
        share,
        start_factor=CONFIG.optim.start_factor,
        end_factor=CONFIG.optim.end_factor,
    )


@pytest.mark.parametrize("steps", [10, 480])
def test_learning_rates(steps):
    ours = [float(schedule(steps)(step)) for step in range(steps)]
    theirs = CONFIG.optim.learning_rate * torch_recipe.learning_rates(steps)[:steps]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_whitening():
    """Up to the signs of eigenvectors, which are arbitrary; with patches of mean 0."""
    half = RANDOM.normal(size=(20, 32, 32, 3)).astype(np.float32)
    half[..., 1] += half[..., 0]  # correlated channels
    images = np.concatenate([half, -half])
    ours = np.asarray(whitening_kernel(jnp.asarray(images))).reshape(12, 24)
    whitening = torch_recipe.create_model(nchw(images)).whitening
    theirs = whitening.weight.detach().numpy().transpose(2, 3, 1, 0).reshape(12, 24)
    np.testing.assert_allclose(ours @ ours.T, theirs @ theirs.T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-2, atol=1e-3)


class Neuron(torch.nn.Module):
    """A network of one layer that sees where things are."""

    def __init__(self):
        super().__init__()
        self.weights = torch.tensor(RANDOM.normal(size=(3072, 10)) / 50)

    def forward(self, images):
        assert not self.training
        return torch.tanh(images.flatten(1) @ self.weights)


def test_evaluation_is_by_six_views():
    """Of more images than are evaluated at once, whose labels are what the six views say."""
    images = RANDOM.normal(size=(1100, 3, 32, 32))
    network = Neuron().eval()

    def logits(inputs):
        return np.tanh(inputs.reshape(len(inputs), -1) @ network.weights.numpy())

    def both(inputs):
        return (logits(inputs) + logits(inputs[..., ::-1])) / 2

    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="reflect")
    moved = both(padded[:, :, :32, :32]) / 4 + both(padded[:, :, 2:, 2:]) / 4
    labels = (both(images) / 2 + moved).argmax(1)
    found = torch_recipe.evaluate(network, torch.tensor(images), torch.tensor(labels))
    one_view = np.mean(logits(images).argmax(1) == labels)
    assert found == {"val_accuracy_one_view": pytest.approx(one_view), "val_accuracy": 1.0}
    assert one_view < 0.9
    found = torch_recipe.evaluate(network, torch.tensor(images), torch.tensor(labels), views=False)
    assert found == {"val_accuracy_one_view": pytest.approx(one_view)}


@pytest.mark.slow
def test_ten_steps_in_float64():
    """Loss, optimizer, schedule and Lookahead of the whole recipe at once.

    PyTorch's hyperparameters are for the sum of 1,024 losses. Of 4, gradients are a 256th; with 256
    times the learning rate and a 256th of the decay, the steps are those of 256 copies of each.
    """
    steps, batch, width = 10, 4, 0.0625
    images = RANDOM.normal(size=(steps, batch, 32, 32, 3))
    labels = RANDOM.integers(0, 10, (steps, batch))
    torch.manual_seed(0)
    theirs = torch_recipe.create_model(nchw(images[0].astype(np.float32)), width).double().train()
    ours = create_model("airbench94", activation="gelu", width=width, dtype=jnp.float64)

    optimizer, rates = torch_recipe.create_optimizer(theirs), torch_recipe.learning_rates(steps)
    copies = torch_recipe.BATCH // batch
    for group in optimizer.param_groups:
        group["initial_lr"] *= copies
        group["weight_decay"] /= copies
    penalties = optim.l1_and_l2(CONFIG.optim.l1, CONFIG.optim.l2)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        start = from_torch(ours, {k: v.float() for k, v in theirs.state_dict().items()})
        variables = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), start)
        rounded = {k: torch.tensor(v) for k, v in to_torch(ours, variables).items()}
        theirs.load_state_dict(rounded)
        slow = {name: value.clone() for name, value in theirs.state_dict().items()}
        tx = optim.make_optimizer(
            CONFIG.optim.name,
            schedule(steps),
            regularize=penalties,
            momentum=CONFIG.optim.momentum,
            nesterov=CONFIG.optim.nesterov,
            bias_scale=CONFIG.optim.bias_scale,
        )
        smoothed = functools.partial(
            losses.cross_entropy, label_smoothing=CONFIG.train.label_smoothing
        )
        step = jax.jit(
            make_train_step(
                make_loss(ours, lambda _, images, labels: (images, labels), smoothed),
                tx,
                lookahead=Lookahead(CONFIG.train.lookahead_steps, steps),
            )
        )
        state = first_state(variables, tx, jax.random.key(0), keep_slow=True)
        for number in range(steps):
            state, metrics = step(
                state, jnp.asarray(images[number]), jnp.asarray(labels[number], jnp.int32)
            )
            _, loss = torch_recipe.train_step(
                theirs,
                optimizer,
                slow,
                nchw(images[number]),
                torch.tensor(labels[number]),
                number,
                rates,
            )
            np.testing.assert_allclose(float(metrics["ce"]), loss / batch, rtol=1e-6)
        params = jax.device_get(state.params)
        found = to_torch(ours, {"params": params, "batch_stats": state.batch_stats})
    assert rates[-1] < 0.1
    compared = 0
    for name, value in theirs.named_parameters():
        expected = value.detach().numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found[name] / scale, expected / scale, atol=1e-6, err_msg=name)
        compared += 1
    assert compared == 15


@pytest.mark.slow
def test_the_whole_run(tmp_path, monkeypatch):
    narrow = functools.partial(torch_recipe.create_model, width=0.0625)
    shown = data.load("synthetic", "train", size=10)
    for name, value in (("EPOCHS", 5), ("BATCH", 4), ("create_model", narrow)):
        monkeypatch.setattr(torch_recipe, name, value)
    monkeypatch.setattr(data, "load", lambda *_, **__: shown)

    def trained(folder):
        torch_recipe.train(folder, "", seed=0)
        records = read_lines(folder / "metrics.jsonl")
        return [{k: v for k, v in each.items() if k != "images_per_second"} for each in records]

    whole = trained(tmp_path / "whole")
    assert ["val_accuracy" in record for record in whole] == [False] * 4 + [True]
    # Lookahead's slow weights and the half of the images that is mirrored are resumed, too.
    evaluate, calls = torch_recipe.evaluate, itertools.count(1)

    def broken(*args, views):
        if next(calls) == 4:  # after Lookahead's first step of two
            raise RuntimeError("in the fourth epoch")
        return evaluate(*args, views=views)

    with monkeypatch.context() as patch:
        patch.setattr(torch_recipe, "evaluate", broken)
        with pytest.raises(RuntimeError, match="in the fourth epoch"):
            trained(tmp_path / "resumed")
    assert trained(tmp_path / "resumed") == whole
