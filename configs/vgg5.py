"""Row 5 of the original report's Table 4: VGG-A with BatchNorm at learning rate 3e-3.

    python -m jaxcifar.main --config=configs/vgg5.py

Its results there: training loss 0.2759, validation loss 0.4409, training accuracy 90.51%,
validation accuracy 86.24%.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "vgg_a_bn"
    config.model.dropout_rate = 0.0
    config.optim.learning_rate = 3e-3
    return config
