"""The style of plots, parts that several share, and the training history of a run."""

import pathlib
import textwrap
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter

from jaxcifar.config import flatten
from jaxcifar.files import replacing
from jaxcifar.run.log import averaged, best_record

# Told apart by colour, by lightness (in grayscale) and by line style.
LINES: tuple[dict[str, Any], ...] = (
    {"color": "#14213d", "linestyle": "-"},
    {"color": "#2f6db5", "linestyle": (0, (5, 1.5))},
    {"color": "#e08a1e", "linestyle": (0, (4, 1.5, 1, 1.5))},
    {"color": "#9fc27c", "linestyle": (0, (1, 1))},
)
_HISTORY = {
    "train": {"color": "#1f4e9c", "linestyle": "-"},
    "val": {"color": "#e08a1e", "linestyle": "--"},
}
_STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text that can be searched and edited
}


@contextmanager
def drawing(
    *paths: pathlib.Path, size: tuple[float, float], title: str = "", keywords: str = ""
) -> Generator[Figure]:
    """Yields a figure to draw on, and writes it to each of `paths` at the end.

    Args:
      paths: their endings choose the formats.
      size: width and height in inches.
      title: above the picture; long lines are wrapped.
      keywords: in the file's metadata.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if title:
            lines = [textwrap.fill(line, int(12 * size[0])) for line in title.split("\n")]
            figure.suptitle("\n".join(lines), fontsize=11)
        _take_names_literally(figure)
        # Laid out once, where savefig would do it anew for each format and draw all twice.
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.execute(figure)
        figure.set_layout_engine(None)
        for path in paths:
            with replacing(path) as temporary:
                metadata = {"Keywords": keywords} if keywords else None
                figure.savefig(temporary, dpi="figure", metadata=metadata)


def _take_names_literally(figure: Figure) -> None:
    """Lets a "$" in a title, label or legend be one, where it would begin a formula."""
    texts = [*figure.texts, *(t for legend in figure.legends for t in legend.get_texts())]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        texts += legend.get_texts() if (legend := axes.get_legend()) else []
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), FixedFormatter):  # of names
                texts += axis.get_ticklabels()
    for text in texts:
        text.set_parse_math(False)


def grid(axes: Axes, *, whole_x: bool = False) -> None:
    """Draws a light grid; `whole_x` puts ticks at whole numbers only, as for epochs."""
    axes.grid(color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)
    if whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)


def png_and_pdf(folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    """Returns the paths of a picture that is kept in both formats."""
    return [folder / f"{stem}.png", folder / f"{stem}.pdf"]


def over_seeds(axes: Axes, x: Sequence[float], values: Any, **style: Any) -> None:
    """Draws the mean of values [seeds, len(x)] as a line, in a band from lowest to highest.

    If there are few points they get markers, so that even a single one is visible.
    """
    values = np.asarray(values)
    marker = {"marker": "o" if len(x) <= 12 else "", "markersize": 3.5}
    axes.plot(x, values.mean(0), **style, **marker)
    if len(values) > 1:
        band = {"color": style["color"], "alpha": 0.2, "lw": 0}
        axes.fill_between(x, values.min(0), values.max(0), **band)


def gap(axes: Axes, x: Any, curves: Any, *, label: str, color: str, hatch: str) -> None:
    """Fills between the lowest and the highest of curves [n, len(x)] at each x."""
    edge = color if hatch else "none"
    style = {"alpha": 0.35, "hatch": hatch, "facecolor": color, "edgecolor": edge, "lw": 0}
    axes.fill_between(x, np.min(curves, 0), np.max(curves, 0), label=label, **style)


def training_loss(config: Mapping[str, Any]) -> str:
    """Returns what to call a run's training loss, whose targets may not be those of validation.

    Args:
      config: the run's, flat or not.
    """
    fields, parts = flatten(config), ["training"]
    if smoothing := fields["train.label_smoothing"]:
        parts.append(f"label smoothing {smoothing:g}")
    if fields["augment.mixup"] or fields["augment.cutmix"]:
        parts.append("mixed targets")
    return ", ".join(parts)


def plot_history(
    records: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
    title: str,
    *paths: pathlib.Path,
    training: str = "training",
    keywords: str = "",
) -> None:
    """Draws loss and accuracy by epoch, training and validation, and writes a picture.

    Args:
      records: the lines of metrics.jsonl of a run; or those of several runs of as many epochs,
        drawn as their mean in a band from lowest to highest. If a run averages its weights, the
        validation is that of the average.
      title: above the picture.
      paths: where to write; the endings choose the formats.
      training: what to call the training loss, see `training_loss`.
      keywords: in the files' metadata.
    """
    several: Sequence[Any] = [records] if isinstance(records[0], dict) else records
    runs = [[averaged(record) for record in run] for run in several]
    epochs = [record["epoch"] for record in runs[0]]
    with drawing(*paths, size=(9, 3.6), title=title, keywords=keywords) as figure:
        loss, accuracy = figure.subplots(1, 2)
        for kind, name in (("train", "training"), ("val", "validation")):
            # The objective may include a penalty, which the validation loss does not have.
            losses, called = ("train_ce", training) if kind == "train" else ("val_loss", name)
            # The label that counts may be that of the smaller part of a mixed image.
            named = f"{name}, mixed images" if "mixed" in called else name
            for axes, quantity, scale, label in (
                (loss, losses, 1, called),
                (accuracy, f"{kind}_accuracy", 100, named),
            ):
                values = [[scale * record[quantity] for record in run] for run in runs]
                over_seeds(axes, epochs, values, label=label, **_HISTORY[kind])
        best = best_record([record for run in runs for record in run])
        of = "best of all seeds" if len(runs) > 1 else "best"
        text = f"{of}: {best['val_accuracy']:.2%} (epoch {best['epoch']})"
        at = (best["epoch"], 100 * best["val_accuracy"])
        accuracy.plot(*at, "*", color="black", markersize=9, linestyle="", zorder=3, label=text)
        loss.set(xlabel="epoch", ylabel="cross-entropy (nats)")
        accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
        for axes in (loss, accuracy):
            grid(axes, whole_x=True)
            axes.legend()
