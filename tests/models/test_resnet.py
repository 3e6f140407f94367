"""ResNets: sizes of the feature maps, and what their weights start from."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.models import create_model
from jaxcifar.models.resnet import BasicBlock, BottleneckBlock, ResNet
from tests.models.shapes import IMAGES, shapes


def test_feature_map_sizes():
    # 32×32 after the stem, halved by each later stage: the report's "output size".
    sizes = []

    def record(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        if isinstance(context.module, BasicBlock):
            sizes.append(y.shape[1:])
        return y

    model = create_model("resnet18")
    variables = shapes(model)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, IMAGES)
    assert sizes[::2] == [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2**0.5), ("gelu", 1.0)])
def test_kaiming_fan_out(activation, gain):
    model = ResNet(stage_sizes=(1, 1), block=BottleneckBlock, activation=activation)
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(
        jax.random.key(0)
    )["params"]
    kernel = params["layer2_0"]["conv2"]["kernel"]  # 3×3, 128 out
    np.testing.assert_allclose(kernel.std(), gain / np.sqrt(9 * 128), rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    bound = 1 / np.sqrt(params["fc"]["kernel"].shape[0])
    for leaf in params["fc"].values():
        assert 0.8 * bound < np.abs(leaf).max() <= bound
