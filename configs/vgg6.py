"""Row 6 of the original report's Table 4: VGG-A with BatchNorm at learning rate 1e-3.

    python -m jaxcifar.main --config=configs/vgg6.py

Its results there: training loss 0.1308, validation loss 0.4331, training accuracy 95.49%,
validation accuracy 88.65%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a_bn"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 1e-3
    return config
