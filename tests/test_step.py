"""One training step and one evaluation step, by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from jaxcifar import optim
from jaxcifar.errors import UserError
from jaxcifar.state import TrainState, create_state
from jaxcifar.step import Lookahead, make_eval_step, make_loss, make_train_step

IMAGES, LABELS = jax.random.normal(jax.random.key(0), (8, 32, 32, 3)), jnp.arange(8)


class Small(nn.Module):
    """One linear layer on the mean colour, dropout, and a count of its calls in training."""

    dropout_rate: float = 0.0

    @nn.compact
    def __call__(self, x, *, train):
        calls = self.variable("batch_stats", "calls", lambda: jnp.zeros(()))
        if train:
            calls.value = calls.value + 1
        x = nn.Dropout(self.dropout_rate, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10)(x)


def noise(key, images, labels):
    return images + jax.random.normal(key, images.shape), labels


def as_it_is(key, images, labels):
    del key
    return images, labels


def test_train_step_is_of_seed_and_step_alone():
    model, tx = Small(dropout_rate=0.5), optim.make_optimizer("adam", 1e-3)
    step = jax.jit(make_train_step(make_loss(model, noise), tx))
    state = create_state(model, tx, 0)
    _, once = step(state, IMAGES, LABELS)
    _, again = step(state, IMAGES, LABELS)
    assert once["loss"] == again["loss"]
    later = state.replace(step=jnp.int32(7))
    assert step(later, IMAGES, LABELS)[1]["loss"] != once["loss"]
    assert step(create_state(model, tx, 1), IMAGES, LABELS)[1]["loss"] != once["loss"]
    assert step(state, IMAGES, LABELS)[0].step == 1


def test_an_optimizer_may_need_the_loss():
    model, tx = Small(), optax.chain(optax.sgd(0.5), optax.contrib.reduce_on_plateau(patience=2))
    step = jax.jit(make_train_step(make_loss(model, as_it_is), tx))
    state = create_state(model, tx, 0)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            state, metrics = step(state, IMAGES, LABELS)
    assert state.opt_state[1].avg_value == 0  # it keeps none between its looks
    assert state.opt_state[1].best_value == pytest.approx(float(metrics["ce"]))


@pytest.mark.parametrize(("dropout_rate", "prepare"), [(0.5, as_it_is), (0.0, noise)])
def test_dropout_and_augmentation_are_new_in_each_step(dropout_rate, prepare):
    model = Small(dropout_rate)
    state = create_state(model, optim.make_optimizer("sgd", 0.1), 0)
    loss = jax.jit(make_loss(model, prepare))
    losses = [
        float(loss(state.params, state.replace(step=jnp.int32(i)), IMAGES, LABELS)[0])
        for i in range(5)
    ]
    assert len(set(losses)) == 5
    # And the loss at other parameters sees the same draws.
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    assert loss(zeros, state, IMAGES, LABELS)[0] == pytest.approx(np.log(10))


def test_a_step_by_hand():
    """Loss, accuracy, penalty, statistics and the new parameters of one step of SGD."""
    model, rate, strength = Small(), 0.5, 0.01
    penalties = optim.l1_and_l2(0.0, strength)
    tx = optim.make_optimizer("sgd", rate, regularize=penalties)
    state = create_state(model, tx, 0)
    step = make_train_step(make_loss(model, as_it_is), tx, regularizers=penalties, norms=True)
    after, metrics = jax.jit(step)(state, IMAGES, LABELS)
    norms = {"gradient_norm", "update_norm"}
    assert set(metrics) == {"loss", "ce", "accuracy"} | norms  # without a schedule no learning rate

    layer = jax.tree.map(lambda w: np.asarray(w, np.float64), state.params["Dense_0"])
    x = np.asarray(IMAGES, np.float64).mean((1, 2))
    logits = x @ layer["kernel"] + layer["bias"]
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ce = -np.log(p[np.arange(8), LABELS]).mean()
    penalty = strength * sum((w**2).sum() for w in layer.values())
    assert metrics["ce"] == pytest.approx(ce, rel=1e-5)
    assert metrics["loss"] == pytest.approx(ce + penalty, rel=1e-5)
    assert metrics["accuracy"] == (logits.argmax(1) == LABELS).mean()
    dlogits = (p - np.eye(10)[:8]) / 8
    gradients = {"kernel": x.T @ dlogits, "bias": dlogits.sum(0)}
    updates = {name: -rate * (gradients[name] + 2 * strength * w) for name, w in layer.items()}
    for name, w in layer.items():
        np.testing.assert_allclose(after.params["Dense_0"][name], w + updates[name], atol=1e-6)
    for name, parts in (("gradient_norm", gradients), ("update_norm", updates)):
        norm = np.sqrt(sum((part**2).sum() for part in parts.values()))
        assert metrics[name] == pytest.approx(norm, rel=1e-5)
    assert (after.step, after.batch_stats["calls"]) == (1, 1)
    assert jax.random.key_data(after.key).tolist() == jax.random.key_data(state.key).tolist()


@pytest.mark.parametrize("schedule", optim.SCHEDULES)
def test_the_learning_rate_that_is_logged_is_the_one_that_was_applied(schedule):
    """Of every step of two epochs of four: (before − after) / gradient."""
    model = Small()
    rates = optim.make_schedule(schedule, jnp.float32(0.5), jnp.float32(2), 4, milestones=(1,))
    tx = optim.make_optimizer("sgd", rates)
    loss = make_loss(model, as_it_is)
    step = jax.jit(make_train_step(loss, tx, schedule=rates))
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    state, logged, applied = create_state(model, tx, 0), [], []
    for _ in range(8):
        g = gradient(state.params, state, IMAGES, LABELS)[0]["Dense_0"]["kernel"]
        after, metrics = step(state, IMAGES, LABELS)
        difference = state.params["Dense_0"]["kernel"] - after.params["Dense_0"]["kernel"]
        logged.append(float(metrics["learning_rate"]))
        applied.append(float((difference * g).sum() / (g * g).sum()))
        state = after
    np.testing.assert_allclose(logged, applied, rtol=1e-4, atol=1e-7)
    assert metrics["learning_rate"].dtype == jnp.float32
    two = {"cosine": 2, "multistep": 2}
    expected = {"constant": 1, "cosine_per_step": 8, "triangular": 8} | two
    assert len(set(logged)) == expected[schedule]


class Constant(nn.Module):
    """The same logits for every image."""

    @nn.compact
    def __call__(self, x, *, train):
        del train
        return jnp.tile(jnp.array([0.0, 2.0, 1.0]), (len(x), 1))


def test_evaluation_by_hand():
    step = make_eval_step(lambda _, images: Constant().apply({}, images, train=False))
    labels, mask = jnp.array([0, 1, 1, 2, 1]), jnp.array([True, True, True, True, False])
    sums = step({}, jnp.zeros((5, 32, 32, 3)), labels, mask)
    log_sum = np.log(1 + np.e**2 + np.e)
    assert sums["loss"] == pytest.approx(4 * log_sum - (0 + 2 + 2 + 1), rel=1e-6)
    assert (sums["correct"], sums["count"]) == (2, 4)


def test_lookahead_by_hand():
    def state_of(step, fast, slow):
        tree = lambda x: {"params": {"w": jnp.float32(x)}, "batch_stats": {"s": jnp.float32(-x)}}  # noqa: E731
        return TrainState(
            jnp.int32(step), opt_state=(), key=jax.random.key(0), slow=tree(slow), **tree(fast)
        )

    lookahead = Lookahead(every=5, steps=20)
    between = lookahead.synchronize(state_of(9, 3.0, 1.0))
    assert (between.params["w"], between.slow["params"]["w"]) == (3, 1)
    state = lookahead.synchronize(state_of(10, 3.0, 1.0))
    decay = 0.95**5 / 8
    expected = 3 * (1 - decay) + 1 * decay
    assert state.params["w"] == pytest.approx(expected)
    assert state.batch_stats["s"] == pytest.approx(-expected)
    jax.tree.map(np.testing.assert_array_equal, state.slow, state.variables)


@pytest.mark.parametrize(
    ("keep", "given"),
    [
        ({}, {"ema_decay": 0.9}),
        ({"keep_ema": True}, {}),
        ({}, {"lookahead": Lookahead(2, 10)}),
        ({"keep_slow": True}, {}),
    ],
)
def test_an_average_that_only_one_of_state_and_step_knows_is_refused(keep, given):
    tx = optim.make_optimizer("sgd", 0.1)
    state = create_state(Small(), tx, 0, **keep)
    step = make_train_step(make_loss(Small(), as_it_is), tx, **given)
    with pytest.raises(UserError, match="must average the same weights"):
        jax.eval_shape(step, state, IMAGES, LABELS)


def test_the_decay_of_the_average_may_be_traced():
    tx = optim.make_optimizer("sgd", 0.1)
    state = create_state(Small(), tx, 0, keep_ema=True)

    def step(state, decay):
        loss = make_loss(Small(), as_it_is)
        return make_train_step(loss, tx, ema_decay=decay)(state, IMAGES, LABELS)[0].ema

    found, plain = jax.jit(step)(state, 0.5), step(state, 0.5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, plain)
