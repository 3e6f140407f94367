"""The recipe of airbench94: ten epochs on a small network, for a GPU.

    python -m jaxcifar.main --config=configs/fast.py

Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024 (arXiv 2404.00498), whose 9.9 epochs
are ten here. What it has reached, and its parts: docs/recipe.md.
"""

from jaxcifar.config import base_config


def get_config():
    config = base_config()
    config.model.name = "airbench94"
    config.model.activation = "gelu"
    config.model.dropout_rate = 0.0

    config.data.augment = "weak"
    config.augment.padding = 2
    config.augment.padding_mode = "reflect"
    config.augment.flip = "alternating"
    config.data.test_augment = "mirror_translate"

    # The source's learning rate and decay are for 1,024 images, and contain by its convention the
    # factor 1 + 1 / (1 − momentum), which is divided out here. (With a constant gradient, momentum
    # multiplies a step by 1 / (1 − momentum).)
    rate, decay, momentum = 11.5, 0.0153, 0.85
    config.optim.name = "sgd"
    config.optim.momentum = momentum
    config.optim.nesterov = True
    config.optim.learning_rate = rate / (1 + 1 / (1 - momentum))
    config.optim.l2 = decay / rate / 2  # the gradient of λw² is 2λw
    config.optim.bias_scale = 64.0

    config.train.batch_size = 1024
    config.train.epochs = 10
    config.train.label_smoothing = 0.2
    config.train.lookahead_steps = 5

    config.optim.schedule = "triangular"
    config.optim.warmup_epochs = 2.3  # 23% of all
    config.optim.start_factor = 0.2
    config.optim.end_factor = 0.07
    return config
