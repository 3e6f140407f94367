"""What is compiled into a run's programs, as data; made from a config and a training set."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxcifar import augment, data, kernels, losses, models, optim, sharding
from jaxcifar.config import Config, flatten
from jaxcifar.errors import UserError, choose
from jaxcifar.kernels import compilation

DTYPES = ("auto", "float32", "bfloat16")
REMATS = ("auto", "on", "off")


class Hyperparams(NamedTuple):
    """The numbers that are traced: runs that differ in nothing else share one compiled step."""

    learning_rate: float | jax.Array
    l1: float | jax.Array
    l2: float | jax.Array
    weight_decay: float | jax.Array
    epochs: float | jax.Array  # of the whole run, warm-up included
    warmup_epochs: float | jax.Array

    @classmethod
    def abstract(cls) -> "Hyperparams":
        """Shapes and dtypes instead of numbers."""
        return cls(*(jax.ShapeDtypeStruct((), jnp.float32) for _ in cls._fields))


class Optimization(NamedTuple):
    """The settings of an optimizer that are compiled in; `Hyperparams` has the others.

    Attributes:
      name, schedule, penalize: of OPTIMIZERS, SCHEDULES and MASKS in `jaxcifar.optim`.
      momentum, nesterov: of SGD.
      bias_scale: of the gradients of BatchNorm's biases.
      start_factor, end_factor: of the triangular schedule.
      milestones, decay_factor: of the multistep schedule.
      clip_norm: the largest norm of the gradient, without the penalties; 0 is no limit.
    """

    name: str
    schedule: str
    penalize: str
    momentum: float
    nesterov: bool
    bias_scale: float
    start_factor: float
    end_factor: float
    milestones: tuple[float, ...]
    decay_factor: float
    clip_norm: float

    def make_schedule(self, hyperparams: Hyperparams, steps_per_epoch: int) -> optax.Schedule:
        """Returns step -> learning rate."""
        return optim.make_schedule(
            self.schedule,
            hyperparams.learning_rate,
            hyperparams.epochs,
            steps_per_epoch,
            hyperparams.warmup_epochs,
            start_factor=self.start_factor,
            end_factor=self.end_factor,
            milestones=self.milestones,
            decay_factor=self.decay_factor,
        )

    def make_regularizers(self, hyperparams: Hyperparams) -> tuple[optim.Regularizer, ...]:
        """Returns the penalties of the objective."""
        return optim.l1_and_l2(hyperparams.l1, hyperparams.l2, optim.MASKS[self.penalize])

    def make(self, hyperparams: Hyperparams, steps_per_epoch: int) -> optax.GradientTransformation:
        """Returns the whole chain."""
        options = {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": hyperparams.weight_decay,
            "mask": optim.MASKS[self.penalize],
            "bias_scale": self.bias_scale,
        }
        return optim.make_optimizer(
            self.name,
            self.make_schedule(hyperparams, steps_per_epoch),
            regularize=self.make_regularizers(hyperparams),
            clip_norm=self.clip_norm,
            **{option: options[option] for option in optim.options_of(self.name)},
        )


@dataclasses.dataclass(frozen=True)
class Inference:
    """What an evaluation's program is compiled for.

    Attributes:
      model: the network.
      mean, std: [3], by which the images, scaled to 0 … 1, are normalised.
      views: of each image, one of `jaxcifar.augment.VIEWS`.
      batch_size: over all devices.
      mesh: the devices.
      platform: what the program is built for.
      settings: of JAX, so that a program is not used after they were changed.
    """

    model: models.Network
    mean: tuple[float, ...]
    std: tuple[float, ...]
    views: str
    batch_size: int
    mesh: Mesh
    platform: str
    settings: str

    def normalize(self, images: jax.Array) -> jax.Array:
        """Normalises images [N, H, W, C] in 0 … 255: what the model takes."""
        return augment.normalize(images, self.mean, self.std)

    def logits(self, variables: dict[str, Any], images: jax.Array) -> jax.Array:
        """Returns the network's logits [N, classes], averaged over the views of each image.

        Args:
          variables: of the model.
          images: [N, H, W, C] in 0 … 255.
        """
        network: Any = functools.partial(self.model.apply, variables, train=False)
        inputs = self.normalize(images)
        if self.views == "none":
            return network(inputs)
        views = augment.views(inputs, self.views)
        return jnp.asarray(sum(share * network(view) for share, view in views))


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run's programs are compiled for. Equal tasks share them.

    Attributes:
      inference: the network, what its images are normalised by, and how it is evaluated.
      augmentation: one of `jaxcifar.augment.AUGMENTATIONS`.
      strengths: (name, value) of each argument of the augmentation.
      alternating_flip: whether `jaxcifar.augment.alternating_flip` mirrors the images.
      mixup, cutmix: of `jaxcifar.augment.mix`.
      label_smoothing: of the cross-entropy in training.
      optimization: the settings of the optimizer that `Hyperparams` does not have.
      ema_decay: of the average of the weights; 0 keeps none.
      lookahead_steps: the k of `jaxcifar.step.Lookahead`; 0 is never.
      n_train: images of the training set, all of them on every device.
      batch_size: over all devices.
      steps_per_call: training steps in one call of the compiled program.
      log_norms: whether a step's metrics have the norms of its gradient and its update.
    """

    inference: Inference
    augmentation: str
    strengths: tuple[tuple[str, Any], ...]
    alternating_flip: bool
    mixup: float
    cutmix: float
    label_smoothing: float
    optimization: Optimization
    ema_decay: float
    lookahead_steps: int
    n_train: int
    batch_size: int
    steps_per_call: int
    log_norms: bool

    @property
    def model(self) -> models.Network:
        """The network."""
        return self.inference.model

    @property
    def mesh(self) -> Mesh:
        """The devices."""
        return self.inference.mesh

    @property
    def platform(self) -> str:
        """What the programs are built for."""
        return self.inference.platform

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the training set; the images left over differ from epoch to epoch."""
        return self.n_train // self.batch_size

    @property
    def in_force(self) -> dict[str, Any]:
        """What the config's "auto" fields, and steps_per_call 0, were resolved to."""
        return {
            "dtype": jnp.dtype(self.model.dtype).name,
            "steps_per_call": self.steps_per_call,
            "remat": getattr(self.model, "remat", False),
        }

    def steps_from(self, step: int) -> int:
        """Returns the number of steps in the call after `step` steps.

        A run that resumes between two multiples of `steps_per_call`, because that was changed,
        makes single steps up to the next multiple.
        """
        return 1 if step % self.steps_per_call else self.steps_per_call

    def cross_entropy(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
        """Returns the loss of each example in training, [N]."""
        return losses.cross_entropy(logits, targets, self.label_smoothing)

    def prepare(
        self, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Turns a training batch into what the model takes, and what its logits are compared with.

        Args:
          key: of the step's draws.
          images: [N, 32, 32, 3] uint8.
          labels: [N] int32.

        Returns:
          Images [N, 32, 32, 3] float32, augmented and normalised; the labels, or where images are
          mixed, targets [N, classes] float32.
        """
        transform = augment.AUGMENTATIONS[self.augmentation]
        normalize = self.inference.normalize
        inputs = transform(
            key, images, normalize=normalize, platform=self.platform, **dict(self.strengths)
        )
        if not self.mixup and not self.cutmix:
            return inputs, labels
        targets = jax.nn.one_hot(labels, self.model.num_classes, dtype=jnp.float32)
        key = jax.random.fold_in(key, np.uint32(2**32 - 1))  # no draw of the transform has it
        return augment.mix(key, inputs, targets, mixup=self.mixup, cutmix=self.cutmix)


def build(config: Config, train: data.Dataset, mesh: Mesh, *, platform: str | None = None) -> Task:
    """Returns the task of a run.

    Args:
      config: of the run, checked by `jaxcifar.checks.check_config`.
      train: the images that it trains on.
      mesh: of the devices, of any axes.
      platform: what to build for; None is that of the mesh.

    Raises:
      UserError: the training set is smaller than a batch, or `train.steps_per_call` does not
        divide an epoch.
    """
    inference = build_inference(config, train, mesh, platform=platform)
    if config.train.batch_size > len(train):
        raise UserError(
            f"config.train.batch_size is {config.train.batch_size}, more than the {len(train):,} "
            "training images. Choose a smaller one."
        )
    steps_per_epoch = len(train) // config.train.batch_size
    return Task(
        inference=inference,
        augmentation=config.data.augment,
        strengths=_strengths(config),
        alternating_flip=config.augment.flip == "alternating",
        mixup=config.augment.mixup,
        cutmix=config.augment.cutmix,
        label_smoothing=config.train.label_smoothing,
        optimization=optimization(config, inference.model),
        ema_decay=config.train.ema_decay,
        lookahead_steps=config.train.lookahead_steps,
        n_train=len(train),
        batch_size=config.train.batch_size,
        steps_per_call=_steps_per_call(
            config.train.steps_per_call, steps_per_epoch, inference.platform
        ),
        log_norms=config.train.log_norms,
    )


def build_inference(
    config: Config, images: data.Dataset, mesh: Mesh, *, platform: str | None = None
) -> Inference:
    """Returns what evaluates a config's network on an image set.

    Args:
      config: of the network.
      images: with the classes and, where the config has none, the normalisation of those that it
        was trained on.
      mesh: of the devices, of any axes.
      platform: what to build for; None is that of the mesh.
    """
    mesh = sharding.make_mesh(mesh)
    platform = platform or kernels.platform_of(mesh)
    return Inference(
        create_model(config, len(images.class_names), platform),
        **normalization(config, images),
        views=config.data.test_augment,
        batch_size=config.train.eval_batch_size,
        mesh=mesh,
        platform=platform,
        settings=str(compilation.settings()),
    )


def normalization(config: Config, images: data.Dataset) -> dict[str, tuple[float, ...]]:
    """Returns {"mean", "std"}, [3] each: the config's own, else those of the training pixels."""
    return {
        "mean": tuple(config.data.mean) or tuple(images.mean),
        "std": tuple(config.data.std) or tuple(images.std),
    }


def optimization(config: Config, model: models.Network) -> Optimization:
    """Returns the settings of a config's optimizer that are compiled in, for a network."""
    given = flatten(config)  # in which a list, as of a saved config, is a tuple
    settings = Optimization(**{name: given[f"optim.{name}"] for name in Optimization._fields})
    # Where there is nothing to scale, `jaxcifar.checks.unused` says so.
    return settings if model.batch_norm else settings._replace(bias_scale=1.0)


def hyperparams(config: Config) -> Hyperparams:
    """Returns the traced numbers of a config."""
    numbers = Hyperparams(
        learning_rate=config.optim.learning_rate,
        l1=config.optim.l1,
        l2=config.optim.l2,
        weight_decay=config.optim.weight_decay,
        epochs=config.train.epochs,
        warmup_epochs=config.optim.warmup_epochs,
    )
    return Hyperparams(*(np.float32(number) for number in numbers))


def dtype_on(platform: str, config: Config) -> str:
    """Returns the dtype that a config is computed in on a platform ("cpu", "gpu" or "tpu").

    Raises:
      UserError: config.model.dtype is unknown.
    """
    dtype = choose("model.dtype", config.model.dtype, DTYPES)
    if dtype == "auto":
        dtype = "float32" if platform == "cpu" else "bfloat16"
    return dtype


def create_model(config: Config, num_classes: int, platform: str) -> models.Network:
    """Returns the network of a config, built for a platform ("cpu", "gpu" or "tpu").

    Raises:
      UserError: a name in config.model is unknown.
    """
    on_cpu, name = platform == "cpu", config.model.name
    dtype = dtype_on(platform, config)
    remat = choose("model.remat", config.model.remat, REMATS)
    choose("model.name", name, models.MODELS)
    if remat == "auto":
        remat = "on" if on_cpu and models.can_remat(name) else "off"
    return models.create_model(
        name,
        num_classes=num_classes,
        activation=config.model.activation,
        dropout_rate=config.model.dropout_rate,
        dtype=jnp.dtype(dtype),
        width=config.model.width,
        remat=remat == "on",
        platform=platform,
    )


def _strengths(config: Config) -> tuple[tuple[str, Any], ...]:
    """The fields of config.augment that are arguments of the augmentation that is used."""
    transform: Callable[..., Any] = augment.AUGMENTATIONS[config.data.augment]
    wanted = inspect.signature(transform).parameters
    given = config.augment.to_dict()
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in given.items()
        if name in wanted
    )


def _steps_per_call(wanted: int, steps_per_epoch: int, platform: str) -> int:
    divisors = [n for n in range(1, steps_per_epoch + 1) if steps_per_epoch % n == 0]
    if wanted == 0:
        # On CPUs a convolution inside a loop is hundreds of times slower.
        return 1 if platform == "cpu" else min(divisors, key=lambda n: abs(n - 50))
    if wanted not in divisors:
        raise UserError(
            f"config.train.steps_per_call is {wanted}; it must divide the {steps_per_epoch} steps "
            f"of an epoch: one of {', '.join(map(str, divisors))}, or 0 to choose."
        )
    return wanted
