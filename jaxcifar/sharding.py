"""Where arrays live: one mesh axis over all devices, batches split along it, the rest replicated.

`jax.jit` over such arrays computes BatchNorm statistics and gradients over the whole batch, so
that one device and many give the same numbers but for rounding; no code elsewhere knows how many
there are.
"""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxcifar import processes
from jaxcifar.errors import UserError

BATCH_AXIS = "batch"


def make_mesh() -> Mesh:
    """Returns a mesh of one axis over all devices of all processes.

    Raises:
      UserError: JAX has no device, or has those of processes that do not know of each other.
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
    if (hosts := jax.process_count()) > processes.count():
        raise UserError(
            f"JAX sees the devices of {hosts} processes, but this one was started alone: on a TPU "
            "slice whose metadata server does not answer, for example. Start the training on every "
            f"host with --coordinator_address=HOST:PORT, --num_processes={hosts} and --process_id."
        )
    return Mesh(np.asarray(devices), (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state and data sets: a whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a whole copy of each array of `tree` on every device.

    Where the devices are of several processes, all must have the same arrays: `device_put` would
    send each to every process to see that.
    """
    whole = replicated(mesh)
    if not mesh.is_multi_process:
        return jax.device_put(tree, whole)

    def copies(x: Any) -> jax.Array:
        x = x if isinstance(x, jax.Array) else np.asarray(x)
        on_each = [jax.device_put(x, device) for device in mesh.local_devices]
        return jax.make_array_from_single_device_arrays(x.shape, whole, on_each)

    return jax.tree.map(copies, tree)


def of_this_process(tree: Any) -> Any:
    """Returns arrays, or their shapes and shardings, as this process can use them alone.

    Of what is replicated over the devices of several processes, that is the copy on the first of
    its own devices; all else is returned as it is.
    """

    def one(x: Any) -> Any:
        if x.sharding.is_fully_addressable:
            return x
        if isinstance(x, jax.Array):
            return x.addressable_data(0)
        (device, *_) = x.sharding.addressable_devices
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=SingleDeviceSharding(device))

    return jax.tree.map(one, tree)


def of_all(tree: Any, like: Any) -> Any:
    """Returns what `of_this_process` made of something like `like`, as it was before."""
    mesh = jax.tree.leaves(like)[0].sharding.mesh
    return replicate(tree, mesh) if mesh.is_multi_process else tree


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Returns the shapes and dtypes of `tree`, as they are when a copy is on every device."""
    whole = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)
