"""What every picture of runs says of them: in its title, and in its file."""

import pathlib
from collections.abc import Sequence

from PIL import Image

from experiments.runs.read import Run, Sweep


def signed(part: Sweep, title: str) -> dict[str, str]:
    """Returns the title and the keywords of a picture of runs, see `plots.drawing`.

    Below the title stands which runs were shortened or changed, and how, or are of other images
    than the official ones; and which are left out, because they are not finished.
    """
    notes = [f"† {note}" for note in part.notes]
    if part.left_out:
        absent = ", ".join(f"{run.name} seed {run.seed}" for run in part.left_out)
        notes.append(f"Not finished, and left out: {absent}")
    return {"title": "\n".join([title, *notes]), "keywords": keywords(part.runs)}


def signed_by_run(part: Sweep, title: str) -> dict[str, str]:
    """Returns what `signed` does for a picture of one run, which is named below the title."""
    (run,) = part.runs
    words = [run.name + ("†" if run.mark else ""), f"seed {run.seed}"]
    words += [f"UNFINISHED: {run.progress}"] if run.result is None else []
    return signed(part, f"{title}\n{', '.join(words)}")


def keywords(runs: Sequence[Run]) -> str:
    """Returns which runs a picture is of, for its file's metadata: "row1/seed0 of 2026-11-25T…"."""
    return ", ".join(f"{run.name}/seed{run.seed} of {run.environment['started']}" for run in runs)


def can_be_of(path: pathlib.Path, runs: Sequence[Run]) -> bool:
    """Returns whether a picture may have been drawn from just these runs, by its file's metadata.

    Those of earlier versions say less (no times), or nothing.
    """
    try:
        with Image.open(path) as picture:
            drawn_from = picture.info.get("Keywords", "")
    except (OSError, ValueError, SyntaxError):
        return True
    names = ", ".join(f"{run.name}/seed{run.seed}" for run in runs)
    return drawn_from in ("", names, keywords(runs))
