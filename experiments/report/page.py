"""Builds one page of everything that results hold: tables, claims, figures, landscapes, provenance.

    python -m experiments.report results/

writes results/report.html: one file, with its pictures inside, that needs no network. It shows what
is there and says what is missing, and by which command it can be made. Pictures are made before, by
`experiments.figures` and `experiments.landscape`.
"""

import argparse
import base64
import html
import json
import pathlib
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments import claims, figures, tables
from experiments.report_tables import ROWS
from experiments.runs import Run, finished, read_json, read_records, sweeps
from experiments.slices import statistics_note
from experiments.smoothness import effective_smoothness, note_of
from jaxcifar import metrics, workdirs
from jaxcifar.errors import UserError, exit_code

CAPTIONS = {
    "fig2": "The report's Fig. 2: first-layer kernels, and the feature maps of one test image.",
    "fig3": "The report's Fig. 3: VGG-A without batch normalization.",
    "fig4": "The report's Fig. 4: VGG-A with batch normalization.",
    "fig5": "The report's Fig. 5: the training loss at four learning rates; the band is the gap "
    "between the best and the worst.",
    "history_row9": "The report's Fig. 1: DenseNet-201 with GELU and strong augmentation.",
    "accuracy": "Validation error against parameters and against training time.",
    "confusion": "Which classes are taken for which.",
    "classes": "The accuracy of each class.",
    "mistakes": "The most confident mistakes.",
    "augment": "What each augmentation does.",
}

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --back: #ffffff;
  --card: #f6f8fa; --line: #d1d9e0; --link: #0a58ca; --good: #116329; --bad: #a40e26;
  --warn-back: #fff4d6; --warn: #6b4e00; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9ba6b2; --back: #0f1318;
  --card: #181d24; --line: #343d48; --link: #7ab7ff; --good: #5fd083; --bad: #ff8f8f;
  --warn-back: #3a2e0b; --warn: #ffd87a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(0.8rem, 3vw, 2.5rem) 4rem; max-width: 84rem;
  font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
a { color: var(--link); } .soft { color: var(--soft); }
code, pre { font: 0.86em ui-monospace, monospace; }
pre, .scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; }
pre { padding: 0.7rem; } code { overflow-wrap: anywhere; }
nav ul { padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.86rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
td.wrap { white-space: normal; min-width: 16rem; }
.warn { background: var(--warn-back); color: var(--warn); padding: 0.6rem 0.9rem;
  border-radius: 6px; }
.supported { color: var(--good); font-weight: 600; }
.contradicted { color: var(--bad); font-weight: 600; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%,
  34rem), 1fr)); }
