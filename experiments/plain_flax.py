"""Compiles one training step of a ResNet-18 for TPUs, in plain Flax and in jaxcifar's layers.

    python -m experiments.plain_flax --topology=v5e:2x4

A yardstick for `experiments.compile_for`: nothing but the network and Adam, on a batch of
normalised images that are already there. Two networks are made of Flax's own `nn.Conv`,
`nn.BatchNorm` (whose variance can be computed in two ways) and `nn.Dense`; the third is jaxcifar's.
The step around them is the same. It needs libtpu, and minutes for each.
"""

import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from experiments.compile_for import facts, mesh_of
from experiments.runs.table import Table
from jaxcifar import sharding
from jaxcifar.models import create_model
from jaxcifar.options import Parser
from jaxcifar.signals import exit_code

BATCH = 256


class PlainResNet18(nn.Module):
    """ResNet-18 for 32×32 images in Flax's own layers, computed in bfloat16.

    Attributes:
      fast_variance: BatchNorm's variance from one pass over its input, which is Flax's default, or
        about the mean, from two. (jaxcifar's is about the running mean, from one.)
    """

    fast_variance: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=jnp.bfloat16)
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            dtype=jnp.bfloat16,
            use_fast_variance=self.fast_variance,
        )
        x = nn.relu(norm()(conv(64, (3, 3))(x)))
        for features, first in ((64, 1), (128, 2), (256, 2), (512, 2)):
            for stride in (first, 1):
                y = nn.relu(norm()(conv(features, (3, 3), stride)(x)))
                y = norm()(conv(features, (3, 3))(y))
                if stride > 1:
                    x = norm()(conv(features, (1, 1), stride)(x))
                x = nn.relu(x + y)
        return nn.Dense(10)(x.mean((1, 2), dtype=jnp.float32))


def lowered_step(model: nn.Module, mesh: Mesh) -> Any:
    """Returns the step of a batch of images that are on the devices, to compile."""
    tx = optax.adam(1e-3)

    def init(images: jax.Array) -> tuple[Any, ...]:
        variables = model.init(jax.random.key(0), images, train=False)
        return variables, tx.init(variables["params"])

    def step(state: tuple[Any, ...], images: jax.Array, labels: jax.Array) -> tuple[Any, ...]:
        variables, opt_state = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, updated = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), updated

        (mean, updated), grads = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        updates, opt_state = tx.update(grads, opt_state)
        params = optax.apply_updates(variables["params"], updates)
        return ({"params": params, **updated}, opt_state), mean

    images = jax.ShapeDtypeStruct((BATCH, 32, 32, 3), jnp.float32)
    labels = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    jitted = jax.jit(
        step, in_shardings=(whole, split, split), out_shardings=whole, donate_argnums=0
    )
    return jitted.lower(jax.eval_shape(init, images), images, labels)


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("python -m experiments.plain_flax", __doc__)
    parser.add_argument("--topology", default="v5e:2x4", help="a chip and the shape of a slice")
    arguments = parser.parse_args(argv)
    jax.config.update("jax_platforms", "cpu")  # libtpu must not look for a TPU to run on
    mesh, chip = mesh_of(arguments.topology)
    ours = create_model("resnet18", dtype=jnp.bfloat16, dropout_rate=0.0, platform="tpu")
    networks = {
        "plain Flax": PlainResNet18(),
        "plain Flax, variance about the mean": PlainResNet18(fast_variance=False),
        "jaxcifar": ours,
    }
    lines = []
    for name, model in networks.items():
        began = time.monotonic()
        compiled = lowered_step(model, mesh).compile()
        found = facts(compiled, time.monotonic() - began, chip, mesh.size)
        reduces = found["collectives"]["all-reduce"]
        lines.append(
            [
                name,
                f"{found['temporary_bytes'] / 2**20:,.0f} MiB",
                f"{found['flops'] / 1e9:,.1f}",
                f"{found['traffic_bytes'] / 1e9:,.3f} GB",
                str(reduces["count"]),
                f"{reduces['bytes'] / 1e6:,.2f} MB",
            ]
        )
    header = ["network", "temporary", "GFLOP", "traffic", "all-reduces", "all-reduced"]
    title = f"A step of {BATCH} ready images on {arguments.topology}; computed, not measured"
    print(Table(title, header, lines))


if __name__ == "__main__":
    sys.exit(exit_code(main))
