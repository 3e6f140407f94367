"""Tests the original report's conclusions against runs.

Each conclusion is restated as comparisons of runs, and each of these is called

- supported: the whole 95% interval over seeds lies on the original's side,
- contradicted: it lies wholly on the other,
- undecided: neither, or there is no interval, as with one seed, or the rows differ in length,
  options, images or dtype. That there is an influence ("not 0") cannot be contradicted.

Runs that were shortened, changed by options, or trained on other images than the official ones are
compared among themselves. What they show is marked † and counted apart, because it does not test
what the original concluded. Unfinished runs do not count; they are named, because leaving out seeds
that diverged may decide a comparison.

The same comparison of the original's own table stands beside it, and for what is undecided the
number of seeds that would probably decide it (see `experiments.report.power`). (Of width, one of
its factors, the original draws no conclusion.) Runs of other configs are ignored.
"""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report import power
from experiments.runs.provenance import provenance
from experiments.runs.read import Run, Sweep
from experiments.runs.rows import ROWS, WITH_BN, WITHOUT_BN
from experiments.runs.stats import Contrast, Estimate, Sample, contrast, difference, estimate
from experiments.runs.table import Table
from jaxcifar.errors import UserError
from jaxcifar.files import replace, write_json

SMOOTHING_STEPS = 20  # of the loss curves whose gap between learning rates is measured

_POINTS, _NATS = "points", "nats"
_QUANTITIES = {  # in words, and the unit of their differences
    "val_accuracy": ("validation accuracy", _POINTS),
    "val_loss": ("validation loss", _NATS),
    "train_loss": ("training loss", _NATS),
    "over-fitting": (
        "over-fitting (training accuracy, on augmented images, − validation accuracy)",
        _POINTS,
    ),
    # Of a group:
    "accuracy gap": (
        "gap of the validation accuracy between the best and the worst learning rate",
        _POINTS,
    ),
    "loss gap": (
        "gap of the training loss between the best and the worst learning rate, median over steps "
        f"(loss smoothed over {SMOOTHING_STEPS})",
        _NATS,
    ),
}
_GROUPS = {"with BN": WITH_BN, "without BN": WITHOUT_BN}  # one row at each learning rate
_HALF_A_POINT = 0.005


class Comparison(NamedTuple):
    """One number that a conclusion says something about."""

    text: str  # what the number is
    terms: tuple[tuple[str, str], ...]  # (row or group, quantity) that it is computed from
    effect: Callable[..., Estimate | Contrast]  # of a sample for each term
    expected: str  # "above", "below", "within" or "not"
    bound: float  # … this; "within" is of ± this
    unit: str

    @property
    def rows(self) -> tuple[str, ...]:
        """The rows whose runs it takes."""
        return tuple(row for name, _ in self.terms for row in _members(name))


def _members(name: str) -> tuple[str, ...]:
    """Returns the rows of a group; a row is a group of one."""
    return _GROUPS.get(name, (name,))


def _level(row: str, percent: int) -> Comparison:
    """Compares a row's validation accuracy with a number."""
    words, _ = _QUANTITIES["val_accuracy"]
    text = f"{words} of row {ROWS[row].number} (read as: above {percent}%)"
    return Comparison(text, ((row, "val_accuracy"),), estimate, "above", percent / 100, "")


def _change(
    what: str,
    one: str,
    other: str,
    expected: str,
    bound: float = 0.0,
    *,
    quantity: str = "val_accuracy",
    reading: str = "",
) -> Comparison:
    """Compares a quantity of one row, or group of rows, with that of another."""
    words, unit = _QUANTITIES[quantity]
    terms = (one, quantity), (other, quantity)
    return Comparison(f"{what}, {words}{reading}", terms, difference, expected, bound, unit)


def _larger_change(what: str, one: str, other: str, base: str) -> Comparison:
    """Compares the size of the change from `base` to `one` with that to `other`."""
    words, unit = _QUANTITIES["val_accuracy"]
    terms = tuple((row, "val_accuracy") for row in (one, other, base))
    text = f"size of the change of {words}, {what} (architecture is the more critical)"
    return Comparison(text, terms, larger, "above", 0.0, unit)


