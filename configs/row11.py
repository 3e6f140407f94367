"""Row 11 of the original report's Table 3: DenseNet-201, ReLU, Adam, L1 1e-4, strong augmentation.

    python -m jaxcifar.main --config=configs/row11.py

Its results there: training loss 0.5837, validation loss 0.2882, training accuracy 88.10%,
validation accuracy 91.05% (the highest of all epochs).
Its training loss is taken to contain the penalty.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "densenet201"
    config.data.augment = "strong"
    config.optim.l1 = 1e-4
    config.train.epochs = 200
    return config
