"""Feature maps that many layers see, concatenated: DenseNet's."""

import flax.struct
import jax
import jax.numpy as jnp

from jaxcifar.kernels.norm import Moments, moments


class Features(flax.struct.PyTreeNode):
    """Feature maps [N, H, W, C_i]; as one array they are `jnp.concatenate(parts, axis=-1)`.

    Attributes:
      parts: the maps, in the order in which they came.
      part_moments: of each map, so that a channel's moments are computed once, and not again by
        every layer that sees it; () where they are not needed (at inference).
      platform: what the program is built for, see `jaxcifar.kernels.platform_of`.
    """

    parts: tuple[jax.Array, ...]
    part_moments: tuple[Moments, ...]
    platform: str = flax.struct.field(pytree_node=False)

    def append(self, x: jax.Array, *, train: bool, near: jax.Array | None = None) -> "Features":
        """Returns these feature maps and one more; `near` estimates its mean, see `moments`."""
        known = (*self.part_moments, moments(x, self.platform, near)) if train else ()
        return self.replace(parts=(*self.parts, x), part_moments=known)

    def for_a_layer(self) -> "Features":
        """Returns the same, to be called for each layer that sees these feature maps.

        On CPUs the gradient of each map is then one running sum; without the barrier XLA keeps the
        gradients of all its uses until the last.
        """
        if self.platform != "cpu":
            return self
        return self.replace(parts=jax.lax.optimization_barrier(self.parts))

    @property
    def concatenated(self) -> jax.Array:
        """All maps as one array [N, H, W, C]."""
        return jnp.concatenate(self.parts, axis=-1)

    @property
    def moments(self) -> Moments | None:
        """The moments of `concatenated`, where those of its parts are known."""
        if not self.part_moments:
            return None
        return jax.tree.map(lambda *each: jnp.concatenate(each), *self.part_moments)
