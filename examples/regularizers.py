# %% [markdown]
# # Regularizers with a model of your own
#
# `jaxcifar.optim` has L1 and L2 as optax transformations. They work with any model and any
# optimizer; nothing else of the package is needed. Here the model is linear with 100 weights, of
# which 5 matter, and there are only 60 observations: fewer than weights, so least squares alone
# cannot tell which 5.

# %%
# In a notebook, first install the package from the checkout, whose folder is ".." here:
# %pip install -q ..
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

from jaxcifar.optim import add_l1, add_l2, proximal_l1

keys = jax.random.split(jax.random.key(0), 3)
w_true = jnp.zeros(100).at[jnp.array([3, 21, 40, 66, 87])].set(jnp.array([2.0, -1, 1.5, -2, 1]))
x = jax.random.normal(keys[0], (60, 100))
y = x @ w_true + 0.1 * jax.random.normal(keys[1], (60,))


def loss(w):
    """The mean squared error, halved."""
    return jnp.mean(jnp.square(x @ w - y)) / 2


# %% [markdown]
# ## One loop for all
#
# The penalty is not part of the loss. It is a transformation in the optimizer's chain that adds the
# penalty's gradient: λ·sign(w) for L1, λ Σ|w|, and 2λ·w for L2, λ Σw². The proximal form of L1
# comes *last*: it moves each weight towards 0 by learning rate · λ, and sets to 0 what would
# cross it.

# %%
RATE, STRENGTH = 0.05, 0.1
CHAINS = {
    "no penalty": optax.sgd(RATE),
    "L2": optax.chain(add_l2(STRENGTH), optax.sgd(RATE)),
    "L1": optax.chain(add_l1(STRENGTH), optax.sgd(RATE)),
    "proximal L1": optax.chain(optax.sgd(RATE), proximal_l1(STRENGTH, learning_rate=RATE)),
}


def fit(tx):
    """Returns the weights after training by the optimizer `tx`."""

    def step(carry, _):
        w, state = carry
        updates, state = tx.update(jax.grad(loss)(w), state, w)
        return (optax.apply_updates(w, updates), state), None

    w = 0.1 * jax.random.normal(keys[2], (100,))
    (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), length=10_000)
    return w


fitted = {name: jax.jit(lambda tx=tx: fit(tx))() for name, tx in CHAINS.items()}
for name, w in fitted.items():
    error, zeros = jnp.linalg.norm(w - w_true), jnp.sum(w == 0)
    print(f"{name:12} distance from the truth {error:.2f}, exact zeros {zeros:3} of 95")

# %%
figure, panels = plt.subplots(1, 4, figsize=(12, 3), sharey=True, layout="constrained")
for axes, (name, w) in zip(panels, fitted.items(), strict=True):
    axes.stem(w_true, linefmt="lightgrey", markerfmt=" ", basefmt=" ")
    axes.plot(w, ".", markersize=4)
    axes.set(title=name, xlabel="weight")
panels[0].set_ylabel("value (grey: the truth)")
figure.savefig("regularizers.png")
print("wrote", os.path.abspath("regularizers.png"))
plt.show()

# %% [markdown]
# Without a penalty, or with L2, nearly every weight ends up nonzero. L1 finds the five: its pull
# does not weaken as a weight shrinks, so only weights that the data clearly need survive, and the
# same pull leaves those a little too small. Subgradient steps (`add_l1`) leave the others
# oscillating around 0; the proximal step makes them exactly 0.
#
# For a network, choose which parameters to penalize with `mask`: `add_l1(1e-5, kernels_only)`,
# from `jaxcifar.optim`, spares biases and BatchNorm's parameters.
