"""Losses and correctness of single examples, against formulas and PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import losses
from jaxcifar.errors import UserError

LOGITS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 2, 1, 3], np.int32)


def test_cross_entropy_by_the_formula():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 10))
    labels = jnp.array([0, 3, 9, 9, 1, 5])
    exact = np.asarray(logits, np.float64)
    expected = np.log(np.exp(exact).sum(1)) - exact[np.arange(6), labels]
    found = losses.cross_entropy(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert found.dtype == jnp.float32


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[1e4, 0.0], [0.0, 1e4]])
    np.testing.assert_allclose(losses.cross_entropy(logits, jnp.array([0, 0])), [0, 1e4])


def test_correct_is_of_the_largest_logit_and_the_first_of_equals():
    logits = jnp.array([[0.0, 2.0, 1.0], [0.0, 2.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = losses.correct(logits, jnp.array([1, 2, 0, 1]))
    np.testing.assert_array_equal(found, [True, False, True, False])


def test_hard_and_soft_targets_by_hand():
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    hard = -log_p[np.arange(6), LABELS]
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, jnp.asarray(LABELS)), hard, rtol=1e-5)
    soft = np.random.default_rng(1).dirichlet(np.ones(5), 6).astype(np.float32)
    np.testing.assert_allclose(
        losses.cross_entropy(LOGITS, jnp.asarray(soft)), -(soft * log_p).sum(1), rtol=1e-5
    )


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
@pytest.mark.parametrize("soft", [False, True])
def test_label_smoothing_is_pytorchs(smoothing, soft):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    targets = jax.nn.one_hot(LABELS, 5) * 0.7 + 0.06 if soft else jnp.asarray(LABELS)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS),
        torch.tensor(np.asarray(targets)) if soft else torch.tensor(LABELS).long(),
        label_smoothing=smoothing,
        reduction="none",
    )
    ours = losses.cross_entropy(LOGITS, targets, smoothing)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


def test_smoothed_targets_have_the_dtype_of_the_logits():
    with jax.enable_x64(True):
        assert losses.cross_entropy(LOGITS, jnp.asarray(LABELS), 0.1).dtype == jnp.float32


@pytest.mark.parametrize("shape", [(), (5,), (1,), (6, 1), (6, 4), (1, 5)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_targets_of_another_shape_are_refused(shape, smoothing):
    targets = jnp.zeros(shape, jnp.float32 if len(shape) > 1 else jnp.int32)
    with pytest.raises(UserError, match=r"Give labels \(6,\) or soft targets \(6, 5\)") as error:
        losses.cross_entropy(LOGITS, targets, smoothing)
    assert f"targets are of shape {shape}" in str(error.value)


@pytest.mark.parametrize("label", [5, 7])
def test_the_loss_of_a_label_beyond_the_classes_is_not_a_number(label):
    found = losses.cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS).at[2].set(label))
    assert np.isnan(found).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True])
def test_examples_may_have_any_axes_or_none(smoothing, soft):
    targets = jnp.asarray(np.eye(5, dtype=np.float32)[LABELS] if soft else LABELS)
    logits, loss = jnp.asarray(LOGITS), lambda *pair: losses.cross_entropy(*pair, smoothing)
    expected = loss(logits, targets)
    np.testing.assert_allclose(jax.vmap(loss)(logits, targets), expected, rtol=1e-6)
    np.testing.assert_allclose(loss(logits[1], targets[1]), expected[1], rtol=1e-6)
    # As many examples in a row as there are classes: the shape of labels is not that of targets.
    rows = np.arange(25).reshape(5, 5) % 6
    np.testing.assert_allclose(loss(logits[rows], targets[rows]), expected[rows], rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_negative_label_is_not_ignored(smoothing):
    found = losses.cross_entropy(jnp.asarray(LOGITS), jnp.full(6, -1), smoothing)
    taken_for = np.zeros((6, 5), np.float32) if smoothing else np.full(6, 4)  # of no class, or last
    np.testing.assert_array_equal(found, losses.cross_entropy(LOGITS, taken_for, smoothing))
