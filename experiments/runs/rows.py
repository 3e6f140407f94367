"""The report's Tables 3 and 4 as data: what each row is, and the result it printed."""

from typing import NamedTuple


class Row(NamedTuple):
    """A row as printed; the results are at the epoch of highest validation accuracy.

    Losses are cross-entropies in nats, but the training losses of rows 11 and 12 contain the
    penalty; accuracies are shares of 1.
    """

    config: str  # the file in configs/, without .py
    model: str  # the name in jaxcifar.models.MODELS
    size: str  # parameters, as printed
    activation: str
    dropout_rate: float
    l1: float
    l2: float
    optimizer: str
    learning_rate: float
    batch_size: int
    epochs: int
    augment: str
    train_loss: float
    val_loss: float
    train_accuracy: float
    val_accuracy: float


_TABLE_3 = """
row1  resnet18    11.17M relu 0 0    adam 50  weak   0.0099 0.3709 99.69 92.64
row2  resnet18    11.17M gelu 0 0    adam 50  weak   0.0072 0.3742 99.79 93.35
row3  resnet50    23.52M relu 0 0    adam 50  weak   0.0125 0.3399 99.64 93.12
row4  resnet50    23.52M gelu 0 0    adam 50  weak   0.0112 0.3524 99.66 92.76
row5  densenet121 3.97M  relu 0 0    adam 50  weak   0.0214 0.2950 99.40 93.32
row6  densenet201 10.29M relu 0 0    adam 200 weak   0.0063 0.3524 99.82 94.25
row7  densenet264 17.40M relu 0 0    adam 200 weak   0.0066 0.3494 99.81 94.27
row8  densenet201 10.29M relu 0 0    adam 200 strong 0.0720 0.2340 97.50 94.99
row9  densenet201 10.29M gelu 0 0    adam 200 strong 0.0847 0.2378 97.09 95.03
row10 densenet201 10.29M relu 0 0    sgd  200 strong 1.6442 1.6688 38.93 37.87
row11 densenet201 10.29M relu 1e-4 0 adam 200 strong 0.5837 0.2882 88.10 91.05
row12 densenet201 10.29M relu 0 1e-4 adam 200 strong 0.1473 0.2221 97.31 94.93
"""
_TABLE_4 = """
vgg1 vgg_a    3e-3 0.6817 0.7201 76.80 77.02
vgg2 vgg_a    1e-3 0.2535 0.4730 91.36 85.45
vgg3 vgg_a    5e-4 0.1168 0.5243 96.05 87.16
vgg4 vgg_a    1e-4 0.1537 0.5769 94.65 84.17
vgg5 vgg_a_bn 3e-3 0.2759 0.4409 90.51 86.24
vgg6 vgg_a_bn 1e-3 0.1308 0.4331 95.49 88.65
vgg7 vgg_a_bn 5e-4 0.1038 0.4352 96.48 88.33
vgg8 vgg_a_bn 1e-4 0.1227 0.5103 95.59 86.23
"""


def _results(cells: list[str]) -> dict[str, float]:
    train_loss, val_loss, train_percent, val_percent = map(float, cells)
    return {
        "train_loss": train_loss,
        "val_loss": val_loss,
        "train_accuracy": round(train_percent / 100, 4),
        "val_accuracy": round(val_percent / 100, 4),
    }


def _table_3() -> tuple[Row, ...]:
    rows = []
    for line in _TABLE_3.strip().splitlines():
        config, model, size, activation, l1, l2, optimizer, epochs, augment, *cells = line.split()
        rows.append(
            Row(config, model, size, activation, 0.2, float(l1), float(l2), optimizer, 1e-3, 256,
                int(epochs), augment, **_results(cells))
        )  # fmt: skip
    return tuple(rows)


def _table_4() -> tuple[Row, ...]:
    rows = []
    for line in _TABLE_4.strip().splitlines():
        config, model, rate, *cells = line.split()
        rows.append(
            Row(config, model, "9.76M", "relu", 0.0, 0.0, 0.0, "adam", float(rate), 256, 50,
                "weak", **_results(cells))
        )  # fmt: skip
    return tuple(rows)


TABLE_3, TABLE_4 = _table_3(), _table_4()
ROWS: dict[str, Row] = {row.config: row for row in (*TABLE_3, *TABLE_4)}
