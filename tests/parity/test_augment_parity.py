"""Augmentation against independent definitions: the pixels for given draws, and the draws.

Pillow's enhancers, the standard library's colorsys, and loops over pixels in float64 stand for
torchvision, whose own functions are defined by them; its draws are written out again here.
"""

import colorsys
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from jaxcifar import augment, sharding

GENERATOR = np.random.default_rng(0)
IMAGES = GENERATOR.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
FLOATS = jnp.asarray(IMAGES, jnp.float32)


def draws(transform, n=20_000):
    return np.asarray(jax.jit(transform, static_argnums=1)(jax.random.key(11), n))


def is_uniform(sample, low, high):
    assert sample.min() >= low
    assert sample.max() <= high
    return stats.kstest(sample, stats.uniform(low, high - low).cdf).pvalue > 1e-3


# --- pixels -----------------------------------------------------------------------------------


def test_crop_and_flip_by_slicing():
    offsets = GENERATOR.integers(0, 9, (6, 2))
    mirrored = np.array([True, False, True, True, False, False])
    result = np.asarray(augment.flip(augment.crop(IMAGES, offsets, padding=4), mirrored))
    for image, (row, column), flipped, out in zip(IMAGES, offsets, mirrored, result, strict=True):
        padded = np.zeros((40, 40, 3), np.uint8)
        padded[4:36, 4:36] = image
        expected = padded[row : row + 32, column : column + 32]
        np.testing.assert_array_equal(out, expected[:, ::-1] if flipped else expected)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment.adjust_brightness, ImageEnhance.Brightness),
        (augment.adjust_contrast, ImageEnhance.Contrast),
        (augment.adjust_saturation, ImageEnhance.Color),
    ],
)
def test_enhancers_agree_with_pillow(ours, theirs):
    # Pillow truncates to whole levels, and so does its gray before it.
    factors = jnp.array([0.8, 0.9, 1.0, 1.1, 1.2, 1.7])
    result = np.asarray(ours(FLOATS, factors))
    for image, factor, out in zip(IMAGES, factors, result, strict=True):
        expected = np.asarray(theirs(Image.fromarray(image)).enhance(float(factor)), np.float64)
        assert np.abs(out - expected).max() <= 2
        assert np.abs((out - expected).mean()) < 0.6


def test_hue_agrees_with_colorsys():
    shifts = np.array([-0.5, -0.1, 0.0, 0.03, 0.1, 0.4], np.float32)
    result = np.asarray(augment.adjust_hue(FLOATS, jnp.asarray(shifts)))
    for image, shift, out in zip(IMAGES, shifts, result, strict=True):
        for row in range(0, 32, 5):
            for column in range(32):
                hue, saturation, value = colorsys.rgb_to_hsv(*image[row, column] / 255)
                expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
                np.testing.assert_allclose(out[row, column], 255 * np.array(expected), atol=0.02)


@pytest.mark.slow
def test_jitter_applies_in_each_images_order():
    factors = jnp.array([[0.8, 1.2, 0.9, 0.05], [1.2, 0.8, 1.1, -0.05]])
    orders = jnp.array([[3, 0, 2, 1], [1, 2, 0, 3]])
    changes = (
        augment.adjust_brightness,
        augment.adjust_contrast,
        augment.adjust_saturation,
        augment.adjust_hue,
    )
    result = augment.jitter(FLOATS[:2], factors, orders)
    for i in range(2):
        expected = FLOATS[i : i + 1]
        for which in orders[i]:
            expected = changes[int(which)](expected, factors[i : i + 1, int(which)])
        np.testing.assert_allclose(result[i], expected[0], atol=1e-2)


def brute_force(image, matrix):
    """Nearest pixel at M·x, one by one, in float64; and whether it was a near tie."""
    result, tie = np.zeros_like(image), np.zeros(image.shape[:2], bool)
    for row in range(32):
        for column in range(32):
            x, y, _ = matrix @ np.array([column - 15.5, row - 15.5, 1.0])
            x, y = x + 15.5, y + 15.5
            tie[row, column] = min(abs(x % 1 - 0.5), abs(y % 1 - 0.5)) < 1e-4
            if -0.5 <= x <= 31.5 and -0.5 <= y <= 31.5:
                at = min(max(round(y), 0), 31), min(max(round(x), 0), 31)
                result[row, column] = image[at]
    return result, tie


