"""Classifies images with a trained network.

    jaxcifar predict runs/row1 cat.png
    jaxcifar predict runs/row1 pictures/ --top=5
    jaxcifar predict runs/row1 *.jpg --json > seen.json

As a library: `predict("runs/row1", images)` returns probabilities.
"""

import json
import pathlib
import sys
import warnings
from typing import Any

import jax
import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from jaxcifar import data, programs, restore, sharding
from jaxcifar.errors import UserError, in_short, note
from jaxcifar.options import Parser, user_path
from jaxcifar.run import about
from jaxcifar.task import build_inference

_SIDE = 32
_TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_BAR = 24  # characters of a probability of 1


def predict(workdir: str | pathlib.Path, images: Any, *, checkpoint: str = "best") -> np.ndarray:
    """Returns the probability of each class for each image, [N, classes] float32.

    Args:
      workdir: the run's folder.
      images: [N, 32, 32, 3] uint8, RGB, not normalised.
      checkpoint: "best" or "last".

    Raises:
      UserError: the images have another shape or dtype, or there is no such checkpoint or device.
    """
    return _predict(workdir, images, checkpoint)[1]


def _predict(
    workdir: str | pathlib.Path, images: Any, checkpoint: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Returns the names of the classes, and what `predict` does."""
    images = np.asarray(images)
    if images.shape[1:] != (_SIDE, _SIDE, 3) or images.dtype != np.uint8:
        raise UserError(
            f"The images are {images.dtype} of shape {images.shape}. Give uint8 [N, 32, 32, 3]."
        )
    device = sharding.make_mesh().local_devices[:1]
    mesh = jax.sharding.Mesh(np.asarray(device), (sharding.BATCH_AXIS,))
    config, _, variables = restore.load_variables(workdir, checkpoint, mesh=mesh)
    trained_on = data.without_images(config.data.name, data_dir=config.data.dir)
    inference = build_inference(config, trained_on, mesh)
    return trained_on.class_names, programs.probabilities(inference, variables, images)


def read_picture(path: pathlib.Path) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads a picture of any size and mode, upright and resized.

    Transparent parts become white, and 16-bit grey is reduced to 8 bits.

    Returns:
      [32, 32, 3] uint8, and the picture's own (width, height) in pixels, before it was resized.

    Raises:
      UserError: it is not a picture, is truncated, or is so large that reading it could fill the
        memory.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Only some formats, because Pillow starts external programs to read certain others.
            with Image.open(path, formats=_FORMATS) as opened:
                if (frames := getattr(opened, "n_frames", 1)) > 1:
                    note(f"{path} has {frames} frames; the first is used")
                opened.load()
                # Not by ImageOps, which writes all of EXIF anew and fails where a part is odd.
                turn = _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation))
                picture = opened.copy() if turn is None else opened.transpose(turn)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(
            f"{path} has more than {Image.MAX_IMAGE_PIXELS:,} pixels. Make it smaller first."
        ) from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"{path} cannot be read as an image. Give a PNG, JPEG or WebP file."
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except Exception as error:  # of a damaged file Pillow raises almost anything
        raise UserError(f"{path} cannot be read as an image: {in_short(error)}.") from error
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow clips at 255 where it should divide
        values = np.asarray(picture)
        grey = np.where(values == picture.info.get("transparency", -1), 255, values // 256)
        picture = Image.fromarray(grey.astype(np.uint8))
    elif picture.mode in ("P", "PA", "LA") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    size = picture.size
    picture = picture.convert("RGB")
    if size != (_SIDE, _SIDE):
        picture = picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return np.asarray(picture), size


def pictures(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Returns the named files, and the pictures in the named folders, sorted by name.

    Those of a folder have the ending of a picture, and are not hidden.

    Raises:
      UserError: a folder contains no pictures.
    """
    found: list[pathlib.Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(
            p
            for p in path.iterdir()
            # A hidden one, such as macOS's ._cat.png, is not a picture, whatever its ending.
            if p.suffix.lower() in _ENDINGS and not p.name.startswith(".") and p.is_file()
        )
        if not inside:
            raise UserError(f"The folder {path} contains no images ({', '.join(_ENDINGS)}).")
        found += inside
    return found


def _warn(path: pathlib.Path, size: tuple[int, int]) -> None:
    wide, high = size
    if max(wide, high) > 1.5 * min(wide, high):
        note(f"{path} is {wide}×{high}: squeezed into a square. A square crop may do better.")
    elif not _SIDE / 2 <= min(wide, high) <= max(wide, high) <= 4 * _SIDE:
        note(f"{path} is {wide}×{high}, resized to 32×32, the size used in training.")


def _chart(path: pathlib.Path, ranked: list[tuple[str, float]]) -> str:
    """A bar for each class, in characters that the terminal can show."""
    try:
        "█".encode(getattr(sys.stdout, "encoding", None) or "ascii")
        mark = "█"
    except UnicodeEncodeError:
        mark = "#"
    wide = max(len(name) for name, _ in ranked)
    bars = (f"  {name:<{wide}} {p:>6.1%} {mark * round(_BAR * p)}".rstrip() for name, p in ranked)
    return "\n".join([str(path), *bars])


def main(argv: list[str] | None = None) -> None:
    parser = Parser("jaxcifar predict", __doc__)
    parser.add_argument("workdir", type=user_path, help="the run's folder")
    parser.add_argument(
        "pictures", type=user_path, nargs="+", metavar="image", help="files, or folders of them"
    )
    parser.add_argument("--top", type=int, default=3, help="how many classes (default 3)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--checkpoint", default="best", choices=restore.WHICH)
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        raise UserError(f"--top is {arguments.top}; give 1 or more.")
    paths = pictures(arguments.pictures)
    read = [read_picture(path) for path in paths]
    about.of_run(arguments.workdir)  # before any warning
    for path, (_, size) in zip(paths, read, strict=True):
        _warn(path, size)
    images = np.stack([image for image, _ in read])
    names, rows = _predict(arguments.workdir, images, arguments.checkpoint)
    if not np.isfinite(rows).all():
        raise UserError(
            f"The network in {arguments.workdir} computes numbers that are not finite. Were its "
            "weights damaged before they were imported?"
        )
    seen = []
    for path, row in zip(paths, rows, strict=True):
        best = np.argsort(-row, kind="stable")[: arguments.top]
        seen.append((path, [(names[i], float(row[i])) for i in best]))
    if arguments.json:
        print(json.dumps([{"file": str(p), "classes": dict(r)} for p, r in seen], indent=2))
    else:
        print("\n".join(_chart(path, ranked) for path, ranked in seen))
