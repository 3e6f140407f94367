"""A small ResNet on the embedded handwritten digits: about a minute on two CPU cores.

    python -m jaxcifar.main --config=configs/quickstart.py

Needs no download. A quarter of each width of ResNet-18, 1,442 training and 355 validation images.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "resnet18"
    config.model.width = 0.25
    config.data.name = "digits"
    config.data.augment = "none"  # a mirrored digit is another digit, or none
    config.train.batch_size = 64
    config.train.epochs = 4
    return config
