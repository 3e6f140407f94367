"""Tests the original report's conclusions against runs.

Each conclusion is restated as comparisons of runs, and each of these is called

- supported: the whole 95% interval over seeds lies on the original's side,
- contradicted: it lies wholly on the other,
- undecided: neither, or there is no interval, as with one seed, or the rows differ in length,
  options, images or dtype. That there is an influence ("not 0") cannot be contradicted.

Runs that were shortened, or changed by options, are compared among themselves. What they show is
marked † and counted apart, because it does not test what the original concluded from full runs.

The same comparison of the original's own table stands beside it, and for what is undecided the
number of seeds that would probably decide it (see `experiments.report.power`). (Of width, one of
its factors, the original draws no conclusion.) Runs of other configs are ignored.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report import power
from experiments.runs.provenance import provenance
from experiments.runs.read import Run, Sweep
from experiments.runs.rows import ROWS, WITH_BN, WITHOUT_BN
from experiments.runs.stats import Contrast, Estimate, contrast, difference, estimate
from experiments.runs.table import Table

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
    effect: Callable[[Values], Estimate | Contrast]


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
    "regularization": "Inappropriate regularization sometimes hurts the model. (Of the two "
    "comparisons one is enough. The original names 8–9, which differ in activation; its "
    "regularized rows are 11 and 12.)",
    "efficiency": "DenseNet achieves a similar score with ResNet with 1/3 to 1/6 parameters.",
    "BatchNorm": "Batch normalization improves VGG-A (shown by Table 4, though not stated).",
    "smoothing": "BatchNorm makes training less sensitive to the learning rate, narrowing the gap "
    "of loss value between the best and worst learning rate (Fig. 5).",
}


_POINTS, _NATS = "points", "nats"
_UNITS = {
    "val_accuracy": _POINTS,
    "gap": _POINTS,
    "val_loss": _NATS,
    "train_loss": _NATS,
    "loss gap": _NATS,
    "accuracy gap": _POINTS,
}
_GROUPS = {"with BN": WITH_BN, "without BN": WITHOUT_BN}  # one row at each learning rate
_HALF_A_POINT = 0.005


def _level(claim: str, row: str, percent: int) -> Comparison:
    """Compares a row's validation accuracy with a number."""
    text = f"validation accuracy of row {ROWS[row].number} (read as: above {percent}%)"

    def effect(of: Values) -> Estimate:
        return estimate(of(row, "val_accuracy"))

    return Comparison(claim, text, (row,), "above", percent / 100, "", effect)


def _change(
    claim: str,
    text: str,
    rows: tuple[str, str],
    expected: str,
    bound: float = 0.0,
    quantity: str = "val_accuracy",
) -> Comparison:
    """Compares a quantity of one row, or group of rows, with that of another."""
    one, other = rows

    def effect(of: Values) -> Contrast:
        return difference(of(one, quantity), of(other, quantity))

    members = tuple(row for name in rows for row in _GROUPS.get(name, (name,)))
    return Comparison(claim, text, members, expected, bound, _UNITS[quantity], effect)


def larger(of: Values, one: str, other: str, base: str) -> Contrast:
    """|one − base| − |other − base| of validation accuracies; the signs are those of the means."""
    values = {row: of(row, "val_accuracy") for row in (one, other, base)}
    signs = [np.copysign(1, difference(values[row], values[base]).mean) for row in (one, other)]
    return contrast(
        (signs[0], values[one]), (-signs[1], values[other]), (signs[1] - signs[0], values[base])
    )


def _larger_change(claim: str, text: str, one: str, other: str, base: str) -> Comparison:
    """Compares the size of the change from `base` to `one` with that to `other`."""
    rows = (one, other, base)
    return Comparison(claim, text, rows, "above", 0.0, _POINTS, lambda of: larger(of, *rows))


def _share(a: str, b: str) -> str:
    sizes = [float(ROWS[name].size.removesuffix("M")) for name in (a, b)]
    return f"{sizes[0] / sizes[1]:.2f} of the parameters"


_OVER_FITTING = "over-fitting (training accuracy, on augmented images, − validation accuracy)"
_NOT_WORSE = "no more than half a point less"
_CRITICAL = "(architecture is the more critical)"
_BN = ("with BN", "without BN")

