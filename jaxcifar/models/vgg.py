"""VGG-A for 32×32 images, with or without BatchNorm.

Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
configuration A, with a classifier of width 512.
"""

from functools import partial

import flax.linen as nn
import jax

from jaxcifar.errors import UserError
from jaxcifar.models import initializers, layers
from jaxcifar.models.network import Network

# Output channels of the convolutions between the five 2×2 poolings.
STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(Network):
    """Eight 3×3 convolutions with bias and three linear layers; dropout before the hidden two.

    With `batch_norm`, a BatchNorm follows each convolution. The convolution's bias is then
    redundant but kept, as in the original report's network.
    """

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        init = initializers.xavier_normal(self.normal)
        conv, norm = self.conv(use_bias=True, kernel_init=init), self.norm()
        linear = partial(layers.Linear, kernel_init=init)
        height, width = x.shape[1:3]
        number = 0
        for stage in STAGES:
            for features in stage:
                number += 1
                x = conv(int(features * self.width), name=f"conv{number}")(x)
                if self.batch_norm:
                    x = norm(name=f"bn{number}")(x, train=train)
                x = self.act(x)
            x = layers.max_pool(x)
        if 0 in x.shape[1:3]:  # else the network would be its last biases
            raise UserError(
                f"The images have {height}×{width} pixels, and a VGG halves them {len(STAGES)} "
                f"times. Give it {2 ** len(STAGES)}×{2 ** len(STAGES)} or more."
            )
        x = x.reshape(x.shape[0], -1)  # no len(): the batch may be symbolic
        for number in (1, 2):
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
            x = self.act(linear(int(512 * self.width), name=f"fc{number}")(x))
        return linear(self.num_classes, name="fc3")(x)