figure { margin: 0; padding: 0.6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; }
figure img { width: 100%; height: auto; background: white; border-radius: 4px; display: block; }
figcaption { font-size: 0.86rem; margin-top: 0.4rem; color: var(--soft); }
"""


# --- pieces -----------------------------------------------------------------------------------


def text(words: str) -> str:
    """Escapes words, and sets `code` of theirs as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(words))


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """Returns an HTML table that scrolls sideways where the window is narrow."""
    head = "".join(f"<th scope=col>{text(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>" for line in lines)
    return (f'<div class=scroll tabindex=0><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")  # fmt: skip


def _cell(words: str) -> str:
    verdict = words.split()[0] if words else ""
    kind = (
        verdict if verdict in ("supported", "contradicted") else "wrap" if len(words) > 40 else ""
    )
    return f'<td class="{kind}">{text(words)}</td>' if kind else f"<td>{text(words)}</td>"


def picture(path: pathlib.Path, caption: str) -> str:
    """Returns a figure with the picture inside."""
    content = base64.b64encode(path.read_bytes()).decode()
    return (f'<figure><img alt="{html.escape(caption, quote=True)}" '
            f'src="data:image/png;base64,{content}"><figcaption>{text(caption)}</figcaption>'
            "</figure>")  # fmt: skip


def _missing(lines: list[str]) -> str:
    items = "".join(f"<li>{text(line)}</li>" for line in lines)
    return f"<p>Missing here:</p><ul>{items}</ul>" if lines else ""


# --- sections ---------------------------------------------------------------------------------


def sweep_section(name: str, sweep: pathlib.Path, rows: dict[str, list[Run]]) -> str:
    """Returns the section of one sweep."""
    runs = [run for of_row in rows.values() for run in of_row]
    parts = [f"<h2 id={_anchor(name)}>Runs in {html.escape(name)}</h2>"]
    for note in tables.notes(rows):
        parts.append(f"<p class=warn>† {text(note)}. Not comparable with the report’s.</p>")
    missing = []
    for run in runs:
        if run.result is None:
            (command,) = tables.commands({run.row.config: [run]})
            epochs = f"{len(run.records)} of {run.config['train.epochs']}"
            missing.append(f"{run.row.config}, seed {run.seed}: unfinished, epoch {epochs}. Start "
                           f"the sweep again: `{command}`")  # fmt: skip
    if finished(runs):
        for grid in tables.tables(rows):
            parts += [f"<h3>{text(grid.title)}</h3>", table(grid.header, grid.lines)]
        parts.append(
            "<p class=soft>Mean ± standard deviation over seeds where there are several; 95% "
            "intervals of the mean by Student’s t; differences of accuracies in points.</p>"
        )
        parts.append(_claims(rows))
        shown, absent = _figures(sweep)
        parts += [f"<h3>Figures</h3><div class=pictures>{shown}</div>" if shown else ""]
        missing += absent
    parts.append(_missing(missing))
    facts = "".join(f"<li>{text(line)}</li>" for line in tables.provenance(runs))
    commands = html.escape("\n".join(tables.commands(rows)))
    parts.append(f"<h3>Where these numbers come from</h3><ul>{facts}</ul><pre>{commands}</pre>")
    return "\n".join(parts)


def _claims(rows: dict[str, list[Run]]) -> str:
    everything = claims.judge(rows)
    records = [record for record in everything if record["verdict"] != "no runs"]
    if not records:
        return ""
    parts = ["<h3>The report’s conclusions, tested</h3>"]
    parts.append(
        "<p class=soft>Supported or contradicted: the whole 95% interval over seeds lies on that "
        "side. Undecided: it does not, or there is one seed and so no interval.</p>"
    )
    for claim in dict.fromkeys(record["claim"] for record in records):
        lines = [claims.describe(record) for record in records if record["claim"] == claim]
        parts.append(f"<h4>{text(claim)}</h4>{table(lines[0], (line.values() for line in lines))}")
    told = {record["claim"] for record in records}
    untold = dict.fromkeys(r["claim"] for r in everything if r["claim"] not in told)
    parts.append(_missing([f"Runs to test: {claim}" for claim in untold]))
    return "\n".join(parts)


def _figures(sweep: pathlib.Path) -> tuple[str, list[str]]:
    there = {path.stem: path for path in sorted((sweep / "figures").glob("*.png"))}
    order = [*CAPTIONS, *(stem for stem in there if stem not in CAPTIONS)]
    shown = []
    for stem in order:
        if stem in there:
            row = stem.removeprefix("history_")
            title = f"Training history of {row}." if row in ROWS else stem
            shown.append(picture(there[stem], CAPTIONS.get(stem, title)))
    absent = [
        f"{CAPTIONS.get(name, name)} `python -m experiments.figures {sweep} --only={name}`"
        for name in figures.FIGURES
        if name not in there and name != "history"
    ]
    return "\n".join(shown), absent


def landscape_section(folder: pathlib.Path) -> str:
    """Returns the section of all landscapes below `folder`; "" where there are none."""
    parts = []
    for path in sorted(folder.rglob("smoothness/smoothness.png")):
        parts += ["<h3>Along the gradient, while training</h3>"]
        parts.append(picture(path, "After Santurkar et al. 2018: along the gradient of each step's "
                             "batch, the range of the loss, the range of the gradient's change, "
                             "and its largest ratio to the distance."))  # fmt: skip
        every = sorted(path.parent.glob("*/settings.json"))
        lines = [line for p in every if (line := _smoothness_line(p))]
        header = ["Run", "Measurements", "Median loss range", "Median gradient change",
                  "Median effective β", "Largest", "Images", "Commit", "Machine",
                  "Note"]  # fmt: skip
        parts.append(table(header, lines))
    slices = sorted(folder.rglob("slices/*.npz"))
    slices = [path for path in slices if path.with_suffix(".png").exists()]
    if slices:
        shown = []
        for path in slices:
            with np.load(path) as content:
                settings = json.loads(str(content["settings"]))
                environment = json.loads(str(content["environment"]))
            caption = (
                f"After Li et al. 2018: {path.stem}. Checkpoint {settings['checkpoint']} at step "
                f"{settings['step']}, {settings['images']:,} training images"
                f"{statistics_note(settings)}, directions of seed {settings['seed']}. "
                f"{_images(settings)}; commit {environment['commit']}, "
                f"{environment['devices']} × {environment['device']}."
            )
            shown.append(picture(path.with_suffix(".png"), caption))
        parts.append("<h3>Around trained networks</h3>")
        parts.append(f"<div class=pictures>{''.join(shown)}</div>")
    return "<h2 id=landscape>Loss landscapes</h2>" + "\n".join(parts) if parts else ""


def _smoothness_line(path: pathlib.Path) -> list[str] | None:
    content = read_json(path)
    found = read_records(path.parent / "measurements.jsonl")
    sizes = content["settings"]["step_sizes"]
    if not found:
        return None  # it was stopped before the first
    betas = [effective_smoothness(record, sizes) for record in found]
    environment = content["environment"]
    ranges = [max(r["losses"]) - min(r["losses"]) for r in found]
    changes = [max(r["gradient_changes"]) for r in found]
    return [
        path.parent.name,
        f"{len(found)}, every {content['settings']['every']} steps",
        *(f"{np.median(values):.3g}" for values in (ranges, changes, betas)),
        f"{max(betas):.3g}",
        _images(content["data"]),
        str(environment["commit"])[:12],
        f"{environment['devices']} × {environment['device']}",
        note_of(path),
    ]


def _images(facts: dict[str, Any]) -> str:
    official = "" if facts["official"] is not False else ", NOT verified as the official files"
    return f"sha256 {facts['sha256'][:12]}…{official}"


def _anchor(name: str) -> str:
    return "sweep-" + re.sub(r"\W+", "-", name)


def _name(sweep: pathlib.Path, folder: pathlib.Path) -> str:
    name = sweep.relative_to(folder).as_posix()
    return folder.resolve().name if name == "." else name


# --- the page ---------------------------------------------------------------------------------


def page(folder: pathlib.Path) -> str:
    """Returns the whole page of a results folder.

    Raises:
      UserError: there is nothing, or runs cannot be read.
    """
    landscapes = landscape_section(folder) if folder.is_dir() else ""
    problems: list[str] = []
    try:
        found = sweeps(folder, problems)
    except UserError:
        if not landscapes:
            raise
        found = {}
    if not found and not landscapes:
        raise UserError("\n".join(problems))
    names = {sweep: _name(sweep, folder) for sweep in found}
    done = {row for rows in found.values() for row, runs in rows.items() if finished(runs)}
    absent = [row for row in ROWS if row not in done]
    links = [(_anchor(name), name) for name in names.values()]
    links += [("landscape", "Loss landscapes")] if landscapes else []
    runs = [run for rows in found.values() for of_row in rows.values() for run in of_row]
    parts = [
        "<h1>The report, run again in JAX</h1>",
        f"<p>{len(finished(runs))} finished runs of {len(done)} of the report’s {len(ROWS)} rows, "
        f"read from <code>{html.escape(str(folder))}</code> on {time.strftime('%Y-%m-%d')} by "
        f"jaxcifar at commit <code>{workdirs.git_commit()}</code>.</p>",
        "<nav><ul>" + "".join(f"<li><a href=#{a}>{html.escape(n)}</a></li>" for a, n in links)
        + "</ul></nav>",
    ]  # fmt: skip
    if any(run.shortened for run in runs):
        parts.append("<p class=warn>Some of these runs were SHORTENED and are marked so: their "
                     "numbers do not compare with the report’s.</p>")  # fmt: skip
    if absent:
        wanted = ",".join(absent)
        command = f"python -m experiments.sweep --rows={wanted} --out={folder}/more"
        parts.append(_missing([f"Rows without a finished run: {', '.join(absent)}. `{command}`"]))
    if not landscapes:
        command = f"python -m experiments.landscape smoothness --out={folder}/landscape"
        parts.append(_missing([f"Loss landscapes. `{command}`"]))
    if problems:
        parts.append("<p>Not read:</p>" + "".join(f"<pre>{html.escape(p)}</pre>" for p in problems))
    parts += [sweep_section(names[sweep], sweep, rows) for sweep, rows in found.items()]
    parts.append(landscapes)
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        "<title>The report, run again in JAX</title>"
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=pathlib.Path, help="of results")
    parser.add_argument("--out", type=pathlib.Path, help="the page (default: FOLDER/report.html)")
    arguments = parser.parse_args(argv)
    content = page(arguments.folder)
    path = arguments.out or arguments.folder / "report.html"
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} in.")
    metrics.replace(path, content)
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    sys.exit(exit_code(main))
