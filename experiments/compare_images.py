"""Evaluates a network on two versions of the same training images.

    python -m experiments.compare_images results/table4/vgg6/seed0 original.npz

FILE.npz holds another version of some of the images that the run was trained on, as `image`
[N, 32, 32, 3] uint8, `label` [N], and `index` [N], their places in the training set. The network
is evaluated on them and on the run's own images of the same places. It has been trained on the
latter. What the other version costs on images it has not seen is another question; see
`experiments.compare_training`.
"""

import math
import pathlib
import sys
from typing import Any

import numpy as np

from experiments.runs.images import training_images
from jaxcifar import data, options, programs, restore, sharding
from jaxcifar.errors import UserError
from jaxcifar.signals import exit_code
from jaxcifar.task import build_inference


def read_images(path: pathlib.Path, train: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Reads a version of some training images.

    Args:
      path: of the .npz file.
      train: the training set that they are of.

    Returns:
      Images [N, 32, 32, 3] uint8 and their places [N] in the training set.

    Raises:
      UserError: the file cannot be read, or is not of these images.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            images, labels, places = (file[name] for name in ("image", "label", "index"))
    except Exception as error:  # NumPy raises almost anything
        raise UserError(
            f"{path} cannot be used ({error}). It must be an .npz file of image [N, 32, 32, 3] "
            "uint8, label [N] and index [N]."
        ) from error
    n = len(places) if places.ndim else 0
    right = images.shape == (n, 32, 32, 3) and images.dtype == np.uint8 and labels.shape == (n,)
    if not (right and n and places.ndim == 1 and np.issubdtype(places.dtype, np.integer)):
        raise UserError(
            f"{path} holds image {images.shape} {images.dtype}, label {labels.shape} and index "
            f"{places.shape} {places.dtype}; they must be [N, 32, 32, 3] uint8, [N] and [N], of at "
            "least one image."
        )
    if places.min() < 0 or places.max() >= len(train):
        raise UserError(
            f"{path} has images of the places {places.min()} to {places.max()}; the run's training "
            f"images are 0 to {len(train) - 1:,}."
        )
    if len(np.unique(places)) < n:
        raise UserError(
            f"{path} has an image twice: {n:,} places, {len(np.unique(places)):,} of them."
        )
    if differing := int(np.sum(labels != train.labels[places])):
        raise UserError(
            f"{path} is not of the run's training images: {differing:,} of its {n:,} labels differ "
            "from theirs."
        )
    return images, places


def compare(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """Compares which of the same images were recognised in two versions.

    Args:
      ours, theirs: [N] bool.

    Returns:
      The two accuracies, theirs − ours, and its 95% interval, from the images where they differ: a
      difference of paired proportions (Agresti 2013, Categorical Data Analysis, eq. 11.2).
    """
    n, change = len(ours), theirs.astype(float) - ours
    error = math.sqrt(float(np.mean(change**2) - np.mean(change) ** 2) / n)
    mean = float(np.mean(change))
    return {
        "images": n,
        "ours": float(np.mean(ours)),
        "theirs": float(np.mean(theirs)),
        "difference": mean,
        "interval": [mean - 1.96 * error, mean + 1.96 * error],
    }


def run(workdir: pathlib.Path, path: pathlib.Path, which: str = "best") -> dict[str, Any]:
    """Evaluates a run's checkpoint on its own training images and on those of a file.

    Returns:
      See `compare`; and "step", and "squared_error", a pixel's mean squared difference of 255².
    """
    mesh = sharding.make_mesh()
    config, step, variables = restore.load_variables(workdir, which, mesh=mesh)
    if config.data.protocol == "holdout":
        raise UserError(
            f"{workdir} holds a run that held out a tenth of the training set "
            "(data.protocol=holdout), so it has not seen all images of the file. Give another run."
        )
    train = training_images(workdir, config)
    images, places = read_images(path, train)
    inference, labels = build_inference(config, train, mesh), train.labels[places]
    own = train.images[places]
    right = [
        programs.probabilities(inference, variables, version).argmax(1) == labels
        for version in (own, images)
    ]
    squares = np.square(own.astype(np.float32) - images)
    return {"step": step, **compare(*right), "squared_error": float(np.mean(squares))}


def main(argv: list[str] | None = None) -> int:
    parser = options.Parser("python -m experiments.compare_images", __doc__)
    parser.add_argument("workdir", type=options.user_path, help="of the run")
    parser.add_argument("file", type=options.user_path, help="the other version, an .npz file")
    parser.add_argument("--checkpoint", default="best", choices=restore.WHICH)
    args = parser.parse_args(argv)
    found = run(args.workdir, args.file, args.checkpoint)
    low, high = (100 * end for end in found["interval"])
    print(
        f"{found['images']:,} training images, step {found['step']}: accuracy {found['ours']:.2%} "
        f"on the run's, {found['theirs']:.2%} on those of {args.file.name}\n"
        f"difference {100 * found['difference']:+.2f} points (95%: {low:+.2f} … {high:+.2f}); mean "
        f"squared difference of a pixel {found['squared_error']:.1f} of 255²"
    )
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
