"""Draws the original report's figures, and some that it does not have, from runs.

They are PNG and PDF files in each sweep's figures/ folder:

    history_NAME  loss and accuracy by epoch (the original's Figs 1, 3, 4); seeds as a band
    fig3, fig4    the same for VGG-A without and with BatchNorm, all four learning rates
    fig5          the training loss by step, and the gap between the learning rates
    accuracy      validation error against parameters, and against training time
    augment       what each augmentation does to some images, with the strengths of one run

and of one trained network:

    fig2          its first layer: kernels, and feature maps of one image
    confusion     which classes are taken for which
    classes       the accuracy of each class
    mistakes      the most confident mistakes

The one run is that of --run; by default the best finished one that has its checkpoint.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from experiments.report import network
from experiments.report.pictures import signed
from experiments.runs import names
from experiments.runs.read import Run, Sweep
from experiments.runs.rows import WITH_BN, WITHOUT_BN
from experiments.runs.stats import estimate
from jaxcifar.errors import UserError
from jaxcifar.models import MODELS
from jaxcifar.run import plots

MARKERS = "osD^v<>PX*hdp"  # of models, in the order of MODELS, and again from the first


def _model(run: Run) -> str:
    return run.config["model.name"]


def _title(run: Run) -> str:
    table = "config" if not run.row else "row" if run.name.startswith("row") else "VGG row"
    return f"{names.shown(_model(run))} ({table} {run.label}{'†' if run.mark else ''})"


def _rate(run: Run) -> str:
    marked = f" ({run.name}†)" if run.mark else ""
    return f"learning rate {names.power_of_ten(run.config['optim.learning_rate'])}{marked}"


def _clip(axes: Axes, top: float, highest: float) -> None:
    """Cuts the axis off at `top`; where curves go higher, its label says how high."""
    axes.set_ylim(0, top)
    if highest > top:
        axes.set_ylabel(f"{axes.get_ylabel()}, up to {highest:.1f}")


# --- histories --------------------------------------------------------------------------------


def history(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws the history of a row or config."""
    run, *others = part.runs
    title = _title(run)
    if others:
        title += f", {len(part.runs)} seeds: mean, lowest to highest"
    said, training = signed(part, title), plots.training_loss(run.config)
    title, keywords = said["title"], said["keywords"]
    records = [run.records for run in part.runs]
    plots.plot_history(records, title, *paths, training=training, keywords=keywords)


def _vgg_history(part: Sweep, paths: list[pathlib.Path], rows: Sequence[str], title: str) -> None:
    with plots.drawing(*paths, size=(9, 6.4), **signed(part, title)) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        shown = (
            (panels[0, 0], "train_ce", 1),
            (panels[0, 1], "val_loss", 1),
            (panels[1, 0], "train_accuracy", 100),
            (panels[1, 1], "val_accuracy", 100),
        )
        for name in part.names:
            runs, style = part.of(name), plots.LINES[rows.index(name)]
            epochs = [record["epoch"] for record in runs[0].records]
            for axes, quantity, scale in shown:
                values = [[scale * record[quantity] for record in run.records] for run in runs]
                plots.over_seeds(axes, epochs, values, label=_rate(runs[0]), **style)
        for axes, text in zip(panels[0], ("training", "validation"), strict=True):
            axes.set_title(text)
        panels[0, 0].set_ylabel("cross-entropy (nats)")
        panels[1, 0].set_ylabel("accuracy (%)")
        for axes in panels.flat:
            plots.grid(axes, whole_x=True)
        # An exploded first epoch would flatten everything that follows.
        records = [record for run in part.runs for record in run.records]
        highest = max(record[name] for record in records for name in ("train_ce", "val_loss"))
        _clip(panels[0, 0], min(panels[0, 0].get_ylim()[1], 3.0), highest)
        for axes in panels[1]:
            axes.set_xlabel("epoch")
        panels[0, 0].legend(fontsize=8)


