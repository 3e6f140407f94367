"""ResNet-20, small enough for a CPU. He et al., "Deep Residual Learning", 2016, section 4.2.

    python -m jaxcifar.main --config=configs/resnet20.py

The paper has 91.25% on the test set (--config.model.name=resnet56: 93.03%), after 64,000 steps, to
which the epochs here are the nearest. Not trained here yet.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "resnet20"
    config.model.dropout_rate = 0.0
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.momentum = 0.9
    config.optim.l2 = 1e-4 / 2  # PyTorch's weight_decay is 1e-4
    config.optim.schedule = "multistep"
    config.optim.milestones = (82, 123)
    config.optim.decay_factor = 0.1
    config.train.batch_size = 128
    config.train.epochs = 164
    return config
