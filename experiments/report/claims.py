"""Puts the report's conclusions to the test of runs.

    python -m experiments.claims results/table3

restates each conclusion as comparisons of runs, and calls each one

- supported: the whole 95% interval over seeds lies on the report's side,
- contradicted: it lies wholly on the other,
- undecided: neither, or there is no interval, as with one seed, or the rows were shortened
  differently.

The same comparison of the report's own table stands beside it. (Of width, one of its factors, the
report draws no conclusion.) Prints, and writes claims.md and
claims.json into each sweep's folder.
"""

import argparse
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report_tables import ROWS
from experiments.runs import (
    WITH_BN,
    WITHOUT_BN,
    Estimate,
    Run,
    contrast,
    difference,
    estimate,
    finished,
    loss_curves,
)
from experiments.tables import finished_sweeps, notes
from jaxcifar import metrics
from jaxcifar.errors import exit_code

# Values of a quantity, one for each seed: (row, quantity) -> [seeds].
Values = Callable[[str, str], Sequence[float]]

SMOOTHING_STEPS = 20  # of the loss curves whose gap between learning rates is measured


class Comparison(NamedTuple):
    """One number that a conclusion says something about."""

    claim: str  # the key of CLAIMS
    text: str  # what the number is
    rows: tuple[str, ...]  # whose runs it takes
    expected: str  # "above", "below", "within" or "not"
    bound: float  # … this; "within" is of ± this
    unit: str
    effect: Callable[[Values], Estimate]


CLAIMS = {
    "ResNet": "ResNet achieves favorable accuracy (1, 2, 3, 4).",
    "depth": "Increasing the depth of the models can lower the loss and increase the accuracy "
    "(1–3, 2–4).",
    "more depth": "With model architecture unchanged, the effect becomes marginal with increasing "
    "depth, and leads to risks of over-fitting (6–7).",
    "architecture": "Models with better architecture can achieve better or comparable performance "
    "with less parameters (3–5).",
    "augmentation": "Extensive augmentation increases training loss, but mitigates over-fitting, "
    "finally leading to a higher accuracy rate (6–8).",
    "activation": "Activation functions have an influence, although it is not as critical as model "
    "architecture (1–2, 3–4); a more complicated one does not guarantee better performance (3–4).",
    "regularization": "Inappropriate regularization sometimes hurts the model. (The report names "
    "8–9, which differ in activation; its regularized rows are 11 and 12.)",
    "efficiency": "DenseNet achieves a similar score with ResNet with 1/3 to 1/6 parameters.",
    "BatchNorm": "Batch normalization improves VGG-A (shown by Table 4, though not stated).",
    "smoothing": "BatchNorm makes training less sensitive to the learning rate, narrowing the gap "
    "of loss value between the best and worst learning rate (Fig. 5).",
}


def _accuracy(a: str, b: str) -> Callable[[Values], Estimate]:
    return lambda of: difference(of(a, "val_accuracy"), of(b, "val_accuracy"))


def _loss(a: str, b: str) -> Callable[[Values], Estimate]:
    return lambda of: difference(of(a, "val_loss"), of(b, "val_loss"))


def _larger(of: Values, one: str, other: str, base: str) -> Estimate:
    """|one − base| − |other − base| of validation accuracies; the signs are those of the means."""
    values = {row: of(row, "val_accuracy") for row in (one, other, base)}
    signs = [math.copysign(1, difference(values[row], values[base]).mean) for row in (one, other)]
    return contrast(
        (signs[0], values[one]), (-signs[1], values[other]), (signs[1] - signs[0], values[base])
    )


_POINTS, _NATS = "points", "nats"
_GROUPS = {"with BN": WITH_BN, "without BN": WITHOUT_BN}  # one row at each learning rate


def _ratio_text(a: str, b: str) -> str:
    sizes = [float(ROWS[name].size.removesuffix("M")) for name in (a, b)]
    return f"{sizes[0] / sizes[1]:.2f} of the parameters"


