"""The recipe of airbench96: 37 epochs on a network five times that of fast.py, for a GPU.

    python -m jaxcifar.main --config=configs/fast96.py

After legacy/airbench96.py in https://github.com/KellerJordan/cifar10-airbench, which Jordan revised
after the paper (arXiv 2404.00498). No training of it has been run to the end yet. The parts:
docs/recipe.md.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "airbench96"
    config.model.activation = "gelu"
    config.model.dropout_rate = 0.0

    config.data.augment = "weak"
    config.augment.padding = 4
    config.augment.padding_mode = "reflect"
    config.augment.flip = "alternating"
    config.augment.cutout = 12
    config.data.test_augment = "mirror_translate"

    rate, decay, momentum = 9.0, 0.012, 0.85  # see fast.py
    config.optim.name = "sgd"
    config.optim.momentum = momentum
    config.optim.nesterov = True
    config.optim.learning_rate = rate / (1 + 1 / (1 - momentum))
    config.optim.l2 = decay / rate / 2
    config.optim.bias_scale = 64.0

    config.train.batch_size = 1024
    config.train.epochs = 37
    config.train.label_smoothing = 0.2
    config.train.lookahead_steps = 5

    config.optim.schedule = "triangular"
    config.optim.warmup_epochs = 3.7  # 10% of all
    config.optim.start_factor = 0.2
    config.optim.end_factor = 0.0
    return config
