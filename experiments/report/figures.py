"""Draws the report's figures, and some that it does not have, from runs.

    python -m experiments.figures results/table4
    python -m experiments.figures results/table4 --only=fig5,fig2 --run=results/table4/vgg6/seed0

writes PNG and PDF files into each sweep's figures/ folder:

    history_ROW   loss and accuracy by epoch (the report's Figs 1, 3, 4); seeds as a band
    fig3, fig4    the same for VGG-A without and with BatchNorm, all four learning rates
    fig5          the training loss by step, and the gap between the learning rates
    accuracy      validation error against parameters, and against training time
    augment       what each augmentation does to some images

and of one trained network (--run; the best finished one that has its checkpoint):

    fig2          its first layer: kernels, and feature maps of one image
    confusion     which classes are taken for which
    classes       the accuracy of each class
    mistakes      the most confident mistakes
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from experiments import network_figures
from experiments.report_tables import ROWS
from experiments.runs import WITH_BN, WITHOUT_BN, Run, estimate, finished, loss_curves
from experiments.tables import MODEL_NAMES, finished_sweeps, number
from jaxcifar import compilation, plots
from jaxcifar.errors import UserError, choose, exit_code

Rows = dict[str, list[Run]]
RATES = ("3e-3", "1e-3", "5e-4", "1e-4")  # of Table 4's rows, in their order


def caption(*names: str, rows: Rows) -> str:
    """Says below a title what the runs fell short of; "" for full ones."""
    marks = sorted({rows[name][0].mark for name in names} - {""})
    return "\n" + "; ".join(marks) if marks else ""


def _title(row: str) -> str:
    table = "row" if row.startswith("row") else "VGG row"
    return f"{MODEL_NAMES[ROWS[row].model]} ({table} {number(ROWS[row])})"


# --- histories --------------------------------------------------------------------------------


def histories(rows: Rows, folder: pathlib.Path) -> list[str]:
    """Draws a history of each row; returns the names of the pictures."""
    names = []
    for row, runs in rows.items():
        done = finished(runs)
        if not done:
            continue
        seeds = f"{len(done)} seeds: mean, lowest to highest" if len(done) > 1 else ""
        title = ", ".join(filter(None, [_title(row), seeds])) + caption(row, rows=rows)
        plots.plot_history([run.records for run in done], title, *_paths(folder, f"history_{row}"))
        names.append(f"history_{row}")
    return names


def _vgg_history(rows: Rows, names: tuple[str, ...], title: str, paths: list[pathlib.Path]) -> None:
    there = [name for name in names if finished(rows.get(name, []))]
    title += caption(*there, rows=rows)
    with plots.drawing(*paths, size=(9, 6.4), title=title) as figure:
        panels = figure.subplots(2, 2, sharex=True, sharey="row")
        for name in there:
            style = plots.LINES[names.index(name)]
            runs = finished(rows[name])
            epochs = [record["epoch"] for record in runs[0].records]
            for axes, quantity, scale in zip(
                panels.flat, ("train_ce", "val_loss", "train_accuracy", "val_accuracy"),
                (1, 1, 100, 100), strict=True,
            ):  # fmt: skip
                values = scale * np.array([[r[quantity] for r in run.records] for run in runs])
                marker = {"marker": "o" if len(epochs) <= 12 else "", "markersize": 3.5}
                label = f"learning rate {RATES[names.index(name)]}"
                axes.plot(epochs, values.mean(0), label=label, **style, **marker)
                if len(runs) > 1:
                    low, high = values.min(0), values.max(0)
                    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.2, lw=0)
        for axes, text in zip(panels[0], ("training", "validation"), strict=True):
            axes.set_title(text)
        panels[0, 0].set_ylabel("cross-entropy (nats)")
        panels[1, 0].set_ylabel("accuracy (%)")
        for axes in panels.flat:
            plots.grid(axes, whole_x=True)
        # An exploded first epoch would flatten all that follows.
        highest = panels[0, 0].get_ylim()[1]
        panels[0, 0].set_ylim(0, min(highest, 3.0))
        if highest > 3:
            panels[0, 0].set_ylabel(f"cross-entropy (nats), up to {highest:.1f}")
        for axes in panels[1]:
            axes.set_xlabel("epoch")
        panels[0, 0].legend(fontsize=8)


def fig3(rows: Rows, folder: pathlib.Path) -> list[str]:
    """Draws the histories of VGG-A without BatchNorm."""
    return _vgg(rows, folder, WITHOUT_BN, "fig3", "VGG-A without batch normalization")


def fig4(rows: Rows, folder: pathlib.Path) -> list[str]:
    """Draws the histories of VGG-A with BatchNorm."""
    return _vgg(rows, folder, WITH_BN, "fig4", "VGG-A with batch normalization")


def _vgg(
    rows: Rows, folder: pathlib.Path, names: tuple[str, ...], stem: str, title: str
) -> list[str]:
    if not any(finished(rows.get(name, [])) for name in names):
        return []
    _vgg_history(rows, names, title, _paths(folder, stem))
    return [stem]


# --- figure 5 ---------------------------------------------------------------------------------


def fig5(rows: Rows, folder: pathlib.Path) -> list[str]:
    """Draws the training loss by step at four learning rates, and the gap between them.

    Several seeds are averaged. The loss is smoothed over a fortieth of the steps.
    """
    seeds = {run.seed for runs in rows.values() for run in finished(runs)}
    groups = {}
    window, averaged = 1, 1
    for label, names in (("without BN", WITHOUT_BN), ("with BN", WITH_BN)):
        if any(not finished(rows.get(name, [])) for name in names):
            return []
        window = max(1, len(finished(rows[names[0]])[0].steps()) // 40)
        curves = [loss_curves(rows, names, seed, window) for seed in sorted(seeds)]
        curves = [c for c in curves if c is not None]
        if not curves:  # no seed is in all of them, or steps.jsonl is gone
            return []
        averaged = len(curves)
        groups[label] = np.mean(curves, axis=0)
    title = (
        f"Training loss at four learning rates (smoothed over {window} steps"
        + (f", mean of {averaged} seeds)" if averaged > 1 else ")")
        + caption(*WITHOUT_BN, *WITH_BN, rows=rows)
    )  # fmt: skip
    bands = {"without BN": ("#e08a1e", "//"), "with BN": ("#1f4e9c", "")}
    with plots.drawing(*_paths(folder, "fig5"), size=(12, 4), title=title) as figure:
        panels = figure.subplots(1, 3, sharey=True, sharex=True)
        for axes, (label, curves) in zip(panels, groups.items(), strict=False):
            steps = np.arange(window, window + curves.shape[1])
            for curve, rate, style in zip(curves, RATES, plots.LINES, strict=True):
                axes.plot(steps, curve, label=f"learning rate {rate}", lw=1.1, **style)
            color, hatch = bands[label]
            for target in (axes, panels[2]):
                target.fill_between(
                    steps, curves.min(0), curves.max(0), alpha=0.3, hatch=hatch, label=label,
                    facecolor=color, edgecolor=color if hatch else "none", lw=0,
                )  # fmt: skip
            axes.set_title(label)
        panels[2].set_title("the gap between best and worst")
        panels[0].set_ylabel("cross-entropy of the batch (nats)")
        for axes in panels:
            axes.set_xlabel("training step")
            plots.grid(axes)
            axes.legend(fontsize=8)
        # The first steps at 3e-3 can be far above chance, which is ln 10 = 2.3.
        top = 1.1 * max(float(np.quantile(curves, 0.97)) for curves in groups.values())
        panels[0].set_ylim(0, max(top, 1e-3))
        highest = max(float(curves.max()) for curves in groups.values())
        if highest > top:
            panels[0].set_ylabel(f"cross-entropy of the batch (nats), up to {highest:.1f}")
    return ["fig5"]


# --- accuracy and its price -------------------------------------------------------------------


def accuracy(rows: Rows, folder: pathlib.Path) -> list[str]:
    """Draws the validation error against parameters and against training time."""
    done = {name: finished(runs) for name, runs in rows.items() if finished(runs)}
    if not done:
        return []
    title = "Validation error, best epoch (bars: 95% interval over seeds)" + caption(
        *done, rows=rows
    )
    with plots.drawing(*_paths(folder, "accuracy"), size=(10, 4.6), title=title) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        labels: tuple[list, list] = ([], [])
        markers = dict(zip(MODEL_NAMES, "osD^v<>", strict=True))
        for name, runs in done.items():
            model = ROWS[name].model
            value = estimate([100 - 100 * run.best["val_accuracy"] for run in runs])
            results = [run.result for run in runs if run.result]
            xs = (
                results[0]["parameters"] / 1e6,
                estimate([result["train_seconds"] / 60 for result in results]).mean,
            )
            color = plots.LINES[list(MODEL_NAMES).index(model) % 4]["color"]
            for axes, x, points in zip(panels, xs, labels, strict=True):
                bar = None if math.isnan(value.half) else value.half
                axes.errorbar(x, value.mean, yerr=bar, fmt=markers[model],
                              color=color, capsize=3, markersize=6)  # fmt: skip
                points.append((value.mean, x, name))
        for model in dict.fromkeys(ROWS[name].model for name in done):
            color = plots.LINES[list(MODEL_NAMES).index(model) % 4]["color"]
            panels[0].plot([], [], markers[model], color=color, label=MODEL_NAMES[model])
        panels[0].legend(fontsize=8, loc="lower left")
        panels[0].set(xlabel="parameters (millions)", ylabel="validation error (%), better upwards")
        panels[0].set_yscale("log")
        panels[0].invert_yaxis()
        panels[0].yaxis.set_major_formatter(ScalarFormatter())
        panels[0].yaxis.set_minor_formatter(ScalarFormatter())
        panels[1].set(xlabel="training time (minutes)")
        for axes, points in zip(panels, labels, strict=True):
            plots.grid(axes)
            axes.margins(x=0.15)
            axes.autoscale_view()
            _label(axes, points)
    return ["accuracy"]


def _label(axes: Axes, points: list[tuple[float, float, str]]) -> None:
    """Writes the name of each (y, x, name) beside it, moved apart where names would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    found = [(*to_axes.transform((x, y)), x, y, name) for y, x, name in points]
    clusters: list[list] = []
    for point in sorted(found):
        if not clusters or point[0] - clusters[-1][-1][0] > 0.12:
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
            axes.annotate(
                name, (x, y), xytext=(right, height), textcoords="axes fraction", fontsize=8,
                va="center", arrowprops={"arrowstyle": "-", "color": "0.6", "lw": 0.5},
            )  # fmt: skip


