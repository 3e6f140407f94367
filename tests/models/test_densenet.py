"""DenseNets: what they start from, and that computing again changes memory alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar import sharding
from jaxcifar.errors import UserError
from jaxcifar.kernels import compilation
from jaxcifar.models.densenet import DenseNet
from jaxcifar.state import abstract_variables
from tests.models.shapes import shapes
from tests.tiny import mesh


def test_the_head_has_no_bias_at_first():
    params = jax.jit(
        lambda key: DenseNet(block_sizes=(1, 1), width=0.25).init(
            key, jnp.zeros((1, 32, 32, 3)), train=False
        )
    )(jax.random.key(0))["params"]
    assert not params["classifier"]["bias"].any()
    assert params["classifier"]["kernel"].any()


def test_channels_grow_by_each_layer_and_halve_by_each_transition():
    params = shapes(DenseNet(block_sizes=(2, 3), growth=12))["params"]
    channels = lambda name: params[name]["norm1"]["scale"].shape[0]  # noqa: E731
    first = [channels(f"denseblock1_layer{i}") for i in (1, 2)]
    second = [channels(f"denseblock2_layer{i}") for i in (1, 2, 3)]
    assert first == [64, 76]
    assert params["transition1"]["conv"]["kernel"].shape == (1, 1, 88, 44)
    assert second == [44, 56, 68]
    assert params["classifier"]["kernel"].shape == (80, 10)


# --- rematerialisation ------------------------------------------------------------------------


def gradients_of(remat, dtype=jnp.float32, **options):
    """A model, and a function of (params, batch_stats, images) to (loss, statistics), gradients."""
    model = DenseNet(
        growth=12, width=0.5, dropout_rate=0.3, remat=remat, dtype=dtype, platform="cpu", **options
    )

    def loss(params, batch_stats, images):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(5)},
        )
        return jnp.square(logits).sum(), updates

    return model, compilation.jit(jax.value_and_grad(loss, has_aux=True), platform="cpu")


@pytest.mark.slow
def test_each_batchnorm_needs_one_all_reduce_on_accelerators():
    """Both moments of a map are about the running mean of the layer that sees it first."""
    model, two = DenseNet(block_sizes=(2, 1, 1, 1), width=0.125, platform="gpu"), mesh(2)
    variables = abstract_variables(model)
    images = jax.ShapeDtypeStruct(
        (8, 32, 32, 3), jnp.float32, sharding=sharding.batch_sharding(two)
    )
    forward = jax.jit(partial(model.apply, train=True, mutable="batch_stats"))
    text = forward.lower(sharding.abstract(variables, two), images).compile().as_text()
    layers = sum(path[-1] == "mean" for path in flatten_dict(variables["batch_stats"]))
    assert text.count(" all-reduce(") == layers == 2 * 5 + 3 + 2


def test_remat_changes_no_gradient():
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (3, 8, 8, 3), jnp.float64)
        found = []
        for remat in (False, True):
            model, gradients = gradients_of(remat, jnp.float64, block_sizes=(2, 2))
            init = jax.jit(partial(model.clone(dtype=jnp.float32).init, train=False))
            variables = init(jax.random.key(1), images.astype(jnp.float32))
            variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
            found.append(gradients(variables["params"], variables["batch_stats"], images))
    plain, again = found
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(a).max())


@pytest.mark.slow
def test_remat_halves_the_memory():
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    needed = {}
    for remat in (False, True):
        model, gradients = gradients_of(remat, block_sizes=(8,))
        variables = shapes(model)
        compiled = gradients.lower(variables["params"], variables["batch_stats"], images).compile()
        needed[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert needed[True] < needed[False] / 2, needed


def test_images_of_odd_sizes_and_those_of_which_nothing_would_be_left():
    model = DenseNet(block_sizes=(1, 1, 1, 1), width=0.125, platform="cpu")

    def logits(side):
        images = jnp.zeros((2, side, side, 3))
        return model.init_with_output(jax.random.key(0), images, train=False)[0]

    assert jax.eval_shape(lambda: logits(28)).shape == (2, 10)
    with pytest.raises(UserError, match=r"have 4×4 pixels.*Give it 8×8 or more"):
        jax.eval_shape(lambda: logits(4))
