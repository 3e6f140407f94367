# %% [markdown]
# # What does BatchNorm do?
#
# VGG-A is trained twice, without and with BatchNorm: at an eighth of the full width, on handwritten
# digits, in about three minutes on one CPU core. A GPU is used if there is one. As a script,
#
#     python examples/batchnorm.py
#
# it writes its two pictures into the current folder.

# %%
# In a notebook, first install the package from the checkout, whose folder is ".." here:
# %pip install -q ..
import os
import tempfile
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxcifar import augment, data, losses, models, programs, restore
from jaxcifar.config import base_config
from jaxcifar.hooks import Hook
from jaxcifar.train import train_and_evaluate

QUICK = bool(os.environ.get("QUICK"))  # only to see that it runs
EPOCHS, WIDTH, IMAGES = (1, 0.05, 128) if QUICK else (8, 0.125, 0)  # 0: all images
NAMES = {"vgg_a": "VGG-A", "vgg_a_bn": "VGG-A with BatchNorm"}
print("training on", jax.devices()[0].device_kind)

# %% [markdown]
# ## Along the gradient
#
# A step of gradient descent trusts the gradient for some distance. How far can it be trusted?
# Before every step, this hook moves the weights against the gradient by several step sizes, and
# records the loss of the same batch there (Santurkar et al. 2018, "How Does Batch Normalization
# Help Optimization?"). It only watches: the training is the same without it.


# %%
class AlongGradient(Hook):
    sizes = (0.05, 0.1, 0.2, 0.4)

    def start(self, run):
        loss, self.found = programs.loss(run.task), []

        @jax.jit
        def look(state, images, labels, order):
            batch = programs.batch(run.task, state, images, labels, order)
            gradient, _ = jax.grad(loss, has_aux=True)(state.params, state, *batch)

            def loss_at(size):
                moved = jax.tree.map(lambda w, g: w - size * g, state.params, gradient)
                return loss(moved, state, *batch)[0]

            return jnp.array([loss_at(size) for size in self.sizes])

        self.look = look

    def before_call(self, run):
        self.found.append(np.array(self.look(run.state, run.images, run.labels, run.order)))

    def after_epoch(self, run, record):
        print("epoch {epoch}: loss {val_loss:.3f}, accuracy {val_accuracy:.1%}".format(**record))


folder = tempfile.mkdtemp()  # a new one each time, or finished runs would not be trained again
bands, panels = plt.subplots(1, 2, figsize=(10, 3.5), sharey=True, layout="constrained")
for axes, (name, label) in zip(panels, NAMES.items(), strict=True):
    print(label)
    config = base_config()
    config.model.name, config.model.width, config.model.dropout_rate = name, WIDTH, 0.0
    config.data.name, config.data.augment = "digits", "none"
    config.train.limit_train_images = IMAGES
    config.optim.learning_rate = 3e-3
    config.train.batch_size, config.train.epochs = 64, EPOCHS
    config.train.steps_per_call = 1  # so that the hook sees every step
    hook = AlongGradient()
    train_and_evaluate(config, f"{folder}/{name}", hooks=[hook], quiet=True)
    axes.fill_between(range(len(hook.found)), np.min(hook.found, 1), np.max(hook.found, 1))
    axes.set(title=label, xlabel="training step", ylabel="loss along the gradient", yscale="log")

# %% [markdown]
# The band is the range of the losses. Where it is narrow and low, steps of all these sizes work
# about equally well: the gradient can be trusted. The network with BatchNorm gets there after about
# 100 of the 176 steps; the one without has not by the end, where the longest steps still raise its
# loss to a hundred times what the shortest leave.
#
# ## A slice of the loss
#
# Another view: walk away from each trained network in a random direction, and evaluate the loss
# on the way. Every filter of the direction gets the norm of the network's own filter; otherwise a
# network with larger weights would look flatter (Li et al. 2018, "Visualizing the Loss Landscape
# of Neural Nets"). This view need not agree with the other: here the valley of the network with
# BatchNorm is the narrower one.

# %%
test = data.load("digits", "test")
images = augment.normalize(jnp.array(test.images), test.mean, test.std)


def loss_along(variables, name, distance):
    generator = np.random.default_rng(0)  # the same direction at every distance

    def moved(w):
        if w.ndim < 2:  # biases, and BatchNorm's scales, stay
            return w
        draw = generator.standard_normal(w.shape, np.float32)
        filters = tuple(range(w.ndim - 1))
        norms = [jnp.sqrt((x**2).sum(filters, keepdims=True)) for x in (w, draw)]
        return w + distance * draw * norms[0] / norms[1]

    params = jax.tree.map(moved, variables["params"])
    network = models.create_model(name, width=WIDTH)
    logits = network.apply(variables | {"params": params}, images, train=False)
    return losses.cross_entropy(logits, jnp.array(test.labels)).mean()


distances = jnp.linspace(-1, 1, 3 if QUICK else 21)
valleys, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
for name, label in NAMES.items():
    _, _, variables = restore.load_variables(f"{folder}/{name}")
    loss_at = jax.jit(partial(loss_along, variables, name))
    axes.plot(distances, [loss_at(distance) for distance in distances], label=label)
axes.set(xlabel="distance, in norms of the filters", ylabel="test loss", yscale="log")
axes.legend()
for figure, name in ((bands, "batchnorm_gradient.png"), (valleys, "batchnorm_slice.png")):
    figure.savefig(name)
    print("wrote", os.path.abspath(name))
plt.show()
