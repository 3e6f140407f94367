"""Optimizers and schedules against PyTorch's, step by step in float64."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcifar import optim
from jaxcifar.state import create_state
from jaxcifar.step import make_loss, make_train_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")

START = {"kernel": np.linspace(-1, 1.5, 12).reshape(3, 4), "bias": np.array([0.5, -0.25])}


def gradient(xp, w, step):
    return xp.cos(3 * w + step)


def ours(tx, steps=10):
    """The parameters after some steps of `tx`."""
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, START)
        state = tx.init(params)
        for step in range(steps):
            grads = jax.tree.map(lambda w, step=step: gradient(jnp, w, step), params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return jax.device_get(params)


def theirs(make, steps=10, clip=0.0):
    """The parameters after some steps of PyTorch's optimizer; make(kernel, bias) -> optimizer."""
    params = {name: torch.tensor(w, requires_grad=True) for name, w in START.items()}
    optimizer = make(params["kernel"], params["bias"])
    for step in range(steps):
        for w in params.values():
            w.grad = gradient(torch, w.detach(), step)
        if clip:
            torch.nn.utils.clip_grad_norm_(params.values(), clip)
        optimizer.step()
    return {name: w.detach().numpy() for name, w in params.items()}


def assert_equal(found, expected):
    for name, w in expected.items():
        np.testing.assert_allclose(found[name], w, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kernels", [False, True])
def test_adamw(kernels):
    def make(kernel, bias):
        groups = [{"params": [kernel]}, {"params": [bias], "weight_decay": 0.0 if kernels else 0.3}]
        return torch.optim.AdamW(groups, lr=0.01, weight_decay=0.3)

    mask = optim.kernels_only if kernels else None
    assert_equal(
        ours(optim.make_optimizer("adamw", 0.01, weight_decay=0.3, mask=mask)), theirs(make)
    )


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_and_coupled_decay(nesterov):
    def make(*params):
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.02)

    l2 = optim.l1_and_l2(0.0, 0.01)  # half of weight_decay
    tx = optim.make_optimizer("sgd", 0.1, regularize=l2, momentum=0.9, nesterov=nesterov)
    assert_equal(ours(tx), theirs(make))


@pytest.mark.parametrize("name", ["cosine", "cosine_per_step", "constant"])
def test_warm_up_then_the_schedule(name):
    """Two of ten epochs of five steps: LinearLR, then CosineAnnealingLR over the other eight."""
    rate = torch.optim.lr_scheduler
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    warm = rate.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    t_max = {"cosine": 8, "cosine_per_step": 40, "constant": 1}[name]
    after = rate.CosineAnnealingLR(optimizer, T_max=t_max)
    schedule = optim.make_schedule(name, 0.3, 10, 5, 2.0)
    for step in range(50):
        if step < 10:
            expected = optimizer.param_groups[0]["lr"]
            optimizer.step()
            warm.step()
        elif name == "constant":
            expected = 0.3
        else:
            epoch = (step - 10) // 5 if name == "cosine" else step - 10
            expected = 0.3 * (1 + np.cos(np.pi * epoch / after.T_max)) / 2
        assert schedule(step) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert float(jax.jit(schedule)(step)) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("warmup_epochs", [0, 2])
def test_milestones(warmup_epochs):
    """MultiStepLR, stepped each epoch; a warm-up does not move it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 5, 9], gamma=0.2)
    given = {"milestones": (3, 5, 9), "decay_factor": 0.2}
    schedule = optim.make_schedule("multistep", 0.3, 10, 7, warmup_epochs, **given)
    alone = optim.multistep(0.3, (3, 5, 9), 7, 0.2)
    for epoch in range(10):
        for step in range(7 * epoch, 7 * epoch + 7):
            expected = optimizer.param_groups[0]["lr"]
            assert alone(step) == pytest.approx(expected, rel=1e-12)
            assert jax.jit(alone)(step) == pytest.approx(expected, rel=1e-6)
            if step < 7 * warmup_epochs:
                expected *= (step + 1) / 14
            assert schedule(step) == pytest.approx(expected, rel=1e-12)
            assert jax.jit(schedule)(step) == pytest.approx(expected, rel=1e-6)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["cosine", "cosine_per_step", "constant"])
@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "warm"),
    [(0.1, 22, 2), (0.6, 45, 27), (1 / 97, 97, 1), (0.01, 5, 0)],
)
def test_a_warm_up_of_whole_steps(name, epochs, steps_per_epoch, warm):
    """Traced as in a run, 0.6 · 45 is 27.000002 in float32, and 97/97 a little less than 1."""

    def traced(step, epochs):
        return optim.make_schedule(name, 0.3, 10, steps_per_epoch, epochs)(step)

    schedule = optim.make_schedule(name, 0.3, 10, steps_per_epoch, epochs)
    compiled, number = jax.jit(traced), np.float32(epochs)
    expected = [0.3 * (step + 1) / warm for step in range(warm)]
    for rate in (schedule, lambda step: compiled(jnp.int32(step), number)):
        assert [float(rate(step)) for step in range(warm)] == pytest.approx(expected)
        assert float(rate(warm)) == pytest.approx(0.3)
        # The first epoch of "cosine" is whole, and so begins the second.
        if name == "cosine":
            assert float(rate(warm + steps_per_epoch - 1)) == pytest.approx(0.3)
            assert float(rate(warm + steps_per_epoch)) < 0.3


def test_clipping_by_the_global_norm():
    """PyTorch's decay is not clipped."""
    decay = optim.l2(0.05)
    tx = optim.make_optimizer("sgd", 0.1, momentum=0.9, clip_norm=1.5, regularize=decay)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    expected = theirs(lambda *params: torch.optim.SGD(params, **options), clip=1.5)
    found = ours(tx)
    for name, w in expected.items():  # clip_grad_norm_ adds 1e-6 to the norm that it divides by
        np.testing.assert_allclose(found[name], w, rtol=1e-5)
    free = ours(optim.make_optimizer("sgd", 0.1, momentum=0.9, regularize=decay))
    assert np.abs(free["kernel"] - found["kernel"]).max() > 0.01


class Line(nn.Module):
    """A classifier of mean colours."""

    @nn.compact
    def __call__(self, images, *, train):
        return nn.Dense(3)(images.mean((1, 2)))


def test_the_average_of_the_weights():
    """Over ten steps, with each value of ours averaged by PyTorch's function too."""
    average = torch.optim.swa_utils.get_ema_avg_fn(0.9)
    tx = optim.make_optimizer("sgd", 0.5)
    loss = make_loss(Line(), lambda key, images, labels: (images, labels))
    step = jax.jit(make_train_step(loss, tx, ema_decay=0.9))
    state = create_state(Line(), tx, 0, keep_ema=True)
    images, labels = jax.random.normal(jax.random.key(0), (6, 32, 32, 3)), jnp.arange(6) % 3
    expected = torch.tensor(np.asarray(state.params["Dense_0"]["kernel"]))
    for number in range(10):
        state, _ = step(state, images, labels)
        value = torch.tensor(np.asarray(state.params["Dense_0"]["kernel"]))
        expected = average(expected, value, torch.tensor(number + 1))
        found = state.ema["params"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5)
    assert float((expected - value).abs().max()) > 1e-3
