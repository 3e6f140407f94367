"""Sets runs beside the report's Tables 3 and 4, as Markdown, CSV and LaTeX.

    python -m experiments.tables results/table3

writes table.md, table.csv and table.tex into each sweep's folder. Every number is computed from the
runs' metrics.jsonl; a run that was shortened or changed is marked in every format.
"""

import argparse
import csv
import io
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from experiments.report_tables import TABLE_3, Row
from experiments.runs import Estimate, Run, estimate, finished, sweeps
from jaxcifar import metrics
from jaxcifar.errors import UserError, exit_code

MODEL_NAMES = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "densenet201": "DenseNet-201",
    "densenet264": "DenseNet-264",
    "vgg_a": "VGG-A",
    "vgg_a_bn": "VGG-A(BN)",
}


class Metric(NamedTuple):
    """A column of the report's tables."""

    name: str  # in metrics.jsonl and `Row`
    title: str
    percent: bool


METRICS = (
    Metric("train_loss", "Train. loss", False),
    Metric("val_loss", "Val. loss", False),
    Metric("train_accuracy", "Train. acc.", True),
    Metric("val_accuracy", "Val. acc.", True),
)


# --- one row ----------------------------------------------------------------------------------


def settings(row: Row) -> dict[str, str]:
    """Returns the report's columns that say what a row is."""
    penalties = {"L1": row.l1, "L2": row.l2}
    names = [f"{name}, {_power(value)}" for name, value in penalties.items() if value]
    return {
        "#": number(row),
        "Model": MODEL_NAMES.get(row.model, row.model),
        "Size": row.size,
        "Activation": {"relu": "ReLU", "gelu": "GELU"}.get(row.activation, row.activation),
        "Dropout": f"{row.dropout_rate:g}",
        "Regularization": "; ".join(names) or "None",
        "Optimizer": {"adam": "Adam", "sgd": "SGD"}[row.optimizer],
        "LR": _power(row.learning_rate),
        "Batch": str(row.batch_size),
        "Epochs": str(row.epochs),
        "Augment": row.augment,
    }


def _power(value: float) -> str:
    """Returns 1e-3, as in the report, or 1.25e-3."""
    mantissa, exponent = f"{value:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _as_run(run: Run) -> Row:
    """The row as it was really run."""
    config = run.config
    return run.row._replace(
        model=config["model.name"],
        activation=config["model.activation"],
        dropout_rate=config["model.dropout_rate"],
        l1=config["optim.l1"],
        l2=config["optim.l2"],
        optimizer=config["optim.name"],
        learning_rate=config["optim.learning_rate"],
        batch_size=config["train.batch_size"],
        epochs=config["train.epochs"],
        augment=config["data.augment"],
    )


def number(row: Row) -> str:
    """Returns the row's number in its table."""
    return row.config.removeprefix("row").removeprefix("vgg")


def _number(runs: Sequence[Run]) -> str:
    return number(runs[0].row) + ("†" if runs[0].mark else "")  # † leads to the note


def ours(runs: Sequence[Run], metric: Metric, which: str = "best") -> Estimate:
    """Returns a metric over seeds, at each run's best or last epoch."""
    records = [run.best if which == "best" else run.records[-1] for run in runs]
    return estimate([record[metric.name] for record in records])


def show(value: Estimate, metric: Metric) -> str:
    """Returns "93.35%", or "93.35% ± 0.12" with the standard deviation over seeds."""
    scale, digits, sign = (100, 2, "%") if metric.percent else (1, 4, "")
    text = f"{scale * value.mean:.{digits}f}{sign}"
    return text if math.isnan(value.std) else f"{text} ± {scale * value.std:.{digits}f}"


def _show_interval(value: Estimate, metric: Metric) -> str:
    if math.isnan(value.half):
        return "–"
    scale, digits = (100, 2) if metric.percent else (1, 4)
    low, high = scale * (value.mean - value.half), scale * (value.mean + value.half)
    return f"{low:.{digits}f} … {high:.{digits}f}"