def larger(one: Sample, other: Sample, base: Sample) -> Contrast:
    """Returns |one − base| − |other − base|; the signs are those of the mean differences."""
    signs = [np.copysign(1, difference(values, base).mean) for values in (one, other)]
    return contrast((signs[0], one), (-signs[1], other), (signs[1] - signs[0], base))


def _share(a: str, b: str) -> str:
    sizes = [float(ROWS[name].size.removesuffix("M")) for name in (a, b)]
    return f", with {sizes[0] / sizes[1]:.2f} of the parameters"


_NOT_WORSE = "no more than half a point less"
_INFLUENCE = " (an influence)"

CLAIMS = {
    "ResNet achieves favorable accuracy (1, 2, 3, 4).": tuple(
        _level(row, 92) for row in ("row1", "row2", "row3", "row4")
    ),
    "Increasing the depth of the models can lower the loss and increase the accuracy (1–3, 2–4).": (
        _change("ResNet-50 − ResNet-18, ReLU", "row3", "row1", "above"),
        _change("ResNet-50 − ResNet-18, GELU", "row4", "row2", "above"),
        _change("ResNet-50 − ResNet-18, ReLU", "row3", "row1", "below", quantity="val_loss"),
        _change("ResNet-50 − ResNet-18, GELU", "row4", "row2", "below", quantity="val_loss"),
    ),
    "With model architecture unchanged, the effect becomes marginal with increasing "
    "depth, and leads to risks of over-fitting (6–7).": (
        _change(
            *("DenseNet-264 − 201", "row7", "row6", "within", _HALF_A_POINT),
            reading=" (marginal: within half a point)",
        ),
        _change("DenseNet-264 − 201", "row7", "row6", "above", quantity="over-fitting"),
    ),
    "Models with better architecture can achieve better or comparable performance "
    "with less parameters (3–5).": (
        _change(
            *("DenseNet-121 − ResNet-50", "row5", "row3", "above", -_HALF_A_POINT),
            reading=f"{_share('row5', 'row3')} (comparable: {_NOT_WORSE})",
        ),
    ),
    "Extensive augmentation increases training loss, but mitigates over-fitting, "
    "finally leading to a higher accuracy rate (6–8).": (
        _change("strong − weak", "row8", "row6", "above", quantity="train_loss"),
        _change("strong − weak", "row8", "row6", "below", quantity="over-fitting"),
        _change("strong − weak", "row8", "row6", "above"),
    ),
    "Activation functions have an influence, although it is not as critical as model "
    "architecture (1–2, 3–4); a more complicated one does not guarantee better performance "
    "(3–4).": (
        _change("ResNet-18, GELU − ReLU", "row2", "row1", "not", reading=_INFLUENCE),
        _change("ResNet-50, GELU − ReLU", "row4", "row3", "not", reading=_INFLUENCE),
        _larger_change(
            "DenseNet-121 for ResNet-18 − GELU for ReLU in ResNet-18",
            *("row5", "row2", "row1"),
        ),
        _larger_change(
            "DenseNet-121 for ResNet-50 − GELU for ReLU in ResNet-50",
            *("row5", "row4", "row3"),
        ),
        _change(
            *("ResNet-50, GELU − ReLU", "row4", "row3", "below"),
            reading=" (not better; here: worse)",
        ),
    ),
    "Inappropriate regularization sometimes hurts the model. (Of the two "
    "comparisons one is enough. The original names 8–9, which differ in activation; its "
    "regularized rows are 11 and 12.)": (
        _change("L1 − none", "row11", "row8", "below"),
        _change("L2 − none", "row12", "row8", "below"),
    ),
    "DenseNet achieves a similar score with ResNet with 1/3 to 1/6 parameters.": (
        _change(
            *("DenseNet-121 − ResNet-18", "row5", "row1", "above", -_HALF_A_POINT),
            reading=f"{_share('row5', 'row1')} (similar: {_NOT_WORSE})",
        ),
    ),
    "Batch normalization improves VGG-A (shown by Table 4, though not stated).": tuple(
        _change(
            *("with − without BN", "with BN", "without BN", expected),
            quantity=quantity,
            reading=", mean of the four learning rates",
        )
        for quantity, expected in (("val_accuracy", "above"), ("val_loss", "below"))
    ),
    "BatchNorm makes training less sensitive to the learning rate, narrowing the gap "
    "of loss value between the best and worst learning rate (Fig. 5).": tuple(
        _change("with − without BN", "with BN", "without BN", "below", quantity=quantity)
        for quantity in ("loss gap", "accuracy gap")
    ),
}


