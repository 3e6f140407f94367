"""Compares runs with Tables 3 and 4 of the original report, as Markdown, CSV and LaTeX."""

import csv
import io
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.runs import names
from experiments.runs.provenance import commands, provenance
from experiments.runs.read import Run, Sweep, differences
from experiments.runs.rows import TABLE_3, TABLE_4
from experiments.runs.stats import Contrast, Estimate, difference, estimate
from experiments.runs.table import Table
from jaxcifar.files import replace
from jaxcifar.models import MODELS, create_model
from jaxcifar.run.progress import duration

NONE = "–"  # in a cell that does not apply

CAVEATS = (
    "The training loss is what was minimised: it includes label smoothing and the L1 and L2 "
    "penalties, which the validation loss does not. The training accuracy is on augmented images; "
    "on mixed ones (mixup, CutMix) it is by a label that is often that of the smaller part. The "
    "original has one number for each row, "
    "apparently of one run. A single run varies by more than a mean: compare it with an interval "
    "√(n + 1) times as wide, for n seeds. L2 is the λ of λ Σw²: half of PyTorch's weight_decay. "
    "The learning rate falls by a cosine, unless another schedule is named."
)


class Metric(NamedTuple):
    """A number of each run, and how it is written."""

    name: str  # in metrics.jsonl and `Row`
    title: str
    percent: bool
    once: bool = False  # of the test set, evaluated once, at the end of a run with held-out images

    def text(self, value: float, sign: str = "") -> str:
        """Returns "93.35" or "0.2340"; with sign "+", as a difference."""
        return f"{100 * value:{sign}.2f}" if self.percent else f"{value:{sign}.4f}"

    @property
    def unit(self) -> str:
        return "%" if self.percent else ""


METRICS = (  # the columns of the original report's tables
    Metric("train_loss", "Train. loss", False),
    Metric("val_loss", "Val. loss", False),
    Metric("train_accuracy", "Train. acc.", True),
    Metric("val_accuracy", "Val. acc.", True),
)
TESTED = (  # what the original calls validation is its test set
    Metric("val_loss", "Test loss, once", False, once=True),
    Metric("val_accuracy", "Test accuracy, once", True, once=True),
)
SETTINGS = (
    *("Data", "Model", "Size", "Activation", "Dropout", "Regularization"),
    *("Optimizer", "LR", "Batch", "Epochs", "Augment"),
)


# --- cells ------------------------------------------------------------------------------------


def settings(run: Run) -> list[str]:
    """Returns the cells of `SETTINGS` of a finished run."""
    config, model = run.config, run.config["model.name"]
    strengths = {"L1": "optim.l1", "L2": "optim.l2", "decay": "optim.weight_decay"}
    parts = [
        f"{name}, {names.power_of_ten(config[field])}"
        for name, field in strengths.items()
        if config[field]
    ]
    if smoothing := config["train.label_smoothing"]:
        parts.append(f"label smoothing, {smoothing:g}")
    mixing = {"cutout": "cutout", "mixup": "mixup", "cutmix": "CutMix"}
    augment = [config["data.augment"]]
    augment += [
        f"{name} {config[f'augment.{field}']:g}"
        for field, name in mixing.items()
        if config[f"augment.{field}"]
    ]
    optimizer = [names.shown(config["optim.name"])]
    optimizer += [f"momentum {config['optim.momentum']:g}"] if config["optim.momentum"] else []
    optimizer += ["Nesterov"] if config["optim.nesterov"] else []
    rate = [names.power_of_ten(config["optim.learning_rate"])]
    if (schedule := config["optim.schedule"]) != "cosine":  # that of the original report
        rate.append(schedule.replace("_", " "))
    # Of a network that this version does not know, the rate is all there is.
    has_dropout = model not in MODELS or create_model(model).has_dropout
    return [
        run.data_set,
        names.shown(model),
        f"{run.result['parameters'] / 1e6:.2f}M",  # type: ignore[index]
        names.shown(config["model.activation"]),
        f"{config['model.dropout_rate']:g}" if has_dropout else NONE,
        "; ".join(parts) or "None",
        ", ".join(optimizer),
        ", ".join(rate),
        str(config["train.batch_size"]),
        str(config["train.epochs"]),
        ", ".join(augment),
    ]


