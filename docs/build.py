"""Writes docs/config.md, from the comments of jaxcifar/config.py; and helps MkDocs build the site.

python docs/build.py
mkdocs build
"""

import json
import pathlib
import re
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent

# --- the page of all config fields ------------------------------------------------------------

_INTRO = """# Configuration

<!-- Written by docs/build.py from the comments of jaxcifar/config.py. Change them, and run it. -->

Every field of a config, with its default, its range and its meaning. A config file sets them in
Python. On the command line, `jaxcifar train`, `sweep` and `landscape smoothness` take them as
`--optim.l2=1e-4`, and several numbers as `--optim.milestones=60,120,160`; `eval` takes only
`--model.dtype` and the fields marked †, because the others are those of the run. `python -m …`
needs the long form, `--config.optim.l2=1e-4`. Unknown fields and impossible values are refused
before any work starts.

Fields marked † change how a run is carried out, not what it computes, except for rounding. They may
be changed when a run is resumed.
"""


_HEAD = ["| field | default | range | meaning |", "|---|---|---|---|"]


def meanings() -> dict[str, str]:
    """Returns {field or group: its comment} of the assignments in `base_config`."""
    found, field = {}, ""
    for line in (ROOT / "jaxcifar" / "config.py").read_text().splitlines():
        if match := re.match(r"    config\.([\w.]+) = .*?(?:  # (.*))?$", line):
            field, found[match[1]] = match[1], match[2] or ""
        elif field and (more := re.match(r" +# *(.*)", line)):  # comments on their own lines
            found[field] = f"{found[field]} {more[1]}".strip()
        else:
            field = ""
    return found


def config_page() -> str:
    """Returns the text of config.md."""
    from jaxcifar.config import EXECUTION_FIELDS, RANGES, base_config, flatten
    from jaxcifar.models import MODELS

    defaults, lines = flatten(base_config()), [_INTRO, "## The run", "", *_HEAD]
    names = " ".join(f'"{name}"' for name in MODELS)
    for field, comment in meanings().items():
        comment = comment.replace("one of jaxcifar.models.MODELS", names)
        if field not in defaults:  # a group
            about = [_markdown(comment), ""] if comment else []
            lines += ["", f"## {field}", "", *about, *_HEAD]
            continue
        low, high, excluded = RANGES.get(field, ("", "", False))
        allowed = f"{'above ' if excluded else ''}{_number(low)} … {_number(high)}"
        mark = " †" if field in EXECUTION_FIELDS else ""
        default = _shown(defaults[field])
        lines.append(
            f"| `{field}`{mark} | `{default}` | {allowed if field in RANGES else ''} | "
            f"{_markdown(comment)} |"
        )
    return "\n".join(lines) + "\n"


def _shown(default: Any) -> str:
    return json.dumps(default) if isinstance(default, str) else repr(default)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if value != "" else ""


def _markdown(comment: str) -> str:
    """Returns a comment as a sentence: names as code, not in quotes."""
    text = re.sub(r'"([^"]*)"', lambda name: f"`{name[1] or name[0]}`", comment.replace("|", "\\|"))
    return text[:1].upper() + text[1:]


# --- what MkDocs calls ------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Adds CONTRIBUTING.md, and the kept figures that pages show, where they are."""
    from mkdocs.structure.files import File

    def add(place: str, path: pathlib.Path) -> None:
        files.append(File.generated(config, place, abs_src_path=str(path)))

    add("extending.md", ROOT / "CONTRIBUTING.md")
    for name in set(re.findall(r"\]\(\.\./(\S+\.png)\)", _all_pages())):
        add(name, ROOT / name)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turns links out of docs/ into plain text, but for what is on the site."""
    markdown = markdown.replace("](../CONTRIBUTING.md)", "](extending.md)")
    markdown = markdown.replace("](docs/", "](")  # of CONTRIBUTING.md
    markdown = re.sub(r"\]\(\.\./(\S+\.png)\)", r"](\1)", markdown)
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]*\)", r"\1", markdown)


def _all_pages() -> str:
    return "\n".join(path.read_text() for path in HERE.glob("*.md"))


if __name__ == "__main__":
    (HERE / "config.md").write_text(config_page())
