"""ResNet-18 by the usual recipe for CIFAR: SGD, weak augmentation, 200 epochs. Not of the report.

    python -m jaxcifar.main --config=configs/resnet18.py

Not trained here yet. What kuangliu/pytorch-cifar does otherwise, besides the initial weights, which
it leaves to PyTorch, and the last, smaller batch of an epoch: --config.optim.nesterov=False
--config.data.std=0.2023,0.1994,0.2010 --config.model.dtype=float32.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "resnet18"
    config.model.dropout_rate = 0.0
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.momentum = 0.9
    config.optim.nesterov = True
    config.optim.l2 = 5e-4 / 2  # PyTorch's weight_decay is 5e-4
    config.train.batch_size = 128
    config.train.epochs = 200
    return config