def _number(run: Run) -> str:
    return run.label + ("†" if run.mark else "")  # † leads to the note


def _name(run: Run) -> str:
    """As `_number`, where the number would not do: Tables 3 and 4 have the same ones."""
    return run.name + ("†" if run.mark else "")


def _model(run: Run) -> str:
    return names.shown(run.config["model.name"])


def values(runs: Sequence[Run], metric: Metric, which: str = "best") -> list[float]:
    """Returns a metric of each run at its best or last epoch; [] if none has it."""
    if metric.once:
        name = metric.name.removeprefix("val_")
        return [run.result["test"][name] for run in runs if run.result and "test" in run.result]
    return [(run.best if which == "best" else run.records[-1])[metric.name] for run in runs]


def original(run: Run, metric: Metric) -> float | None:
    """Returns what the original report printed; None for a config that it does not have."""
    return getattr(run.row, metric.name) if run.row else None


def _show(value: Estimate, metric: Metric) -> str:
    """Returns "93.35%", or "93.35% ± 0.12" with the standard deviation over seeds."""
    text = metric.text(value.mean) + metric.unit
    return text if math.isnan(value.std) else f"{text} ± {metric.text(value.std)}"


def _show_interval(value: Estimate | Contrast, metric: Metric) -> str:
    if math.isnan(value.half):
        return NONE
    ends = value.mean - value.half, value.mean + value.half
    return " … ".join(map(metric.text, ends))


# --- the tables: of sweeps without unfinished runs ----------------------------------------------


def results_table(sweep: Sweep) -> Table:
    """The original report's own columns, with our results at the best epoch."""
    lines = []
    for name in sweep.names:
        runs = sweep.of(name)
        run = runs[0]
        shown = [_show(estimate(values(runs, metric)), metric) for metric in METRICS]
        lines.append([_number(run), *settings(run), *shown, run.mark])
    header = ["#", *SETTINGS, *(metric.title for metric in METRICS), "Note"]
    return Table("Results at the best epoch", header, lines)


def comparison_table(sweep: Sweep) -> Table:
    """Each metric at the best and the last epoch, beside the original's: a line for each."""
    lines = []
    for name in sweep.names:
        runs = sweep.of(name)
        for metric in (*METRICS, *TESTED):
            found = values(runs, metric)
            if not found:
                continue
            best, last = estimate(found), estimate(values(runs, metric, "last"))
            printed = original(runs[0], metric)
            lines.append(
                [
                    *(_number(runs[0]), _model(runs[0]), str(len(runs)), metric.title),
                    *(_show(best, metric), _show_interval(best, metric)),
                    NONE if metric.once else _show(last, metric),
                    NONE if printed is None else metric.text(printed) + metric.unit,
                    NONE if printed is None else metric.text(best.mean - printed, "+"),
                ]
            )
    header = ["#", "Model", "Seeds", "Metric", "Best epoch", "95% interval", "Last epoch"]
    return Table("Beside the original report", [*header, "Original", "Difference"], lines)


def cost_table(sweep: Sweep) -> Table:
    """What the runs took."""
    lines = []
    for name in sweep.names:
        runs = sweep.of(name)
        run, results = runs[0], [run.result for run in runs if run.result]
        train_seconds = estimate([run.train_seconds for run in runs]).mean
        epochs = [record for run in runs for record in run.records]
        images = sum(record["images_per_second"] * record["seconds"] for record in epochs)
        rate = images / sum(record["seconds"] for record in epochs)
        # None is unknown.
        memory = max(result["peak_memory_bytes"] or 0 for result in results)
        compiling = max(result["compile_seconds"] or 0 for result in results)
        cells = [
            _number(run),
            _model(run),
            f"{results[0]['parameters']:,}",
            run.row.size if run.row else NONE,
            duration(train_seconds),
            duration(compiling) if compiling else NONE,
            f"{rate:,.0f}",
            f"{memory / 2**30:.1f} GiB" if memory else NONE,
            run.mark,
        ]
        lines.append(cells)
    header = ["#", "Model", "Parameters", "Original", "Training", "Compiling, last start"]
    return Table("What it took", [*header, "Images/s", "Memory", "Note"], lines)


