"""Augmentation on the device: pure functions of a key and a batch.

Each image has its own draw, except that mixup and CutMix draw once per batch.

Most transforms come as a pair: `random_crop(key, images)` draws and applies; `crop(images,
offsets)` applies what it is given. The draws and the arithmetic are torchvision's; what differs
on purpose is said in the docstrings.

    images = augment.weak(jax.random.key(0), images)  # [N, 32, 32, 3] uint8 -> the same

Draws are made for the whole batch at once, so with JAX's partitionable random bits the draw for
image i does not depend on the number of devices. They are of 32 bits, whatever `jax_enable_x64` is.
"""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.errors import choose

Normalize = Callable[[jax.Array], jax.Array]


def _unchanged(images: jax.Array) -> jax.Array:
    return images


def none(
    key: jax.Array, images: jax.Array, *, normalize: Normalize = _unchanged, platform: str = ""
) -> jax.Array:
    """Only normalises; see `weak`."""
    del key, platform
    return normalize(images)


def weak(
    key: jax.Array,
    images: jax.Array,
    *,
    padding: int = 4,
    padding_mode: str = "zeros",
    flip: str = "random",
    cutout: int = 0,
    normalize: Normalize = _unchanged,
    platform: str = "",
) -> jax.Array:
    """Random crop, then random horizontal flip; at the end cutout, where it is on.

    Args:
      key: a PRNG key.
      images: [N, H, W, C] of any dtype.
      padding: added on each side before the crop, in pixels.
      padding_mode: what is added, one of PADDING_MODES; see `crop`.
      flip: one of FLIPS. "random" mirrors each image with probability 1/2, "none" none.
        "alternating" mirrors nothing here either: apply `alternating_flip` to the images first.
      cutout: side of the square that is set to 0, in pixels; 0 is none.
      normalize: applied before the cutout, such as `normalize` with a mean and a deviation;
        nothing by default.
      platform: what the program is built for; see `crop`.

    Returns:
      [N, H, W, C] of the same dtype, or what `normalize` returns.
    """
    choose("flip", flip, FLIPS)
    crop_key, flip_key = jax.random.split(key)
    images = random_crop(
        crop_key, images, padding=padding, padding_mode=padding_mode, platform=platform
    )
    images = normalize(random_flip(flip_key, images) if flip == "random" else images)
    if not cutout:
        return images
    # Not 0 or 1: those are the keys that `split` has given the crop and the flip.
    key = jax.random.fold_in(key, 2)
    return random_cutout(key, images, size=cutout)


def strong(
    key: jax.Array,
    images: jax.Array,
    *,
    padding: int = 4,
    padding_mode: str = "zeros",
    flip: str = "random",
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.1,
    rotation: float = 15.0,
    translation: float = 0.1,
    erasing_probability: float = 0.25,
    erasing_area: Sequence[float] = (0.02, 0.33),
    erasing_ratio: Sequence[float] = (0.3, 3.3),
    normalize: Normalize = _unchanged,
    platform: str = "",
) -> jax.Array:
    """`weak`, then color jitter, random rotation, random affine, and random erasing with 0.

    The rotation and the affine transform are composed and resampled once. torchvision, applying
    one after the other, rounds to the nearest pixel twice, and cuts the rotated image to its frame
    before it is moved, so some border pixels are black in its result and part of the image here.

    Args:
      key: a PRNG key.
      images: [N, H, W, 3] in the range 0 … 255.
      padding … erasing_ratio: the strengths; see the transforms.
      normalize: applied before the erasing, as where torchvision's RandomErasing follows
        Normalize: an erased pixel is then the mean colour. By default nothing, and it is black.
      platform: what the program is built for; see `crop`.

    Returns:
      [N, H, W, 3] float32 in the range 0 … 255, or what `normalize` returns.
    """
    keys = jax.random.split(key, 5)
    images = weak(
        keys[0], images, padding=padding, padding_mode=padding_mode, flip=flip, platform=platform
    )
    images = color_jitter(
        keys[1], images, brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )
    rotations = rotation_matrices(draw_angles(keys[2], len(images), rotation))
    shifts = draw_shift_matrices(keys[3], images.shape, translation=translation)
    # The result at x is the rotated image at Ax, which is the image at RAx.
    images = resample(images, jnp.matmul(rotations, shifts, precision="highest"))
    return random_erasing(
        keys[4],
        normalize(images),
        probability=erasing_probability,
        area=erasing_area,
        ratio=erasing_ratio,
    )


