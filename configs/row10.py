"""Row 10 of the original report's Table 3: DenseNet-201, ReLU, SGD, strong augmentation.

    python -m jaxcifar.main --config=configs/row10.py

Its results there: training loss 1.6442, validation loss 1.6688, training accuracy 38.93%,
validation accuracy 37.87% (the highest of all epochs).
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "densenet201"
    config.data.augment = "strong"
    config.optim.name = "sgd"
    config.train.epochs = 200
    return config
