"""Row 12 of the original report's Table 3: DenseNet-201, ReLU, Adam, L2 1e-4, strong augmentation.

    python -m jaxcifar.main --config=configs/row12.py

Its results there: training loss 0.1473, validation loss 0.2221, training accuracy 97.31%,
validation accuracy 94.93% (the highest of all epochs).
Its training loss is taken to contain the penalty.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "densenet201"
    config.data.augment = "strong"
    config.optim.l2 = 1e-4
    config.train.epochs = 200
    return config
