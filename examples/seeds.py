# %% [markdown]
# # Many trainings in one program
#
# How much of a result is luck? A training step of this package is a pure function, so `jax.vmap`
# can train networks of several seeds and learning rates side by side, and `jax.lax.scan` makes all
# their steps one compiled program. Thirty-two small networks learn handwritten digits here, in some
# fifteen seconds on a CPU core. As a script,
#
#     python examples/seeds.py
#
# it writes its picture into the current folder.
#
# (This network has no convolutions: those of networks with different weights become grouped ones,
# which XLA computes slowly on CPUs. `jaxcifar sweep` trains its runs one by one.)

# %%
# In a notebook, first install the package from the checkout, whose folder is ".." here:
# %pip install -q ..
import os

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np

from jaxcifar import augment, data, optim
from jaxcifar.state import create_state
from jaxcifar.step import make_loss, make_train_step

QUICK = bool(os.environ.get("QUICK"))  # only to see that it runs
EPOCHS, SEEDS = (1, 2) if QUICK else (20, 8)
RATES = np.array([0.003, 0.03, 0.3, 3.0], np.float32)
BATCH = 64

train, test = data.load("digits", "train"), data.load("digits", "test")
# Arguments of the program: what a jitted function only refers to becomes a constant of it.
digits = {"images": train.images, "labels": train.labels, "unseen": test.images}

# %% [markdown]
# ## One training
#
# Any linen module with a `train` argument will do. `make_train_step` returns a function (state,
# images, labels) → (state, metrics); what is random in a step follows from the state's key and the
# number of the step.


# %%
class Small(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))  # the digits are of 8 × 8 pixels
        x = x.reshape(len(x), -1)
        x = nn.Dense(64, use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(x)


def normalize(x):
    return augment.normalize(x, train.mean, train.std)


def prepare(key, images, labels):
    return normalize(augment.random_crop(key, images, padding=2)), labels


def train_one(rate, seed, digits):
    """Returns the loss of each step, [steps], and the classes found in the test set, [N]."""
    model, tx = Small(), optim.make_optimizer("sgd", rate, momentum=0.9)
    step = make_train_step(make_loss(model, prepare), tx)

    def one_step(state, of_batch):
        state, metrics = step(state, digits["images"][of_batch], digits["labels"][of_batch])
        return state, metrics["loss"]

    state = create_state(model, tx, seed)
    # The steps draw from `fold_in(state.key, step)`: the orders need a number that is no step's.
    keys = jax.random.split(jax.random.fold_in(state.key, np.uint32(2**32 - 1)), EPOCHS)
    count = len(digits["images"])
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)
    batches = orders[:, : count // BATCH * BATCH].reshape(-1, BATCH)
    state, losses = jax.lax.scan(one_step, state, batches)
    logits = model.apply(state.variables, normalize(digits["unseen"]), train=False)
    return losses, logits.argmax(1)


# %% [markdown]
# ## All of them
#
# The inner `vmap` is over seeds, the outer one over learning rates.

# %%
of_seeds = jax.vmap(train_one, in_axes=(None, 0, None))
train_all = jax.jit(jax.vmap(of_seeds, in_axes=(0, None, None)))
losses, found = train_all(RATES, np.arange(SEEDS, dtype=np.uint32), digits)
accuracies = (np.asarray(found) == test.labels).mean(2)
for rate, of_rate in zip(RATES, accuracies, strict=True):
    mean, std = float(of_rate.mean()), float(of_rate.std(ddof=1))
    print(f"learning rate {rate:g}: {mean:.1%} ± {100 * std:.1f} over {SEEDS} seeds")

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for color, rate, curves in zip(("C0", "C1", "C2", "C3"), RATES, losses, strict=True):
    for i, curve in enumerate(curves):
        axes.plot(curve, color=color, lw=0.7, label=f"learning rate {rate:g}" if i == 0 else None)
axes.set(xlabel="training step", ylabel="cross-entropy of the batch (nats)", ylim=(0, 3))
axes.legend()
figure.savefig("seeds.png", dpi=120)
print("wrote", os.path.abspath("seeds.png"))
plt.show()
