"""The state of a run before its first step, and its shapes without computing it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import pytest

from jaxcifar.errors import UserError
from jaxcifar.models import create_model
from jaxcifar.optim import make_optimizer
from jaxcifar.state import abstract_variables, create_state, first_state


def test_a_state_is_of_its_seed():
    model, tx = create_model("vgg_a_bn", width=0.05), make_optimizer("adam", 1e-3)
    create = jax.jit(lambda seed: create_state(model, tx, seed))
    one, again, other = create(0), create(0), create(1)
    jax.tree.map(np.testing.assert_array_equal, one.params, again.params)
    assert (jax.random.key_data(one.key) == jax.random.key_data(again.key)).all()
    assert not np.array_equal(one.params["fc1"]["kernel"], other.params["fc1"]["kernel"])
    assert (jax.random.key_data(one.key) != jax.random.key_data(other.key)).any()
    assert (one.step, one.step.dtype) == (0, jnp.int32)
    assert one.variables == {"params": one.params, "batch_stats": one.batch_stats}
    # The optimizer's moments are zeros of the parameters' shapes.
    moments = [leaf for leaf in jax.tree.leaves(one.opt_state) if leaf.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(one.params))
    assert not any(leaf.any() for leaf in moments)


@pytest.mark.parametrize("name", ["sgd", "adam", "prodigy"])
def test_a_step_that_donates_its_state_takes_nothing_from_the_caller(name):
    """Nor any array twice: Prodigy keeps the parameters that it began with."""
    weights, key = {"params": {"w": jnp.ones(3)}}, jax.random.key(0)
    tx = optax.contrib.prodigy() if name == "prodigy" else make_optimizer(name, 1e-3)
    for state in (
        first_state(weights, tx, key, keep_ema=True, keep_slow=True),
        create_state(Weights(), tx, 0, weights=weights),
    ):
        jax.jit(lambda state: jax.tree.map(jnp.copy, state), donate_argnums=0)(state)
        assert state.params["w"].is_deleted()
        assert weights["params"]["w"].sum() == 3
        assert jax.random.uniform(key) < 1


class Weights(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x.sum() * self.param("w", nn.initializers.zeros, (3,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_a", "vgg_a_bn"])
def test_abstract_variables_are_those_of_the_model(name):
    model = create_model(name, width=0.05)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)
    expected = {"params": {}, "batch_stats": {}} | jax.eval_shape(lambda: variables)
    found = abstract_variables(model)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)),
                 found, expected)  # fmt: skip


class Counting(nn.Module):
    """Has a collection of its own."""

    @nn.compact
    def __call__(self, images, *, train):
        self.variable("counts", "calls", jnp.zeros, ())
        return nn.Dense(10)(images.mean((1, 2)))


def test_a_collection_that_would_be_lost_is_refused():
    with pytest.raises(UserError, match="Counting has the collections counts"):
        create_state(Counting(), make_optimizer("adam", 1e-3), 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"Dense_0": {"kernel": jnp.ones((3, 10))}}, "Dense_0/kernel, which the model does not"),
        ({"params": {"head": {"kernel": jnp.ones((3, 10))}}}, "params/head/kernel, which"),
        ({"params": {"Dense_0": {"kernel": jnp.ones((3, 5))}}}, r"of shape \(3, 5\); .* \(3, 10\)"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(10)(images.mean((1, 2)))

    tx = make_optimizer("adam", 1e-3)
    with pytest.raises(UserError, match=message):
        create_state(Linear(), tx, 0, weights=weights)
    kernel = jnp.ones((3, 10))
    state = create_state(Linear(), tx, 0, weights={"params": {"Dense_0": {"kernel": kernel}}})
    np.testing.assert_array_equal(state.params["Dense_0"]["kernel"], kernel)


def test_weights_of_a_boxed_model_fit():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            init = nn.with_partitioning(nn.initializers.ones, (None, None))
            return nn.Dense(10, kernel_init=init)(images.mean((1, 2)))

    tx = make_optimizer("adam", 1e-3)
    params = create_state(Boxed(), tx, 0).params
    again = create_state(Boxed(), tx, 1, weights={"params": params})
    assert jax.tree.structure(again.params) == jax.tree.structure(params)
