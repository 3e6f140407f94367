"""Augmentation: every image its own draw, ranges and dtypes, each transform by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, auto_axes

from jaxcifar import augment
from jaxcifar.errors import UserError

KEY = jax.random.key(3)
IMAGES = jax.random.randint(jax.random.key(0), (64, 32, 32, 3), 0, 256).astype(jnp.uint8)
TRANSFORMS = [
    augment.random_crop,
    augment.random_flip,
    augment.color_jitter,
    augment.random_rotation,
    augment.random_affine,
    augment.random_erasing,
    augment.weak,
    augment.strong,
]


@pytest.mark.slow
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_shape_range_and_one_draw_an_image(transform):
    one = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)  # the same image 64 times
    transformed = jax.jit(transform)
    result = np.asarray(transformed(KEY, one))
    assert result.shape == IMAGES.shape
    assert result.min() >= 0
    assert result.max() <= 255
    different = {image.tobytes() for image in result}
    if transform is augment.random_flip:
        assert len(different) == 2
    else:  # more than orders of a jitter, which are 24; of erasings a quarter draws a box
        assert len(different) >= (10 if transform is augment.random_erasing else 25)
    other = np.asarray(transformed(jax.random.key(4), one))
    assert not np.array_equal(result, other)


def alternating(key, images):
    rows = jnp.arange(len(images), dtype=jnp.int32)
    return augment.alternating_flip(key, images, rows, jnp.int32(1))


def mixed(key, images):
    targets = jnp.eye(len(images), dtype=jnp.float32)
    return augment.mix(key, images.astype(jnp.float32), targets, mixup=0.2, cutmix=1.0)


@pytest.mark.parametrize(
    "transform",
    [
        augment.weak,
        alternating,
        pytest.param(augment.strong, marks=pytest.mark.slow),
        pytest.param(mixed, marks=pytest.mark.slow),
    ],
)
def test_64_bits_change_no_draw(transform):
    for seed in range(3):  # of `mixed`, so that it takes one way and the other
        expected = jax.jit(transform)(jax.random.key(seed), IMAGES)
        with jax.enable_x64(True):
            found = jax.jit(transform)(jax.random.key(seed), IMAGES)
        jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), found, expected)


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if "color" not in t.__name__][:-1])
def test_dtype_is_kept(transform):
    assert transform(KEY, IMAGES).dtype == jnp.uint8
    assert transform(KEY, IMAGES.astype(jnp.float32)).dtype == jnp.float32


def test_weak_is_a_crop_and_a_flip():
    # Each result is one of the 162 that padding, cropping and flipping by hand can give.
    results = np.asarray(augment.weak(KEY, IMAGES))
    for image, result in zip(np.asarray(IMAGES), results, strict=True):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
        crops = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
        assert any(np.array_equal(result, c) or np.array_equal(result, c[:, ::-1]) for c in crops)


@pytest.mark.parametrize(
    ("padding_mode", "by_hand"), [("zeros", "constant"), ("reflect", "reflect")]
)
@pytest.mark.parametrize("platform", ["", "tpu"])
def test_a_crop_is_a_slice_of_the_padded_image_on_every_platform(platform, padding_mode, by_hand):
    offsets = np.array([[0, 0], [8, 8], [0, 8], [8, 0], [3, 5]])
    images = IMAGES[:5]
    found = augment.crop(
        images, jnp.asarray(offsets), padding=4, padding_mode=padding_mode, platform=platform
    )
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=by_hand)
    assert found.dtype == jnp.uint8
    for image, result, (row, column) in zip(padded, found, offsets, strict=True):
        np.testing.assert_array_equal(result, image[row : row + 32, column : column + 32])


def test_strong_changes_nothing_at_strength_zero():
    result = augment.strong(
        KEY,
        IMAGES,
        padding=0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        rotation=0.0,
        translation=0.0,
        erasing_probability=0.0,
    )
    flipped = IMAGES[:, :, ::-1]
    assert result.dtype == jnp.float32
    for image, mirror, out in zip(IMAGES, flipped, result, strict=True):
        close = [np.allclose(out, np.asarray(x, np.float32), atol=1e-2) for x in (image, mirror)]
        assert any(close)


def test_brightness_contrast_saturation_by_hand():
    image = jnp.array([[[[200.0, 100, 0], [0, 0, 0]]]])  # two pixels
    factor = jnp.array([0.5])
    np.testing.assert_allclose(
        augment.adjust_brightness(image, 2 * factor + 0.5), [[[[255, 150, 0], [0, 0, 0]]]]
    )
    gray = 0.2989 * 200 + 0.587 * 100
    np.testing.assert_allclose(
        augment.adjust_contrast(image, factor),
        [[[[100 + gray / 4, 50 + gray / 4, gray / 4], [gray / 4] * 3]]],
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        augment.adjust_saturation(image, factor),
        [[[[100 + gray / 2, 50 + gray / 2, gray / 2], [0] * 3]]],
        rtol=1e-5,
    )


@pytest.mark.parametrize("adjust", ["brightness", "contrast", "saturation", "hue"])
def test_adjusting_bytes_is_adjusting_their_numbers(adjust):
    images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    factors, function = jnp.array([0.0, 0.3, 0.7, 1.2]), getattr(augment, f"adjust_{adjust}")
    expected = function(jnp.asarray(images, jnp.float32), factors)
    np.testing.assert_allclose(function(jnp.asarray(images), factors), expected, atol=1e-3)


def test_hue_turns_the_wheel():
    primaries = jnp.array([[[[255.0, 0, 0], [0, 255, 0], [0, 0, 255], [70, 70, 70]]]])
    third = augment.adjust_hue(primaries, jnp.array([1 / 3]))
    expected = [[[[0, 255, 0], [0, 0, 255], [255, 0, 0], [70, 70, 70]]]]
    np.testing.assert_allclose(third, expected, atol=1e-2)


def test_rotation_by_a_quarter_turn():
    image = jnp.arange(16, dtype=jnp.float32).reshape(1, 4, 4, 1)
    turned = augment.resample(image, augment.rotation_matrices(jnp.array([90.0])))
    np.testing.assert_array_equal(turned[0, :, :, 0], np.rot90(np.arange(16).reshape(4, 4)))


def test_affine_shifts_whole_pixels_and_fills_with_black():
    ones = jnp.ones((200, 32, 32, 1))
    shifted = np.asarray(augment.random_affine(KEY, ones, translation=0.1))[..., 0]
    assert set(np.unique(shifted)) == {0.0, 1.0}
    columns = (shifted.max(axis=1) == 0).sum(axis=1)
    rows = (shifted.max(axis=2) == 0).sum(axis=1)
    assert set(columns) == set(rows) == {0, 1, 2, 3}  # 0.1 of 32 is 3.2


def test_erasing_fills_a_rectangle():
    images = jnp.zeros((64, 32, 32, 3), jnp.uint8)
    fill = (10.0, 20.0, 30.0)
    erased = np.asarray(augment.random_erasing(KEY, images, probability=1.0, fill=fill))
    for image in erased:
        inside = (image == np.array([10, 20, 30])).all(-1)
        assert ((image == 0).all(-1) | inside).all()
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        assert inside.sum() == len(rows) * len(columns) > 0
        assert rows[-1] - rows[0] + 1 == len(rows)


def test_normalize():
    mean, std = (0.5, 0.25, 0.0), (0.5, 0.25, 1.0)
    pixels = jnp.array([[[[255, 0, 51]]]], jnp.uint8)
    result = augment.normalize(pixels, mean, std)
    np.testing.assert_allclose(result, [[[[1.0, -1.0, 0.2]]]], atol=1e-6)


# --- what a recipe adds -----------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_alternating_flip_shows_each_image_both_ways(impl):
    key, other_key = (jax.random.key(seed, impl=impl) for seed in (3, 9))
    images, rows = jax.random.normal(KEY, (64, 4, 4, 3)), jnp.arange(64)
    epochs = [augment.alternating_flip(key, images, rows, jnp.int32(e)) for e in range(3)]
    np.testing.assert_array_equal(epochs[0], epochs[1][:, :, ::-1])
    np.testing.assert_array_equal(epochs[0], epochs[2])
    mirrored = (epochs[0] != images).any(axis=(1, 2, 3))
    assert 20 < mirrored.sum() < 44  # a random half
    # It goes by the image, not by its place in the batch.
    turned = augment.alternating_flip(key, images[::-1], rows[::-1], jnp.int32(0))
    np.testing.assert_array_equal(turned[::-1], epochs[0])
    other = augment.alternating_flip(other_key, images, rows, jnp.int32(0))
    assert not np.array_equal(other, epochs[0])


def test_cutout_is_drawn_apart_from_the_crop():
    """Where the square is says nothing of where the crop was."""
    rows, columns = jnp.mgrid[1:33, 1:33]
    images = jnp.broadcast_to(jnp.stack([rows, columns], -1), (1000, 32, 32, 2))
    transform = jax.jit(augment.weak, static_argnames=("padding_mode", "flip", "cutout"))
    found = transform(KEY, images, padding_mode="reflect", flip="alternating", cutout=24)
    found = np.asarray(found)
    # 24 of 32 rows and columns are erased: of the two outer ones at least one is whole.
    ends = np.where((found[:, 10, 0] > 0).all(-1), found[:, 10, 0, 0], found[:, 10, 31, 0])
    sides = np.where((found[:, 0, 10] > 0).all(-1), found[:, 0, 10, 1], found[:, 31, 10, 1])
    erased = found[..., 0] == 0
    for offset, corner in (
        (ends - 11, erased.any(2).argmax(1)),
        (sides - 11, erased.any(1).argmax(1)),
    ):
        assert set(offset) == set(range(-4, 5))
        assert set(corner) == set(range(9))
        assert abs(np.corrcoef(offset, corner)[0, 1]) < 0.1


def test_cutout_sets_what_is_normalised_to_0():
    """White is 2 of these units: before the normalisation, the square would be −2, or black."""
    normalize = functools.partial(augment.normalize, mean=(0.5,) * 3, std=(0.25,) * 3)
    white = np.full((8, 8, 8, 3), 255, np.uint8)
    transform = functools.partial(augment.weak, padding=0, cutout=2, normalize=normalize)
    found = jax.jit(transform)(KEY, white)
    np.testing.assert_array_equal(np.unique(found), [0.0, 2.0])
    assert (np.asarray(found) == 0).sum() == 8 * 2 * 2 * 3


def test_cutout_is_a_whole_square_anywhere():
    images = jnp.ones((500, 8, 8, 1))
    erased = np.asarray(augment.random_cutout(KEY, images, size=3))[..., 0] == 0
    assert (erased.sum(axis=(1, 2)) == 9).all()
    rows = erased.any(axis=2)
    assert (rows.sum(axis=1) == 3).all()
    assert set(rows.argmax(axis=1)) == set(range(6))


def test_weak_mirrors_only_where_it_is_told_to():
    images = jnp.arange(16.0).reshape(1, 4, 4, 1) * jnp.ones((32, 1, 1, 1))
    mirrored_before = augment.weak(KEY, images, padding=0, flip="alternating")
    np.testing.assert_array_equal(mirrored_before, images)
    np.testing.assert_array_equal(augment.weak(KEY, images, padding=0, flip="none"), images)
    assert not np.array_equal(augment.weak(KEY, images, padding=0), images)
    assert (augment.weak(KEY, images + 1, padding=0, cutout=2) == 0).sum() == 32 * 4


def test_views_by_hand():
    images = jax.random.normal(KEY, (2, 4, 4, 3))
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    plain = np.asarray(images)
    expected = [
        (0.25, plain),
        (0.25, plain[:, :, ::-1]),
        (0.125, padded[:, :4, :4]),
        (0.125, padded[:, :4, :4][:, :, ::-1]),
        (0.125, padded[:, 2:, 2:]),
        (0.125, padded[:, 2:, 2:][:, :, ::-1]),
    ]
    found = augment.views(images, "mirror_translate")
    for (share, view), (wanted, by_hand) in zip(found, expected, strict=True):
        assert share == wanted
        np.testing.assert_array_equal(view, by_hand)
    for name in augment.VIEWS:
        assert sum(share for share, _ in augment.views(images, name)) == 1


@pytest.mark.parametrize("transform", [augment.weak, augment.strong])
@pytest.mark.parametrize(("option", "name"), [("flip", "Random"), ("padding_mode", "refelct")])
def test_a_misspelt_name_is_refused(transform, option, name):
    with pytest.raises(UserError, match=f"{option} is '{name}'. Did you mean '(random|reflect)'"):
        jax.eval_shape(lambda: transform(KEY, IMAGES, **{option: name}))


def test_on_a_mesh_whose_axes_are_part_of_types():
    """As those of jax.make_mesh are; the docstring of `create_model` says what to do."""
    images = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    key, split = jax.random.key(0), PartitionSpec("data")
    expected = augment.weak(key, images)
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    within = auto_axes(lambda x: augment.weak(key, x), out_sharding=NamedSharding(mesh, split))
    found = jax.jit(within)(jax.device_put(images, NamedSharding(mesh, split)))
    np.testing.assert_array_equal(found, expected)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    on_mesh = jax.device_put(images, NamedSharding(mesh, split))
    np.testing.assert_array_equal(jax.jit(augment.weak)(key, on_mesh), expected)
