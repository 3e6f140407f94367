"""Row 1 of the original report's Table 4: VGG-A without BatchNorm at learning rate 3e-3.

    python -m jaxcifar.main --config=configs/vgg1.py

Its results there: training loss 0.6817, validation loss 0.7201, training accuracy 76.80%,
validation accuracy 77.02%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 3e-3
    return config
