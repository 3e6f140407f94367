"""Where arrays live: one mesh axis over all devices, batches split along it, the rest replicated.

`jax.jit` over such arrays computes BatchNorm statistics and gradients over the whole batch, so
that one device and many give the same numbers but for rounding; no code elsewhere knows how many
there are.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcifar.errors import UserError

BATCH_AXIS = "batch"


def make_mesh() -> Mesh:
    """Returns a mesh of one axis over all devices of all processes.

    Raises:
      UserError: JAX has no device.
    """
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        setting = f"JAX_PLATFORMS is {platforms!r}, and " if platforms else ""
        raise UserError(
            f"{setting}JAX cannot use a device ({str(error) or type(error).__name__}). Unset "
            "JAX_PLATFORMS to use what is there, or install jaxcifar for the accelerator "
            "('.[cuda12]', '.[cuda13]', '.[tpu]')."
        ) from error
    return Mesh(np.asarray(devices), (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state and data sets: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of each array of `tree` on every device."""
    return jax.device_put(tree, replicated(mesh))


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Returns the shapes and dtypes of `tree`, as they are when a copy is on every device."""
    whole = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)