COMPARISONS = (
    *(
        Comparison("ResNet", f"validation accuracy of row {row[3:]} (read as: above 92%)", (row,),
                   "above", 0.92, "", lambda of, row=row: estimate(of(row, "val_accuracy")))
        for row in ("row1", "row2", "row3", "row4")
    ),
    Comparison("depth", "ResNet-50 − ResNet-18, ReLU, validation accuracy", ("row3", "row1"),
               "above", 0.0, _POINTS, _accuracy("row3", "row1")),
    Comparison("depth", "ResNet-50 − ResNet-18, GELU, validation accuracy", ("row4", "row2"),
               "above", 0.0, _POINTS, _accuracy("row4", "row2")),
    Comparison("depth", "ResNet-50 − ResNet-18, ReLU, validation loss", ("row3", "row1"),
               "below", 0.0, _NATS, _loss("row3", "row1")),
    Comparison("depth", "ResNet-50 − ResNet-18, GELU, validation loss", ("row4", "row2"),
               "below", 0.0, _NATS, _loss("row4", "row2")),
    Comparison("more depth", "DenseNet-264 − 201, validation accuracy (marginal: within half a "
               "point)", ("row7", "row6"), "within", 0.005, _POINTS, _accuracy("row7", "row6")),
    Comparison("more depth", "DenseNet-264 − 201, over-fitting (training accuracy, on "
               "augmented images, − validation accuracy)",
               ("row7", "row6"), "above", 0.0, _POINTS,
               lambda of: difference(of("row7", "gap"), of("row6", "gap"))),
    Comparison("architecture", "DenseNet-121 − ResNet-50, validation accuracy, with "
               f"{_ratio_text('row5', 'row3')} (comparable: no more than half a point less)",
               ("row5", "row3"), "above", -0.005, _POINTS, _accuracy("row5", "row3")),
    Comparison("augmentation", "strong − weak, training loss", ("row8", "row6"), "above", 0.0,
               _NATS, lambda of: difference(of("row8", "train_loss"), of("row6", "train_loss"))),
    Comparison("augmentation", "strong − weak, over-fitting (training accuracy, on "
               "augmented images, − validation accuracy)",
               ("row8", "row6"), "below", 0.0, _POINTS,
               lambda of: difference(of("row8", "gap"), of("row6", "gap"))),
    Comparison("augmentation", "strong − weak, validation accuracy", ("row8", "row6"), "above",
               0.0, _POINTS, _accuracy("row8", "row6")),
    Comparison("activation", "ResNet-18, GELU − ReLU, validation accuracy (an influence)",
               ("row2", "row1"), "not", 0.0, _POINTS, _accuracy("row2", "row1")),
    Comparison("activation", "ResNet-50, GELU − ReLU, validation accuracy (an influence)",
               ("row4", "row3"), "not", 0.0, _POINTS, _accuracy("row4", "row3")),
    Comparison("activation", "size of the change of validation accuracy, DenseNet-121 for "
               "ResNet-18 − GELU for ReLU in ResNet-18 (architecture is the more critical)",
               ("row5", "row2", "row1"), "above", 0.0, _POINTS,
               lambda of: _larger(of, "row5", "row2", "row1")),
    Comparison("activation", "size of the change of validation accuracy, DenseNet-121 for "
               "ResNet-50 − GELU for ReLU in ResNet-50 (architecture is the more critical)",
               ("row5", "row4", "row3"), "above", 0.0, _POINTS,
               lambda of: _larger(of, "row5", "row4", "row3")),
    Comparison("activation", "ResNet-50, GELU − ReLU, validation accuracy (no better)",
               ("row4", "row3"), "below", 0.0, _POINTS, _accuracy("row4", "row3")),
    Comparison("regularization", "the worse of L1 and L2 − none, validation accuracy",
               ("row11", "row12", "row8"), "below", 0.0, _POINTS,
               lambda of: min(_accuracy("row11", "row8")(of), _accuracy("row12", "row8")(of))),
    Comparison("efficiency", "DenseNet-121 − ResNet-18, validation accuracy, with "
               f"{_ratio_text('row5', 'row1')} (similar: no more than half a point less)",
               ("row5", "row1"), "above", -0.005, _POINTS, _accuracy("row5", "row1")),
    Comparison("BatchNorm", "with − without BN, validation accuracy, mean of the four learning "
               "rates", WITH_BN + WITHOUT_BN, "above", 0.0, _POINTS,
               _accuracy("with BN", "without BN")),
    Comparison("BatchNorm", "with − without BN, validation loss, mean of the four learning rates",
               WITH_BN + WITHOUT_BN, "below", 0.0, _NATS, _loss("with BN", "without BN")),
    Comparison("smoothing", "with − without BN, gap of the training loss between the best and the "
               f"worst learning rate, mean over steps (loss smoothed over {SMOOTHING_STEPS})",
               WITH_BN + WITHOUT_BN, "below", 0.0, _NATS,
               lambda of: difference(of("with BN", "loss gap"), of("without BN", "loss gap"))),
    Comparison("smoothing", "with − without BN, gap of the validation accuracy between the best "
               "and the worst learning rate", WITH_BN + WITHOUT_BN, "below", 0.0, _POINTS,
               lambda of: difference(of("with BN", "accuracy gap"),
                                     of("without BN", "accuracy gap"))),
)  # fmt: skip