COMPARISONS = (
    *(_level("ResNet", row, 92) for row in ("row1", "row2", "row3", "row4")),
    _change(
        "depth",
        "ResNet-50 − ResNet-18, ReLU, validation accuracy",
        ("row3", "row1"),
        "above",
    ),
    _change(
        "depth",
        "ResNet-50 − ResNet-18, GELU, validation accuracy",
        ("row4", "row2"),
        "above",
    ),
    _change(
        "depth",
        "ResNet-50 − ResNet-18, ReLU, validation loss",
        ("row3", "row1"),
        "below",
        quantity="val_loss",
    ),
    _change(
        "depth",
        "ResNet-50 − ResNet-18, GELU, validation loss",
        ("row4", "row2"),
        "below",
        quantity="val_loss",
    ),
    _change(
        "more depth",
        "DenseNet-264 − 201, validation accuracy (marginal: within half a point)",
        ("row7", "row6"),
        "within",
        _HALF_A_POINT,
    ),
    _change(
        "more depth",
        f"DenseNet-264 − 201, {_OVER_FITTING}",
        ("row7", "row6"),
        "above",
        quantity="gap",
    ),
    _change(
        "architecture",
        f"DenseNet-121 − ResNet-50, validation accuracy, with {_share('row5', 'row3')} "
        f"(comparable: {_NOT_WORSE})",
        ("row5", "row3"),
        "above",
        -_HALF_A_POINT,
    ),
    _change(
        "augmentation",
        "strong − weak, training loss",
        ("row8", "row6"),
        "above",
        quantity="train_loss",
    ),
    _change(
        "augmentation",
        f"strong − weak, {_OVER_FITTING}",
        ("row8", "row6"),
        "below",
        quantity="gap",
    ),
    _change("augmentation", "strong − weak, validation accuracy", ("row8", "row6"), "above"),
    _change(
        "activation",
        "ResNet-18, GELU − ReLU, validation accuracy (an influence)",
        ("row2", "row1"),
        "not",
    ),
    _change(
        "activation",
        "ResNet-50, GELU − ReLU, validation accuracy (an influence)",
        ("row4", "row3"),
        "not",
    ),
    _larger_change(
        "activation",
        "size of the change of validation accuracy, DenseNet-121 for ResNet-18 − GELU for ReLU in "
        f"ResNet-18 {_CRITICAL}",
        "row5",
        "row2",
        "row1",
    ),
    _larger_change(
        "activation",
        "size of the change of validation accuracy, DenseNet-121 for ResNet-50 − GELU for ReLU in "
        f"ResNet-50 {_CRITICAL}",
        "row5",
        "row4",
        "row3",
    ),
    _change(
        "activation",
        "ResNet-50, GELU − ReLU, validation accuracy (not better; here: worse)",
        ("row4", "row3"),
        "below",
    ),
    _change("regularization", "L1 − none, validation accuracy", ("row11", "row8"), "below"),
    _change("regularization", "L2 − none, validation accuracy", ("row12", "row8"), "below"),
    _change(
        "efficiency",
        f"DenseNet-121 − ResNet-18, validation accuracy, with {_share('row5', 'row1')} "
        f"(similar: {_NOT_WORSE})",
        ("row5", "row1"),
        "above",
        -_HALF_A_POINT,
    ),
    _change(
        "BatchNorm",
        "with − without BN, validation accuracy, mean of the four learning rates",
        _BN,
        "above",
    ),
    _change(
        "BatchNorm",
        "with − without BN, validation loss, mean of the four learning rates",
        _BN,
        "below",
        quantity="val_loss",
    ),
    _change(
        "smoothing",
        "with − without BN, gap of the training loss between the best and the worst learning rate, "
        f"median over steps (loss smoothed over {SMOOTHING_STEPS})",
        _BN,
        "below",
        quantity="loss gap",
    ),
    _change(
        "smoothing",
        "with − without BN, gap of the validation accuracy between the best and the worst learning "
        "rate",
        _BN,
        "below",
        quantity="accuracy gap",
    ),
)


# --- where the values come from ---------------------------------------------------------------


def values_of_runs(sweep: Sweep) -> Values:
    """Returns the quantities of finished runs, at each one's best epoch."""
    done = sweep.finished

    def of(row: str, quantity: str) -> Sequence[float]:
        if row not in _GROUPS:
            return [_quantity(run.best, quantity) for run in done.of(row)]
        by_rate = [{run.seed: run for run in done.of(name)} for name in _GROUPS[row]]
        seeds = sorted(set.intersection(*map(set, by_rate)))
        if quantity == "loss gap":
            curves = [done.loss_curves(_GROUPS[row], seed, SMOOTHING_STEPS) for seed in seeds]
            # Not the mean: a single loss of 120 among the first steps would decide it.
            return [float(np.median(np.ptp(c, axis=0))) for c in curves if c is not None]
        return [_of_group([runs[seed].best for runs in by_rate], quantity) for seed in seeds]

    return of


