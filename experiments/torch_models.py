"""Plain ``torch.nn`` definitions of the CIFAR-10 models, as a yardstick.

Parity tests and the speed benchmark compare the JAX package with these. The file is independent
on purpose: it is written from the papers, without reference to the package, and must not import
it, or be generated from it; what both agree on has then been derived twice.

Inputs are NCHW, 3x32x32. ``state_dict`` names are torchvision's.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# None works in place: a forward hook on the layer before must see that layer's own output.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": partial(nn.GELU, approximate="none"),
    "silu": nn.SiLU,
    "leaky_relu": partial(nn.LeakyReLU, negative_slope=0.01),
    "mish": nn.Mish,
}

VGG_A_PLAN: tuple[int | str, ...] = (
    *(64, "M", 128, "M", 256, 256, "M"),
    *(512, 512, "M", 512, 512, "M"),
)


def conv3x3(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=bias)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def init_convs_kaiming(model: nn.Module, activation: str) -> None:
    nonlinearity = "relu" if activation == "relu" else "linear"
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity=nonlinearity)


def projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The shortcut of a residual block: identity wherever the shape allows it."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int = 1, activation: str = "relu") -> None:
        super().__init__()
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = projection(inputs, planes, stride)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act(y + self.downsample(x))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int = 1, activation: str = "relu") -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = conv1x1(inputs, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = conv1x1(planes, outputs)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = projection(inputs, outputs, stride)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.act(y + self.downsample(x))


class ResNet(nn.Module):
    """Post-activation ResNet with a 3x3 stem of stride 1 and no pooling after it."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: Sequence[int],
        *,
        planes: int = 64,
        num_classes: int = 10,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = int(planes * width)
        self.conv1 = conv3x3(3, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = ACTIVATIONS[activation]()
        self.layer_names = [f"layer{s + 1}" for s in range(len(layers))]
        for s, (name, depth) in enumerate(zip(self.layer_names, layers, strict=True)):
            features = int(planes * width * 2**s)
            blocks = []
            for i in range(depth):
                stride = 2 if s > 0 and i == 0 else 1
                blocks.append(block(channels, features, stride, activation))
                channels = features * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
        self.dropout = nn.Dropout(dropout_rate)
        self.fc = nn.Linear(channels, num_classes)
        init_convs_kaiming(self, activation)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        for name in self.layer_names:
            x = self.get_submodule(name)(x)
        return self.fc(self.dropout(x.mean((2, 3))))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, activation: str, dropout_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv1x1(inputs, 4 * growth)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv3x3(4 * growth, growth)
        self.act = ACTIVATIONS[activation]()
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.act(self.norm1(x)))
        y = self.conv2(self.act(self.norm2(y)))
        return torch.cat((x, self.dropout(y)), dim=1)