# --- samples of the terms ---------------------------------------------------------------------


def _by_seed(done: Sweep, name: str) -> dict[int, list[Run]]:
    """Returns a run of each of a group's rows for each seed that all of them have."""
    by_row = [{run.seed: run for run in done.of(row)} for row in _members(name)]
    seeds = sorted(set.intersection(*map(set, by_row)))
    return {seed: [runs[seed] for runs in by_row] for seed in seeds}


def _sample(done: Sweep, name: str, quantity: str) -> list[float]:
    """Returns a quantity of finished runs at each one's best epoch, one value for each seed."""
    by_seed = _by_seed(done, name)
    if quantity == "loss gap":
        gaps = [_loss_gaps(done, name, seed) for seed in by_seed]
        # Not the mean: a single loss of 120 among the first steps would decide it.
        return [float(np.median(of_steps)) for of_steps in gaps if of_steps is not None]
    return [_quantity([run.best for run in runs], quantity) for runs in by_seed.values()]


def _by_epoch(done: Sweep, name: str, quantity: str) -> list[float]:
    """Returns a quantity of one seed's finished runs after each epoch; [] without such a seed."""
    for seed, runs in _by_seed(done, name).items():
        of_epochs = list(zip(*(run.records for run in runs), strict=False))
        if quantity != "loss gap":
            return [_quantity(records, quantity) for records in of_epochs]
        gaps = _loss_gaps(done, name, seed)
        if gaps is not None:
            return [float(np.median(part)) for part in np.array_split(gaps, len(of_epochs))]
    return []


def _original(name: str, quantity: str) -> list[float]:
    """Returns what the original report printed, as a sample of one."""
    if quantity == "loss gap":
        return [math.nan]  # a picture, no number
    return [_quantity([ROWS[row]._asdict() for row in _members(name)], quantity)]


def _loss_gaps(done: Sweep, name: str, seed: int) -> np.ndarray | None:
    """Returns the gap of a group's smoothed training losses at each step; None without them."""
    curves = done.loss_curves(_members(name), seed, SMOOTHING_STEPS)
    return None if curves is None else np.ptp(curves, axis=0)


def _quantity(records: Sequence[dict[str, Any]], quantity: str) -> float:
    """Returns a quantity of a group, of the record of each of its rows: the mean, or the gap."""
    if quantity == "accuracy gap":
        return float(np.ptp([record["val_accuracy"] for record in records]))
    if quantity == "over-fitting":
        return float(np.mean([r["train_accuracy"] - r["val_accuracy"] for r in records]))
    return float(np.mean([record[quantity] for record in records]))


def _seeds_needed(item: Comparison, done: Sweep) -> tuple[int | None, str]:
    """Returns `power.seeds_needed` of a comparison, and what the spread was taken from.

    That is "seeds", "epochs", or "" where it cannot be told.
    """
    samples = [_sample(done, *term) for term in item.terms]
    moments = []
    for term, values in zip(item.terms, samples, strict=True):
        mean, std, _, n = estimate(values)
        if n == 1:
            std = power.spread_between_epochs(_by_epoch(done, *term))
        if std is None:
            return None, ""
        moments.append((mean, float(std)))

    def chance_of(n: int) -> float:
        drawn = [power.imagined(*each, n, stream) for stream, each in enumerate(moments)]
        effect = item.effect(*drawn)
        inside, outside = _sides(effect, item.expected, item.bound)
        return float(np.mean((inside | outside) & (effect.half > 0)))

    one_seed = any(len(values) == 1 for values in samples)
    return power.seeds_needed(chance_of), "epochs" if one_seed else "seeds"


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


