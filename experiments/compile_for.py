"""Compiles a run's programs for TPUs that this machine does not have, and says what they would do.

    python -m experiments.compile_for --topology=v5e:2x4 --configs=configs/row9.py
    python -m experiments.compile_for --topology=v5e:4x8 --rows=1,vgg6 --out=FILE.json
    python -m experiments.compile_for --topology=v5e:2x4 --rows=1 --config.data.augment=none

The real training and evaluation programs of each config, compiled by libtpu's ahead-of-time
compiler on an x86-64 CPU (pip install 'jaxcifar[tpu]'). Reported for each chip: the memory that the
program needs, the arithmetic and the memory traffic of a step, its collectives, and the times that
arithmetic, memory and interconnect need, the longest in bold. All of it is computed, nothing
measured. Only the arithmetic's time is a bound that no run can beat. The memory's time is too long,
because XLA's estimate of the traffic includes arrays that stay on the chip; the interconnect's is
that of one ring, where a torus has several, without the latency of each all-reduce. The images per
second are therefore an estimate, more likely too low than too high.

Options such as --config.data.augment=none change every config. --out gets everything as JSON, after
each config. Compiling takes minutes for each; one process at a time can use libtpu. A config that
cannot be compiled, for example for lack of memory, is named, and the exit code is then 1.
"""

import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.runs.configs import Source, named
from experiments.runs.table import Table
from experiments.scaling import CHIPS, Chip, all_reduce_seconds
from jaxcifar import checks, data, programs, sharding, task
from jaxcifar.errors import UserError, choose, in_short, note
from jaxcifar.files import write_json
from jaxcifar.options import Parser, user_path, with_options
from jaxcifar.run.machine import environment
from jaxcifar.signals import exit_code


def roofline(
    chip: Chip, devices: int, *, flops: float, traffic: float, reduced: float
) -> dict[str, float]:
    """Returns the seconds that arithmetic, memory and all-reduces need for a step.

    Args:
      chip: its figures.
      devices: that share the work.
      flops, traffic: of one device: operations, and bytes read and written.
      reduced: bytes that the devices all-reduce.
    """
    return {
        "arithmetic": flops / chip.flops,
        "memory": traffic / chip.bandwidth,
        "interconnect": all_reduce_seconds(reduced, devices, chip.ring),
    }


# --- the compiled text ------------------------------------------------------------------------

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "ragged-all-to-all",
)
_INSTRUCTION = re.compile(r"^ *(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(", re.MULTILINE)
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


def size_of(shape: str) -> int:
    """Returns the bytes of a shape as HLO writes it: "(f32[8]{0}, bf16[3,3]{1,0})" is 50."""
    total = 0
    for dtype, lengths in _SHAPE.findall(shape):
        bits = re.search(r"\d+", dtype)  # "pred" takes a byte; "token" nothing
        each = int(bits[0]) / 8 if bits else dtype == "pred"
        total += math.ceil(each * math.prod(map(int, filter(None, lengths.split(",")))))
    return total


def collectives(text: str) -> dict[str, list[int]]:
    """Returns the bytes that each collective of a program yields, by kind.

    Those in a loop count once, however often it runs, as in XLA's own figures.

    Args:
      text: what `compiled.as_text()` returns.
    """
    found: dict[str, list[int]] = {}
    for result, opcode in _INSTRUCTION.findall(text):
        # An asynchronous one is two instructions. Only its "-done" counts, whose size is that of
        # the result: "-start" yields operand and result, except for an all-reduce.
        kind = opcode.removesuffix("-done")
        if kind in COLLECTIVES:
            found.setdefault(kind, []).append(size_of(result))
    return found


# --- compiling --------------------------------------------------------------------------------


def mesh_of(topology: str) -> tuple[Mesh, Chip]:
    """Returns the devices of a topology such as "v5e:2x4", and the figures of one.

    Raises:
      UserError: there is no such topology, or libtpu is missing or busy.
    """
    family, _, shape = topology.partition(":")
    choose("The chip in --topology", family, [name for name in CHIPS if name[0] == "v"])
    if not re.fullmatch(r"\d+(x\d+)+", shape):
        raise UserError(f"--topology is {topology!r}; give a chip and a shape, such as v5e:2x4.")
    # Else libtpu asks a server of Google's cloud, for minutes, what machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:  # libtpu raises several kinds
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "not installed" in text or isinstance(error, ImportError):
            raise UserError(
                "Compiling for a TPU needs libtpu, which is not installed (Linux only): "
                "pip install 'jaxcifar[tpu]', in an environment of its own."
            ) from error
        if "lockfile" in text or "in use" in text:
            raise UserError(
                "Another process is using libtpu, and only one can at a time: wait for it, or set "
                f"ALLOW_MULTIPLE_LIBTPU_LOAD=1. ({text})"
            ) from error
        raise UserError(
            f"--topology is {topology!r}, which libtpu does not know ({text}). Give a chip and the "
            "shape of a slice, such as v5e:2x4, v5e:4x8, v6e:2x4, v4:2x2x2 or v5p:2x2x2."
        ) from error
    chip, chips = CHIPS[family], math.prod(int(length) for length in shape.split("x"))
    if len(found) != chips:  # two devices per chip, each with half of it
        chip = Chip(*(figure * chips / len(found) for figure in chip))
    return Mesh(np.asarray(found), (sharding.BATCH_AXIS,)), chip


