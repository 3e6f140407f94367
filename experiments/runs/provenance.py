"""Where the numbers of runs come from, and the commands that make them again."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from experiments.runs.configs import varied_name
from experiments.runs.read import Run, Sweep
from experiments.runs.table import one_line


def provenance(runs: Sequence[Run]) -> list[str]:
    """Says where the numbers of runs come from: each fact once."""
    facts: dict[str, set[str]] = {}
    for run in runs:
        for part, data in run.data.items():
            official = {True: "official files", False: "NOT verified as the official files"}
            kind = official.get(data["official"], "embedded")
            facts.setdefault(f"{part} images", set()).add(
                f"{data['name']}, {data['images']:,}, {kind}, sha256 {data['sha256'][:12]}…"
            )
        facts.setdefault("protocol", set()).add(
            "best epoch chosen on the test set"
            if run.config["data.protocol"] == "test"
            else "best epoch chosen on a tenth of the training set"
        )
        for env in run.starts:
            facts.setdefault("machine", set()).add(
                f"{env['devices']} × {env['device']}, {env['cpus']} CPU core"
                f"{'s' * (env['cpus'] != 1)}, {env['dtype']}"
            )
            names = ("jaxcifar", "jax", "flax", "optax", "numpy", "python")
            facts.setdefault("versions", set()).add(", ".join(f"{n} {env[n]}" for n in names))
            commit = str(env["commit"])
            if "code" in env and (env["commit"] is None or commit.endswith("+")):
                commit += f" (code {env['code']})"  # which alone tells what it was
            facts.setdefault("commit", set()).add(commit)
            facts.setdefault("started", set()).add(env["started"][:10])
    return [one_line(f"{name}: {' | '.join(sorted(values))}") for name, values in facts.items()]


def checksum(facts: dict[str, Any]) -> str:
    """Returns "sha256 0123…" of images, and says so if they are not the official ones."""
    other = ", NOT verified as the official files" if facts["official"] is False else ""
    return f"sha256 {facts['sha256'][:12]}…{other}"


def commands(sweep: Sweep) -> list[str]:
    """Returns the commands that make these runs, or resume them; "# NAME: …" where unknown."""
    alike: dict[tuple[Any, ...], list[Run]] = {}
    found = []
    for name in sweep.names:
        swept = [run for run in sweep.of(name) if run.swept and not run.imported]
        for run in sweep.of(name):
            # Seeds that were trained with other options, --data.dir for example, have their own.
            same = [other for other in swept if other.options == run.options]
            if run in same[1:]:
                continue
            if run.imported or run.original is None or run.file is None:
                found.append(one_line(f"# {name}: {run.mark or run.progress}"))
            elif run not in swept:
                seed = [f"--config.seed={run.seed}"] if run.seed != run.original["seed"] else []
                given = [run.file, f"--workdir={run.folder}", *run.options, *seed]
                found.append(shlex.join(["jaxcifar", "train", *given]))
            elif (trained := varied_name(pathlib.Path(run.file).stem, run.grid)) != name:
                renamed = f"# {name}: renamed; rename it to {trained} before you resume it"
                found.append(one_line(renamed))
            else:
                seeds = ",".join(str(other.seed) for other in same)
                options = (*(f"--grid={value}" for value in run.grid), *run.options)
                alike.setdefault((seeds, sweep.folder, options), []).append(run)
    for (seeds, out, options), runs in alike.items():
        rows = ",".join(run.name for run in runs if run.row)
        files = ",".join(run.file for run in runs if run.file and not run.row)
        given = [f"--rows={rows}"] if rows else []
        given += [f"--configs={files}"] if files else []
        given += [f"--seeds={seeds}", f"--out={out}", *options]
        found.append(shlex.join(["jaxcifar", "sweep", *given]))
    return found