# What config.data.augment names; the arguments are the fields of config.augment of that name.
AUGMENTATIONS: dict[str, Callable[..., jax.Array]] = {
    "none": none,
    "weak": weak,
    "strong": strong,
}


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Maps pixels in 0 … 255 to (pixel / 255 − mean) / std, in float32.

    Args:
      images: [N, H, W, C] of any dtype.
      mean, std: [C], of pixels scaled to 0 … 1.
    """
    scale = 1 / (255 * jnp.asarray(std, jnp.float32))
    shift = -jnp.asarray(mean, jnp.float32) / jnp.asarray(std, jnp.float32)
    return images.astype(jnp.float32) * scale[None, None, None] + shift[None, None, None]


PADDING_MODES = ("zeros", "reflect")
FLIPS = ("random", "alternating", "none")

# What config.data.test_augment names: (share, row shift, column shift, mirrored) of each view.
VIEWS: dict[str, tuple[tuple[float, int, int, bool], ...]] = {
    "none": ((1.0, 0, 0, False),),
    "mirror_translate": tuple(
        (share, shift, shift, mirrored)
        for share, shift in ((0.25, 0), (0.125, -1), (0.125, 1))
        for mirrored in (False, True)
    ),
}


def views(images: jax.Array, name: str) -> list[tuple[float, jax.Array]]:
    """Returns (share, images [N, H, W, C]) for each view of the test images.

    The network's logits are averaged by these shares, which add up to 1. "mirror_translate" is the
    multi-crop evaluation of Jordan 2024 (arXiv 2404.00498): the image, and moved by a pixel up and
    left or down and right, with the border reflected; each also mirrored.
    """
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    found = []
    for share, row, column, mirrored in VIEWS[name]:
        view = padded[:, 1 + row : 1 + row + height, 1 + column : 1 + column + width]
        found.append((share, view[:, :, ::-1] if mirrored else view))
    return found


# --- crop and flip ----------------------------------------------------------------------------


def random_crop(
    key: jax.Array,
    images: jax.Array,
    *,
    padding: int = 4,
    padding_mode: str = "zeros",
    platform: str = "",
) -> jax.Array:
    """Pads [N, H, W, C] and crops each image back to H×W at a uniform offset; see `crop`."""
    offsets = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1, jnp.int32)
    return crop(images, offsets, padding=padding, padding_mode=padding_mode, platform=platform)


def crop(
    images: jax.Array,
    offsets: jax.Array,
    *,
    padding: int,
    padding_mode: str = "zeros",
    platform: str = "",
) -> jax.Array:
    """Crops padded images at `offsets` [N, 2]: (row, column) in 0 … 2·padding.

    The padding is zeros, or with padding_mode "reflect" the image mirrored at its outermost pixels.

    `platform` is what the program is built for; "" is JAX's default backend. For "tpu" the batch is
    sliced at every offset, first by row, then by column, and each image's own is selected, because
    slices that start at different offsets would be a loop over the images there. The result is the
    same to the bit.
    """
    choose("padding_mode", padding_mode, PADDING_MODES)
    _, height, width, channels = images.shape
    pad = (padding, padding)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = jnp.pad(images, ((0, 0), pad, pad, (0, 0)), mode=mode)
    if (platform or jax.default_backend()) == "tpu":
        return _chosen(_chosen(padded, offsets[:, 0], 1, height), offsets[:, 1], 2, width)

    def cut(image: jax.Array, at: jax.Array) -> jax.Array:
        start = (at[0], at[1], jnp.zeros_like(at[0]))
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(cut)(padded, offsets)


def _chosen(images: jax.Array, starts: jax.Array, axis: int, length: int) -> jax.Array:
    """Slices an axis of each image: `length` pixels from its own start in `starts` [N]."""
    starts = starts[:, None, None, None]
    chosen = jax.lax.slice_in_dim(images, 0, length, axis=axis)
    for start in range(1, images.shape[axis] - length + 1):
        shifted = jax.lax.slice_in_dim(images, start, start + length, axis=axis)
        chosen = jnp.where(starts == start, shifted, chosen)
    return chosen


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image of [N, H, W, C] left to right with probability 1/2."""
    return flip(images, jax.random.bernoulli(key, np.float32(0.5), (len(images),)))