def _by_epoch(done: Sweep, row: str, quantity: str) -> Sequence[float]:
    """Returns a quantity of one seed's finished runs after each epoch; [] without such a seed."""
    if row not in _GROUPS:
        return [_quantity(record, quantity) for record in done.of(row)[0].records]
    members = [{run.seed: run for run in done.of(name)} for name in _GROUPS[row]]
    for seed in sorted(set.intersection(*map(set, members))):
        of_each = [runs[seed].records for runs in members]
        if quantity != "loss gap":
            return [_of_group(list(records), quantity) for records in zip(*of_each, strict=False)]
        curves = done.loss_curves(_GROUPS[row], seed, SMOOTHING_STEPS)
        if curves is not None:
            epochs = np.array_split(np.ptp(curves, axis=0), len(of_each[0]))
            return [float(np.median(gaps)) for gaps in epochs]
    return []


def _seeds_needed(item: Comparison, done: Sweep, of: Values) -> tuple[int | None, str]:
    """Returns `power.seeds_needed` of a comparison, and what the spread was taken from.

    That is "seeds", "epochs", or "" where it cannot be told.
    """
    found: dict[tuple[str, str], Sequence[float]] = {}

    def noting(row: str, quantity: str) -> Sequence[float]:
        found[row, quantity] = of(row, quantity)
        return found[row, quantity]

    item.effect(noting)  # asks for all that it takes
    moments = {}
    for key, values in found.items():
        seeds = len(values) > 1
        std = (
            np.std(values, ddof=1) if seeds else power.spread_between_epochs(_by_epoch(done, *key))
        )
        if std is None:
            return None, ""
        moments[key] = float(np.mean(values)), float(std)

    streams = {key: number for number, key in enumerate(moments)}

    def chance_of(n: int) -> float:
        effect = item.effect(lambda *key: power.imagined(*moments[key], n, streams[key]))
        inside, outside = _sides(effect, item.expected, item.bound)
        return float(np.mean(inside | outside))

    one_seed = any(len(values) == 1 for values in found.values())
    return power.seeds_needed(chance_of), "epochs" if one_seed else "seeds"


def _value_of_original(row: str, quantity: str) -> Sequence[float]:
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


def verdict(effect: Estimate | Contrast, expected: str, bound: float) -> str:
    """Returns "supported", "contradicted" or "undecided" by the 95% interval."""
    if not effect.half > 0:  # one seed; or equal values, as of networks that learned nothing
        return "undecided"
    inside, outside = _sides(effect, expected, bound)
    return "supported" if inside else "contradicted" if outside else "undecided"


def _sides(effect: Estimate | Contrast, expected: str, bound: float) -> tuple[Any, Any]:
    """Whether the interval, or each of many, lies wholly on the original's, or the other side."""
    low, high = effect.mean - effect.half, effect.mean + effect.half
    if expected == "within":
        return (low > -bound) & (high < bound), (high < -bound) | (low > bound)
    above, below = low > bound, high < bound
    sides = {
        "above": (above, below),
        "below": (below, above),
        "not": (above | below, above & below),
    }
    return sides[expected]


def agrees(mean: float, expected: str, bound: float) -> bool | None:
    """Whether a mean alone lies on the original's side; None where both sides are."""
    sides = {"above": mean > bound, "below": mean < bound, "within": abs(mean) < bound}
    return sides.get(expected)


def _terms(run: Run) -> tuple:
    """What must be the same in runs that are compared, beside what makes their rows."""
    images = {part: facts["sha256"] for part, facts in run.data.items()}
    return run.mark, tuple(sorted(images.items())), run.environment["dtype"]


