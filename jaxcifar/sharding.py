"""Where arrays live: one mesh axis over all devices, batches split along it, the rest replicated.

Under `jax.jit`, BatchNorm statistics and gradients of such arrays are those of the whole batch:
one device and many give the same numbers except for rounding, and no other code needs to know how
many there are.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxcifar import processes
from jaxcifar.errors import UserError

BATCH_AXIS = "batch"


def make_mesh(of: Mesh | None = None) -> Mesh:
    """Returns a mesh of one axis over the devices of a mesh, however it is made; None is all.

    Raises:
      UserError: there is no device, see `jaxcifar.processes.devices`; or JAX's settings are such
        that programs cannot be compiled for it.
    """
    devices = np.asarray(processes.devices()) if of is None else of.devices.reshape(-1)
    if jax.config.jax_disable_jit:  # pyright: ignore
        raise UserError(
            "jax_disable_jit is set, but jaxcifar compiles its programs ahead of time. Unset it, "
            "and inspect a step with jaxcifar.programs.loss and jaxcifar.step, or a model by "
            "itself."
        )
    # What is computed under a mesh of `jax.set_mesh` must be on that mesh.
    context = jax.sharding.get_abstract_mesh()
    if not context.empty:
        raise UserError(
            f"jax.set_mesh is in force, with the axes {', '.join(map(str, context.axis_names))}. "
            "Call jaxcifar outside of it; most functions take the mesh as an argument."
        )
    if not devices.size:
        raise UserError("The mesh has no devices. Make it of one or more, or leave it out for all.")
    return Mesh(devices, (BATCH_AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state and data sets: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXIS))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a full copy of each array of `tree` on every device.

    If the devices belong to several processes, all must pass the same arrays. This is not checked:
    `device_put` would check it by sending each array to every process.
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
    """Returns arrays, or their abstract forms, in a form that this process can use on its own.

    An array that is replicated over several processes becomes the copy on this process's first
    device; anything else is returned unchanged.
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
    """Undoes `of_this_process`: replicates `tree` over the devices of `like`."""
    mesh = jax.tree.leaves(like)[0].sharding.mesh
    return replicate(tree, mesh) if mesh.is_multi_process else tree


def abstract(tree: Any, mesh: Mesh) -> Any:
    """Returns the abstract form of `tree` when replicated: shapes, dtypes and shardings."""
    whole = replicated(mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)