# --- where the values come from ---------------------------------------------------------------


def values_of_runs(rows: dict[str, list[Run]]) -> Values:
    """Returns the quantities of finished runs, at each one's best epoch."""

    def of(row: str, quantity: str) -> Sequence[float]:
        if row not in _GROUPS:
            return [_quantity(run.best, quantity) for run in finished(rows[row])]
        by_rate = [{run.seed: run for run in finished(rows[name])} for name in _GROUPS[row]]
        seeds = sorted(set.intersection(*map(set, by_rate)))
        if quantity == "loss gap":
            curves = [loss_curves(rows, _GROUPS[row], seed, SMOOTHING_STEPS) for seed in seeds]
            return [float(np.mean(np.ptp(c, axis=0))) for c in curves if c is not None]
        return [_of_group([runs[seed].best for runs in by_rate], quantity) for seed in seeds]

    return of


def _value_of_report(row: str, quantity: str) -> Sequence[float]:
    if quantity == "loss gap":
        return [math.nan]  # a picture, no number
    if row in _GROUPS:
        return [_of_group([ROWS[name]._asdict() for name in _GROUPS[row]], quantity)]
    return [_quantity(ROWS[row]._asdict(), quantity)]


def _of_group(records: list[dict[str, Any]], quantity: str) -> float:
    if quantity == "accuracy gap":
        return float(np.ptp([record["val_accuracy"] for record in records]))
    return float(np.mean([_quantity(record, quantity) for record in records]))


def _quantity(record: dict[str, Any], quantity: str) -> float:
    if quantity == "gap":
        return record["train_accuracy"] - record["val_accuracy"]
    return record[quantity]


# --- verdicts ---------------------------------------------------------------------------------


def verdict(effect: Estimate, expected: str, bound: float) -> str:
    """Returns "supported", "contradicted" or "undecided" by the 95% interval."""
    low, high = effect.mean - effect.half, effect.mean + effect.half
    if not effect.half > 0:  # one seed; or equal values, as of networks that learned nothing
        return "undecided"
    inside, outside = {
        "above": (low > bound, high < bound),
        "below": (high < bound, low > bound),
        "within": (-bound < low and high < bound, high < -bound or low > bound),
        "not": (high < bound or low > bound, False),
    }[expected]
    return "supported" if inside else "contradicted" if outside else "undecided"


def agrees(mean: float, expected: str, bound: float) -> bool:
    """Whether a mean alone lies on the report's side."""
    sides = {"above": mean > bound, "below": mean < bound, "within": abs(mean) < bound}
    return sides.get(expected, mean != bound)


