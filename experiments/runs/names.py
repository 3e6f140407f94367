"""How settings are written in tables and figures."""

_SHOWN = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "resnet18": "ResNet-18",
    "resnet34": "ResNet-34",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
    "resnet152": "ResNet-152",
    "densenet121": "DenseNet-121",
    "densenet169": "DenseNet-169",
    "densenet201": "DenseNet-201",
    "densenet264": "DenseNet-264",
    "vgg_a": "VGG-A",
    "vgg_a_bn": "VGG-A(BN)",
    "wideresnet28_10": "WRN-28-10",
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "leaky_relu": "LeakyReLU",
    "mish": "Mish",
    "adam": "Adam",
    "adamw": "AdamW",
    "sgd": "SGD",
}


def shown(name: str) -> str:
    """Returns how a model, activation or optimizer is written: by default as in the config."""
    return _SHOWN.get(name, name)


def power_of_ten(value: float) -> str:
    """Returns 1e-3, as the original report writes it, or 1.25e-3; 1.5 from 0.1 to 10."""
    if 0.1 <= value < 10:
        return f"{value:g}"
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
