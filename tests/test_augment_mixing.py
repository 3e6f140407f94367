"""Mixup and CutMix: by independent definitions, their draws, and in a training step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcifar import augment, data, sharding, task
from jaxcifar.config import base_config

IMAGES = np.random.default_rng(0).normal(size=(5, 8, 12, 3)).astype(np.float32)
TARGETS = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 1]]


def test_mixup_by_its_definition():
    for seed in range(5):
        images, targets = augment.random_mixup(jax.random.key(seed), IMAGES, TARGETS, alpha=0.8)
        own = float(np.asarray(targets)[0, 0])
        for i in range(5):
            np.testing.assert_allclose(
                images[i], own * IMAGES[i] + (1 - own) * IMAGES[i - 1], rtol=1e-5, atol=1e-6
            )
            np.testing.assert_allclose(
                targets[i], own * TARGETS[i] + (1 - own) * TARGETS[i - 1], atol=1e-6
            )


def test_cutmix_pastes_one_rectangle_and_mixes_by_its_area():
    areas = []
    for seed in range(20):
        images, targets = map(
            np.asarray, augment.random_cutmix(jax.random.key(seed), IMAGES, TARGETS, alpha=1.0)
        )
        from_other = (images != IMAGES).any(-1)  # [N, H, W]
        assert (from_other == from_other[0]).all()
        box = from_other[0]
        rows, columns = box.any(1), box.any(0)
        np.testing.assert_array_equal(box, rows[:, None] & columns[None, :])  # a rectangle
        for line in (rows, columns):
            assert (np.diff(np.flatnonzero(line)) == 1).all()  # without gaps
        for i in range(5):
            np.testing.assert_array_equal(images[i][box], IMAGES[i - 1][box])
        own = 1 - box.mean()
        for i in range(5):
            np.testing.assert_allclose(
                targets[i], own * TARGETS[i] + (1 - own) * TARGETS[i - 1], atol=1e-6
            )
        areas.append(own)
    assert np.std(areas) > 0.05


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_weights_are_drawn_from_beta_once_a_batch(alpha):
    keys = jax.random.split(jax.random.key(3), 400)
    mixed = jax.vmap(lambda key: augment.random_mixup(key, IMAGES, TARGETS, alpha=alpha)[1])(keys)
    own = np.asarray(mixed)[:, 0, 0]
    assert stats.kstest(own, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_where_both_are_on_a_fair_coin_chooses():
    cut = 0
    for seed in range(60):
        images, _ = augment.mix(jax.random.key(seed), IMAGES, TARGETS, mixup=1.0, cutmix=1.0)
        unmixed = np.isclose(images, IMAGES).all(-1) | np.isclose(
            images, np.roll(IMAGES, 1, 0)
        ).all(-1)
        cut += bool(unmixed.all())
    assert stats.binomtest(cut, 60).pvalue > 1e-3


@pytest.mark.parametrize("fields", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0}])
def test_a_training_batch_is_mixed(fields):
    config = base_config()
    config.data.name, config.data.augment = "synthetic", "none"
    for name, value in fields.items():
        config.augment[name] = value
    images = data.load("synthetic", "train", size=64)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
    config.train.batch_size = 64
    made = task.build(config, images, mesh)
    pixels, labels = jnp.asarray(images.images), jnp.asarray(images.labels)
    inputs, targets = made.prepare(jax.random.key(0), pixels, labels)
    assert targets.shape == (64, 10)
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-5)
    assert not np.allclose(inputs, made.inference.normalize(pixels))
    again, _ = made.prepare(jax.random.key(0), pixels, labels)
    np.testing.assert_array_equal(inputs, again)


def test_without_it_labels_stay_labels():
    config = base_config()
    config.data.name, config.train.batch_size = "synthetic", 64
    images = data.load("synthetic", "train", size=64)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
    labels = jnp.asarray(images.labels)
    made = task.build(config, images, mesh)
    assert made.prepare(jax.random.key(0), jnp.asarray(images.images), labels)[1] is labels
