"""Networks are traced with strict dtypes; and what their tests share."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _strict_promotion():
    """No operation of ours mixes dtypes unseen. (optax's own does.)"""
    with jax.numpy_dtype_promotion("strict"):
        yield