# --- the command ------------------------------------------------------------------------------

OF_RUNS: dict[str, Callable[[Rows, pathlib.Path], list[str]]] = {
    "history": histories,
    "fig3": fig3,
    "fig4": fig4,
    "fig5": fig5,
    "accuracy": accuracy,
}
FIGURES = (*OF_RUNS, *network_figures.OF_NETWORK)


def _paths(folder: pathlib.Path, stem: str) -> list[pathlib.Path]:
    return [folder / f"{stem}.png", folder / f"{stem}.pdf"]


def choose_run(rows: Rows) -> Run | None:
    """Returns the finished run of highest validation accuracy that still has its checkpoint."""
    runs = [run for of_row in rows.values() for run in finished(of_row)]
    there = [run for run in runs if (run.folder / "checkpoints").is_dir()]
    return max(there, key=lambda run: run.best["val_accuracy"], default=None)


def draw(
    rows: Rows, sweep: pathlib.Path, only: list[str], chosen: Run | None, image: int
) -> list[str]:
    """Draws figures of a sweep; returns a line about each."""
    folder = sweep / "figures"
    folder.mkdir(exist_ok=True)
    lines = []
    for name in only:
        if name in OF_RUNS:
            drawn = OF_RUNS[name](rows, folder)
            lines += [f"drew {folder / stem}.png and .pdf" for stem in drawn]
            if not drawn:
                lines.append(f"no {name}: it needs finished runs that are not in {sweep}")
        else:
            lines.append(_draw_of_network(name, rows, sweep, chosen, image))
    return lines


