"""Compiles a run's programs for TPUs that this machine does not have, and says what they would do.

    python -m experiments.compile_for --topology=v5e:2x4 --configs=configs/row9.py
    python -m experiments.compile_for --topology=v5e:4x8 --rows=1,vgg6 --out=FILE.json
    python -m experiments.compile_for --scaling

The real training and evaluation programs of each config, compiled by libtpu's ahead-of-time
compiler on any CPU (pip install 'jaxcifar[tpu]'). Reported for each chip: the memory that the
program needs, the arithmetic and the memory traffic of a step, its collectives, and the longest of
the times that arithmetic, memory and interconnect need. All of it is computed, nothing measured.
Only the arithmetic's time is a bound that no run beats: that of memory is mostly too long, because
XLA counts what stays on the chip, and that of the interconnect is for one ring, where a torus has
several. --out gets everything as JSON, after each config. Compiling takes minutes for each; one
process at a time can use libtpu.

--scaling needs no libtpu: it prints for each model how many bytes the devices exchange in a step,
and from which batch on that takes less time than the arithmetic.
"""

import argparse
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from experiments.cost import forward_multiply_adds
from experiments.runs.configs import Source, named
from experiments.runs.table import Table
from jaxcifar import data, programs, sharding, task
from jaxcifar.errors import UserError, choose
from jaxcifar.files import write_json
from jaxcifar.models import MODELS, create_model
from jaxcifar.models.densenet import DenseNet
from jaxcifar.options import user_path
from jaxcifar.run.machine import environment
from jaxcifar.signals import exit_code
from jaxcifar.state import abstract_variables

N_TRAIN, N_TEST = 50_000, 10_000  # CIFAR's


# --- what the chips can do --------------------------------------------------------------------


class Chip(NamedTuple):
    """The published figures of a chip.

    Attributes:
      flops: peak, in bfloat16, a second.
      memory: bytes of HBM.
      bandwidth: of the HBM, bytes a second.
      ring: bytes a second that a chip sends in a ring: two ports, one each way around.
    """

    flops: float
    memory: float
    bandwidth: float
    ring: float


CHIPS = {
    # docs.cloud.google.com/tpu/docs/v4; 6 ports of 50 GB/s each way: Jouppi et al., "TPU v4: An
    # Optically Reconfigurable Supercomputer for Machine Learning", 2023, Table 4.
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 2 * 50e9),
    # docs.cloud.google.com/tpu/docs/v5e: 400 GB/s, both ways together, over 4 ports.
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 2 * 50e9),
    # docs.cloud.google.com/tpu/docs/v5p: 4,800 Gbit/s each way over the 6 ports of a 3D torus.
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 2 * 100e9),
    # docs.cloud.google.com/tpu/docs/v6e: 800 GB/s, both ways together, over 4 ports.
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 2 * 100e9),
}


