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


def published_boxes(alpha, n, size):
    """Boxes (top, bottom, left, right), as the paper's code draws them one by one in NumPy."""
    random = np.random.default_rng(5)
    for _ in range(n):
        half = int(size * np.sqrt(1 - random.beta(alpha, alpha))) // 2
        row, column = random.integers(size, size=2)
        rows, columns = (np.clip([at - half, at + half], 0, size) for at in (row, column))
        yield *rows, *columns


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_rectangles_are_drawn_as_the_paper_draws_them(alpha):
    """Their areas, and where their middles are, against the published rule."""
    size = 64
    two = np.stack([np.zeros((size, size, 1)), np.ones((size, size, 1))]).astype(np.float32)
    targets = np.eye(2, dtype=np.float32)

    @jax.jit
    @jax.vmap
    def pasted(key):
        return augment.random_cutmix(key, two, targets, alpha=alpha)[0][0, :, :, 0]

    masks = np.asarray(pasted(jax.random.split(jax.random.key(3), 400))) > 0
    boxes = []
    for mask in masks:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        boxes.append(
            (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if mask.any() else (0,) * 4
        )
    found, expected = np.array(boxes), np.array(list(published_boxes(alpha, 2000, size)))

    def areas(boxes):
        return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])

    assert stats.ks_2samp(areas(found), areas(expected)).pvalue > 1e-3
    found, expected = found[areas(found) > 0], expected[areas(expected) > 0]
    for first in (0, 2):
        middles = found[:, first : first + 2].mean(1), expected[:, first : first + 2].mean(1)
        assert stats.ks_2samp(*middles).pvalue > 1e-3
    rows, columns = found[:, :2].mean(1), found[:, 2:].mean(1)
    assert stats.spearmanr(rows, columns).pvalue > 1e-3  # each has its own draw


def test_where_none_is_on_nothing_is_mixed():
    images, targets = augment.mix(jax.random.key(0), IMAGES, TARGETS, mixup=0.0, cutmix=0.0)
    assert np.array_equal(images, IMAGES)
    assert np.array_equal(targets, TARGETS)


def test_where_both_are_on_a_fair_coin_chooses():
    cut = 0
    for seed in range(60):
        images, _ = augment.mix(jax.random.key(seed), IMAGES, TARGETS, mixup=1.0, cutmix=1.0)
        unmixed = np.isclose(images, IMAGES).all(-1) | np.isclose(
            images, np.roll(IMAGES, 1, 0)
        ).all(-1)
        cut += bool(unmixed.all())
    assert stats.binomtest(cut, 60).pvalue > 1e-3


@pytest.mark.parametrize(
    ("fields", "whole"),
    [
        ({"mixup": 0.4}, [0.0]),
        ({"cutmix": 1.0}, [1.0]),
        ({"mixup": 1.0, "cutmix": 1.0}, [0.0, 1.0]),
    ],
)
def test_a_training_batch_is_mixed(fields, whole):
    """With Mixup no pixel stays one of an image or its neighbour, with CutMix all do."""
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
    own = np.asarray(made.inference.normalize(pixels))
    assert not np.allclose(inputs, own)
    of_either = [np.isclose(inputs, image).all(-1) for image in (own, np.roll(own, 1, axis=0))]
    assert (of_either[0] | of_either[1]).mean().round(3) in whole
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
