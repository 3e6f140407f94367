"""The images that a run was trained on."""

import pathlib

from jaxcifar.config import Config
from jaxcifar.data import Dataset
from jaxcifar.run.about import check_images, of_run
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
    check_images(of_run(workdir).data, {"train": images.provenance}, workdir)
    return images
