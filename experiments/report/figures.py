"""Draws the original report's figures, and some that it does not have, from runs.

They are PNG and PDF files in each sweep's figures/ folder:

    history_NAME  loss and accuracy by epoch (the original's Figs 1, 3, 4); seeds as a band
    fig3, fig4    the same for VGG-A without and with BatchNorm, all four learning rates
    fig5          the training loss by step, and the gap between the learning rates
    accuracy      validation error against parameters, and against training time
    augment       what each augmentation does to some images

and of one trained network (--run; by default the best finished one that has its checkpoint):

    fig2          its first layer: kernels, and feature maps of one image
    confusion     which classes are taken for which
    classes       the accuracy of each class
    mistakes      the most confident mistakes
"""

import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from experiments.report import network
from experiments.runs import names
from experiments.runs.read import Run, Sweep
from experiments.runs.rows import WITH_BN, WITHOUT_BN
from experiments.runs.stats import estimate
from jaxcifar.errors import UserError
from jaxcifar.models import MODELS
from jaxcifar.run import plots

MARKERS = "osD^v<>PX*hdp"  # of models, in the order of MODELS, and again from the first


def caption(sweep: Sweep) -> str:
    """Says below a title which runs were shortened or changed, and how; "" for full ones."""
    return "".join(f"\n† {note}" for note in sweep.notes)


def keywords_of(runs: Sequence[Run]) -> str:
    """Returns what a picture's metadata says it was drawn of: "row1/seed0, row1/seed1"."""
    return ", ".join(f"{run.name}/seed{run.seed}" for run in runs)


def _model(run: Run) -> str:
    return run.config["model.name"]


def _title(run: Run) -> str:
    table = "config" if not run.row else "row" if run.name.startswith("row") else "VGG row"
    return f"{names.shown(_model(run))} ({table} {run.label})"


def _rate(run: Run) -> str:
    marked = f" ({run.name}†)" if run.mark else ""
    return f"learning rate {names.power_of_ten(run.config['optim.learning_rate'])}{marked}"


def _clip(axes: Axes, top: float, highest: float) -> None:
    """Cuts the axis off at `top`; where curves go higher, its label says how high."""
    axes.set_ylim(0, top)
    if highest > top:
        axes.set_ylabel(f"{axes.get_ylabel()}, up to {highest:.1f}")


# --- histories --------------------------------------------------------------------------------


def histories(sweep: Sweep, folder: pathlib.Path) -> list[str]:
    """Draws a history of each row or config; returns the names of the pictures."""
    drawn = []
    for name in sweep.finished.names:
        done = sweep.finished.of(name)
        seeds = f"{len(done)} seeds: mean, lowest to highest" if len(done) > 1 else ""
        title = ", ".join(filter(None, [_title(done[0]), seeds]))
        title += f"\n{done[0].mark}" if done[0].mark else ""
        paths = plots.png_and_pdf(folder, f"history_{name}")
        training = plots.training_loss(done[0].config)
        records, keywords = [run.records for run in done], keywords_of(done)
        plots.plot_history(records, title, *paths, training=training, keywords=keywords)
        drawn.append(f"history_{name}")
    return drawn


def _vgg_history(
    sweep: Sweep, rows: Sequence[str], title: str, folder: pathlib.Path, stem: str
) -> list[str]:
    done = sweep.finished.only(rows)
    if not done.runs:
        return []
    title += caption(done)
    paths, keywords = plots.png_and_pdf(folder, stem), keywords_of(done.runs)
    with plots.drawing(*paths, size=(9, 6.4), title=title, keywords=keywords) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        shown = (
            (panels[0, 0], "train_ce", 1),
            (panels[0, 1], "val_loss", 1),
            (panels[1, 0], "train_accuracy", 100),
            (panels[1, 1], "val_accuracy", 100),
        )
        for name in done.names:
            runs, style = done.of(name), plots.LINES[rows.index(name)]
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
        records = [record for run in done.runs for record in run.records]
        highest = max(record[name] for record in records for name in ("train_ce", "val_loss"))
        _clip(panels[0, 0], min(panels[0, 0].get_ylim()[1], 3.0), highest)
        for axes in panels[1]:
            axes.set_xlabel("epoch")
        panels[0, 0].legend(fontsize=8)
    return [stem]


