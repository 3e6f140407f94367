"""VGG-A for 32×32 images, with or without BatchNorm.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
configuration A, with a classifier of width 512.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcifar.models import layers
from jaxcifar.models.layers import BatchNorm, Conv, Linear

# Output channels of the convolutions between the five 2×2 poolings.
STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Eight 3×3 convolutions with bias and three linear layers; dropout before the hidden two.

    Attributes:
      batch_norm: whether a BatchNorm follows each convolution (whose bias then has no effect, but
        is there, as in the report's network).
      others: see `jaxcifar.models.create_model`.
    """

    batch_norm: bool
    num_classes: int = 10
    activation: str = "relu"
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    width: float = 1.0
    unbiased_variance: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps normalised images [N, 32, 32, 3] to logits [N, num_classes] float32."""
        act = layers.ACTIVATIONS[self.activation]
        conv = partial(Conv, use_bias=True, dtype=self.dtype)
        norm = partial(BatchNorm, unbiased_variance=self.unbiased_variance, dtype=self.dtype)
        number = 0
        for stage in STAGES:
            for features in stage:
                number += 1
                x = conv(int(features * self.width), name=f"conv{number}")(x)
                if self.batch_norm:
                    x = norm(name=f"bn{number}")(x, train=train)
                x = act(x)
            x = layers.max_pool(x)
        x = x.reshape(len(x), -1)
        for number in (1, 2):
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = act(Linear(int(512 * self.width), name=f"fc{number}")(x))
        return Linear(self.num_classes, name="fc3")(x)