def against_table(sweep: Sweep, base: str) -> Table:
    """Each metric at the best and the last epoch beside that of the runs of `base`."""
    lines = []
    others = sweep.of(base)
    marked = _name(others[0])
    for name in sweep.names:
        runs = sweep.of(name)
        if name == base:
            continue
        what = ", ".join(differences(others[0], runs[0]))
        at_best = [(metric, "best") for metric in METRICS]
        at_last = [(metric, "last") for metric in METRICS]
        for metric, which in [*at_best, *at_last, *((metric, "once") for metric in TESTED)]:
            both = values(runs, metric, which), values(others, metric, which)
            if not all(both):
                continue
            found = difference(*both)
            epoch = "" if metric.once else f", {which} epoch"
            lines.append(
                [
                    _name(runs[0]),
                    *(what or NONE, f"{len(runs)}, {len(others)}", metric.title + epoch),
                    *(_show(estimate(of_each), metric) for of_each in both),
                    metric.text(found.mean, "+"),
                    _show_interval(found, metric),
                ]
            )
    header = ["#", "What differs", "Seeds", "Metric", "Here", marked, "Difference", "95% interval"]
    return Table(f"Beside {marked}", header, lines)


def tables(sweep: Sweep, against: str = "") -> list[Table]:
    """Returns the tables of a sweep; only names with a finished run have a line.

    Args:
      sweep: whose runs to show.
      against: a name whose runs all others are compared with; "" for none.
    """
    done = sweep.finished
    found = []
    if against in done.names and len(done.names) > 1:
        found.append(against_table(done, against)._replace(notes=_notes(sweep)))
    for title, part in (
        ("Table 3", sweep.only([row.name for row in TABLE_3])),
        ("Table 4", sweep.only([row.name for row in TABLE_4])),
        ("Other configs", sweep.others),
    ):
        if (done := part.finished).runs:
            for grid in (results_table(done), comparison_table(done), cost_table(done)):
                full = f"{title}: {grid.title.lower()}"
                found.append(grid._replace(title=full, notes=_notes(part)))
    return found


def _notes(sweep: Sweep) -> tuple[str, ...]:
    marked = (f"† {note}" for note in sweep.finished.notes)
    return (*marked, *(f"Not finished, and left out: {run}" for run in sweep.unfinished))


# --- formats ----------------------------------------------------------------------------------


def markdown(sweep: Sweep, against: str = "") -> str:
    """Returns the whole page of a sweep: tables (see `tables`), commands, provenance."""
    parts, done = ["# Results beside the original report's\n"], sweep.finished
    if any(run.shortened for run in done.runs):
        parts.append(
            "**Runs marked SHORTENED are not full runs, and cannot be compared with them.**\n"
        )
    parts += [f"## {table.title}\n\n{table.markdown()}\n" for table in tables(sweep, against)]
    parts.append(
        "Mean ± standard deviation over seeds where there are several; the 95% interval is of the "
        f"mean, by Student's t. Differences of accuracies are in percentage points. {CAVEATS}\n"
    )
    parts += [f"† {note}\n" for note in done.notes]
    if unfinished := sweep.unfinished:
        parts += ["## Not finished, and left out\n", *(f"- {run}" for run in unfinished), ""]
    facts = [f"- {line}" for line in provenance(done.runs)]
    parts += ["## Where the numbers come from\n", *facts]
    parts += ["", "```", *commands(sweep), "```", ""]
    return "\n".join(parts)


