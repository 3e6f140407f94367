"""VGG-A: what its weights start from, and where its BatchNorm is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar.errors import UserError
from jaxcifar.models import create_model
from tests.models.shapes import shapes


def test_xavier():
    model = create_model("vgg_a")
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))(
        jax.random.key(0)
    )["params"]
    std = np.sqrt(2 / (9 * 512 + 9 * 512))
    np.testing.assert_allclose(params["conv8"]["kernel"].std(), std, rtol=0.02)
    np.testing.assert_allclose(params["fc1"]["kernel"].std(), np.sqrt(2 / 1024), rtol=0.02)
    assert not params["conv8"]["bias"].any()


def test_a_batch_norm_follows_each_convolution():
    plain, normed = shapes(create_model("vgg_a")), shapes(create_model("vgg_a_bn"))
    assert "batch_stats" not in plain
    assert set(normed["batch_stats"]) == {f"bn{i}" for i in range(1, 9)}
    assert set(plain["params"]) == {f"conv{i}" for i in range(1, 9)} | {"fc1", "fc2", "fc3"}
    assert set(normed["params"]) == set(plain["params"]) | set(normed["batch_stats"])
    assert all("bias" in plain["params"][name] for name in plain["params"])


def test_images_of_which_nothing_would_be_left_are_refused():
    model = create_model("vgg_a", width=0.125)

    def init(images):
        return model.init(jax.random.key(0), images, train=False)

    with pytest.raises(UserError, match=r"have 28×40 pixels.*Give it 32×32 or more"):
        jax.eval_shape(init, jnp.zeros((2, 28, 40, 3)))
    params = jax.eval_shape(init, jnp.zeros((2, 32, 64, 3)))["params"]
    assert params["fc1"]["kernel"].shape == (2 * 64, 64)