def _show_report(value: float, metric: Metric) -> str:
    return f"{100 * value:.2f}%" if metric.percent else f"{value:.4f}"


def _show_difference(value: float, metric: Metric) -> str:
    return f"{100 * value:+.2f}" if metric.percent else f"{value:+.4f}"


# --- the tables -------------------------------------------------------------------------------


class Table(NamedTuple):
    """A titled grid of text, to be written in any format."""

    title: str
    header: list[str]
    lines: list[list[str]]


def results_table(rows: dict[str, list[Run]], title: str) -> Table:
    """The report's own columns, with our results at the best epoch."""
    lines = []
    for runs in rows.values():
        row = settings(_as_run(runs[0]))
        row["Size"] = f"{runs[0].result['parameters'] / 1e6:.2f}M"  # type: ignore[index]
        row["#"] = _number(runs)
        lines.append([*row.values(), *(show(ours(runs, m), m) for m in METRICS), runs[0].mark])
    header = [*settings(TABLE_3[0]), *(metric.title for metric in METRICS), "Note"]
    return Table(title, header, lines)


def comparison_table(rows: dict[str, list[Run]]) -> Table:
    """Each metric at the best and the last epoch, beside the report's: a line for each."""
    lines = []
    for runs in rows.values():
        first = [_number(runs), MODEL_NAMES[runs[0].row.model], str(len(runs))]
        for metric in METRICS:
            best, report = ours(runs, metric), getattr(runs[0].row, metric.name)
            lines.append([
                *first,
                metric.title,
                show(best, metric),
                _show_interval(best, metric),
                show(ours(runs, metric, "last"), metric),
                _show_report(report, metric),
                _show_difference(best.mean - report, metric),
            ])  # fmt: skip
        for name, metric in (("loss", METRICS[1]), ("accuracy", METRICS[3])):
            tested = [
                run.result["test"][name] for run in runs if run.result and "test" in run.result
            ]
            if tested:
                value, report = estimate(tested), getattr(runs[0].row, metric.name)
                lines.append([
                    *first,
                    f"Test {name}, once",
                    show(value, metric),
                    _show_interval(value, metric),
                    "–",
                    _show_report(report, metric),
                    _show_difference(value.mean - report, metric),
                ])  # fmt: skip
    header = ["#", "Model", "Seeds", "Metric", "Best epoch", "95% interval", "Last epoch",
              "Report", "Difference"]  # fmt: skip
    return Table("Beside the report", header, lines)


def cost_table(rows: dict[str, list[Run]]) -> Table:
    """What the runs took."""
    lines = []
    for runs in rows.values():
        results = [run.result for run in runs if run.result]
        train_seconds = estimate([result["train_seconds"] for result in results]).mean
        rate = estimate([r["images_per_second"] for run in runs for r in run.records]).mean
        report = runs[0].row.size
        lines.append([
            _number(runs),
            MODEL_NAMES[runs[0].row.model],
            f"{results[0]['parameters']:,}",
            report,
            metrics.duration(train_seconds),
            metrics.duration(max(result["compile_seconds"] for result in results)),
            f"{rate:,.0f}",
            f"{max(result['peak_memory_bytes'] for result in results) / 2**30:.1f} GiB",
            runs[0].mark,
        ])  # fmt: skip
    header = ["#", "Model", "Parameters", "Report", "Training", "Compiling", "Images/s", "Memory"]
    return Table("What it took", [*header, "Note"], lines)


def provenance(runs: Sequence[Run]) -> list[str]:
    """Says where the numbers of runs come from: each fact once."""
    facts: dict[str, set[str]] = {}
    for run in runs:
        env = run.environment
        for part, data in run.data.items():
            official = {True: "official files", False: "NOT verified as the official files"}
            kind = official.get(data["official"], "embedded")
            facts.setdefault(f"{part} images", set()).add(
                f"{data['name']}, {data['images']:,}, {kind}, sha256 {data['sha256'][:12]}…"
            )
        facts.setdefault("protocol", set()).add(
            "best epoch chosen on the test set, as in the report"
            if run.config["data.protocol"] == "test"
            else "best epoch chosen on a tenth of the training set"
        )
        facts.setdefault("machine", set()).add(
            f"{env['devices']} × {env['device']}, {env['cpus']} CPU cores, {env['dtype']}"
        )
        names = ("jaxcifar", "jax", "flax", "optax", "numpy", "python")
        facts.setdefault("versions", set()).add(", ".join(f"{n} {env[n]}" for n in names))
        facts.setdefault("commit", set()).add(str(env["commit"]))
        facts.setdefault("started", set()).add(env["started"][:10])
    return [f"{name}: {' | '.join(sorted(values))}" for name, values in facts.items()]