def all_reduce_seconds(size: float, devices: int, ring: float) -> float:
    """The time of a ring all-reduce of `size` bytes: each device sends 2(n − 1)/n times as many."""
    return 2 * (devices - 1) / devices * size / ring


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
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)|_computations=\{([^}]*)\}")
_SHAPE = re.compile(r"\b(pred|token|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """An instruction of a compiled program."""

    opcode: str
    size: int  # bytes of its result
    calls: tuple[str, ...]  # names of computations
    line: str


class Hlo(NamedTuple):
    """A compiled program: its computations by name, and which is the entry."""

    computations: dict[str, list[Instruction]]
    entry: str

    def reachable(self, start: str) -> Iterator[Instruction]:
        """Every instruction of a computation and of those that it calls, each once."""
        todo, seen = [start], {start}
        while todo:
            for instruction in self.computations.get(todo.pop(), []):
                yield instruction
                new = [name for name in instruction.calls if name not in seen]
                seen.update(new)
                todo += new

    @property
    def loops(self) -> list[str]:
        """The bodies of the entry's own loops; the one over steps is the only one."""
        found = []
        for instruction in self.computations[self.entry]:
            if instruction.opcode == "while":
                found += re.findall(r"body=%?([\w.\-]+)", instruction.line)
        return found


def parse(text: str) -> Hlo:
    """Reads what `compiled.as_text()` returns."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            current = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif match := _INSTRUCTION.match(line):
            called = ",".join("".join(groups) for groups in _CALLED.findall(line))
            names = tuple(name.strip().lstrip("%") for name in called.split(",") if name.strip())
            current.append(Instruction(match[2], size_of(match[1]), names, line.strip()))
    return Hlo(computations, entry)


def size_of(shape: str) -> int:
    """Returns the bytes of a shape as HLO writes it: "(f32[8]{0}, bf16[3,3]{1,0})" is 50."""
    total = 0
    for dtype, lengths in _SHAPE.findall(shape):
        bits = re.search(r"\d+", dtype)  # "pred" takes a byte; "token" nothing
        each = int(bits[0]) / 8 if bits else dtype == "pred"
        total += math.ceil(each * math.prod(map(int, filter(None, lengths.split(",")))))
    return total


def collectives(hlo: Hlo) -> dict[str, list[int]]:
    """Returns the bytes that each collective of a step yields, by kind.

    A step is the body of the program's loop, or all of the program where it has none.
    """
    found: dict[str, list[int]] = {}
    for start in hlo.loops or [hlo.entry]:
        for instruction in hlo.reachable(start):
            # An asynchronous one starts with a tuple of its operand and its result, except for an
            # all-reduce; what is done has the result's size.
            kind = instruction.opcode.removesuffix("-done")
            if kind in COLLECTIVES:
                found.setdefault(kind, []).append(instruction.size)
    return found


# --- compiling --------------------------------------------------------------------------------


def mesh_of(topology: str) -> tuple[Mesh, Chip]:
    """Returns the devices of a topology such as "v5e:2x4", and the figures of one.

    Raises:
      UserError: there is no such topology, or libtpu is missing or busy.
    """
    family, _, shape = topology.partition(":")
    choose("The chip in --topology", family, CHIPS)
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
                "Another process uses libtpu, and one at a time can: wait for it, or set "
                f"ALLOW_MULTIPLE_LIBTPU_LOAD=1. ({text})"
            ) from error
        raise UserError(
            f"--topology is {topology!r}, which libtpu does not know ({text}). Give a chip and the "
            "shape of a slice, such as v5e:2x4, v5e:4x8, v6e:2x4, v4:2x2x2 or v5p:2x2x2."
        ) from error
    chip, chips = CHIPS[family], math.prod(int(length) for length in shape.split("x"))
    if len(found) != chips:  # two devices a chip, each with half of it
        chip = Chip(*(figure * chips / len(found) for figure in chip))
    return Mesh(np.asarray(found), (sharding.BATCH_AXIS,)), chip


def facts(compiled: Any, seconds: float, chip: Chip, devices: int) -> dict[str, Any]:
    """Returns what is reported of a compiled program, JSON-ready; bytes and operations a chip."""
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    kept = memory.argument_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    found = collectives(parse(compiled.as_text()))
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
    made = task.build(config, data.without_images(config.data.name, N_TRAIN), mesh)
    began = time.monotonic()
    training = programs.train(made, made.steps_per_call)
    training = facts(training, time.monotonic() - began, chip, mesh.size)
    began = time.monotonic()
    evaluation = programs.evaluate_batch(made.inference, N_TEST)
    evaluation = facts(evaluation, time.monotonic() - began, chip, mesh.size)
    return {
        "name": source.name,
        "model": config.model.name,
        "batch_size": made.batch_size,
        "eval_batch_size": made.eval_batch_size,
        **made.in_force,
        "training": training,
        "evaluation": evaluation,
    }


def table(content: dict[str, Any]) -> Table:
    """Returns the report as a table."""
    header = ["config", "model", "program", "memory a chip", "temporary", "GFLOP", "traffic"]
    header += ["all-reduces", "other collectives", "all-reduced", "arithmetic", "memory"]
    header += ["interconnect", "images/s at most", "compiled in"]
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
    title = (
        f"A step on {content['topology']} ({content['environment']['devices']} × "
        f"{content['environment']['device']}), computed, not measured"
    )
    return Table(title, header, lines)


# --- scaling on paper -------------------------------------------------------------------------

# Bytes a second that one device sends.
LINKS = {
    "10 Gbit/s": 1.25e9,
    "100 Gbit/s": 12.5e9,
    "v5e ring": CHIPS["v5e"].ring,
    "NVLink 4": 450e9,  # nvidia.com/en-us/data-center/h100: 900 GB/s, both ways together
}


def exchanged(model: str, dtype: Any = jnp.bfloat16) -> tuple[int, int]:
    """Returns a model's parameters, and the bytes that its devices all-reduce in a step.

    The gradient of each parameter: a convolution's in the dtype that it is computed in, others'
    in float32; and BatchNorm's two moments, once forward. (Backward, their sums are the gradients
    of its scale and bias.)
    """
    network = create_model(model)
    variables = abstract_variables(network)
    params = jax.tree.leaves(variables["params"])
    half = jnp.dtype(dtype).itemsize
    size = sum(leaf.size * (half if leaf.ndim == 4 else 4) for leaf in params)
    statistics = jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {}))
    channels = sum(leaf.size for path, leaf in statistics if path[-1].key == "mean")
    if isinstance(network, DenseNet):  # which computes the moments of each feature once
        channels = _densenet_channels(variables["params"])
    return sum(leaf.size for leaf in params), size + 2 * 4 * channels


def _densenet_channels(params: dict[str, Any]) -> int:
    """The channels whose moments are computed: each convolution's, and the stem's once more.

    The stem is normalised before it becomes a feature map, whose moments all layers share.
    """
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4]
    return params["conv0"]["kernel"].shape[-1] + sum(kernel.shape[-1] for kernel in kernels)


def break_even(model: str, link: float, devices: int, flops: float) -> float:
    """Returns the images a device whose arithmetic takes as long as the all-reduce of a step.

    Args:
      model: a name of `jaxcifar.models`.
      link: bytes a second that a device sends.
      devices: in the ring.
      flops: that a device really makes a second.
    """
    an_image = 6 * forward_multiply_adds(model) / flops  # forward, and twice that back
    return all_reduce_seconds(exchanged(model)[1], devices, link) / an_image


def scaling(devices: int, chip: str, utilization: float) -> Table:
    """Returns a table: bytes all-reduced by each model, and from which batch on that pays."""
    flops = CHIPS[chip].flops * utilization
    header = ["model", "parameters", "all-reduced a step", "GFLOP an image"]
    header += [f"half at ({link})" for link in LINKS]
    lines = []
    for model in MODELS:
        params, size = exchanged(model)
        lines.append(
            [
                model,
                f"{params / 1e6:.2f}M",
                f"{size / 1e6:.1f} MB",
                f"{6e-9 * forward_multiply_adds(model):.2f}",
                *(
                    f"{math.ceil(break_even(model, link, devices, flops)):,}"
                    for link in LINKS.values()
                ),
            ]
        )
    title = (
        f"Images per device at which the all-reduce takes half the time: {devices} devices, each "
        f"at {utilization:.0%} of a {chip} chip's peak; computed, not measured"
    )
    return Table(title, header, lines)


# --- the command ------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.compile_for",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--topology", help="a chip and the shape of a slice: v5e:2x4")
    parser.add_argument("--rows", help="of the original report: 1-12,vgg2")
    parser.add_argument("--configs", help="config files, by comma; * is any name")
    parser.add_argument("--out", type=user_path, help="a JSON file")
    parser.add_argument("--scaling", action="store_true", help="plain arithmetic for each model")
    parser.add_argument("--devices", type=int, default=8, help="with --scaling")
    parser.add_argument("--chip", default="v5e", help="with --scaling")
    parser.add_argument(
        "--utilization", type=float, default=0.4, help="with --scaling: of the peak"
    )
    arguments = parser.parse_args(argv)
    if arguments.scaling:
        choose("--chip", arguments.chip, CHIPS)
        if arguments.devices < 1:
            raise UserError(f"--devices is {arguments.devices}; it must be at least 1.")
        if not 0 < arguments.utilization <= 1:
            raise UserError(f"--utilization is {arguments.utilization}; it is a share, up to 1.")
        _print(scaling(arguments.devices, arguments.chip, arguments.utilization))
        return
    if not arguments.topology:
        raise UserError("Name what to compile for: --topology=v5e:2x4.")
    if arguments.out and not arguments.out.parent.is_dir():
        raise UserError(f"There is no folder {arguments.out.parent} to write {arguments.out} in.")
    sources = named(arguments.rows, arguments.configs)
    jax.config.update("jax_platforms", "cpu")  # libtpu must not look for a TPU to run on
    mesh, chip = mesh_of(arguments.topology)
    for source in sources:  # before the first minutes are spent
        _check(source, mesh)
    content: dict[str, Any] = {
        "topology": arguments.topology,
        "chip": chip._asdict(),
        "environment": environment({"libtpu": _libtpu_version()}, mesh),
        "results": [],
    }
    for source in sources:
        print(f"compiling {source.name} …", file=sys.stderr, flush=True)
        content["results"].append(compiled_for(source, mesh, chip))
        if arguments.out:
            write_json(arguments.out, content)
    _print(table(content))


def _check(source: Source, mesh: Mesh) -> None:
    try:
        task.check_config(source.config, mesh)
    except UserError as error:
        raise UserError(f"{source.file or source.name}: {error}") from error


def _libtpu_version() -> str | None:
    try:
        return version("libtpu")
    except PackageNotFoundError:
        return None


def _print(grid: Table) -> None:
    print(f"{grid.title}\n\n{grid.markdown()}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
