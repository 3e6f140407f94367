"""What a config becomes: checks of it, and the task that its programs are compiled for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from jaxcifar import augment, optim, programs, task
from jaxcifar.config import base_config
from jaxcifar.errors import UserError
from jaxcifar.state import TrainState
from tests.tiny import first_images, mesh, tiny, tiny_task, with_inference

# --- build ------------------------------------------------------------------------------------


def test_a_task_is_its_config_in_force():
    made = tiny_task(model__activation="gelu", optim__name="sgd", optim__momentum=0.5)
    assert (made.model.activation, made.model.width, made.model.dropout_rate) == ("gelu", 0.05, 0.2)
    assert made.optimization._asdict() == {
        "name": "sgd",
        "schedule": "cosine",
        "penalize": "all",
        "momentum": 0.5,
        "nesterov": False,
        "bias_scale": 1.0,
        "start_factor": 0.0,
        "end_factor": 0.0,
        "milestones": (),
        "decay_factor": 0.1,
        "clip_norm": 0.0,
    }
    assert (made.n_train, made.steps_per_epoch) == (100, 3)
    assert (made.batch_size, made.inference.batch_size) == (32, 96)
    assert made.in_force == {"dtype": "float32", "steps_per_call": 1, "remat": False}
    assert made.platform == made.model.platform == "cpu"
    inference = made.inference
    assert (inference.model, inference.batch_size) == (made.model, 96)
    assert (inference.mean, inference.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_normalisation_of_the_config_is_that_of_training_and_evaluation():
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    config = tiny(data__mean=mean, data__std=std)
    made = task.build(config, first_images(100), mesh(1))
    evaluating = task.build_inference(config, first_images(10, "test"), mesh(1))
    images = np.full((1, 32, 32, 3), 51, np.uint8)  # 0.2 of 255
    for inference in (made.inference, evaluating):
        found = inference.normalize(images)[0, 0, 0]
        np.testing.assert_allclose(found, [0.1 / 0.4, 0.0, -0.1 / 0.6], atol=1e-6)
    prepared, _ = made.prepare(jax.random.key(0), images, np.zeros(1, np.int32))
    black = [-0.1 / 0.4, -0.2 / 0.5, -0.3 / 0.6]  # the border that a crop adds is black
    assert all(
        np.allclose(pixel, black, atol=1e-6) or np.allclose(pixel, found, atol=1e-6)
        for pixel in np.asarray(prepared).reshape(-1, 3)
    )


def test_a_saved_config_whose_tuples_are_lists_makes_the_same_task():
    config = tiny()
    saved = ConfigDict(json.loads(json.dumps(config.to_dict())))
    assert isinstance(saved.optim.milestones, list)
    made = [task.build(each, first_images(100), mesh(1)) for each in (config, saved)]
    assert len(set(made)) == 1


def test_equal_configs_make_equal_tasks():
    one = tiny_task()
    numbers = {"optim__learning_rate": 0.1, "optim__l1": 0.1, "optim__l2": 0.1}
    assert tiny_task(seed=5, train__epochs=9, **numbers) == one
    assert hash(tiny_task(seed=5)) == hash(one)
    others = [
        {"model__activation": "gelu"},
        {"model__dropout_rate": 0.1},
        {"data__augment": "none"},
        {"augment__padding": 3},
        {"optim__name": "sgd"},
        {"optim__penalize": "kernels"},
        {"optim__schedule": "constant"},
        {"optim__clip_norm": 1.0},
        {"train__ema_decay": 0.9},
        {"train__label_smoothing": 0.1},
        {"augment__mixup": 0.2},
        {"augment__cutmix": 1.0},
        {"train__batch_size": 16},
        {"train__limit_train_images": 96},
    ]
    tasks = [one, *(tiny_task(**fields) for fields in others), tiny_task(8)]
    assert len(set(tasks)) == len(others) + 2
    # A strength that the augmentation does not use compiles nothing anew.
    assert tiny_task(augment__hue=0.2) == one


@pytest.mark.parametrize(
    ("platform", "remat", "expected"),
    [
        ("cpu", "auto", True),
        ("cpu", "off", False),
        ("gpu", "auto", False),
        ("gpu", "on", True),
        ("tpu", "auto", False),
    ],
)
def test_densenets_compute_again_on_cpus(platform, remat, expected):
    config = tiny(model__name="densenet121", model__remat=remat)
    assert task.create_model(config, 10, platform).remat is expected


@pytest.mark.parametrize(
    ("platform", "dtype", "steps"), [("cpu", "float32", 1), ("gpu", "bfloat16", 32)]
)
def test_a_task_is_built_for_its_platform(platform, dtype, steps):
    built = tiny_task(platform=platform, train__limit_train_images=1024)
    assert built.platform == built.model.platform == built.inference.platform == platform
    assert built.in_force == {"dtype": dtype, "steps_per_call": steps, "remat": False}


@pytest.mark.parametrize(
    ("images", "steps"), [(5120, 40), (100, 3), (1632, 51), (3104, 97), (3232, 1)]
)
def test_steps_per_call_divide_the_epoch(images, steps):
    """The divisor nearest to 50: of 160, 3, 51, 97 and 101."""
    made = task.build(tiny(), TooMany(images), mesh(1), platform="tpu")
    assert made.steps_per_call == steps
    with pytest.raises(UserError, match="one of 1, 3, or 0"):
        tiny_task(train__steps_per_call=2)


class TooMany:
    """Stands in for an image set of a size."""

    mean, std, class_names = (0.5,) * 3, (0.25,) * 3, tuple("0123456789")

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size


def test_the_mesh_may_have_any_axes():
    made = task.build(tiny(), first_images(100), jax.make_mesh((1, 1), ("batch", "model")))
    assert made == task.build(tiny(), first_images(100), mesh(1))
    images, labels = programs.on_devices(first_images(100), made.mesh)
    state = TrainState(jnp.int32(0), {}, {}, (), jax.random.key(0))
    order = np.arange(96).reshape(3, 32)
    found, found_labels = programs.batch(made, state, images, labels, jnp.asarray(order))
    np.testing.assert_array_equal(found, first_images(32).images)
    np.testing.assert_array_equal(found_labels, first_images(32).labels)


# --- the optimizer, the loss and the views of a config ----------------------------------------


def after_eight_steps(tx):
    """Parameters after made-up gradients."""
    params = {
        "bn": {"bias": jnp.array([0.5, -0.25])},
        "fc": {"kernel": jnp.array([[0.3, -0.7], [1.1, 0.2]])},
    }

    @jax.jit
    def eight(params):
        state = tx.init(params)
        for step in range(8):
            grads = jax.tree.map(lambda w, step=step: jnp.cos(3 * w + step), params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        return params

    return eight(params)


TRIANGULAR = {
    **{"optim__name": "sgd", "optim__learning_rate": 0.1, "optim__momentum": 0.9},
    **{"optim__nesterov": True, "optim__bias_scale": 4.0, "optim__clip_norm": 0.5},
    **{"optim__l1": 0.02, "optim__l2": 0.1, "optim__schedule": "triangular"},
    **{"optim__warmup_epochs": 1.0, "optim__start_factor": 0.2, "optim__end_factor": 0.1},
}
DECAYING = {
    **{"optim__name": "adamw", "optim__learning_rate": 0.01, "optim__weight_decay": 0.3},
    **{"optim__penalize": "kernels", "optim__l2": 0.1, "optim__schedule": "constant"},
    "optim__warmup_epochs": 1.0,
}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(
            TRIANGULAR,
            lambda: optim.make_optimizer(
                "sgd",
                # Up from a fifth in five steps, and down towards a tenth in five.
                lambda step: jnp.array([0.02, 0.036, 0.052, 0.068, 0.084, 0.1, 0.082, 0.064])[step],
                regularize=optim.l1_and_l2(0.02, 0.1),
                momentum=0.9,
                nesterov=True,
                bias_scale=4.0,
                clip_norm=0.5,
            ),
            id="sgd",
        ),
        pytest.param(
            DECAYING,
            lambda: optim.make_optimizer(
                "adamw",
                lambda step: 0.01 * jnp.minimum((step + 1) / 5, 1.0),
                regularize=optim.l1_and_l2(0.0, 0.1, optim.kernels_only),
                weight_decay=0.3,
                mask=optim.kernels_only,
            ),
            id="adamw",
        ),
    ],
)
def test_every_field_of_an_optimizer_reaches_its_steps(fields, expected):
    """Two epochs of five steps, by the config and with the numbers written in."""
    config = tiny(**fields)
    model = task.create_model(config, 10, "cpu")
    made = task.optimization(config, model).make(task.hyperparams(config), 5)
    found, by_hand = after_eight_steps(made), after_eight_steps(expected())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, by_hand)


@pytest.mark.parametrize(("name", "scale"), [("vgg_a_bn", 64.0), ("vgg_a", 1.0)])
def test_biases_are_scaled_where_there_is_batchnorm(name, scale):
    """A run without is told that the field has no effect, and trained."""
    config = tiny(model__name=name, optim__name="sgd", optim__bias_scale=64.0)
    assert task.optimization(config, task.create_model(config, 10, "cpu")).bias_scale == scale


def test_the_loss_of_a_config_smooths_its_labels():
    logits = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    labels = np.array([3, 0, 9, 3], np.int32)
    found = tiny_task(train__label_smoothing=0.2).cross_entropy(logits, labels)
    log_shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    targets = 0.8 * np.eye(10)[labels] + 0.02
    np.testing.assert_allclose(found, -(targets * log_shares).sum(1), rtol=1e-5)


class Neuron:
    """Stands in for a network that sees where things are: one layer of ten neurons."""

    weights = np.random.default_rng(1).normal(size=(3072, 10)).astype(np.float32) / 50

    def apply(self, variables, images, *, train):
        assert not train
        return jnp.tanh(images.reshape(len(images), -1) @ variables)


def test_evaluation_averages_the_views_of_its_config():
    """Six of them: plain, and moved up and left or down and right, each as it is and mirrored."""
    config = tiny(data__test_augment="mirror_translate")
    images = first_images(5, "test")
    plain = (images.images / 255 - 0.5) / 0.25
    padded = np.pad(plain, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")

    def network(inputs):
        return np.tanh(inputs.reshape(5, -1) @ Neuron.weights)

    def both(inputs):
        return (network(inputs) + network(inputs[:, :, ::-1])) / 2

    expected = both(plain) / 2 + both(padded[:, :32, :32]) / 4 + both(padded[:, 2:, 2:]) / 4
    while_training = tiny_task(data__test_augment="mirror_translate").inference
    for inference in (task.build_inference(config, images, mesh(1)), while_training):
        with_neurons = dataclasses.replace(inference, model=Neuron())
        found = with_neurons.logits(jnp.asarray(Neuron.weights), jnp.asarray(images.images))
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(network(plain) - expected).max() > 0.01


# --- augmentation: from the config to the batch -----------------------------------------------

QUIET = {
    "padding": 0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
    "hue": 0.0,
    "rotation": 0.0,
    "translation": 0.0,
    "erasing_probability": 0.0,
}
LOUD = {
    "padding": (QUIET, 4),
    "brightness": (QUIET, 0.5),
    "contrast": (QUIET, 0.5),
    "saturation": (QUIET, 0.5),
    "hue": (QUIET, 0.3),
    "rotation": (QUIET, 30.0),
    "translation": (QUIET, 0.2),
    "erasing_probability": (QUIET, 1.0),
    # These two matter where something is erased.
    "erasing_area": (QUIET | {"erasing_probability": 1.0}, (0.5, 0.6)),
    "erasing_ratio": (QUIET | {"erasing_probability": 1.0}, (1.0, 1.0)),
}


def prepared(augmentation, **strengths):
    """A batch as the model gets it, by a config with these strengths."""
    fields = {f"augment__{name}": value for name, value in strengths.items()}
    made = tiny_task(data__augment=augmentation, **fields)
    images = first_images(32)
    pixels, labels = jnp.asarray(images.images), jnp.asarray(images.labels)
    return np.asarray(made.prepare(jax.random.key(0), pixels, labels)[0]), made


def test_every_strength_is_tested():
    mixing = {"mixup", "cutmix"}  # tests/test_augment_mixing.py
    recipe = {"padding_mode", "flip", "cutout"}  # tests/test_augment.py
    assert set(LOUD) == set(base_config().augment) - mixing - recipe


@pytest.mark.slow
@pytest.mark.parametrize("field", LOUD)
def test_each_strength_reaches_its_transform(field):
    others, strength = LOUD[field]
    quiet, _ = prepared("strong", **others)
    loud, made = prepared("strong", **others | {field: strength})
    assert dict(made.strengths)[field] == strength
    assert np.abs(loud - quiet).max() > 0.1
    # Exactly the transform at these strengths.
    config = base_config().augment.to_dict() | others | {field: strength}
    del config["mixup"], config["cutmix"], config["cutout"]
    images = jnp.asarray(first_images(32).images)
    expected = augment.strong(
        jax.random.key(0), images, **config, normalize=lambda x: (x / 255 - 0.5) / 0.25
    )
    np.testing.assert_allclose(loud, expected, atol=1e-4)


def test_weak_uses_the_padding_alone():
    images = first_images(32).images
    quiet, made = prepared("weak", **QUIET)
    unset = (("padding_mode", "zeros"), ("flip", "random"), ("cutout", 0))
    assert set(made.strengths) == {("padding", 0), *unset}
    for image, out in zip(images, quiet, strict=True):
        plain = (image / 255 - 0.5) / 0.25
        assert np.allclose(out, plain, atol=1e-5) or np.allclose(out, plain[:, ::-1], atol=1e-5)
    padded, _ = prepared("weak", **QUIET | {"padding": 4})
    assert np.abs(padded - quiet).max() > 0.1
    for field in LOUD.keys() - {"padding"}:
        assert prepared("weak", **QUIET | {field: LOUD[field][1]})[1] == made


def test_none_changes_nothing():
    result, made = prepared("none", **{field: value for field, (_, value) in LOUD.items()})
    assert made.strengths == ()
    np.testing.assert_allclose(result, (first_images(32).images / 255 - 0.5) / 0.25, atol=1e-5)


def test_erased_pixels_are_0_after_preparing():
    made = tiny_task(
        data__augment="strong",
        **{f"augment__{name}": value for name, value in QUIET.items()}
        | {"augment__erasing_probability": 1.0},
    )
    # With the colours of CIFAR-10, where no channel's mean is another's.
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.262)
    made = with_inference(made, mean=mean, std=std)
    white = jnp.full((32, 32, 32, 3), 255, jnp.uint8)
    result = np.asarray(made.prepare(jax.random.key(0), white, jnp.zeros(32, jnp.int32))[0])
    erased = (np.abs(result) < 1e-5).all(-1)
    left = np.broadcast_to((1 - np.array(mean)) / np.array(std), result.shape)
    np.testing.assert_allclose(result[~erased], left[~erased], rtol=1e-5)
    shares = erased.mean((1, 2))
    assert shares.min() > 0.01
    assert shares.max() < 0.4