# --- figure 5 ---------------------------------------------------------------------------------


_ROWS_OF_FIG5 = (*WITHOUT_BN, *WITH_BN)


def _seeds_of_fig5(done: Sweep) -> list[int]:
    """Returns the seeds that all of its rows have, with the losses of their steps."""
    with_steps = [run for run in done.runs if (run.folder / "steps.jsonl").exists()]
    seeds = [{run.seed for run in with_steps if run.name == name} for name in _ROWS_OF_FIG5]
    return sorted(set.intersection(*seeds))


def _curves_of_fig5(done: Sweep) -> tuple[int, list[np.ndarray]]:
    """Returns the window of the smoothing, and [rows, steps] losses for each seed of all rows.

    Raises:
      UserError: there are none: steps.jsonl is gone or damaged, or the runs' lengths differ.
    """
    seeds = _seeds_of_fig5(done)
    lengths = [len(run.steps()) for run in done.of(_ROWS_OF_FIG5[0]) if run.seed in seeds]
    window = max(1, max(lengths, default=0) // 40)
    curves = [done.loss_curves(_ROWS_OF_FIG5, seed, window) for seed in seeds]
    found = [of_rows for of_rows in curves if of_rows is not None]
    if not found:
        raise UserError(
            f"the steps.jsonl files in {done.folder} are gone, or of different lengths: train all "
            "eight rows for as many epochs."
        )
    return window, found


def fig5(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws the training loss by step at four learning rates, and the gap between them.

    The seeds that all eight rows have are averaged. The loss is smoothed over a fortieth of the
    steps.
    """
    window, curves = _curves_of_fig5(part)
    mean = np.mean(curves, axis=0)
    groups = {
        "without BN": (WITHOUT_BN, mean[: len(WITHOUT_BN)]),
        "with BN": (WITH_BN, mean[len(WITHOUT_BN) :]),
    }
    of_seeds = f", mean of {len(curves)} seeds" if len(curves) > 1 else ""
    title = f"Training loss at four learning rates (smoothed over {window} steps{of_seeds})"
    bands = {
        "without BN": {"color": "#e08a1e", "hatch": "//"},
        "with BN": {"color": "#1f4e9c", "hatch": ""},
    }
    with plots.drawing(*paths, size=(12, 4), **signed(part, title)) as figure:
        panels = figure.subplots(1, 3, sharey=True, sharex=True)
        for axes, (label, (names_of, losses)) in zip(panels, groups.items(), strict=False):
            steps = np.arange(window, window + losses.shape[1])
            for name, curve, style in zip(names_of, losses, plots.LINES, strict=True):
                axes.plot(steps, curve, label=_rate(part.of(name)[0]), lw=1.1, **style)
            for target in (axes, panels[2]):
                plots.gap(target, steps, losses, label=label, **bands[label])
            axes.set_title(label)
        panels[2].set_title("the gap between best and worst")
        panels[0].set_ylabel("cross-entropy of the batch (nats)")
        for axes in panels:
            axes.set_xlabel("training step")
            plots.grid(axes)
            axes.legend(fontsize=8)
        # The first steps at 3e-3 can be far above chance, which is ln 10 = 2.3.
        top = 1.1 * max(float(np.quantile(losses, 0.97)) for _, losses in groups.values())
        _clip(panels[0], max(top, 1e-3), float(mean.max()))


# --- accuracy versus cost ----------------------------------------------------------------------


def accuracy(part: Sweep, paths: list[pathlib.Path]) -> None:
    """Draws the validation error against parameters and against training time."""
    title = "Validation error, best epoch (bars: 95% interval over seeds)"
    models = list(dict.fromkeys(_model(part.of(name)[0]) for name in part.names))
    styles = model_styles(models)
    mixed = len({run.data_set for run in part.runs}) > 1
    with plots.drawing(*paths, size=(10, 4.6), **signed(part, title)) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        labels: tuple[list[Any], list[Any]] = ([], [])
        for name in part.names:
            runs = part.of(name)
            value = estimate([100 - 100 * run.best["val_accuracy"] for run in runs])
            bar = None if math.isnan(value.half) else value.half
            results = [run.result for run in runs if run.result]
            minutes = estimate([run.train_seconds / 60 for run in runs]).mean
            marker, color = styles[_model(runs[0])]
            style = {"fmt": marker, "color": color, "capsize": 3, "markersize": 6}
            xs = results[0]["parameters"] / 1e6, minutes
            label = f"{name}†" if runs[0].mark else name
            label += f" ({runs[0].data_set})" if mixed else ""
            for axes, x, points in zip(panels, xs, labels, strict=True):
                axes.errorbar(x, value.mean, yerr=bar, **style)
                points.append((value.mean, x, label))
        for model in models:
            marker, color = styles[model]
            panels[0].plot([], [], marker, color=color, label=names.shown(model))
        lines = panels[0].get_legend_handles_labels()
        figure.legend(*lines, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
        panels[0].set(xlabel="parameters (millions)", ylabel="validation error (%), better upwards")
        errors = [error for error, _, _ in labels[0]]
        if min(errors) > 0:
            panels[0].set_yscale("log")
        else:  # linear from no error at all to the smallest there is
            panels[0].set_yscale("symlog", linthresh=min(filter(None, errors), default=1.0))
        panels[0].invert_yaxis()
        panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].yaxis.set_minor_formatter(ScalarFormatter())
        panels[1].set(xlabel="training time (minutes)")
        for axes, points in zip(panels, labels, strict=True):
            plots.grid(axes)
            axes.grid(axis="y", which="minor", color="0.9", linewidth=0.6)  # within a decade
            axes.margins(x=0.15)
            axes.autoscale_view()
            _label(axes, points)


def model_styles(models: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns the (marker, colour) of each model: always the same ones of one in `MODELS`."""
    order = list(dict.fromkeys([*MODELS, *models]))
    return {
        model: (MARKERS[i % len(MARKERS)], plots.LINES[i % len(plots.LINES)]["color"])
        for i, model in enumerate(order)
    }


def _label(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Writes the name of each (y, x, name) beside it, moved apart where names would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    found = [(*to_axes.transform((x, y)), x, y, name) for y, x, name in points]
    clusters: list[list[Any]] = []
    width = 0.06 + 0.0135 * max(len(name) for _, _, name in points)  # of the longest, roughly
    for point in sorted(found):
        if not clusters or point[0] - clusters[-1][-1][0] > width:
            clusters.append([])
        clusters[-1].append(point)
    for cluster in clusters:
        cluster.sort(key=lambda point: point[1])
        heights = np.array([point[1] for point in cluster])
        apart = min(0.045, 1 / len(cluster))  # so that all have room
        for i in range(1, len(heights)):  # up from the lowest, then down from the top edge
            heights[i] = max(heights[i], heights[i - 1] + apart)
        for i in reversed(range(len(heights))):
            above = heights[i + 1] - apart if i + 1 < len(heights) else 1.0
            heights[i] = min(heights[i], above)
        right = max(point[0] for point in cluster) + 0.04
        for height, (_, _, x, y, name) in zip(heights, cluster, strict=True):
            line = {"arrowstyle": "-", "color": "0.6", "lw": 0.5}
            at = {"xytext": (right, height), "textcoords": "axes fraction", "va": "center"}
            axes.annotate(name, (x, y), **at, arrowprops=line, fontsize=8 * apart / 0.045)


# --- all of them ------------------------------------------------------------------------------

Drawer = Callable[[Sweep, list[pathlib.Path]], None]  # of the runs to draw, and the files to write

OF_NETWORK: dict[str, Drawer] = {  # they need a checkpoint
    "fig2": network.fig2,
    "confusion": network.confusion,
    "classes": network.classes,
    "mistakes": network.mistakes,
}
FIGURES: dict[str, Drawer] = {
    "history": history,
    "fig3": functools.partial(
        _vgg_history, rows=WITHOUT_BN, title="VGG-A without batch normalization"
    ),
    "fig4": functools.partial(_vgg_history, rows=WITH_BN, title="VGG-A with batch normalization"),
    "fig5": fig5,
    "accuracy": accuracy,
    "augment": network.augmentations,
    **OF_NETWORK,
}
OF_ONE_RUN = ("augment", *OF_NETWORK)


def possible(sweep: Sweep, chosen: Run | None) -> dict[str, Sweep]:
    """Returns the pictures that can be drawn of a sweep, and the runs that each is of.

    Args:
      sweep: has a finished run.
      chosen: the run whose network to draw, see `choose_run`.
    """
    done = sweep.finished
    of_fig5 = done.only(_ROWS_OF_FIG5)
    of_network = Sweep(sweep.folder, (chosen,) if chosen else ())
    found = {f"history_{name}": done.only([name]) for name in done.names}
    found |= {"fig3": done.only(WITHOUT_BN), "fig4": done.only(WITH_BN)}
    found |= {"fig5": of_fig5} if _seeds_of_fig5(of_fig5) else {}
    found |= {"accuracy": done, "augment": Sweep(sweep.folder, (chosen or done.runs[0],))}
    found |= dict.fromkeys(OF_NETWORK, of_network)
    return {stem: part for stem, part in found.items() if part.runs}


def figure_of(stem: str) -> str:
    """Returns which of `FIGURES` a picture is: "history" of "history_row9"."""
    return "history" if stem.startswith("history_") else stem


def choose_run(sweep: Sweep) -> Run | None:
    """Returns the finished run of highest validation accuracy that still has its checkpoint."""
    there = [run for run in sweep.finished.runs if (run.folder / "checkpoints").is_dir()]
    return max(there, key=lambda run: run.best["val_accuracy"], default=None)


def draw(
    sweep: Sweep, only: Sequence[str], chosen: Run | None, image: int
) -> tuple[list[pathlib.Path], list[str]]:
    """Draws figures of a sweep into its folder figures/.

    Args:
      sweep, chosen: see `possible`.
      only: which of `FIGURES`.
      image: the test image of fig2.

    Returns:
      The files, and a line about each figure that cannot be drawn.
    """
    folder, parts = sweep.folder / "figures", possible(sweep, chosen)
    folder.mkdir(exist_ok=True)
    drawn: list[pathlib.Path] = []
    missing = []
    for name in only:
        drawer = functools.partial(network.fig2, image=image) if name == "fig2" else FIGURES[name]
        stems = [stem for stem in parts if figure_of(stem) == name]
        if not stems:
            missing.append(f"no {name}: {_needs(name, sweep)}")
        for stem in stems:
            paths = plots.png_and_pdf(folder, stem)
            try:
                drawer(parts[stem], paths)
                drawn += paths
            except UserError as error:  # the images are not there, say; others can be drawn
                missing.append(f"no {stem}: {error}")
    return drawn, missing


_ROWS_OF = {
    "fig3": "vgg1 to vgg4",
    "fig4": "vgg5 to vgg8",
    "fig5": "vgg1 to vgg8, all eight with one seed",
}


def _needs(name: str, sweep: Sweep) -> str:
    if name in _ROWS_OF:
        return (
            f"it is of finished runs of the original report's rows {_ROWS_OF[name]}, and "
            f"{sweep.folder} does not have these. (Those of a --grid have other names.)"
        )
    if name in OF_NETWORK:
        return (
            f"no finished run in {sweep.folder} has its checkpoints/ folder. Train one in "
            "another folder, or name one with --run=FOLDER."
        )
    return f"it needs finished runs that are not in {sweep.folder}."