def comma_separated(sweep: Sweep) -> str:
    """Returns the CSV, a line for each row or config.

    Numbers are raw, accuracies are shares of 1, and what does not apply is empty.
    """
    columns = ["row", *(name.lower() for name in SETTINGS), "schedule", "seeds", "parameters"]
    for metric in METRICS:
        shown = "best", "std", "interval_half", "last", "last_std", "last_interval_half"
        columns += [f"{metric.name}_{what}" for what in shown]
        columns += [f"{metric.name}_original", f"{metric.name}_difference"]
    for name in ("test_loss", "test_accuracy"):  # of the holdout protocol, at the best epoch
        columns += [name, f"{name}_std", f"{name}_interval_half"]
    columns += ["train_seconds", "data_official", "shortened", "note", "unfinished"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for name in sweep.names:
        runs, unfinished = sweep.finished.of(name), "; ".join(sweep.only([name]).unfinished)
        if all(run.imported for run in sweep.of(name)):
            continue
        if not runs:
            line = {"row": name, "seeds": 0, "unfinished": unfinished}
            writer.writerow([line.get(column, "") for column in columns])
            continue
        run, results = runs[0], [run.result for run in runs if run.result]
        cells: list[Any] = [name, *("" if cell == NONE else cell for cell in settings(run))]
        cells[1 + SETTINGS.index("LR")] = names.power_of_ten(run.config["optim.learning_rate"])
        cells.append(run.config["optim.schedule"])
        cells += [len(runs), results[0]["parameters"]]
        for metric in METRICS:
            best, printed = estimate(values(runs, metric)), original(run, metric)
            last = estimate(values(runs, metric, "last"))
            cells += [*_numbers(best), *_numbers(last)]
            compared = () if printed is None else (printed, best.mean - printed)
            cells += [f"{v:.6g}" for v in compared] or ["", ""]
        for metric in TESTED:
            cells += _numbers(estimate(values(runs, metric)))
        seconds = [run.train_seconds for run in runs]
        known = {data["official"] for run in runs for data in run.data.values()} - {None}
        official = all(known) if known else ""
        cells += [f"{estimate(seconds).mean:.1f}", official, "; ".join(run.shortened), run.mark]
        writer.writerow([*cells, unfinished])
    return text.getvalue()


def _numbers(value: Estimate) -> list[str]:
    """Returns the cells of a mean, its standard deviation and half of its interval."""
    numbers = value.mean, value.std, value.half
    return ["" if math.isnan(number) else f"{number:.6g}" for number in numbers]


def latex(sweep: Sweep, against: str = "") -> str:
    """Returns a `table` environment for each table (needs the packages booktabs and graphicx)."""
    parts = [f"% {line}" for line in provenance(sweep.finished.runs)]
    # Where no run of a table is finished, there is no table with a note.
    parts += [f"% Not finished, and left out: {run}" for run in sweep.unfinished]
    for table in tables(sweep, against):
        lines = [" & ".join(map(_escape, line)) + r" \\" for line in table.lines]
        parts += [
            r"\begin{table}",
            r"  \centering",
            rf"  \caption{{{_escape(table.title)}}}",
            r"  \resizebox{\textwidth}{!}{%",
            rf"  \begin{{tabular}}{{{'l' * len(table.header)}}}",
            r"    \toprule",
            "    " + " & ".join(map(_escape, table.header)) + r" \\",
            r"    \midrule",
            *(f"    {line}" for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}}",
            *(rf"  \par\footnotesize {_escape(note)}" for note in table.notes),
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def _escape(text: str) -> str:
    commands = {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\textasciitilde{}"}
    text = re.sub(r"[\\^~&%#_{}$]", lambda found: commands.get(found[0], f"\\{found[0]}"), text)
    text = re.sub(r"(?<![\w.])-(?=\d)", r"$-$", text)  # a minus sign, but in 1e-3
    replacements = {"±": r"$\pm$", "…": r"\dots{}", "†": r"$^\dagger$", "–": "--", "->": r"$\to$"}
    for character, command in replacements.items():
        text = text.replace(character, command)
    return text


def write(sweep: Sweep, against: str = "") -> list[pathlib.Path]:
    """Writes the tables of a sweep beside its runs, see `tables`; returns the files."""
    texts = {
        "table.md": markdown(sweep, against),
        "table.csv": comma_separated(sweep),
        "table.tex": latex(sweep, against),
    }
    for name, text in texts.items():
        replace(sweep.folder / name, text)
    return [sweep.folder / name for name in texts]