def commands(rows: dict[str, list[Run]]) -> list[str]:
    """Returns the commands that make these runs, or go on with them."""
    alike: dict[tuple, list[str]] = {}
    found = []
    for name, runs in rows.items():
        run = runs[0]
        if run.folder.name == name:
            found.append(f"python -m jaxcifar.main --config=configs/{name}.py "
                         f"--workdir={run.folder}{run.options}")  # fmt: skip
            continue
        seeds = ",".join(str(run.seed) for run in runs)
        alike.setdefault((seeds, run.folder.parent.parent, run.options), []).append(name)
    for (seeds, out, options), names in alike.items():
        rows_given = ",".join(names)
        found.append(
            f"python -m experiments.sweep --rows={rows_given} --seeds={seeds} --out={out}{options}"
        )
    return found


def tables(rows: dict[str, list[Run]]) -> list[Table]:
    """Returns the tables of a sweep; only rows with a finished run have a line."""
    rows = {name: done for name, runs in rows.items() if (done := finished(runs))}
    found = []
    for table, prefix in (("Table 3", "row"), ("Table 4", "vgg")):
        part = {name: runs for name, runs in rows.items() if name.startswith(prefix)}
        if part:
            grids = results_table(part, "Results at the best epoch"), comparison_table(part)
            for grid in (*grids, cost_table(part)):
                found.append(grid._replace(title=f"{table}: {grid.title.lower()}"))
    return found


# --- formats ----------------------------------------------------------------------------------


def notes(rows: dict[str, list[Run]]) -> list[str]:
    """Says what each row marked † is: "vgg1, vgg2: SHORTENED: …"."""
    by_mark: dict[str, list[str]] = {}
    for name, runs in rows.items():
        if runs[0].mark:
            by_mark.setdefault(runs[0].mark, []).append(name)
    return [f"{', '.join(names)}: {mark}" for mark, names in by_mark.items()]


def markdown(rows: dict[str, list[Run]]) -> str:
    """Returns the whole page of a sweep: tables, commands, provenance."""
    runs = [run for of_row in rows.values() for run in of_row]
    parts = ["# Results beside the report's\n"]
    if any(run.shortened for run in runs):
        parts.append("**Runs marked SHORTENED were: their numbers do not compare with the "
                     "report's.**\n")  # fmt: skip
    for table in tables(rows):
        lines = [table.header, ["---"] * len(table.header), *table.lines]
        parts.append(f"## {table.title}\n")
        parts += ["| " + " | ".join(line) + " |" for line in lines]
        parts.append("")
    parts.append(
        "Mean ± standard deviation over seeds where there are several; the 95% interval is of the "
        "mean, by Student's t. Differences of accuracies are in percentage points.\n"
    )
    parts += [f"† {note}\n" for note in notes(rows)]
    if unfinished := [run for run in runs if run.result is None]:
        parts.append("## Not finished\n")
        parts += [
            f"- {run.row.config}, seed {run.seed}: epoch {len(run.records)} of "
            f"{run.config['train.epochs']}"
            for run in unfinished
        ]
        parts.append("")
    parts += ["## Where the numbers come from\n", *(f"- {line}" for line in provenance(runs))]
    parts += ["", "```", *commands(rows), "```", ""]
    return "\n".join(parts)


