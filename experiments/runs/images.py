"""The images that a run was trained on."""

import pathlib

from jaxcifar.config import Config
from jaxcifar.data import Dataset
from jaxcifar.run.folder import check_images, read_about
from jaxcifar.train import load_splits


def training_images(workdir: pathlib.Path, config: Config) -> Dataset:
    """Returns the images that a run was trained on: without a part held out, or beyond a limit.

    Args:
      workdir: of the run.
      config: the run's.

    Raises:
      UserError: they are missing, or are not those that the run was trained on.
    """
    images = load_splits(config).train
    about = read_about(workdir) or {}
    check_images(about.get("data", {}), {"train": images.provenance}, workdir)
    return images
