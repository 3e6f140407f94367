"""A sweep in parts of about equal work, which all processes that train it agree on."""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

from experiments.runs.configs import Source
from experiments.runs.kinds import check_keys, count, mapping, text
from experiments.runs.read import read_json
from experiments.sweep.estimates import work
from experiments.sweep.jobs import Job, groups
from jaxcifar.config import base_config, changed_fields, complete, differences
from jaxcifar.errors import UserError
from jaxcifar.files import write_shared


def parse_shard(text: str) -> tuple[int, int]:
    """Returns (i, N) of "i/N".

    Raises:
      UserError: it is not such a text, or i is not one of 0 … N − 1.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if shard[0] >= shard[1]:
        raise UserError(f"--shard is {text!r}; give i/N, with i from 0 to N − 1: 0/12 … 11/12.")
    return shard


def check_count(option: str, count: int, jobs: list[Job]) -> None:
    """Checks that there are enough runs for `count` parts, which an option asks for.

    Raises:
      UserError: there are fewer.
    """
    if count > len(jobs):
        raise UserError(f"{option}, but there are only {len(jobs)} runs. Choose fewer parts.")


def shards(jobs: list[Job], count: int) -> list[list[Job]]:
    """Splits the jobs into shards of about equal work, regardless of what is already done.

    Runs that share compiled programs stay together, up to a quarter of a shard. The shards depend
    only on the jobs, so that all machines compute the same ones.
    """
    # For GPUs wherever this runs: "auto" means something else on the CPU of a login node.
    pieces = groups(jobs, "gpu")
    fair = sum(map(work, pieces)) / count
    # The largest piece is halved while it is too large, or the pieces are too few.
    while divisible := [piece for piece in pieces if len(piece) > 1]:
        largest = max(divisible, key=work)
        if work(largest) <= fair / 4 and len(pieces) >= count:
            break
        at, half = pieces.index(largest), len(largest) // 2
        pieces[at : at + 1] = [largest[:half], largest[half:]]
    parts: list[list[Job]] = [[] for _ in range(count)]
    for piece in sorted(pieces, key=work, reverse=True):
        min(parts, key=work).extend(piece)
    return parts


# --- the plan of a sweep ----------------------------------------------------------------------

# What the runs and shards of a sweep are derived from, see `plan_of`; and, once a first task has
# begun, "shards": the keys of the runs of each. Processes that share the work find it in
# OUT/sweep.json.
Plan = dict[str, Any]


def plan_of(
    sources: Sequence[Source], seeds: Sequence[int], options: Sequence[str], tasks: int
) -> Plan:
    """Returns the plan of a sweep in `tasks` parts."""
    base = base_config().to_dict()
    changed = {source.name: changed_fields(base, source.config.to_dict()) for source in sources}
    return {
        "names": [source.name for source in sources],
        "seeds": list(seeds),
        "options": list(options),
        # Fields at their defaults are left out.
        "configs": {
            name: {field: value for field, (_, value) in fields.items()}
            for name, fields in changed.items()
        },
        "tasks": tasks,
    }


def kept_plan(out: pathlib.Path) -> Plan | None:
    """Returns the plan in OUT/sweep.json; None if there is none.

    Raises:
      UserError: the file is damaged.
    """
    path = out / _FILE
    if not path.exists():
        return None
    plan = read_json(path)
    # Earlier versions wrote no configs, and a plan has shards once a task has begun.
    kinds = {"tasks": count, "configs": mapping, "shards": _is_of_keys}
    check_keys(path, plan, {key: kinds[key] for key in kinds if key == "tasks" or key in plan})
    if len(plan.get("shards", range(plan["tasks"]))) != plan["tasks"]:
        raise UserError(f"{path} is damaged: it has not as many shards as tasks.")
    return plan


def _is_of_keys(shards: Any) -> bool:
    return isinstance(shards, list) and all(
        isinstance(part, list) and all(map(text, part)) for part in shards
    )


def keep_plan(plan: Plan, out: pathlib.Path) -> None:
    """Writes OUT/sweep.json."""
    out.mkdir(parents=True, exist_ok=True)
    write_shared(out / _FILE, plan)


def forget_plan(out: pathlib.Path) -> None:
    """Removes OUT/sweep.json."""
    (out / _FILE).unlink()


_FILE = "sweep.json"


def check_plan(plan: Plan, out: pathlib.Path) -> Plan:
    """Returns the plan in OUT/sweep.json, or else `plan`.

    Raises:
      UserError: the file has another plan.
    """
    there = kept_plan(out)
    if there is None:
        return plan
    try:
        changed = _changed(there, plan)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"{out / _FILE} is damaged ({error}). Restore it from a copy; or, if no task of this "
            "sweep is left, delete it."
        ) from error
    if changed:
        path = out / _FILE
        raise UserError(
            f"{path} belongs to another plan (there -> here):\n  " + "\n  ".join(changed) + "\n"
            "Tasks of two plans would do the same work twice. Use the same values or another "
            f"--out; or, if none of those tasks is left, delete {path}."
        )
    return there


def _changed(there: Plan, plan: Plan) -> list[str]:
    """Returns what differs between a plan that was kept and that of a command."""
    changed = [
        f"{name}: {there.get(name)} -> {value}"
        for name, value in plan.items()
        if name != "configs" and there.get(name) != value
    ]
    for name, fields in plan["configs"].items():
        saved = there.get("configs", {}).get(name)
        if saved is not None:  # else an earlier version wrote the plan
            lines = differences(complete(saved).to_dict(), complete(fields).to_dict())
            changed += [f"{name}: {line}" for line in lines]
    return changed


def planned_shards(jobs: list[Job], plan: Plan) -> list[list[Job]]:
    """Returns the runs of each shard: those that the plan lists, or else newly computed."""
    if "shards" not in plan:
        return shards(jobs, plan["tasks"])
    by_key = {job.key: job for job in jobs}
    return [[by_key[key] for key in part if key in by_key] for part in plan["shards"]]


def take(
    jobs: list[Job], index: int, plan: Plan, out: pathlib.Path, *, keep: bool = True
) -> list[Job]:
    """Returns the runs of a shard.

    The first task writes all parts to OUT/sweep.json, from where the others take theirs: whatever
    happens to code or data meanwhile, no run is in two parts, or in none.

    Args:
      jobs: all runs of the sweep.
      index: the number of the shard, from 0.
      plan: that of this command.
      out: the sweep's folder.
      keep: whether to write the file.

    Raises:
      UserError: OUT/sweep.json has another plan.
    """
    there = check_plan(plan, out)
    found = planned_shards(jobs, there)
    if keep and "shards" not in there:
        keep_plan(plan | {"shards": [[job.key for job in part] for part in found]}, out)
    return found[index]