def _conditions(run: Run) -> tuple[Any, ...]:
    """What must be the same in runs that are compared, besides what makes their rows."""
    images = {part: facts["sha256"] for part, facts in run.data.items()}
    return run.mark, tuple(sorted(images.items())), run.environment["dtype"]


def judge(sweep: Sweep) -> list[dict[str, Any]]:
    """Returns a record for each comparison, JSON-ready; "effect" is None without its runs."""
    done = sweep.finished
    return [
        {"claim": claim, **_judged(item, done)}
        for claim, comparisons in CLAIMS.items()
        for item in comparisons
    ]


def _judged(item: Comparison, done: Sweep) -> dict[str, Any]:
    printed = item.effect(*(_original(*term) for term in item.terms)).mean
    record: dict[str, Any] = {
        "comparison": item.text,
        "rows": item.rows,
        "expected": item.expected,
        "bound": item.bound,
        "unit": item.unit,
        "original": None if math.isnan(printed) else printed,
        "effect": None,
    }
    if missing := [name for name in item.rows if not done.of(name)]:
        return record | {"verdict": "no runs", "missing": missing}
    try:
        effect = item.effect(*(_sample(done, *term) for term in item.terms))
    except UserError as error:
        return record | {"verdict": "no runs", "damage": str(error)}
    if math.isnan(effect.mean):
        logged = f", with as many steps (at least {SMOOTHING_STEPS}) in steps.jsonl"
        logged = logged if any(of == "loss gap" for _, of in item.terms) else ""
        return record | {"verdict": "no runs", "missing": [f"a seed that all have{logged}"]}
    alike = len({_conditions(done.of(name)[0]) for name in item.rows}) == 1
    word = verdict(effect, item.expected, item.bound) if alike else "undecided"
    known = not math.isnan(effect.half)
    record |= {
        "effect": effect.mean,
        "interval": [effect.mean - effect.half, effect.mean + effect.half] if known else None,
        "n": effect.n,
        "notes": {name: done.mark(name) for name in item.rows if done.mark(name)},
        "alike": alike,
        "agrees": agrees(effect.mean, item.expected, item.bound),
        "verdict": word,
    }
    if word == "undecided" and alike:
        record["seeds_needed"], record["spread"] = _seeds_needed(item, done)
    return record


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
        damage, missing = record.get("damage"), record.get("missing", [])
        ours = damage or f"no finished run of {', '.join(missing)}"
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
        "Seeds": str(record.get("n", "–")),
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


def write(sweep: Sweep) -> list[pathlib.Path]:
    """Writes the verdicts beside the sweep's runs; returns the files, [] without a run of a row."""
    if not sweep.rows.runs:
        return []
    records = judge(sweep)
    paths = [sweep.folder / "claims.md", sweep.folder / "claims.json"]
    replace(paths[0], markdown(records, sweep))
    write_json(paths[1], records)
    return paths


def markdown(records: list[dict[str, Any]], sweep: Sweep) -> str:
    """Returns the page of a sweep's verdicts."""
    parts = ["# The original report's conclusions, tested\n"]
    rows = sweep.rows
    parts += [f"**† {note}**\n" for note in rows.finished.notes]
    parts += [f"{line}\n" for line in (*summary(records), *seeds_explained(records))]
    if unfinished := rows.unfinished:
        parts += ["## Not finished, and left out\n", *(f"- {run}" for run in unfinished), ""]
    parts += [f"## {table.title}\n\n{table.markdown()}\n" for table in tables(records)]
    facts = [f"- {line}" for line in provenance(rows.finished.runs)]
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
