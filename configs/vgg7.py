"""Row 7 of the original report's Table 4: VGG-A with BatchNorm at learning rate 5e-4.

    python -m jaxcifar.main --config=configs/vgg7.py

Its results there: training loss 0.1038, validation loss 0.4352, training accuracy 96.48%,
validation accuracy 88.33%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a_bn"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 5e-4
    return config