def flip(images: jax.Array, mirrored: jax.Array) -> jax.Array:
    """Mirrors the images where `mirrored` [N] bool says so."""
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def alternating_flip(
    key: jax.Array, images: jax.Array, indices: jax.Array, epoch: int | jax.Array
) -> jax.Array:
    """Mirrors a random half of the images in even epochs, and the other half in odd ones.

    Over any two consecutive epochs each image is seen both ways. Jordan, "94% on CIFAR-10 in 3.29
    Seconds on a Single GPU", 2024.

    Args:
      key: of the run, the same in each epoch: it draws the halves.
      images: [N, H, W, C].
      indices: [N] integers, of the images in the training set.
      epoch: counted from 0.
    """
    # Threefry, as with JAX's other generators the bits under vmap depend on the place in the batch.
    key = jax.random.wrap_key_data(jax.random.key_data(key)[:2], impl="threefry2x32")
    bits = functools.partial(jax.random.bits, dtype=jnp.uint32)
    coins = jax.vmap(lambda index: bits(jax.random.fold_in(key, index)))(indices)
    return flip(images, (coins + jnp.uint32(epoch)) % 2 == 1)


# --- colour -----------------------------------------------------------------------------------


def color_jitter(
    key: jax.Array,
    images: jax.Array,
    *,
    brightness: float = 0.2,
    contrast: float = 0.2,
    saturation: float = 0.2,
    hue: float = 0.1,
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue, in a fresh random order for each image.

    Args:
      key: a PRNG key.
      images: [N, H, W, 3] in the range 0 … 255.
      brightness, contrast, saturation: factors are uniform in [max(0, 1 − s), 1 + s].
      hue: shifts are uniform in [−hue, hue], in turns of the colour wheel; at most 0.5.

    Returns:
      [N, H, W, 3] float32 in the range 0 … 255. (torchvision rounds to uint8 after each change.)
    """
    factors, orders = draw_jitter(
        key, len(images), brightness=brightness, contrast=contrast, saturation=saturation, hue=hue
    )
    return jitter(images, factors, orders)


def draw_jitter(
    key: jax.Array, n: int, *, brightness: float, contrast: float, saturation: float, hue: float
) -> tuple[jax.Array, jax.Array]:
    """Draws factors [N, 4] (brightness, contrast, saturation, hue) and orders [N, 4]."""
    factor_key, order_key = jax.random.split(key)
    low = [max(0.0, 1 - brightness), max(0.0, 1 - contrast), max(0.0, 1 - saturation), -hue]
    high = [1 + brightness, 1 + contrast, 1 + saturation, hue]
    factors = jax.random.uniform(
        factor_key,
        (n, 4),
        jnp.float32,
        minval=jnp.array(low, jnp.float32),
        maxval=jnp.array(high, jnp.float32),
    )
    orders = jnp.argsort(jax.random.uniform(order_key, (n, 4), jnp.float32), axis=1)
    return factors, orders


def jitter(images: jax.Array, factors: jax.Array, orders: jax.Array) -> jax.Array:
    """Applies the changes 0 brightness, 1 contrast, 2 saturation, 3 hue in each image's order.

    Args:
      images: [N, H, W, 3] in the range 0 … 255.
      factors: [N, 4] float32, a factor for each change.
      orders: [N, 4] integers, a permutation of 0 … 3 for each image.
    """
    images = images.astype(jnp.float32)
    changes = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
    for place in range(len(changes)):
        # The images of a batch need different changes here: all four are computed and one is
        # chosen, which a compiler can do in one pass over the pixels.
        which = orders[:, place, None, None, None]
        results = [change(images, factors[:, i]) for i, change in enumerate(changes)]
        images = jnp.where(
            which < 2,
            jnp.where(which == 0, results[0], results[1]),
            jnp.where(which == 2, results[2], results[3]),
        )
    return images


def _blend(images: jax.Array, others: jax.Array, factors: jax.Array) -> jax.Array:
    factors, images = factors[:, None, None, None], images.astype(jnp.float32)
    return jnp.clip(factors * images + (1 - factors) * others, 0, 255)


def _grayscale(images: jax.Array) -> jax.Array:
    red, green, blue = jnp.split(images.astype(jnp.float32), 3, axis=-1)
    return 0.2989 * red + 0.587 * green + 0.114 * blue  # torchvision's weights


def adjust_brightness(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Multiplies each image of [N, H, W, 3] (0 … 255) by its factor of [N]; returns float32."""
    return _blend(images, jnp.zeros(images.shape, jnp.float32), factors)


def adjust_contrast(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Moves each image away from its mean gray by its factor; 0 is gray, 1 no change."""
    means = _grayscale(images).mean(axis=(1, 2, 3), keepdims=True)
    return _blend(images, means, factors)


def adjust_saturation(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Moves each pixel away from its gray by its image's factor; 0 is gray, 1 no change."""
    return _blend(images, _grayscale(images), factors)


def adjust_hue(images: jax.Array, shifts: jax.Array) -> jax.Array:
    """Turns each image's hues by its shift of [N], in turns of the colour wheel (through HSV).

    Smith, "Color Gamut Transform Pairs", 1978. Images as in `adjust_brightness`.
    """
    images = images.astype(jnp.float32)  # or differences of uint8 would wrap
    red, green, blue = (images[..., i] for i in range(3))
    value = images.max(axis=-1)
    spread = value - images.min(axis=-1)
    # A gray pixel has no hue: any will do, as its saturation is 0.
    safe = jnp.where(spread == 0, 1.0, spread)
    sextant = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue6 = (sextant + 6 * shifts[:, None, None]) % 6

    def channel(n: int) -> jax.Array:
        # HSV to RGB without cases: n is 5 for red, 3 green, 1 blue; spread is value · saturation.
        k = (n + hue6) % 6
        return value - spread * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], axis=-1)


