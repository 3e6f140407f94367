"""Row 2 of the original report's Table 4: VGG-A without BatchNorm at learning rate 1e-3.

    python -m jaxcifar.main --config=configs/vgg2.py

Its results there: training loss 0.2535, validation loss 0.4730, training accuracy 91.36%,
validation accuracy 85.45%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 1e-3
    return config
