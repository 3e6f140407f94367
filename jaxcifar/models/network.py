"""What every network of this package is: a linen module with a few fields, layers and an `init`."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.kernels.draw import OneDraw
from jaxcifar.models import initializers, layers


class Network(nn.Module):
    """The base of the networks: `__call__(images, train)` maps images to logits.

    The images are normalised, [N, 32, 32, 3]; the logits [N, num_classes] float32.

    A subclass builds its layers with `self.conv()`, `self.norm()` and `self.act`, so that dtype,
    initialisation and platform reach each of them.

    Attributes:
      num_classes: outputs of the classifier.
      activation: one of `jaxcifar.models.layers.ACTIVATIONS`.
      dropout_rate: where it applies is said in each network's docstring.
      dtype: of the computation, float32 or a narrower one. Parameters, batch statistics and logits
        are float32 always.
      width: multiplies every channel count, rounded down.
      platform: what the program is built for ("cpu", "gpu", "tpu").
      normal: draws the initial weights: (key, shape, dtype) -> standard normal numbers.
      batch_norm: whether there are BatchNorm layers; only VGG can do without.
      has_dropout: whether there are dropout layers, at whatever rate.
      narrowest: the channels of the narrowest layer of width 1, or fewer: no layer has less than
        one.
    """

    has_dropout: ClassVar[bool] = True
    narrowest: ClassVar[int] = 24

    num_classes: int = 10
    activation: str = "relu"
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    width: float = 1.0
    platform: str = ""
    normal: Callable[..., jax.Array] = jax.random.normal
    batch_norm: bool = True

    @property
    def act(self) -> Callable[[jax.Array], jax.Array]:
        """The activation function."""
        return layers.ACTIVATIONS[self.activation]

    @nn.nowrap
    def conv(self, **options: Any) -> Callable[..., layers.Conv]:
        """Returns (features, kernel_size, stride, name=…) -> convolution, He-initialised."""
        kernel_init = initializers.kaiming_normal_fan_out(self.activation, self.normal)
        defaults = {"kernel_init": kernel_init, "dtype": self.dtype, "platform": self.platform}
        return partial(layers.Conv, **defaults | options)

    @nn.nowrap
    def norm(self, **options: Any) -> Callable[..., layers.BatchNorm]:
        """Returns (name=…) -> BatchNorm."""
        return partial(layers.BatchNorm, dtype=self.dtype, platform=self.platform, **options)

    @nn.nowrap
    def fitted(self, variables: dict[str, Any], images: jax.Array) -> dict[str, Any]:
        """Returns initial variables after a look at the training images: by default the same.

        Args:
          variables: {"params", "batch_stats"} from `init`.
          images: [N, 32, 32, 3] float32, normalised. A network that needs a few uses the first.
        """
        del images
        return variables

    @nn.nowrap
    def init_with_output(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """That of `flax.linen.Module`, and so `init`, with all normal weights from one draw.

        These are the weights that a run whose `init_key` is `rngs` starts from. Under `jax.jit` a
        DenseNet-201 then compiles in seconds; see `jaxcifar.kernels.draw`. A network that stacks
        its layers, by `nn.scan` or `nn.vmap`, is initialised as Flax does it. Layers in `nn.jit`,
        which traces equal ones once, would begin alike: it has no use within a compiled step.
        """
        key = rngs["params"] if isinstance(rngs, dict) else rngs
        count = OneDraw()  # a dry run: how many numbers?
        init = nn.Module.init_with_output
        _, made = jax.eval_shape(
            lambda: init(self.clone(normal=count.normal), rngs, *args, **kwargs)
        )
        # What is drawn once for a stack of layers would be the same in each of them.
        if Counter(count.shapes) - Counter(leaf.shape for leaf in jax.tree.leaves(made)):
            return init(self, rngs, *args, **kwargs)
        draw = OneDraw(key, count.taken)
        return init(self.clone(normal=draw.normal), rngs, *args, **kwargs)