# --- geometry ---------------------------------------------------------------------------------


def random_rotation(key: jax.Array, images: jax.Array, *, degrees: float = 15.0) -> jax.Array:
    """Rotates each image of [N, H, W, C] about its centre by a uniform angle in ±degrees."""
    return resample(images, rotation_matrices(draw_angles(key, len(images), degrees)))


def random_affine(key: jax.Array, images: jax.Array, *, translation: float = 0.1) -> jax.Array:
    """Shifts each image by up to `translation` of its side, in whole pixels.

    torchvision's RandomAffine with degrees=0, translate=(translation, translation).
    """
    return resample(images, draw_shift_matrices(key, images.shape, translation=translation))


def draw_angles(key: jax.Array, n: int, degrees: float) -> jax.Array:
    """Draws angles [N] float32, in degrees, uniform in [−degrees, degrees]."""
    return jax.random.uniform(key, (n,), jnp.float32, minval=-degrees, maxval=degrees)


def rotation_matrices(angles: jax.Array) -> jax.Array:
    """Returns [N, 3, 3]: where each point of the result lies in the image, for `resample`.

    Args:
      angles: [N], in degrees, counter-clockwise as seen.
    """
    radians = jnp.deg2rad(angles)
    cos, sin, zero = jnp.cos(radians), jnp.sin(radians), jnp.zeros_like(radians)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, jnp.ones_like(radians)]
    return jnp.stack(rows, axis=-1).reshape(-1, 3, 3)


def draw_shift_matrices(key: jax.Array, shape: Sequence[int], *, translation: float) -> jax.Array:
    """Draws shifts for images of `shape` [N, H, W, C]; returns [N, 3, 3] for `resample`."""
    n, height, width, _ = shape
    most = translation * jnp.array([width, height], jnp.float32)
    shares = jax.random.uniform(key, (n, 2), jnp.float32, minval=-1.0, maxval=1.0)
    shifts = jnp.round(shares * most[None])
    return jnp.tile(jnp.eye(3, dtype=jnp.float32), (n, 1, 1)).at[:, :2, 2].set(-shifts)


