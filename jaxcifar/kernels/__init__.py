"""What makes the models fast, in one place; readers of the models can skip it.

Each piece equals a one-line definition, which its docstring gives and a test compares it with.
`conv`, `winograd` and the barriers are for CPUs alone; elsewhere XLA's own operations run. `norm`,
`features`, `activation` and `draw` run everywhere: their gradients keep the input in its own dtype,
where automatic differentiation would keep more of it in float32. They have no forward-mode
derivative (`jax.jvp`), and on CPUs most convolutions of `conv` have none either.

Under `jax.jit` all of them see the whole of a batch that is split over devices. Inside
`jax.shard_map`, which must be told check_vma=False, moments are those of each device's part, and
the gradients of the parameters are for you to sum over the devices.
"""

from jax.sharding import Mesh


def platform_of(mesh: Mesh) -> str:
    """Returns the platform that a program over `mesh` is built for: "cpu", "gpu" or "tpu".

    Taken from the mesh's devices, never from the default backend, so that a step can be built for a
    machine that is not this one.
    """
    return mesh.devices.flat[0].platform