def judge(sweep: Sweep) -> list[dict[str, Any]]:
    """Returns a record for each comparison, JSON-ready; "effect" is None without its runs."""
    done, of = sweep.finished, values_of_runs(sweep)
    found = []
    for item in COMPARISONS:
        printed = item.effect(_value_of_original).mean
        record: dict[str, Any] = {
            "claim": CLAIMS[item.claim],
            "comparison": item.text,
            "rows": item.rows,
            "expected": item.expected,
            "bound": item.bound,
            "unit": item.unit,
            "original": None if math.isnan(printed) else printed,
            "effect": None,
        }
        if missing := [name for name in item.rows if not done.of(name)]:
            found.append(record | {"verdict": "no runs", "missing": missing})
            continue
        effect = item.effect(of)
        if math.isnan(effect.mean):
            found.append(record | {"verdict": "no runs", "missing": ["a seed that all have"]})
            continue
        alike = len({_terms(sweep.of(name)[0]) for name in item.rows}) == 1
        word = verdict(effect, item.expected, item.bound) if alike else "undecided"
        known = not math.isnan(effect.half)
        judged = {
            "effect": effect.mean,
            "interval": [effect.mean - effect.half, effect.mean + effect.half] if known else None,
            "n": effect.n,
            "notes": {name: sweep.mark(name) for name in item.rows if sweep.mark(name)},
            "alike": alike,
            "agrees": agrees(effect.mean, item.expected, item.bound),
            "verdict": word,
        }
        if word == "undecided" and alike:
            judged["seeds_needed"], judged["spread"] = _seeds_needed(item, done, of)
        found.append(record | judged)
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
        sides = {True: "on the original's side", False: "on the other side", None: ""}
        why = "one seed" if record["n"] == 1 else ""
        why = why if record["alike"] else "of different lengths, options, images or dtypes"
        said = ", ".join(filter(None, [sides[record["agrees"]], why]))
        word = f"undecided ({said})" if said else "undecided"
    if record.get("notes"):
        word += " †"
    return {
        "Comparison": record["comparison"],
        "Expected": f"{record['expected']} {bound}",
        "Ours": ours,
        "95% interval": interval,
        "Original": _show(record["original"], unit),
        "Verdict": word,
        "Seeds needed": _seeds(record),
    }


def _seeds(record: dict[str, Any]) -> str:
    if not record.get("spread"):
        return "–"
    n = record["seeds_needed"]
    return ("≈ " if record["spread"] == "epochs" else "") + (
        f"> {power.MOST}" if n is None else str(n)
    )


def tables(records: list[dict[str, Any]]) -> list[Table]:
    """Returns a table for each conclusion that judged comparisons are of."""
    found = []
    for claim in dict.fromkeys(record["claim"] for record in records):
        lines = [describe(record) for record in records if record["claim"] == claim]
        found.append(Table(claim, list(lines[0]), [list(line.values()) for line in lines]))
    return found


def markdown(records: list[dict[str, Any]], sweep: Sweep) -> str:
    """Returns the page of a sweep's verdicts."""
    parts = ["# The original report's conclusions, tested\n"]
    parts += [f"**† {note}**\n" for note in sweep.rows.notes]
    parts += [f"{line}\n" for line in (*summary(records), *seeds_explained(records))]
    parts += [f"## {table.title}\n\n{table.markdown()}\n" for table in tables(records)]
    facts = [f"- {line}" for line in provenance(sweep.rows.runs)]
    return "\n".join([*parts, "## Where the numbers come from\n", *facts, ""])


def seeds_explained(records: list[dict[str, Any]]) -> list[str]:
    """Returns what the column "Seeds needed" means; [] where it has no numbers."""
    if not any(record.get("spread") for record in records):
        return []
    return [
        "Seeds needed: so many of each row would decide the comparison with a chance of "
        f"{power.POWER:.0%}, if effect and spread are those found. ≈: with one seed the spread "
        "is a guess from that between epochs, which is likely too small."
    ]


def summary(records: list[dict[str, Any]]) -> list[str]:
    """Returns lines that count the verdicts: those on the original's conclusions, and the rest."""
    words = ("supported", "contradicted", "undecided", "no runs")

    def counted(records: list[dict[str, Any]], words: Sequence[str]) -> str:
        verdicts = [record["verdict"] for record in records]
        return ", ".join(f"{verdicts.count(word)} {word}" for word in words)

    marked = [record for record in records if record.get("notes")]
    whole = [record for record in records if not record.get("notes")]
    lines = [f"{counted(whole, words)}."]
    if marked:
        lines.append(
            f"Of runs marked †, which do not test the conclusions: {counted(marked, words[:3])}."
        )
    if any(record.get("interval") for record in records):
        lines.append(
            "Each interval is of 95% by itself: of twenty comparisons about one misses the truth "
            "by chance."
        )
    return lines