def resample(images: jax.Array, matrices: jax.Array) -> jax.Array:
    """Takes each pixel of the result from the nearest pixel of the image, black outside it.

    Nearest is torchvision's default for rotation and affine.

    Args:
      images: [N, H, W, C] of any dtype.
      matrices: [N, 3, 3] float32: maps a point (x, y, 1) of the result, in pixels from the centre,
        to the point of the image that is seen there.

    Returns:
      [N, H, W, C] of the same dtype.
    """
    n, height, width, channels = images.shape
    x = jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2
    y = jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2
    y, x = jnp.meshgrid(y, x, indexing="ij")
    # Written out: a matrix product may run in a lower precision, and move a pixel.
    at_x, at_y = (
        m[:, 0, None, None] * x[None] + m[:, 1, None, None] * y[None] + m[:, 2, None, None]
        for m in (matrices[:, 0], matrices[:, 1])
    )
    column = jnp.round(at_x + (width - 1) / 2).astype(jnp.int32)
    row = jnp.round(at_y + (height - 1) / 2).astype(jnp.int32)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    pixel = jnp.where(inside, row * width + column, 0).reshape(n, height * width, 1)
    flat = jnp.take_along_axis(images.reshape(n, height * width, channels), pixel, axis=1)
    return jnp.where(inside[..., None], flat.reshape(images.shape), jnp.zeros((), images.dtype))


# --- erasing ----------------------------------------------------------------------------------


def random_erasing(
    key: jax.Array,
    images: jax.Array,
    *,
    probability: float = 0.25,
    area: Sequence[float] = (0.02, 0.33),
    ratio: Sequence[float] = (0.3, 3.3),
    fill: float | Sequence[float] = 0.0,
) -> jax.Array:
    """Erases a random rectangle of each image with the given probability.

    Zhong et al., "Random Erasing Data Augmentation", 2017; drawn as torchvision draws it.

    Args:
      key: a PRNG key.
      images: [N, H, W, C] of any dtype.
      probability: that an image is erased at all.
      area: (least, most) of the image's area, uniform.
      ratio: (least, most) height / width, uniform in the logarithm.
      fill: what the erased pixels become: a number, or one a channel.

    Returns:
      [N, H, W, C] of the same dtype.
    """
    boxes = draw_boxes(key, images.shape, probability=probability, area=area, ratio=ratio)
    return erase(images, boxes, fill=fill)


def draw_boxes(
    key: jax.Array,
    shape: Sequence[int],
    *,
    probability: float,
    area: Sequence[float],
    ratio: Sequence[float],
) -> jax.Array:
    """Draws rectangles [N, 4] int32 (top, left, height, width) for images of `shape` [N, H, W, C].

    The first of ten rectangles that is smaller than the image is taken. If none is, or where the
    coin of `probability` says so, its height and width are 0.
    """
    n, height, width, _ = shape
    coin_key, area_key, ratio_key, top_key, left_key = jax.random.split(key, 5)
    drawn = functools.partial(jax.random.uniform, shape=(n, 10), dtype=jnp.float32)
    areas = height * width * drawn(area_key, minval=area[0], maxval=area[1])
    ratios = jnp.exp(drawn(ratio_key, minval=math.log(ratio[0]), maxval=math.log(ratio[1])))
    heights = jnp.round(jnp.sqrt(areas * ratios)).astype(jnp.int32)
    widths = jnp.round(jnp.sqrt(areas / ratios)).astype(jnp.int32)
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    erased = jax.random.bernoulli(coin_key, np.float32(probability), (n,)) & fits.any(axis=1)
    h = jnp.where(erased, jnp.take_along_axis(heights, first, axis=1)[:, 0], 0)
    w = jnp.where(erased, jnp.take_along_axis(widths, first, axis=1)[:, 0], 0)
    top = jax.random.randint(top_key, (n,), 0, height - h + 1, jnp.int32)
    left = jax.random.randint(left_key, (n,), 0, width - w + 1, jnp.int32)
    return jnp.stack([top, left, h, w], axis=1)


