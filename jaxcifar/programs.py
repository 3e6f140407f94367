"""The compiled programs of a task. Each is a pure function.

`init(task)`, `order(task)`, `train(task, steps)` and `evaluate_batch(inference, n)` run nothing:
they return a program, which is compiled when it is first asked for. The latest few are kept.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxcifar import augment, data, models, sharding
from jaxcifar.kernels import compilation
from jaxcifar.state import TrainState, abstract_variables, create_state
from jaxcifar.step import Lookahead, Loss, make_eval_step, make_loss, make_train_step
from jaxcifar.task import Hyperparams, Inference, Task

# (state, hyperparams, images, labels, order) -> (state, metrics [steps])
Train = Callable[..., tuple[TrainState, dict[str, jax.Array]]]
_KEPT = 4  # programs of each kind; a DenseNet's takes about 100 MB
_IMAGE = 32, 32, 3
_BYTES = math.prod(_IMAGE)


@functools.lru_cache(_KEPT)
def init(task: Task) -> Callable[..., TrainState]:
    """Returns (seed, hyperparams, images, weights=None) -> the state before the first step.

    The images are the training set, see `on_devices`; few networks look at it. The weights replace
    random ones, see `jaxcifar.state.create_state`.
    """

    def create(
        seed: jax.Array,
        hyperparams: Hyperparams,
        images: jax.Array,
        weights: dict[str, Any] | None = None,
    ) -> TrainState:
        return create_state(
            task.model,
            task.optimization.make(hyperparams, task.steps_per_epoch),
            seed,
            images=task.inference.normalize(as_images(images)),
            weights=weights,
            keep_ema=task.ema_decay > 0,
            keep_slow=task.lookahead_steps > 0,
        )

    return compilation.jit(
        create,
        platform=task.platform,
        fast_compile=True,
        out_shardings=sharding.replicated(task.mesh),
    )


def abstract_state(task: Task) -> TrainState:
    """Returns the shapes, dtypes and shardings of a task's state."""
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    images = jax.ShapeDtypeStruct((task.n_train, _BYTES), jnp.uint8)
    state = jax.eval_shape(init(task), seed, Hyperparams.abstract(), images)
    return sharding.abstract(state, task.mesh)


@functools.lru_cache(_KEPT)
def order(task: Task) -> Callable[[jax.Array, int], jax.Array]:
    """Returns (key, epoch) -> the image indices of an epoch's batches [steps, batch] int32.

    Each epoch has its own permutation, which depends only on seed and epoch. A run counts epochs
    from 1.
    """

    def draw(key: jax.Array, epoch: jax.Array) -> jax.Array:
        # No step has this number, so these draws are not those of any step.
        key = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), epoch)
        indices = jax.random.permutation(key, task.n_train)
        indices = indices[: task.steps_per_epoch * task.batch_size].astype(jnp.int32)
        return indices.reshape(task.steps_per_epoch, task.batch_size)

    jitted = compilation.jit(
        draw, platform=task.platform, out_shardings=sharding.replicated(task.mesh)
    )
    return lambda key, epoch: jitted(key, sharding.replicate(np.int32(epoch), task.mesh))


def on_devices(images: data.Dataset, mesh: Mesh) -> tuple[jax.Array, jax.Array]:
    """Puts a set of images on every device, in the form that the programs take.

    Returns:
      Images [N, 3072] uint8 and labels [N] int32. Each image is a row of bytes, because given
      [N, 32, 32, 3] a TPU would copy the whole set to another layout in each call, in four times
      the memory.
    """
    return sharding.replicate((images.images.reshape(-1, _BYTES), images.labels), mesh)


def as_images(rows: jax.Array) -> jax.Array:
    """Returns rows [n, 3072] of what `on_devices` made as images [n, 32, 32, 3]."""
    return rows.reshape(-1, *_IMAGE)


def loss(task: Task, model: models.Network | None = None) -> Loss:
    """Returns the loss of a batch as the task's training step computes it.

    Args:
      task: the run's task.
      model: another form of the same network; None is the task's.
    """
    return make_loss(model or task.model, task.prepare, task.cross_entropy)


