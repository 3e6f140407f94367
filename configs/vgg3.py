"""Row 3 of the original report's Table 4: VGG-A without BatchNorm at learning rate 5e-4.

    python -m jaxcifar.main --config=configs/vgg3.py

Its results there: training loss 0.1168, validation loss 0.5243, training accuracy 96.05%,
validation accuracy 87.16%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 5e-4
    return config
