"""Computes for each model how large a batch has to be, so that it pays to share it among devices.

    python -m experiments.scaling --devices=8 --chip=v5e
    python -m experiments.scaling --batch=32

Devices that share a batch exchange gradients and BatchNorm's moments in each step. The table has
the bytes that are exchanged, and the number of images per device at which that takes as long as the
arithmetic, so that the efficiency is one half; with --batch, the efficiency at so many images per
device instead. This is arithmetic: nothing is compiled or measured.
"""

import functools
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.cost import forward_multiply_adds
from experiments.runs.table import Table
from jaxcifar.errors import UserError, choose
from jaxcifar.models import MODELS, create_model
from jaxcifar.models.densenet import DenseNet
from jaxcifar.options import Parser
from jaxcifar.signals import exit_code
from jaxcifar.state import abstract_variables


class Chip(NamedTuple):
    """The published figures of a TPU or GPU.

    Attributes:
      flops: peak, in bfloat16, per second.
      memory: bytes of HBM.
      bandwidth: of the HBM, bytes per second.
      ring: bytes per second that a chip sends in a ring: two ports, one each way around.
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
    # nvidia.com/en-us/data-center/h100, SXM, without sparsity; NVLink 4: 900 GB/s, both ways.
    "h100": Chip(989e12, 80e9, 3350e9, 450e9),
}


def all_reduce_seconds(size: float, devices: int, ring: float) -> float:
    """The time of a ring all-reduce of `size` bytes: each device sends 2(n − 1)/n times as many."""
    return 2 * (devices - 1) / devices * size / ring


LINKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}  # bytes per second that one device sends


@functools.lru_cache
def exchanged(model: str, dtype: Any = jnp.bfloat16) -> tuple[int, int]:
    """Returns a model's parameters, and the bytes that its devices all-reduce in a step.

    The gradient of each parameter: a convolution's in the dtype that it is computed in, others'
    in float32; and BatchNorm's two moments, once forward. (Backward, their sums are the gradients
    of its scale and bias.)
    """
    network = create_model(model)
    variables = abstract_variables(network)
    params = jax.tree.leaves(variables["params"])
    itemsize = jnp.dtype(dtype).itemsize
    size = sum(leaf.size * (itemsize if leaf.ndim == 4 else 4) for leaf in params)
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
    """Returns the images per device whose arithmetic takes as long as the all-reduce of a step.

    Args:
      model: a name of `jaxcifar.models`.
      link: bytes per second that a device sends.
      devices: in the ring.
      flops: that a device really makes per second.
    """
    an_image = 6 * forward_multiply_adds(model) / flops  # forward, and twice that back
    return all_reduce_seconds(exchanged(model)[1], devices, link) / an_image


def scaling(devices: int, chip: str, utilization: float, batch: int | None = None) -> Table:
    """Returns a table of all models: the efficiency over each of `LINKS` and the chip's own ring.

    The exchange is taken to begin when the arithmetic has ended; the latency of each all-reduce is
    left out.

    Args:
      devices: that share a batch.
      chip: one of `CHIPS`.
      utilization: the share of the chip's peak that the arithmetic reaches.
      batch: images per device; with None, the table has the number at which the efficiency is one
        half.
    """
    flops, links = CHIPS[chip].flops * utilization, LINKS | {f"{chip} ring": CHIPS[chip].ring}
    header = ["model", "parameters", "all-reduced per step", "GFLOP per image"]
    header += [f"{'efficiency' if batch else 'half at'} ({link})" for link in links]
    lines = []
    for model in MODELS:
        params, size = exchanged(model)
        halves = [break_even(model, link, devices, flops) for link in links.values()]
        lines.append(
            [
                model,
                f"{params / 1e6:.2f}M",
                f"{size / 1e6:.1f} MB",
                f"{6e-9 * forward_multiply_adds(model):.2f}",
                *(
                    f"{batch / (batch + half):.0%}" if batch else f"{math.ceil(half):,}"
                    for half in halves
                ),
            ]
        )
    what = (
        f"Efficiency with {batch:,} images per device"
        if batch
        else "Images per device at which the all-reduce takes half the time"
    )
    title = (
        f"{what}: {devices} devices ({chip}), each at {utilization:.0%} of its peak; computed, not "
        "measured"
    )
    return Table(title, header, lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m experiments.scaling", __doc__)
    parser.add_argument("--devices", type=int, default=8, help="that share a batch")
    parser.add_argument("--chip", default="v5e", help=", ".join(CHIPS))
    parser.add_argument("--utilization", type=float, default=0.4, help="of the chip's peak")
    parser.add_argument("--batch", type=int, help="images per device")
    arguments = parser.parse_args(argv)
    choose("--chip", arguments.chip, CHIPS)
    for name in ("devices", "batch"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1.")
    if not 0 < arguments.utilization <= 1:
        raise UserError(f"--utilization is {arguments.utilization}; it is a share, up to 1.")
    print(scaling(arguments.devices, arguments.chip, arguments.utilization, arguments.batch))


if __name__ == "__main__":
    sys.exit(exit_code(main))
