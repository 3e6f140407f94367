"""Trains small networks on this machine's devices and on one CPU device, and compares the losses.

    python -m experiments.compare_devices --out=/tmp/devices
    python -m experiments.compare_devices --out=/tmp/devices16 --dtype=bfloat16

The cases are those of `experiments.golden`: a narrow network of each family, with every kind of
augmentation, optimizer and schedule, twenty steps each. On the devices, GPUs or TPUs if there are
any, each is trained three times: without a stop, once more, and stopped after five steps and
resumed. The table says how far the losses are from the CPU's, and whether the three agree in each
bit of the losses and of the network. Losses drift apart with the steps, as rounding does in any
training; those of the first step differ by rounding only, and those of the second depend on the
gradients of the first. The exit code is 1 if either is further away than --tolerance allows, or if
a case could not be trained; different bits do not count. Compiling takes minutes.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from experiments import golden
from experiments.runs.table import Table
from jaxcifar import options, restore, sharding, train
from jaxcifar.config import Config
from jaxcifar.errors import Interrupted, UserError, choose, note
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook, Run
from jaxcifar.kernels import compilation, platform_of
from jaxcifar.run.digest import digests
from jaxcifar.run.machine import environment
from jaxcifar.signals import exit_code

# Relative, of the first two losses: float32 sums in another order, and bfloat16's eight bits.
_TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}
_STOP = 5  # in the middle of the first epoch


class Trained(NamedTuple):
    """What a training computed: the losses of its steps, and a digest of its network."""

    losses: list[float]
    network: str


class _StopAt(Hook):
    reads_state = False

    def before_call(self, run: Run) -> None:
        if run.step == _STOP:
            run.stop.request("to be resumed")


def trained(
    config: Config, workdir: pathlib.Path, mesh: jax.sharding.Mesh, *, stop: bool = False
) -> Trained:
    """Trains a config on the devices of a mesh; with `stop`, stopped once and resumed."""
    # As real runs do on CPUs, where a convolution inside a loop is slow; else to stop in an epoch.
    config = config.copy_and_resolve_references()
    config.train.steps_per_call = 1 if platform_of(mesh) == "cpu" else _STOP
    if stop:
        try:
            train.train_and_evaluate(config, workdir, mesh=mesh, hooks=[_StopAt()], quiet=True)
        except Interrupted as error:
            if error.signum:  # not the hook's
                raise
    train.train_and_evaluate(config, workdir, mesh=mesh, quiet=True)
    losses = [loss for epoch in read_lines(workdir / "steps.jsonl") for loss in epoch["loss"]]
    _, _, variables = restore.load_variables(workdir, "last", mesh=mesh)
    return Trained(losses, json.dumps(digests(variables)[0]))


def compared(case: str, dtype: str, folder: pathlib.Path) -> tuple[list[str], float]:
    """Returns the line of a case, and the larger distance of its first two losses."""
    config = golden.config_of(case)
    config.model.dtype = dtype
    cpu = sharding.make_mesh(jax.sharding.Mesh(np.asarray(jax.devices("cpu")[:1]), ("one",)))
    devices = sharding.make_mesh()
    expected = trained(config, folder / "cpu", cpu)
    once = trained(config, folder / "devices", devices)
    again = trained(config, folder / "again", devices)
    resumed = trained(config, folder / "resumed", devices, stop=True)
    one, other = np.asarray(once.losses), np.asarray(expected.losses)
    apart = np.abs(one / other - 1)
    bits = ["equal" if run == once else "different" for run in (again, resumed)]
    line = [case, f"{other[0]:.5f}", f"{apart[0]:.1e}", f"{apart[1]:.1e}", f"{apart.max():.1e}"]
    return [*line, *bits], float(apart[:2].max())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = options.Parser("python -m experiments.compare_devices", __doc__)
    parser.add_argument("--out", type=options.user_path, required=True, help="a new folder")
    parser.add_argument("--cases", default=",".join(golden.CASES), help="by comma (default all)")
    parser.add_argument("--dtype", default="float32", choices=tuple(_TOLERANCES))
    parser.add_argument("--tolerance", type=float, help="relative (default 1e-4, or 2e-2)")
    arguments = parser.parse_args(argv)
    cases = [choose("A case in --cases", case, golden.CASES) for case in arguments.cases.split(",")]
    if arguments.out.exists():
        raise UserError(f"{arguments.out} already exists. Give a new folder.")
    tolerance = arguments.tolerance
    if tolerance is None:
        tolerance = _TOLERANCES[arguments.dtype]
    elif not 0 < tolerance < 1:
        raise UserError(f"--tolerance is {tolerance}; it must be above 0 and below 1.")
    try:
        jax.devices("cpu")
    except RuntimeError as error:
        raise UserError(
            "JAX has no CPU device here to compare with. Unset JAX_PLATFORMS, or add cpu to it: "
            "JAX_PLATFORMS=cuda,cpu."
        ) from error
    first, *others = sharding.make_mesh().devices.flat
    if first.platform == "cpu" and not others:  # JAX's choice where the GPU's plugin is missing
        raise UserError(
            "JAX has only one CPU device here: there is nothing to compare. Install JAX for the "
            "accelerator ('.[cuda12]', '.[cuda13]', '.[tpu]'), or compare eight CPU devices: "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8."
        )
    compilation.use_cache()
    header = ["case", "first loss", "apart", "second", "farthest of 20", "again", "resumed"]
    lines: list[list[str]] = []
    wrong: list[str] = []
    # TF32, a GPU's default for float32 products, has three digits.
    with jax.default_matmul_precision("float32"):
        facts = environment({"dtype": arguments.dtype})
        for case in cases:
            try:
                line, apart = compared(case, arguments.dtype, arguments.out / case)
            except (UserError, jax.errors.JaxRuntimeError) as error:  # a loss of NaN, or no memory
                note(f"{case}: {error}")
                line, apart = [case, "failed", *[""] * 5], float("inf")
            lines.append(line)
            print("  ".join(line), file=sys.stderr, flush=True)
            if not apart <= tolerance:  # NaN is not
                wrong.append(case)
    print(Table(f"{facts['devices']} × {facts['device']} and a CPU", header, lines))
    print(f"\n{json.dumps(facts)}")
    if wrong:
        print(f"\nNot within {tolerance:g} in the first two steps: {', '.join(wrong)}.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(exit_code(main))
