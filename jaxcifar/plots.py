"""The picture that every run leaves: its training history."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jaxcifar.metrics import best_record

# Told apart by colour, by lightness (in grayscale) and by line style.
_STYLES = {
    "train": {"color": "#1f4e9c", "linestyle": "-"},
    "val": {"color": "#e08a1e", "linestyle": "--"},
}


def plot_history(records: Sequence[dict[str, Any]], title: str, path: pathlib.Path) -> None:
    """Draws loss and accuracy by epoch, training and validation, and writes a picture.

    Args:
      records: the lines of metrics.jsonl.
      title: above the picture.
      path: where to write; the ending chooses the format.
    """
    epochs = [record["epoch"] for record in records]
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        loss, accuracy = figure.subplots(1, 2)
        for kind, name in (("train", "training"), ("val", "validation")):
            style = _STYLES[kind] | {"marker": "o" if len(records) <= 12 else "", "markersize": 3.5}
            # The objective may contain a penalty; cross-entropy compares with validation's.
            losses = "train_ce" if kind == "train" else "val_loss"
            loss.plot(epochs, [r[losses] for r in records], label=name, **style)
            percent = [100 * r[f"{kind}_accuracy"] for r in records]
            accuracy.plot(epochs, percent, label=name, **style)
        best = best_record(records)
        text = f"best: {best['val_accuracy']:.2%} (epoch {best['epoch']})"
        at = (best["epoch"], 100 * best["val_accuracy"])
        accuracy.plot(*at, "*", color="black", markersize=9, linestyle="", zorder=3, label=text)
        loss.set(xlabel="epoch", ylabel="cross-entropy (nats)")
        accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
        for axes in (loss, accuracy):
            axes.grid(color="0.9", linewidth=0.6)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False)
        figure.suptitle(title, fontsize=11)
        figure.savefig(path, dpi=150)
