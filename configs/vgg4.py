"""Row 4 of the original report's Table 4: VGG-A without BatchNorm at learning rate 1e-4.

    python -m jaxcifar.main --config=configs/vgg4.py

Its results there: training loss 0.1537, validation loss 0.5769, training accuracy 94.65%,
validation accuracy 84.17%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 1e-4
    return config
