"""The compiled functions of a run, made from a config: initialise, order, train, evaluate."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict, FrozenConfigDict

from jaxcifar import augment, compilation, models, optim, sharding
from jaxcifar.config import Config
from jaxcifar.errors import UserError, choose
from jaxcifar.state import TrainState, create_state
from jaxcifar.step import make_eval_step, make_train_step

DTYPES = ("auto", "float32", "bfloat16")
REMATS = ("auto", "on", "off")


class Hyperparams(NamedTuple):
    """Numbers that are traced: runs that differ in nothing else share one compiled step."""

    learning_rate: float | jax.Array
    l1: float | jax.Array
    l2: float | jax.Array
    epochs: float | jax.Array  # of the schedule


def hyperparams_of(config: Config) -> Hyperparams:
    numbers = (config.optim.learning_rate, config.optim.l1, config.optim.l2, config.train.epochs)
    return Hyperparams(*(np.float32(number) for number in numbers))


def static_part(config: Config) -> FrozenConfigDict:
    """The config without what is traced or concerns the host only: a key to compiled programs."""
    static: Config = ConfigDict(config.to_dict())
    static.seed = 0
    static.data.dir = static.data.protocol = ""
    static.optim.update(learning_rate=0.0, l1=0.0, l2=0.0)
    static.train.update(epochs=0, limit_train_images=0, checkpoint_minutes=0.0)
    return FrozenConfigDict(static)


class Programs:
    """The functions of a run, compiled on first use for arrays of known shapes.

    Args:
      config: the static part of a config.
      n_train: images in the training set, all of them on every device.
      normalization: (mean, std) of the data set.
      mesh: of the devices.
    """

    def __init__(self, config: Config, n_train: int, normalization: tuple, mesh: Mesh):
        self._config, self._mesh = config, mesh
        self._mean, self._std = normalization
        self.model: Any = create_model(config)
        self._batch = sharding.batch_sharding(mesh)
        self._whole = sharding.replicated(mesh)
        self.batch_size = config.train.batch_size
        self.steps_per_epoch = n_train // self.batch_size
        self.steps_per_call = _steps_per_call(config.train.steps_per_call, self.steps_per_epoch)
        self.compile_seconds = 0.0
        # What "auto" and 0 became here.
        self.in_force = {
            "dtype": jnp.dtype(self.model.dtype).name,
            "steps_per_call": self.steps_per_call,
            "remat": getattr(self.model, "remat", False),
        }

        self.init = compilation.jit(self._init, in_haste=True, out_shardings=self._whole)
        order = functools.partial(self._order, n_train)
        self.order = compilation.jit(order, out_shardings=self._whole)
        hyperparams = Hyperparams(*[jax.ShapeDtypeStruct((), jnp.float32)] * 4)
        shapes = self.init.eval_shape(jax.ShapeDtypeStruct((), jnp.uint32), hyperparams)
        self.abstract_state: TrainState = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._whole), shapes
        )
        self._cache: dict[str, Callable] = {}

    def _optimizer(self, hyperparams: Hyperparams):
        schedule = optim.make_schedule(
            self._config.optim.schedule,
            hyperparams.learning_rate,
            hyperparams.epochs,
            self.steps_per_epoch,
        )
        return optim.make_optimizer(
            self._config.optim.name,
            schedule,
            momentum=self._config.optim.momentum,
            l1=hyperparams.l1,
            l2=hyperparams.l2,
            mask=optim.MASKS[self._config.optim.penalize],
        )

    def _init(self, seed: jax.Array, hyperparams: Hyperparams) -> TrainState:
        return create_state(self.model, self._optimizer(hyperparams), seed)

    def _order(self, n_train: int, key: jax.Array, epoch: jax.Array) -> jax.Array:
        """The rows of an epoch's batches [steps_per_epoch, batch]: of (seed, epoch) alone."""
        # No step has this number, so no step's draws are used again here.
        key = jax.random.fold_in(jax.random.fold_in(key, np.uint32(2**32 - 1)), epoch)
        rows = jax.random.permutation(key, n_train)[: self.steps_per_epoch * self.batch_size]
        return rows.reshape(self.steps_per_epoch, self.batch_size)

    def prepare(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """Augments and normalises a training batch [N, H, W, C]: what the model takes."""
        # Erased pixels become 0 after normalisation.
        fill = tuple(255 * mean for mean in self._mean)
        return self.normalize(_augmentation(self._config, fill)(key, images))

    def normalize(self, images: jax.Array) -> jax.Array:
        """Normalises images [N, H, W, C] by the mean and deviation of the data set."""
        return augment.normalize(images, self._mean, self._std)

    def _train(
        self,
        steps: int,
        state: TrainState,
        hyperparams: Hyperparams,
        images: jax.Array,
        labels: jax.Array,
        order: jax.Array,
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        mask = optim.MASKS[self._config.optim.penalize]

        def penalty(params):
            l1 = optim.l1_penalty(params, hyperparams.l1, mask)
            return l1 + optim.l2_penalty(params, hyperparams.l2, mask)

        train_step = make_train_step(
            self.model, self._optimizer(hyperparams), prepare=self.prepare, penalty=penalty
        )

        def one(state: TrainState, _: None):
            rows = jax.lax.with_sharding_constraint(
                order[state.step % self.steps_per_epoch], self._batch
            )
            return train_step(state, images[rows], labels[rows])

        if steps == 1:  # on CPU a convolution inside a scan is hundreds times slower
            state, metrics = one(state, None)
            return state, jax.tree.map(lambda metric: metric[None], metrics)
        return jax.lax.scan(one, state, length=steps)

    def steps_from(self, step: int) -> int:
        """How many steps the call at `step` of an epoch makes.

        One, until a run resumed from within a longer call is where such a call can begin.
        """
        return 1 if step % self.steps_per_call else self.steps_per_call

    def train(self, steps: int, *args) -> tuple[TrainState, dict[str, jax.Array]]:
        """Runs the next `steps` steps on (state, hyperparams, images, labels, order).

        The state is used up. Metrics are [steps].
        """
        return self.compiled_train(steps, *args)(*args)

    def compiled_train(self, steps: int, *args) -> Callable:
        """`train` compiled for such arguments."""
        return self._compiled(f"train {steps}", functools.partial(self._train, steps), args, (0,))

    def _compiled(
        self, name: str, function: Callable, args: tuple, donated: tuple[int, ...] = ()
    ) -> Callable:
        """The program `name`, compiled the first time."""
        if name not in self._cache:
            began = time.monotonic()
            jitted = compilation.jit(function, donate_argnums=donated, out_shardings=self._whole)
            self._cache[name] = jitted.lower(*args).compile()
            self.compile_seconds += time.monotonic() - began
        return self._cache[name]

    def _evaluate(
        self, variables: dict, images: jax.Array, labels: jax.Array, first: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over the images `first` … `first + eval_batch_size − 1` that exist."""
        rows = first + jnp.arange(self._config.train.eval_batch_size)
        rows = jax.lax.with_sharding_constraint(rows, self._batch)
        exists = rows < len(labels)
        rows = jnp.minimum(rows, len(labels) - 1)
        eval_step = make_eval_step(self.model, prepare=self.normalize)
        return eval_step(variables, images[rows], labels[rows], exists)

    def evaluate(
        self,
        variables: dict,
        images: jax.Array,
        labels: jax.Array,
        stop: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """Returns {"loss", "accuracy", "images"} over all images, each counted once.

        Where `stop` returns True between batches, it gives up and returns {}.
        """
        firsts = np.arange(0, len(labels), self._config.train.eval_batch_size, dtype=np.int32)
        sums: list[dict[str, jax.Array]] = []
        for first in jax.device_put(list(firsts), self._whole):
            args = (variables, images, labels, first)
            name = f"evaluate {len(labels)}"
            sums.append(self._compiled(name, self._evaluate, args)(*args))
            if len(sums) > 1:
                jax.block_until_ready(sums[-2])  # no long queue that a signal would wait for
            if stop():
                return {}
        on_host = jax.device_get(sums)
        totals = {name: sum(float(batch[name]) for batch in on_host) for name in sums[0]}
        count = int(totals["count"])
        return {
            "loss": totals["loss"] / count,
            "accuracy": totals["correct"] / count,
            "images": count,
        }


@functools.lru_cache(maxsize=2)
def compiled_programs(
    config: FrozenConfigDict, n_train: int, normalization: tuple, mesh: Mesh
) -> Programs:
    """`Programs`, shared by the runs of one process that differ only in traced numbers."""
    return Programs(config, n_train, normalization, mesh)


def create_model(config: Config):
    on_cpu = jax.default_backend() == "cpu"
    dtype = choose("model.dtype", config.model.dtype, DTYPES)
    if dtype == "auto":
        dtype = "float32" if on_cpu else "bfloat16"
    remat = choose("model.remat", config.model.remat, REMATS)
    if remat == "auto":
        remat = "on" if on_cpu and config.model.name.startswith("densenet") else "off"
    return models.create_model(
        config.model.name,
        activation=config.model.activation,
        dropout_rate=config.model.dropout_rate,
        dtype=jnp.dtype(dtype),
        width=config.model.width,
        remat=remat == "on",
    )


def _augmentation(config: Config, fill: tuple) -> Callable[[jax.Array, jax.Array], jax.Array]:
    strengths = config.augment.to_dict()
    return {
        "none": lambda key, images: images,
        "weak": functools.partial(augment.weak, padding=strengths["padding"]),
        "strong": functools.partial(augment.strong, **strengths, erasing_fill=fill),
    }[config.data.augment]


def _steps_per_call(wanted: int, steps_per_epoch: int) -> int:
    divisors = [n for n in range(1, steps_per_epoch + 1) if steps_per_epoch % n == 0]
    if wanted == 0:
        return 1 if jax.default_backend() == "cpu" else max(n for n in divisors if n <= 50)
    if wanted not in divisors:
        raise UserError(
            f"config.train.steps_per_call is {wanted}; it must divide the {steps_per_epoch} steps "
            f"of an epoch: one of {', '.join(map(str, divisors))}, or 0 to choose."
        )
    return wanted