def _draw_of_network(
    name: str, rows: Rows, sweep: pathlib.Path, chosen: Run | None, image: int
) -> str:
    run, note, more = chosen, "", {"image": image} if name == "fig2" else {}
    if name == "augment":  # needs a run's strengths, no checkpoint
        run = chosen or next(run for runs in rows.values() for run in runs)
    if run is None:
        return (
            f"no {name}: no finished run in {sweep} has its checkpoints/ folder. Train one with "
            "the sweep, or name one with --run=FOLDER."
        )
    if chosen is not None:
        parts = [f"{run.row.config}, seed {run.seed}", run.mark]
        if run.result is None:
            epochs = f"{len(run.records)} of {run.config['train.epochs']}"
            parts.append(f"UNFINISHED: epoch {epochs}")
        note = "\n" + "; ".join(filter(None, parts))
    path = sweep / "figures" / name
    try:
        network_figures.OF_NETWORK[name](run.folder, _paths(path.parent, name), note, **more)
    except UserError as error:  # the images are not there, say; the other figures can be drawn
        return f"no {name}: {error}"
    return f"drew {path}.png and .pdf, of {run.folder}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=pathlib.Path, help="a sweep's folder, or one above several")
    parser.add_argument("--only", default=",".join(FIGURES), help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--run", type=pathlib.Path, help="whose network to draw")
    parser.add_argument("--image", type=int, default=0, help="the test image of fig2 (default 0)")
    arguments = parser.parse_args(argv)
    only = [choose("A figure in --only", name.strip(), FIGURES) for name in
            arguments.only.split(",")]  # fmt: skip
    compilation.use_cache()
    found = finished_sweeps(arguments.folder)
    chosen = {sweep: choose_run(rows) for sweep, rows in found.items()}
    if arguments.run:
        runs = {
            run.folder.resolve(): (sweep, run)
            for sweep, rows in found.items() for of_row in rows.values() for run in of_row
        }  # fmt: skip
        if arguments.run.resolve() not in runs:
            raise UserError(f"--run={arguments.run} is no run below {arguments.folder}.")
        sweep, run = runs[arguments.run.resolve()]
        if not (run.folder / "checkpoints").is_dir():
            raise UserError(f"--run={arguments.run} has no checkpoints/ folder to draw from.")
        chosen[sweep] = run
    failed = False
    for sweep, rows in found.items():
        lines = draw(rows, sweep, only, chosen[sweep], arguments.image)
        print("\n".join(lines), flush=True)
        failed |= set(only) != set(FIGURES) and any(line.startswith("no ") for line in lines)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