def comma_separated(rows: dict[str, list[Run]]) -> str:
    """Returns one line a row: raw numbers, shares of 1 for accuracies."""
    names = ["row", *list(settings(TABLE_3[0]))[1:], "seeds", "parameters"]
    for metric in METRICS:
        names += [f"{metric.name}_{what}" for what in ("best", "std", "interval_half", "last")]
        names += [f"{metric.name}_report", f"{metric.name}_difference"]
    names += ["test_loss", "test_accuracy"]  # of the holdout protocol, at the best epoch
    names += ["train_seconds", "data_official", "shortened", "note"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([name.lower() for name in names])
    for name, of_row in rows.items():
        runs = finished(of_row)
        if not runs:
            continue
        row = runs[0].row
        cells = [name, *list(settings(_as_run(runs[0])).values())[1:], len(runs)]
        cells.append(runs[0].result["parameters"])  # type: ignore[index]
        for metric in METRICS:
            best, report = ours(runs, metric), getattr(row, metric.name)
            values = (best.mean, best.std, best.half, ours(runs, metric, "last").mean)
            cells += ["" if math.isnan(v) else f"{v:.6g}" for v in values]
            cells += [f"{report:.6g}", f"{best.mean - report:.6g}"]
        results = [run.result for run in runs if run.result]
        for metric in ("loss", "accuracy"):
            tested = [result["test"][metric] for result in results if "test" in result]
            cells.append(f"{estimate(tested).mean:.6g}" if tested else "")
        seconds = [result["train_seconds"] for result in results]
        official = all(data["official"] for run in runs for data in run.data.values())
        cells += [f"{estimate(seconds).mean:.1f}", official]
        cells += ["; ".join(runs[0].shortened), runs[0].mark]
        writer.writerow(cells)
    return text.getvalue()


def latex(rows: dict[str, list[Run]]) -> str:
    """Returns a `table` environment for each table (needs the packages booktabs and graphicx)."""
    runs = [run for of_row in rows.values() for run in of_row]
    parts = [f"% {line}" for line in provenance(runs)]
    for table in tables(rows):
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
            *(rf"  \par\footnotesize $^\dagger$ {_escape(note)}" for note in notes(rows)),
            r"\end{table}",
            "",
        ]
    return "\n".join(parts)


def _escape(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, "\\" + character)
    replacements = {"±": r"$\pm$", "…": r"\dots{}", "†": r"$^\dagger$", "–": "--", "->": r"$\to$"}
    for character, command in replacements.items():
        text = text.replace(character, command)
    return text


FORMATS: dict[str, Callable[[dict[str, list[Run]]], str]] = {
    "table.md": markdown,
    "table.csv": comma_separated,
    "table.tex": latex,
}


# --- the command ------------------------------------------------------------------------------


def finished_sweeps(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, list[Run]]]:
    """Reads the sweeps below `folder` that have a finished run; prints which have none.

    Raises:
      UserError: none has, or runs cannot be read.
    """
    found, waiting = {}, []
    for sweep, rows in sweeps(folder).items():
        runs = [run for of_row in rows.values() for run in of_row]
        if finished(runs):
            found[sweep] = rows
            continue
        states = ", ".join(
            f"{run.row.config} seed {run.seed}: {len(run.records)} of {run.config['train.epochs']} "
            "epochs" for run in runs
        )  # fmt: skip
        waiting.append(f"No run in {sweep} is finished ({states}). Start the sweep again.")
    if not found:
        raise UserError("\n".join(waiting))
    print("".join(f"{line}\n" for line in waiting), end="")
    return found


def write(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes the tables of each sweep below `folder`; returns the files."""
    texts = {}
    for sweep, rows in finished_sweeps(folder).items():
        texts |= {sweep / name: form(rows) for name, form in FORMATS.items()}
    for path, text in texts.items():
        path.write_text(text)
    return list(texts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=pathlib.Path, help="a sweep's folder, or one above several")
    paths = write(parser.parse_args(argv).folder)
    print(next(path for path in paths if path.suffix == ".md").read_text())
    print("\n".join(f"wrote {path}" for path in paths))


if __name__ == "__main__":
    sys.exit(exit_code(main))
