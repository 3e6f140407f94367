"""The yardstick in plain Flax does the same work as jaxcifar's network."""

import jax
import jax.numpy as jnp
import pytest

from experiments.plain_flax import PlainResNet18, lowered_step
from jaxcifar.models import create_model
from tests.tiny import mesh


@pytest.mark.slow
def test_both_networks_are_the_same_work():
    ours = create_model("resnet18", dtype=jnp.bfloat16, dropout_rate=0.0, platform="tpu")
    sizes, flops = [], []
    for model in (PlainResNet18(), ours):
        # Flax's own layers rely on promotions that tests otherwise forbid.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            step = lowered_step(model, mesh(8))
        (variables, _), mean = step.out_info
        assert mean.shape == ()
        shapes = [leaf.shape for leaf in jax.tree.leaves(variables["params"])]
        sizes.append(sorted(shapes))
        flops.append(step.cost_analysis()["flops"])
    assert sizes[0] == sizes[1]
    assert flops[0] == pytest.approx(flops[1], rel=0.01)