def erase(images: jax.Array, boxes: jax.Array, *, fill: float | Sequence[float]) -> jax.Array:
    """Sets the pixels inside `boxes` [N, 4] (top, left, height, width) to `fill`."""
    _, height, width, _ = images.shape
    top, left, h, w = (boxes[:, i, None, None] for i in range(4))
    row, column = (jnp.arange(size, dtype=jnp.int32) for size in (height, width))
    row, column = row[None, :, None], column[None, None, :]
    inside = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
    filled = jnp.broadcast_to(jnp.asarray(fill).astype(images.dtype), images.shape)
    return jnp.where(inside[..., None], filled, images)


def random_cutout(key: jax.Array, images: jax.Array, *, size: int) -> jax.Array:
    """Sets a square of `size`×`size` pixels that lies within each image [N, H, W, C] to 0.

    DeVries & Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
    whose square may stick out; that of Jordan 2024 does not.
    """
    n, height, width, _ = images.shape
    beyond = jnp.array([[height, width]], jnp.int32) - size + 1
    corners = jax.random.randint(key, (n, 2), 0, beyond, jnp.int32)
    return erase(images, jnp.pad(corners, ((0, 0), (0, 2)), constant_values=size), fill=0.0)


# --- mixing -----------------------------------------------------------------------------------


def mix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
    """Applies `random_mixup` or `random_cutmix`: the one that is on, or one of both by a fair coin.

    Args:
      key: a PRNG key.
      images: [N, H, W, C] float.
      targets: [N, classes] float.
      mixup, cutmix: the parameters of the Beta distributions; 0 is off.
    """
    if not (mixup or cutmix):
        return images, targets
    coin_key, key = jax.random.split(key)
    if not cutmix:
        return random_mixup(key, images, targets, alpha=mixup)
    if not mixup:
        return random_cutmix(key, images, targets, alpha=cutmix)
    both = (
        random_mixup(key, images, targets, alpha=mixup),
        random_cutmix(key, images, targets, alpha=cutmix),
    )
    first = jax.random.bernoulli(coin_key, np.float32(0.5))
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), *both)


def random_mixup(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Averages each image and its target with those of its neighbour in the batch.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018; the neighbour is torchvision's.

    Args:
      key: a PRNG key.
      images: [N, H, W, C] float.
      targets: [N, classes] float.
      alpha: λ, the weight of an image's own part, is drawn from Beta(alpha, alpha), once a batch.
    """
    own = jax.random.beta(key, alpha, alpha, dtype=jnp.float32)
    return _blended(images, own), _blended(targets, own)


def random_cutmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """Pastes a rectangle of its neighbour in the batch into each image; targets follow the area.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers", 2019.

    Args: see `random_mixup`. The rectangle, one for the batch, has a share 1 − λ of the area and a
      uniform centre; what lies outside the image is cut off.
    """
    beta_key, row_key, column_key = jax.random.split(key, 3)
    height, width = images.shape[1:3]
    half = 0.5 * jnp.sqrt(1 - jax.random.beta(beta_key, alpha, alpha, dtype=jnp.float32))
    row, column = (
        _inside(jax.random.randint(key, (), 0, size, jnp.int32), half, size)
        for key, size in ((row_key, height), (column_key, width))
    )
    box = row[:, None] & column[None, :]
    pasted = jnp.where(box[None, :, :, None], jnp.roll(images, 1, axis=0), images)
    return pasted, _blended(targets, 1 - box.mean(dtype=jnp.float32))


def _inside(center: jax.Array, half: jax.Array, size: int) -> jax.Array:
    """Which of `size` pixels [size] lie within `half` of the size around the centre."""
    reach = jnp.floor(half * size).astype(jnp.int32)
    pixels = jnp.arange(size, dtype=jnp.int32)
    return (pixels >= center - reach) & (pixels < center + reach)


def _blended(x: jax.Array, own: jax.Array) -> jax.Array:
    return own * x + (1 - own) * jnp.roll(x, 1, axis=0)
