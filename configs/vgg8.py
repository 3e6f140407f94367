"""Row 8 of the original report's Table 4: VGG-A with BatchNorm at learning rate 1e-4.

    python -m jaxcifar.main --config=configs/vgg8.py

Its results there: training loss 0.1227, validation loss 0.5103, training accuracy 95.59%,
validation accuracy 86.23%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a_bn"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 1e-4
    return config