def judge(rows: dict[str, list[Run]]) -> list[dict[str, Any]]:
    """Returns a record for each comparison, JSON-ready; "effect" is None without its runs."""
    of = values_of_runs(rows)
    found = []
    for item in COMPARISONS:
        report = item.effect(_value_of_report).mean
        record: dict[str, Any] = {
            "claim": CLAIMS[item.claim],
            "comparison": item.text,
            "rows": item.rows,
            "expected": item.expected,
            "bound": item.bound,
            "unit": item.unit,
            "report": None if math.isnan(report) else report,
            "effect": None,
        }
        if missing := [name for name in item.rows if not finished(rows.get(name, []))]:
            found.append(record | {"verdict": "no runs", "missing": missing})
            continue
        effect = item.effect(of)
        if math.isnan(effect.mean):
            found.append(record | {"verdict": "no runs", "missing": ["a seed that all have"]})
            continue
        alike = len({tuple(rows[name][0].shortened) for name in item.rows}) == 1
        word = verdict(effect, item.expected, item.bound) if alike else "undecided"
        known = not math.isnan(effect.half)
        found.append({
            **record,
            "effect": effect.mean,
            "interval": [effect.mean - effect.half, effect.mean + effect.half] if known else None,
            "n": effect.n,
            "notes": {name: rows[name][0].mark for name in item.rows if rows[name][0].mark},
            "alike": alike,
            "agrees": agrees(effect.mean, item.expected, item.bound),
            "verdict": word,
        })  # fmt: skip
    return found


# --- words ------------------------------------------------------------------------------------


def _show(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    if unit == _NATS:
        return f"{value:+.4f}"
    return f"{100 * value:+.2f}" if unit == _POINTS else f"{value:.2%}"


def describe(record: dict[str, Any]) -> dict[str, str]:
    """Returns the cells of a judged comparison."""
    unit = record["unit"]
    bound = _show(record["bound"], unit) if record["bound"] else "0"
    if record["expected"] == "within":
        bound = bound.replace("+", "±")
    if record["effect"] is None:
        ours = f"no finished run of {', '.join(record['missing'])}"
        interval = "–"
    else:
        ours = _show(record["effect"], unit) + (f" {unit}" if unit else "")
        interval = "–"
        if record["interval"]:
            interval = " … ".join(_show(end, unit) for end in record["interval"])
    word = record["verdict"]
    if word == "undecided":
        side = "on the report's side" if record["agrees"] else "on the other side"
        why = ", one seed" if record["n"] == 1 else ""
        why = why if record["alike"] else ", but trained for different lengths"
        word = f"undecided ({side}{why})"
    if record.get("notes"):
        word += " †"
    return {
        "Comparison": record["comparison"],
        "Expected": f"{record['expected']} {bound}",
        "Ours": ours,
        "95% interval": interval,
        "In the report": _show(record["report"], unit),
        "Verdict": word,
    }


def markdown(records: list[dict[str, Any]], rows: dict[str, list[Run]]) -> str:
    """Returns the page of a sweep's verdicts."""
    parts = ["# The report's conclusions, tested\n"]
    parts += [f"**† {note}**\n" for note in notes(rows)]
    counts = [record["verdict"] for record in records]
    words = ("supported", "contradicted", "undecided", "no runs")
    parts.append(", ".join(f"{counts.count(word)} {word}" for word in words) + "\n")
    for claim in CLAIMS.values():
        lines = [describe(record) for record in records if record["claim"] == claim]
        parts.append(f"## {claim}\n")
        parts.append("| " + " | ".join(lines[0]) + " |")
        parts.append("| " + " | ".join("---" for _ in lines[0]) + " |")
        parts += ["| " + " | ".join(line.values()) + " |" for line in lines]
        parts.append("")
    return "\n".join(parts)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.claims",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=pathlib.Path, help="a sweep's folder, or one above several")
    for sweep, rows in finished_sweeps(parser.parse_args(argv).folder).items():
        records = judge(rows)
        text = markdown(records, rows)
        metrics.write_json(sweep / "claims.json", records)
        (sweep / "claims.md").write_text(text)
        print(text)
        print(f"wrote {sweep / 'claims.md'} and claims.json")


if __name__ == "__main__":
    sys.exit(exit_code(main))