def facts(compiled: Any, seconds: float, chip: Chip, devices: int) -> dict[str, Any]:
    """Returns what is reported of a compiled program, JSON-ready; bytes and operations per chip."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    kept = memory.argument_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = collectives(compiled.as_text())
    # XLA counts a loop's body once, however often it runs: these are of one step.
    flops, traffic = cost["flops"], cost["bytes accessed"]
    reduced = sum(found.get("all-reduce", []))
    return {
        "compile_seconds": seconds,
        "memory_bytes": kept + memory.temp_size_in_bytes + fresh,
        "argument_bytes": kept,
        "temporary_bytes": memory.temp_size_in_bytes,
        "flops": flops,
        "traffic_bytes": traffic,
        "collectives": {kind: {"count": len(s), "bytes": sum(s)} for kind, s in found.items()},
        "seconds": roofline(chip, devices, flops=flops, traffic=traffic, reduced=reduced),
    }


def compiled_for(source: Source, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    """Compiles a config's training and evaluation programs; returns what is reported of them."""
    config = source.config
    made, splits = _task(source, mesh)
    began = time.monotonic()
    training = programs.train(made, made.steps_per_call)
    middle = time.monotonic()
    evaluation = programs.evaluate_batch(made.inference, len(splits.validation))
    end = time.monotonic()
    return {
        "name": source.name,
        "model": config.model.name,
        "batch_size": made.batch_size,
        "eval_batch_size": made.inference.batch_size,
        **made.in_force,
        "training": facts(training, middle - began, chip, mesh.size),
        "evaluation": facts(evaluation, end - middle, chip, mesh.size),
    }


def table(content: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    header = ["config", "model", "program", "memory per chip", "temporary", "GFLOP", "traffic"]
    header += ["all-reduces", "other collectives", "all-reduced", "arithmetic", "memory"]
    header += ["interconnect", "images/s (estimate)", "compiled in"]
    lines = []
    for result in content["results"]:
        for program, batch in (("training", "batch_size"), ("evaluation", "eval_batch_size")):
            found = result[program]
            reduces = found["collectives"].get("all-reduce", {"count": 0, "bytes": 0})
            others = {k: v["count"] for k, v in found["collectives"].items() if k != "all-reduce"}
            seconds, share = found["seconds"], found["memory_bytes"] / content["chip"]["memory"]
            slowest = max(seconds, key=lambda part: seconds[part])
            lines.append(
                [
                    result["name"],
                    result["model"],
                    program,
                    f"{found['memory_bytes'] / 2**20:,.0f} MiB ({share:.1%})",
                    f"{found['temporary_bytes'] / 2**20:,.0f} MiB",
                    f"{found['flops'] / 1e9:,.1f}",
                    f"{found['traffic_bytes'] / 1e9:,.2f} GB",
                    str(reduces["count"]),
                    ", ".join(f"{n} {kind}" for kind, n in others.items()) or "none",
                    f"{reduces['bytes'] / 1e6:,.2f} MB",
                    *(
                        f"**{s * 1e3:.2f} ms**" if part == slowest else f"{s * 1e3:.2f} ms"
                        for part, s in seconds.items()
                    ),
                    f"{result[batch] / seconds[slowest]:,.0f}",
                    f"{found['compile_seconds']:,.0f} s",
                ]
            )
    changed = f" ({' '.join(content['options'])})" if content["options"] else ""
    title = (
        f"A step on {content['topology']} ({content['environment']['devices']} × "
        f"{content['environment']['device']}), computed, not measured{changed}"
    )
    return Table(title, header, lines)


# --- the command ------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser("python -m experiments.compile_for", __doc__)
    parser.add_argument("--topology", required=True, help="a chip and a shape: --topology=v5e:2x4")
    parser.add_argument("--rows", help="of the original report: 1-12,vgg2")
    parser.add_argument("--configs", help="config files, by comma; * is any name")
    parser.add_argument("--out", type=user_path, help="a JSON file")
    arguments, options = parser.parse_known_args(argv)
    if arguments.out and not arguments.out.parent.is_dir():
        raise UserError(f"There is no folder {arguments.out.parent} to write {arguments.out} in.")
    sources = [
        source._replace(config=with_options(source.config, options))
        for source in named(arguments.rows, arguments.configs)
    ]
    jax.config.update("jax_platforms", "cpu")  # libtpu must not look for a TPU to run on
    mesh, chip = mesh_of(arguments.topology)
    for source in sources:  # before the first minutes are spent
        _check(source, mesh)
    content: dict[str, Any] = {
        "topology": arguments.topology,
        "chip": chip._asdict(),
        "options": options,
        "environment": environment({}, mesh),
        "results": [],
    }
    if arguments.out:
        arguments.out.open("a").close()  # may it be written? Before the first minutes are spent
    print(table(content), flush=True)  # its head
    for source in sources:
        print(f"compiling {source.name} …", file=sys.stderr, flush=True)
        try:
            result = compiled_for(source, mesh, chip)
        except jax.errors.JaxRuntimeError as error:  # such as one that needs too much memory
            note(f"{source.name} cannot be compiled for {arguments.topology}: {in_short(error)}")
            continue
        content["results"].append(result)
        print(*str(table(content)).splitlines()[-2:], sep="\n", flush=True)  # its two programs
        if arguments.out:
            write_json(arguments.out, content)
    return int(len(content["results"]) < len(sources))


def _task(source: Source, mesh: Mesh) -> tuple[task.Task, data.Splits]:
    which, limit = source.config.data, source.config.train.limit_train_images
    splits = data.splits_without_images(which.name, which.dir, protocol=which.protocol, limit=limit)
    return task.build(source.config, splits.train, mesh), splits


def _check(source: Source, mesh: Mesh) -> None:
    try:
        checks.check_config(source.config, mesh)
        _task(source, mesh)
    except UserError as error:
        raise UserError(f"{source.file or source.name}: {error}") from error


if __name__ == "__main__":
    sys.exit(exit_code(main))