class DenseNet(nn.Module):
    """DenseNet-BC with a 3x3 stem of stride 1 and no pooling after it."""

    def __init__(
        self,
        block_config: Sequence[int],
        growth_rate: int = 24,
        *,
        num_classes: int = 10,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = int(64 * width)
        growth = int(growth_rate * width)
        make_act = ACTIVATIONS[activation]
        features = OrderedDict[str, nn.Module](
            conv0=conv3x3(3, channels), norm0=nn.BatchNorm2d(channels), act0=make_act()
        )
        for b, depth in enumerate(block_config, start=1):
            block = OrderedDict[str, nn.Module]()
            for i in range(1, depth + 1):
                block[f"denselayer{i}"] = DenseLayer(channels, growth, activation, dropout_rate)
                channels += growth
            features[f"denseblock{b}"] = nn.Sequential(block)
            if b < len(block_config):
                transition = OrderedDict[str, nn.Module](
                    norm=nn.BatchNorm2d(channels),
                    act=make_act(),
                    conv=conv1x1(channels, channels // 2),
                    pool=nn.AvgPool2d(2),
                )
                features[f"transition{b}"] = nn.Sequential(transition)
                channels //= 2
        features["norm5"] = nn.BatchNorm2d(channels)  # torchvision's name at any depth
        features["act5"] = make_act()
        self.features = nn.Sequential(features)
        self.classifier = nn.Linear(channels, num_classes)
        init_convs_kaiming(self, activation)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class VGG(nn.Module):
    """VGG-A for 32x32 inputs: five poolings leave 1x1, which goes into the classifier."""

    def __init__(
        self,
        batch_norm: bool,
        *,
        num_classes: int = 10,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        make_act = ACTIVATIONS[activation]
        channels = 3
        features: list[nn.Module] = []
        for entry in VGG_A_PLAN:
            if isinstance(entry, str):
                features.append(nn.MaxPool2d(2))
                continue
            outputs = int(entry * width)
            features.append(conv3x3(channels, outputs, bias=True))
            if batch_norm:
                features.append(nn.BatchNorm2d(outputs))
            features.append(make_act())
            channels = outputs
        self.features = nn.Sequential(*features)
        hidden = int(512 * width)
        self.dropout = nn.Dropout(dropout_rate)
        self.classifier = nn.Sequential(
            nn.Linear(channels, hidden),
            make_act(),
            nn.Dropout(dropout_rate),
            nn.Linear(hidden, hidden),
            make_act(),
            nn.Identity(),  # no dropout here, but torchvision's last linear is number 6
            nn.Linear(hidden, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.features(x).flatten(1)))


class PreActivationBlock(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: str, dropout_rate: float
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout_rate)
        self.conv2 = conv3x3(outputs, outputs)
        self.downsample = nn.Sequential(conv1x1(inputs, outputs, stride))
        if inputs == outputs:
            self.downsample = None
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        activated = self.act(self.bn1(x))
        y = self.conv2(self.dropout(self.act(self.bn2(self.conv1(activated)))))
        return y + (x if self.downsample is None else self.downsample(activated))


class WideResNet(nn.Module):
    """Wide ResNet, pre-activation, with the shortcut behind the activation where widths differ."""

    def __init__(
        self,
        blocks: int,
        widening: int,
        *,
        num_classes: int = 10,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        channels = int(16 * width)
        self.conv1 = conv3x3(3, channels)
        for stage in range(3):
            outputs = int(16 * widening * width * 2**stage)
            layers = []
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(
                    PreActivationBlock(channels, outputs, stride, activation, dropout_rate)
                )
                channels = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.act = ACTIVATIONS[activation]()
        self.fc = nn.Linear(channels, num_classes)
        init_convs_kaiming(self, activation)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.fc(self.act(self.bn(x)).mean((2, 3)))


class BiasedNorm(nn.BatchNorm2d):
    """Batch normalisation with a bias and no scale."""

    def __init__(self, channels: int, momentum: float) -> None:
        super().__init__(channels, eps=1e-12, momentum=momentum)
        self.register_parameter("weight", None)


class Group(nn.Module):
    """conv, pool, norm, act, then convs with norm and act; Jordan 2024."""

    def __init__(
        self, inputs: int, outputs: int, depth: int, residual: bool, momentum: float, act: nn.Module
    ) -> None:
        super().__init__()
        for number in range(1, depth + 1):
            self.add_module(f"conv{number}", conv3x3(inputs if number == 1 else outputs, outputs))
            self.add_module(f"norm{number}", BiasedNorm(outputs, momentum))
        self.depth, self.residual, self.act = depth, residual, act
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        start = x = self.act(self.norm1(self.pool(self.conv1(x))))
        for number in range(2, self.depth):
            conv, norm = (self.get_submodule(f"{kind}{number}") for kind in ("conv", "norm"))
            x = self.act(norm(conv(x)))
        conv, norm = (self.get_submodule(f"{kind}{self.depth}") for kind in ("conv", "norm"))
        x = norm(conv(x))
        return self.act(x + start if self.residual else x)


class Airbench(nn.Module):
    """2x2 convolution without padding, three groups, 3x3 max pooling, linear without bias, / 9."""

    def __init__(
        self,
        features: Sequence[int],
        depth: int,
        residual: bool,
        momentum: float,
        *,
        num_classes: int = 10,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        width: float = 1.0,
    ) -> None:
        super().__init__()
        del dropout_rate  # it has none
        self.act = ACTIVATIONS[activation]()
        self.whitening = nn.Conv2d(3, 24, 2)
        self.whitening.weight.requires_grad = False
        inputs = 24
        for number, outputs in enumerate((int(width * each) for each in features), start=1):
            group = Group(inputs, outputs, depth, residual, momentum, self.act)
            self.add_module(f"group{number}", group)
            inputs = outputs
        self.pool = nn.MaxPool2d(3)
        self.fc = nn.Linear(inputs, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.group3(self.group2(self.group1(self.act(self.whitening(x)))))
        return self.fc(self.pool(x).flatten(1)) / 9


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet20": partial(ResNet, BasicBlock, (3, 3, 3), planes=16),
    "resnet56": partial(ResNet, BasicBlock, (9, 9, 9), planes=16),
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "densenet121": partial(DenseNet, (6, 12, 24, 16)),
    "densenet169": partial(DenseNet, (6, 12, 32, 32)),
    "densenet201": partial(DenseNet, (6, 12, 48, 32)),
    "densenet264": partial(DenseNet, (6, 12, 64, 48)),
    "vgg_a": partial(VGG, False),
    "vgg_a_bn": partial(VGG, True),
    "wideresnet28_10": partial(WideResNet, 4, 10),
    "airbench94": partial(Airbench, (64, 256, 256), 2, False, 0.4),
    "airbench96": partial(Airbench, (128, 384, 512), 3, True, 0.1),
}


def create(name: str, **options: Any) -> nn.Module:
    return MODELS[name](**options)