def fig3(sweep: Sweep, folder: pathlib.Path) -> list[str]:
    """Draws the histories of VGG-A without BatchNorm."""
    return _vgg_history(sweep, WITHOUT_BN, "VGG-A without batch normalization", folder, "fig3")


def fig4(sweep: Sweep, folder: pathlib.Path) -> list[str]:
    """Draws the histories of VGG-A with BatchNorm."""
    return _vgg_history(sweep, WITH_BN, "VGG-A with batch normalization", folder, "fig4")


# --- figure 5 ---------------------------------------------------------------------------------


_ROWS_OF_FIG5 = (*WITHOUT_BN, *WITH_BN)


def _curves_of_fig5(done: Sweep) -> tuple[int, list[np.ndarray]]:
    """Returns the window of the smoothing, and [rows, steps] losses for each seed of all rows.

    There are none if no seed is in all of them, steps.jsonl is gone, or their lengths differ.
    """
    if not set(_ROWS_OF_FIG5) <= set(done.names):
        return 1, []
    window = max(1, len(done.of(_ROWS_OF_FIG5[0])[0].steps()) // 40)
    seeds = sorted({run.seed for run in done.runs})
    curves = [done.loss_curves(_ROWS_OF_FIG5, seed, window) for seed in seeds]
    return window, [of_rows for of_rows in curves if of_rows is not None]


def fig5(sweep: Sweep, folder: pathlib.Path) -> list[str]:
    """Draws the training loss by step at four learning rates, and the gap between them.

    The seeds that all eight rows have are averaged. The loss is smoothed over a fortieth of the
    steps.
    """
    done = sweep.finished.only(_ROWS_OF_FIG5)
    window, curves = _curves_of_fig5(done)
    if not curves:
        return []
    mean = np.mean(curves, axis=0)
    groups = {
        "without BN": (WITHOUT_BN, mean[: len(WITHOUT_BN)]),
        "with BN": (WITH_BN, mean[len(WITHOUT_BN) :]),
    }
    of_seeds = f", mean of {len(curves)} seeds" if len(curves) > 1 else ""
    title = f"Training loss at four learning rates (smoothed over {window} steps{of_seeds})"
    title += caption(done)
    bands = {
        "without BN": {"color": "#e08a1e", "hatch": "//"},
        "with BN": {"color": "#1f4e9c", "hatch": ""},
    }
    paths, keywords = plots.png_and_pdf(folder, "fig5"), keywords_of(done.runs)
    with plots.drawing(*paths, size=(12, 4), title=title, keywords=keywords) as figure:
        panels = figure.subplots(1, 3, sharey=True, sharex=True)
        for axes, (label, (names_of, losses)) in zip(panels, groups.items(), strict=False):
            steps = np.arange(window, window + losses.shape[1])
            for name, curve, style in zip(names_of, losses, plots.LINES, strict=True):
                axes.plot(steps, curve, label=_rate(done.of(name)[0]), lw=1.1, **style)
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
    return ["fig5"]


# --- accuracy versus cost ----------------------------------------------------------------------


def accuracy(sweep: Sweep, folder: pathlib.Path) -> list[str]:
    """Draws the validation error against parameters and against training time."""
    done = sweep.finished
    if not done.runs:
        return []
    title = "Validation error, best epoch (bars: 95% interval over seeds)"
    title += caption(done)
    paths, keywords = plots.png_and_pdf(folder, "accuracy"), keywords_of(done.runs)
    models = list(dict.fromkeys(_model(done.of(name)[0]) for name in done.names))
    styles = model_styles(models)
    mixed = len({run.data_set for run in done.runs}) > 1
    with plots.drawing(*paths, size=(10, 4.6), title=title, keywords=keywords) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        labels: tuple[list, list] = ([], [])
        for name in done.names:
            runs = done.of(name)
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
        panels[0].set_yscale("log")
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
    return ["accuracy"]


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
    clusters: list[list] = []
    width = 0.06 + 0.0135 * max(len(name) for _, _, name in points)  # of the longest, roughly
    for point in sorted(found):
        if not clusters or point[0] - clusters[-1][-1][0] > width:
            clusters.append([])
        clusters[-1].append(point)
    for cluster in clusters:
        cluster.sort(key=lambda point: point[1])
        heights = np.array([point[1] for point in cluster])
        for i in range(1, len(heights)):  # up from the lowest, then down from the top edge
            heights[i] = max(heights[i], heights[i - 1] + 0.045)
        for i in reversed(range(len(heights))):
            above = heights[i + 1] - 0.045 if i + 1 < len(heights) else 1.0
            heights[i] = min(heights[i], above)
        right = max(point[0] for point in cluster) + 0.04
        for height, (_, _, x, y, name) in zip(heights, cluster, strict=True):
            line = {"arrowstyle": "-", "color": "0.6", "lw": 0.5}
            at = {"xytext": (right, height), "textcoords": "axes fraction", "va": "center"}
            axes.annotate(name, (x, y), **at, arrowprops=line, fontsize=8)


# --- all of them ------------------------------------------------------------------------------


def sources(sweep: Sweep) -> dict[str, list[Run]]:
    """Returns the pictures that can be drawn of a sweep, and of which runs.

    That of a network is of the run that `draw` gets by default.
    """
    done = sweep.finished
    found = {f"history_{name}": done.of(name) for name in done.names}
    for stem, rows in (("fig3", WITHOUT_BN), ("fig4", WITH_BN), ("fig5", _ROWS_OF_FIG5)):
        part = done.only(rows)
        if part.runs and (stem != "fig5" or _curves_of_fig5(part)[1]):
            found[stem] = list(part.runs)
    if done.runs:
        found["accuracy"] = list(done.runs)
    for name in network.OF_NETWORK:
        if run := choose_run(sweep) or (sweep.runs[0] if name == "augment" else None):
            found[name] = [run]
    return found


OF_RUNS: dict[str, Callable[[Sweep, pathlib.Path], list[str]]] = {
    "history": histories,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "accuracy": accuracy,
}
FIGURES = (*OF_RUNS, *network.OF_NETWORK)


def choose_run(sweep: Sweep) -> Run | None:
    """Returns the finished run of highest validation accuracy that still has its checkpoint."""
    there = [run for run in sweep.finished.runs if (run.folder / "checkpoints").is_dir()]
    return max(there, key=lambda run: run.best["val_accuracy"], default=None)


def draw(sweep: Sweep, only: Sequence[str], chosen: Run | None, image: int) -> list[str]:
    """Draws figures of a sweep; returns a line about each."""
    folder = sweep.folder / "figures"
    folder.mkdir(exist_ok=True)
    lines = []
    for name in only:
        if name in OF_RUNS:
            drawn = OF_RUNS[name](sweep, folder)
            lines += [f"drew {folder / stem}.png and .pdf" for stem in drawn]
            if not drawn:
                lines.append(f"no {name}: it needs finished runs that are not in {sweep.folder}")
        else:
            lines.append(_draw_of_network(name, sweep, chosen, image))
    return lines


def _draw_of_network(name: str, sweep: Sweep, chosen: Run | None, image: int) -> str:
    run, note, more = chosen, "", {"image": image} if name == "fig2" else {}
    if name == "augment":  # needs a run's strengths, no checkpoint
        run = chosen or sweep.runs[0]
    if run is None:
        return (
            f"no {name}: no finished run in {sweep.folder} has its checkpoints/ folder. Train one "
            "with the sweep, or name one with --run=FOLDER."
        )
    if chosen is not None:
        parts = [f"{run.name}, seed {run.seed}", run.mark]
        if run.result is None:
            parts.append(f"UNFINISHED: epoch {run.progress}")
        note = "\n" + "; ".join(filter(None, parts))
    paths = plots.png_and_pdf(sweep.folder / "figures", name)
    try:
        network.OF_NETWORK[name](run.folder, paths, note, **more)
    except UserError as error:  # the images are not there, say; the other figures can be drawn
        return f"no {name}: {error}"
    return f"drew {paths[0]} and .pdf, of {run.folder}"