def rotation(angle):
    """Counter-clockwise as seen, y pointing down: where a point of the result comes from."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def shift(x, y):
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1.0]])


def test_rotation_and_shift_composed_by_brute_force():
    # `strong` resamples once by this product: the image is rotated, then shifted.
    angles = np.array([15.0, -15.0, 7.3, -3.1, 0.0, 11.9], np.float32)
    shifts = np.array([[3, 0], [0, -3], [2, 1], [-1, -2], [3, 3], [0, 0]])
    ours = augment.rotation_matrices(jnp.asarray(angles))
    moved = jnp.asarray(np.stack([shift(*s) for s in shifts]), jnp.float32)
    result = np.asarray(augment.resample(jnp.asarray(IMAGES), ours @ moved))
    for image, angle, by, out in zip(IMAGES, angles, shifts, result, strict=True):
        expected, tie = brute_force(image, rotation(angle) @ shift(*by))
        assert tie.mean() < 0.01
        np.testing.assert_array_equal(out[~tie], expected[~tie])


def test_what_torchvision_cuts_off_between_rotation_and_shift():
    """The number in docs/parity.md: pixels that are black only where the image is cut first."""
    white = jnp.ones((1000, 32, 32, 1))
    turns = augment.rotation_matrices(augment.draw_angles(jax.random.key(0), 1000, 15.0))
    moves = augment.draw_shift_matrices(jax.random.key(1), white.shape, translation=0.1)
    once = augment.resample(white, turns @ moves)
    twice = augment.resample(augment.resample(white, turns), moves)
    assert (once >= twice).all()
    np.testing.assert_allclose((once - twice).mean(), 0.019, atol=0.001)


def test_rotation_agrees_with_pillow():
    for angle in (15.0, -15.0, 7.3, -3.1):
        matrices = augment.rotation_matrices(jnp.full((6,), angle))
        result = np.asarray(augment.resample(jnp.asarray(IMAGES), matrices))
        expected = np.stack(
            [np.asarray(Image.fromarray(i).rotate(angle, Image.Resampling.NEAREST)) for i in IMAGES]
        )
        # Pillow steps through the image in fixed point: pixels near a tie may fall either way.
        assert (result == expected).all(-1).mean() > 0.99


@pytest.mark.slow
def test_strong_is_its_parts():
    """The whole of `strong` again, transform by transform with the same keys."""
    key = jax.random.key(5)
    result = augment.strong(key, jnp.asarray(IMAGES))
    keys = jax.random.split(key, 5)
    images = augment.weak(keys[0], jnp.asarray(IMAGES))
    images = augment.color_jitter(keys[1], images)
    angles = np.asarray(augment.draw_angles(keys[2], 6, 15.0))
    shifts = np.asarray(augment.draw_shift_matrices(keys[3], (6, 32, 32, 3), translation=0.1))
    turned, ties = [], []
    for image, angle, moved in zip(np.asarray(images), angles, shifts, strict=True):
        out, tie = brute_force(image, rotation(angle) @ moved.astype(np.float64))
        turned.append(out)
        ties.append(tie)
    expected = augment.random_erasing(keys[4], jnp.stack(turned), fill=0.0)
    sure = ~np.stack(ties)
    np.testing.assert_allclose(np.asarray(result)[sure], np.asarray(expected)[sure], atol=1e-2)


# --- draws ------------------------------------------------------------------------------------


def test_crop_offsets_are_uniform_and_independent():
    # A picture whose pixel says where it lies tells each image's offset.
    place = (np.arange(32 * 32).reshape(32, 32) + 1).astype(np.int32)
    images = jnp.broadcast_to(place[None, :, :, None], (20_000, 32, 32, 1))
    cropped = np.asarray(augment.random_crop(jax.random.key(2), images))[:, 15, 15, 0] - 1
    rows, columns = cropped // 32 - 11, cropped % 32 - 11
    counts = np.histogram2d(rows, columns, bins=(range(10), range(10)))[0]
    assert counts.sum() == 20_000
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3
    # Independent across a batch: neighbours' offsets are uniform over 81 × 81 pairs, binned.
    code = 9 * rows + columns
    pairs = np.histogram2d(code[::2] // 9, code[1::2] // 9, bins=(range(10), range(10)))[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def test_flip_is_a_fair_coin():
    images = jnp.broadcast_to(jnp.arange(2)[None, None, :, None], (20_000, 1, 2, 1))
    flipped = np.asarray(augment.random_flip(jax.random.key(2), images))[:, 0, 0, 0]
    assert stats.binomtest(int(flipped.sum()), 20_000).pvalue > 1e-3
    runs = (flipped[1:] != flipped[:-1]).sum()
    assert stats.binomtest(int(runs), 19_999).pvalue > 1e-3


def test_jitter_factors_and_orders():
    strengths = {"brightness": 0.2, "contrast": 0.3, "saturation": 1.0, "hue": 0.1}
    factors, orders = jax.device_get(augment.draw_jitter(jax.random.key(3), 24_000, **strengths))
    for i, (low, high) in enumerate([(0.8, 1.2), (0.7, 1.3), (0.0, 2.0), (-0.1, 0.1)]):
        assert is_uniform(factors[:, i], low, high)
    codes = orders @ np.array([1000, 100, 10, 1])
    values, counts = np.unique(codes, return_counts=True)
    assert len(values) == 24  # every order of four
    assert stats.chisquare(counts).pvalue > 1e-3


def test_angles_and_shifts():
    assert is_uniform(draws(lambda key, n: augment.draw_angles(key, n, 15.0)), -15, 15)
    shifts = draws(
        lambda key, n: augment.draw_shift_matrices(key, (n, 32, 32, 3), translation=0.1)[:, :2, 2]
    )
    # Whole pixels of a uniform draw in ±3.2: ±3 is rounded to from 2.5 … 3.2 only.
    expected = np.array([0.7, 1, 1, 1, 1, 1, 0.7]) / 6.4
    for axis in (0, 1):
        counts = [(shifts[:, axis] == k).sum() for k in range(-3, 4)]
        assert sum(counts) == len(shifts)
        assert stats.chisquare(counts, expected * len(shifts)).pvalue > 1e-3


def torchvision_box(generator, height, width, area, ratio):
    """RandomErasing.get_params of torchvision, for p = 1."""
    for _ in range(10):
        erased = height * width * generator.uniform(*area)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        h, w = round(math.sqrt(erased * aspect)), round(math.sqrt(erased / aspect))
        if h < height and w < width:
            top = generator.randint(0, height - h)
            return top, generator.randint(0, width - w), h, w
    return 0, 0, 0, 0


@pytest.mark.parametrize(
    ("area", "ratio"),
    [((0.02, 0.33), (0.3, 3.3)), ((0.5, 1.0), (0.3, 3.3))],  # the second rejects often
)
def test_erasing_draws_as_torchvision(area, ratio):
    n = 10_000
    ours = draws(
        lambda key, n: augment.draw_boxes(
            key, (n, 32, 32, 3), probability=1.0, area=area, ratio=ratio
        ),
        n,
    )
    generator = random.Random(0)
    theirs = np.array([torchvision_box(generator, 32, 32, area, ratio) for _ in range(n)])
    # As often no rectangle fits in ten tries; where none does, its place has no meaning.
    fits = [(boxes[:, 2] > 0).sum() for boxes in (ours, theirs)]
    if min(fits) < n:
        assert stats.chi2_contingency([fits, [n - fit for fit in fits]]).pvalue > 1e-3
    ours, theirs = ours[ours[:, 2] > 0], theirs[theirs[:, 2] > 0]
    for i in range(4):
        table = np.array([np.bincount(boxes[:, i], minlength=33) for boxes in (ours, theirs)])
        table = table[:, table.sum(0) >= 20]
        assert stats.chi2_contingency(table).pvalue > 1e-3, i
    # Jointly: the share of the image that is erased.
    assert stats.ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert (ours[:, 2:].max(), (ours[:, :2] + ours[:, 2:]).max()) <= (31, 32)


def test_erasing_probability():
    boxes = draws(
        lambda key, n: augment.draw_boxes(
            key, (n, 32, 32, 3), probability=0.25, area=(0.02, 0.33), ratio=(0.3, 3.3)
        )
    )
    erased = int((boxes[:, 2] > 0).sum())
    assert stats.binomtest(erased, len(boxes), 0.25).pvalue > 1e-3


@pytest.mark.slow
def test_draws_do_not_depend_on_the_number_of_devices():
    images = jnp.asarray(GENERATOR.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    split = jax.device_put(images, sharding.batch_sharding(mesh))
    strong = jax.jit(augment.strong)
    one, eight = strong(jax.random.key(1), images), strong(jax.random.key(1), split)
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(one, eight, atol=1e-3)