def batch(
    task: Task, state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the images [batch, 32, 32, 3] and labels [batch] of a step, split over the devices.

    Args:
      task: the run's task.
      state: the state before the step.
      images, labels: the training set, see `on_devices`.
      order: the image indices of the epoch's batches.
    """
    epoch, place = jnp.divmod(state.step, task.steps_per_epoch)  # from 0; `order` counts from 1
    indices = jax.lax.with_sharding_constraint(order[place], sharding.batch_sharding(task.mesh))
    chosen = as_images(images[indices])
    if task.alternating_flip:
        # Neither a step nor the order has this number.
        key = jax.random.fold_in(state.key, np.uint32(2**32 - 2))
        chosen = augment.alternating_flip(key, chosen, indices, epoch)
    return chosen, labels[indices]


def training(task: Task, steps: int) -> Any:
    """Returns the jitted function that `train` compiles."""

    def run(
        state: TrainState,
        hyperparams: Hyperparams,
        images: jax.Array,
        labels: jax.Array,
        order: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        train_step = make_train_step(
            loss(task),
            task.optimization.make(hyperparams, task.steps_per_epoch),
            schedule=task.optimization.make_schedule(hyperparams, task.steps_per_epoch),
            regularizers=task.optimization.make_regularizers(hyperparams),
            ema_decay=task.ema_decay,
            lookahead=Lookahead(task.lookahead_steps, hyperparams.epochs * task.steps_per_epoch)
            if task.lookahead_steps
            else None,
            norms=task.log_norms,
        )

        def one(state: TrainState, _: None):
            return train_step(state, *batch(task, state, images, labels, order))

        if steps == 1:
            state, metrics = one(state, None)
            return state, jax.tree.map(lambda metric: metric[None], metrics)
        return jax.lax.scan(one, state, length=steps)

    return compilation.jit(
        run,
        platform=task.platform,
        donate_argnums=(0,),
        out_shardings=sharding.replicated(task.mesh),
    )


def training_arguments(task: Task) -> tuple[Any, ...]:
    """Returns the shapes, dtypes and shardings of the arguments of `train`."""
    images = jax.ShapeDtypeStruct((task.n_train, _BYTES), jnp.uint8)
    labels = jax.ShapeDtypeStruct((task.n_train,), jnp.int32)
    order = jax.ShapeDtypeStruct((task.steps_per_epoch, task.batch_size), jnp.int32)
    rest = sharding.abstract((Hyperparams.abstract(), images, labels, order), task.mesh)
    return abstract_state(task), *rest


@functools.lru_cache(_KEPT)
def train(task: Task, steps: int) -> Train:
    """Returns (state, hyperparams, images, labels, order) -> (state, metrics [steps]), compiled.

    It makes the next `steps` training steps, and donates the state. `order` is the epoch's.
    """
    return training(task, steps).lower(*training_arguments(task)).compile()


@functools.lru_cache(_KEPT)
def evaluate_batch(inference: Inference, n: int) -> Callable[..., dict[str, jax.Array]]:
    """Returns (variables, images, labels, first) -> sums over a batch of `n` images, compiled.

    The batch is images `first` to `first + batch_size − 1`, as far as there are any.
    """
    eval_step = make_eval_step(inference.logits)
    whole = sharding.replicated(inference.mesh)

    def run(variables: dict[str, Any], images: jax.Array, labels: jax.Array, first: jax.Array):
        indices = first + jnp.arange(inference.batch_size)
        indices = jax.lax.with_sharding_constraint(indices, sharding.batch_sharding(inference.mesh))
        exists = indices < n
        indices = jnp.minimum(indices, n - 1)
        return eval_step(variables, as_images(images[indices]), labels[indices], exists)

    images = jax.ShapeDtypeStruct((n, _BYTES), jnp.uint8)
    labels, first = jax.ShapeDtypeStruct((n,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    arguments = abstract_variables(inference.model), images, labels, first
    jitted = compilation.jit(run, platform=inference.platform, out_shardings=whole)
    return jitted.lower(*sharding.abstract(arguments, inference.mesh)).compile()


@functools.lru_cache(_KEPT)
def probabilities_of_batch(
    inference: Inference,
) -> Callable[[dict[str, Any], np.ndarray], jax.Array]:
    """Returns (variables, images [N, 32, 32, 3] uint8) -> [N, classes] float32, jitted."""

    def run(variables: dict[str, Any], images: jax.Array) -> jax.Array:
        return jax.nn.softmax(inference.logits(variables, images))

    return compilation.jit(run, platform=inference.platform)


def probabilities(
    inference: Inference, variables: dict[str, Any], images: np.ndarray
) -> np.ndarray:
    """Returns a network's class probabilities for images, [N, classes] float32.

    Args:
      inference: see `jaxcifar.task.build_inference`.
      variables: {"params", "batch_stats"} of its model.
      images: [N, 32, 32, 3] uint8, processed in batches of `inference.batch_size`.
    """
    n, of_batch = len(images), probabilities_of_batch(inference)
    if n == 0:
        return np.zeros((0, inference.model.num_classes), np.float32)
    # All batches have one shape, and few shapes are compiled.
    size = min(1 << (n - 1).bit_length(), inference.batch_size)
    padded = np.resize(images, (-(-n // size) * size, *images.shape[1:]))
    batches = [of_batch(variables, padded[i : i + size]) for i in range(0, n, size)]
    return np.concatenate(jax.device_get(batches))[:n]


def evaluate(
    inference: Inference,
    variables: dict[str, Any],
    images: jax.Array,
    labels: jax.Array,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Returns {"loss", "accuracy", "images"} over all images, each counted once.

    Whatever else the evaluation step sums up is divided by the number of images too.

    Args:
      inference: the model, its normalisation and the batch size.
      variables: {"params", "batch_stats"} of the model.
      images, labels: see `on_devices`.
      stop: asked after each batch; once it returns True, the evaluation ends and returns None.
    """
    compiled = evaluate_batch(inference, len(labels))
    firsts = np.arange(0, len(labels), inference.batch_size, dtype=np.int32)
    sums: list[dict[str, jax.Array]] = []
    for first in sharding.replicate(list(firsts), inference.mesh):
        sums.append(compiled(variables, images, labels, first))
        if len(sums) > 1:
            jax.block_until_ready(sums[-2])  # a signal must not wait for a long queue
        if stop():
            return None
    on_host = jax.device_get(sums)
    totals = {name: sum(float(batch[name]) for batch in on_host) for name in on_host[0]}
    count = int(totals.pop("count"))
    means = {name: total / count for name, total in totals.items()}
    loss, accuracy = means.pop("loss"), means.pop("correct")
    return {"loss": loss, "accuracy": accuracy, **means, "images": count}
