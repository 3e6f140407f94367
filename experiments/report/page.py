"""Builds one page of everything in a results folder: tables, claims, figures, landscapes.

It is one file, with its pictures inside, that needs no network. It shows what is there, and says
what is missing and which command makes it. The pictures are made before, by the commands `figures`
and `landscape`.
"""

import base64
import html
import pathlib
import re
import shlex
import time
from collections.abc import Sequence
from typing import Any

from experiments.landscape import gradient, slices
from experiments.report import claims, figures, pictures, tables
from experiments.runs.provenance import commands, provenance
from experiments.runs.read import Run, Sweep, sweeps
from experiments.runs.rows import ROWS
from experiments.runs.table import Table
from jaxcifar.errors import UserError
from jaxcifar.files import walk
from jaxcifar.run.machine import git_commit

CAPTIONS = {
    "fig2": "The original's Fig. 2: first-layer kernels, and the feature maps of one test image.",
    "fig3": "The original's Fig. 3: VGG-A without batch normalization.",
    "fig4": "The original's Fig. 4: VGG-A with batch normalization.",
    "fig5": "The original's Fig. 5: the training loss at four learning rates; the band is the gap "
    "between the best and the worst.",
    "history_row9": "The original's Fig. 1: DenseNet-201 with GELU and strong augmentation.",
    "accuracy": "Validation error against parameters and against training time.",
    "confusion": "Which classes are taken for which.",
    "classes": "The accuracy of each class.",
    "mistakes": "The most confident mistakes.",
    "augment": "What each augmentation does.",
}

ALONG_THE_GRADIENT = (
    "After Santurkar et al. 2018: along the gradient of each step's batch, the range of the loss, "
    "the range of the gradient's change, and its largest ratio to the distance."
)

STYLE = pathlib.Path(__file__).with_name("style.css")


# --- pieces -----------------------------------------------------------------------------------


