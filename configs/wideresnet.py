"""WRN-28-10. Zagoruyko & Komodakis, "Wide Residual Networks", 2016.

    python -m jaxcifar.main --config=configs/wideresnet.py

The paper has 96.00% on the test set (4.00% errors, its Table 5). Not trained here yet.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "wideresnet28_10"
    config.model.dropout_rate = 0.0
    config.augment.padding_mode = "reflect"
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.1
    config.optim.momentum = 0.9
    config.optim.nesterov = True
    config.optim.l2 = 5e-4 / 2  # PyTorch's weight_decay is 5e-4
    config.optim.schedule = "multistep"
    config.optim.milestones = (60, 120, 160)
    config.optim.decay_factor = 0.2
    config.train.batch_size = 128
    config.train.epochs = 200
    return config