def text(words: str) -> str:
    """Escapes words for HTML; what they have in backquotes becomes a <code> element."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))


def table(grid: Table) -> str:
    """Returns an HTML table that scrolls sideways where the window is narrow."""
    head = "".join(f"<th scope=col>{text(cell)}</th>" for cell in grid.header)
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in grid.lines)
    return (
        f"<div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(words: str) -> str:
    kind = words.split()[0] if words else ""
    if kind not in ("supported", "contradicted"):
        kind = "wrap" if len(words) > 40 else ""
    return f'<td class="{kind}">{text(words)}</td>' if kind else f"<td>{text(words)}</td>"


def picture(path: pathlib.Path, caption: str) -> str:
    """Returns a figure with the picture inside.

    Raises:
      UserError: the file is no picture, but, for example, a link to something private.
    """
    content = path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise UserError(
            f"{path} is not a PNG picture, and is left out. Delete it, or draw it again."
        )
    content = base64.b64encode(content).decode()
    return (
        f'<figure><img alt="{html.escape(caption, quote=True)}" '
        f'src="data:image/png;base64,{content}"><figcaption>{text(caption)}</figcaption></figure>'
    )


def _missing(lines: list[str]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<p>Missing here:</p><ul>{items}</ul>" if lines else ""


# --- sections ---------------------------------------------------------------------------------


def sweep_section(name: str, sweep: Sweep, judged: list[dict[str, Any]]) -> str:
    """Returns the section of one sweep; `judged` is what `claims.judge` returns for it."""
    parts = [f"<h2 id={_anchor(name)}>Runs in {html.escape(name)}</h2>"]
    for note in sweep.finished.notes:
        parts.append(f"<p class=warn>† {text(note)}. Not comparable with the original’s.</p>")
    missing = []
    for run in sweep.runs:
        if run.result is None:
            (command,) = commands(Sweep(sweep.folder, (run,)))
            known = not run.imported and not command.startswith("#")
            again = f" Start it again: `{command}`" if known else ""
            missing.append(f"{run.name}, seed {run.seed}: unfinished, {run.progress}.{again}")
    if sweep.finished.runs:
        for grid in tables.tables(sweep):
            parts += [f"<h3>{text(grid.title)}</h3>", table(grid)]
        parts.append(
            "<p class=soft>Mean ± standard deviation over seeds where there are several; 95% "
            "intervals of the mean by Student’s t; differences of accuracies in points. "
            f"{text(tables.CAVEATS)}</p>"
        )
        parts.append(_claims(judged))
        shown, absent = _figures(sweep)
        parts += [f"<h3>Figures</h3><div class=pictures>{shown}</div>" if shown else ""]
        missing += absent
    parts.append(_missing(missing))
    facts = "".join(f"<li>{text(line)}</li>" for line in provenance(sweep.finished.runs))
    again = html.escape("\n".join(commands(sweep)))
    parts.append(f"<h3>Where these numbers come from</h3><ul>{facts}</ul><pre>{again}</pre>")
    return "\n".join(parts)


def _claims(judged: list[dict[str, Any]]) -> str:
    records = [record for record in judged if record["verdict"] != "no runs"]
    if not records:
        return ""
    parts = ["<h3>The original report’s conclusions, tested</h3>"]
    parts.append(
        "<p class=soft>Supported or contradicted: the whole 95% interval over seeds lies on that "
        "side. Undecided: it does not, or there is one seed and so no interval.</p>"
    )
    for line in (*claims.summary(judged), *claims.seeds_explained(judged)):
        parts.append(f"<p class=soft>{text(line)}</p>")
    parts += [f"<h4>{text(grid.title)}</h4>{table(grid)}" for grid in claims.tables(records)]
    return "\n".join(parts)


def _figures(sweep: Sweep) -> tuple[str, list[str]]:
    there = {path.stem: path for path in sorted((sweep.folder / "figures").glob("*.png"))}
    possible = figures.possible(sweep, figures.choose_run(sweep))
    order = [*CAPTIONS, *(stem for stem in (*there, *possible) if stem not in CAPTIONS)]
    shown, absent, histories = [], [], []
    for stem in dict.fromkeys(order):
        name, figure = stem.removeprefix("history_"), figures.figure_of(stem)
        of_name = f"Training history of {name}." if name in sweep.names else stem
        caption = CAPTIONS.get(stem, of_name)
        command = _command("report figures", sweep.folder, f"--only={figure}")
        if stem in there:
            candidates = _runs_of(stem, sweep, possible)
            if not any(pictures.can_be_of(there[stem], runs) for runs in candidates):
                again = f"To redraw it: `{command}`"
                if stem not in possible:
                    again = f"If those are gone, delete {there[stem]}."
                caption += f" Drawn from other runs than those in the tables. {again}"
            try:
                shown.append(picture(there[stem], caption))
            except UserError as error:
                absent.append(str(error))
        elif stem in possible and figure == "history":
            histories.append(name)
        elif stem in possible:
            absent.append(f"{caption} `{command}`")
    if histories:
        command = _command("report figures", sweep.folder, "--only=history")
        absent.append(f"Training histories of {', '.join(histories)}. `{command}`")
    if others := [
        name for name in figures.OF_NETWORK if name not in there and name not in possible
    ]:
        absent.append(f"{', '.join(others)}: no finished run has its checkpoints/ folder.")
    return "\n".join(shown), absent


def _runs_of(stem: str, sweep: Sweep, possible: dict[str, Sweep]) -> list[Sequence[Run]]:
    """Returns the runs that a picture can be of, of those in the tables."""
    if stem in figures.OF_ONE_RUN:
        return [[run] for run in sweep.runs]
    return [possible[stem].runs] if stem in possible else [[]]


def landscape_section(folder: pathlib.Path, problems: list[str]) -> str:
    """Returns the section of all landscapes below `folder`; "" where there are none.

    What cannot be read is added to `problems`.
    """
    parts, shown = [], []
    for path, folders, _ in walk(folder):
        drawn = path / "smoothness" / "smoothness.png"
        if "smoothness" in folders and drawn.exists():
            try:
                grid = gradient.table(gradient.measured(drawn.parent))
                parts += ["<h3>Along the gradient, while training</h3>"]
                parts += [picture(drawn, ALONG_THE_GRADIENT), table(grid)]
            except UserError as error:
                problems.append(str(error))
        for measured in sorted((path / "slices").glob("*.npz")) if "slices" in folders else ():
            drawn = measured.with_suffix(".png")
            try:
                shown += [picture(drawn, slices.caption(measured))] if drawn.exists() else []
            except UserError as error:
                problems.append(str(error))
    if shown:
        parts.append("<h3>Around trained networks</h3>")
        parts.append(f"<div class=pictures>{''.join(shown)}</div>")
    return "<h2 id=landscape>Loss landscapes</h2>" + "\n".join(parts) if parts else ""


def _anchor(name: str) -> str:
    return "sweep-" + re.sub(r"\W+", "-", name)


def _name(sweep: Sweep, folder: pathlib.Path) -> str:
    if sweep.folder != folder and sweep.folder.is_relative_to(folder):
        return sweep.folder.relative_to(folder).as_posix()
    return sweep.folder.resolve().name


def _command(module: str, *arguments: object) -> str:
    return f"jaxcifar {module} {shlex.join(map(str, arguments))}"


# --- the page ---------------------------------------------------------------------------------


def page(folder: pathlib.Path) -> str:
    """Returns the whole page of a results folder.

    Raises:
      UserError: there is nothing, or runs cannot be read.
    """
    problems: list[str] = []
    landscapes = landscape_section(folder, problems) if folder.is_dir() else ""
    try:
        found = sweeps(folder, problems)
    except UserError:
        if not landscapes:
            raise
        found = []
    if not found and not landscapes:
        raise UserError("\n".join(problems))
    named = [(_name(sweep, folder), sweep) for sweep in found]
    links = [(_anchor(name), name) for name, _ in named]
    links += [("landscape", "Loss landscapes")] if landscapes else []
    items = "".join(f"<li><a href=#{anchor}>{html.escape(name)}</a></li>" for anchor, name in links)
    done = [run for sweep in found for run in sweep.finished.runs]
    rows = {run.name for run in done if run.row}
    others = sum(run.row is None for run in done)
    parts = [
        "<h1>The original report, run again in JAX</h1>",
        f"<p>{len(done) - others} finished runs of {len(rows)} of the original report’s "
        f"{len(ROWS)} rows{f', and {others} of other configs' if others else ''}, read from "
        f"<code>{html.escape(str(folder))}</code> on {time.strftime('%Y-%m-%d')} by jaxcifar at "
        f"commit <code>{git_commit()}</code>.</p>",
        f"<nav><ul>{items}</ul></nav>",
    ]
    if any(run.shortened for run in done):
        parts.append(
            "<p class=warn>Some of these runs were SHORTENED and are marked so: their numbers do "
            "not compare with the original’s.</p>"
        )
    if absent := [row for row in ROWS if row not in rows]:
        command = _command("sweep", f"--rows={','.join(absent)}", f"--out={folder / 'more'}")
        parts.append(_missing([f"Rows without a finished run: {', '.join(absent)}. `{command}`"]))
    judged = [claims.judge(sweep) for sweep in found]
    unread = (r["damage"] for records in judged for r in records if "damage" in r)
    problems += dict.fromkeys(unread)  # each once
    tested = {r["claim"] for records in judged for r in records if r["verdict"] != "no runs"}
    if tested:
        untested = [claim for claim in claims.CLAIMS if claim not in tested]
        parts.append(_missing([f"Runs to test: {claim}" for claim in untested]))
    if not landscapes:
        command = _command("landscape", "smoothness", f"--out={folder / 'landscape'}")
        parts.append(_missing([f"Loss landscapes. `{command}`"]))
    if problems:
        parts.append("<p>Not read:</p>" + "".join(f"<pre>{html.escape(p)}</pre>" for p in problems))
    for (name, sweep), records in zip(named, judged, strict=True):
        parts.append(sweep_section(name, sweep, records))
    parts.append(landscapes)
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<title>The original report, run again in JAX</title>"
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style></head><body>\n{body}\n</body></html>\n"
    )
