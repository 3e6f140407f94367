"""The compiled programs: what they compute, what they share, and what XLA was given."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import data, losses, models, optim, programs, restore, sharding, task
from jaxcifar.files import read_lines
from jaxcifar.kernels import compilation
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.resnet import BasicBlock, ResNet
from jaxcifar.models.vgg import VGG
from jaxcifar.options import load
from jaxcifar.state import TrainState
from jaxcifar.step import Lookahead, make_loss, make_train_step
from tests.tiny import first_images, mesh, run, tiny, tiny_task, with_inference

# --- init -------------------------------------------------------------------------------------


def initial(made, seed=0, **fields):
    numbers = sharding.replicate(task.hyperparams(tiny(**fields)), made.mesh)
    images = sharding.replicate(np.zeros((made.n_train, 3072), np.uint8), made.mesh)
    return programs.init(made)(sharding.replicate(np.uint32(seed), made.mesh), numbers, images)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg_a_bn", "resnet18"])
def test_a_run_starts_from_what_the_models_init_gives(name):
    """To the bit where it is compiled as for a run; else but for the last one."""
    made = tiny_task(model__name=name)
    state = initial(made, seed=3)
    key, run_key = jax.random.split(jax.random.key(3))
    init = lambda key: made.model.init(key, jnp.zeros((1, 32, 32, 3)), train=False)  # noqa: E731
    variables = compilation.jit(init, platform="cpu", fast_compile=True)(key)
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state.batch_stats, variables["batch_stats"])
    for variables in (init(key), jax.jit(init)(key)):
        for leaf, drawn in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(variables["params"]), strict=True
        ):
            np.testing.assert_allclose(leaf, drawn, atol=3e-7 * np.abs(drawn).max())
    assert (jax.random.key_data(state.key) == jax.random.key_data(run_key)).all()
    assert state.step == 0
    eight = initial(with_inference(made, mesh=mesh(8)), seed=3)
    jax.tree.map(np.testing.assert_array_equal, state.params, eight.params)
    other = initial(made, seed=4)
    assert not np.array_equal(state.params["conv1"]["kernel"], other.params["conv1"]["kernel"])


def test_abstract_state_is_that_of_a_state():
    made = tiny_task(8)
    state, abstract = initial(made), programs.abstract_state(made)
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    for leaf, expected in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert (leaf.shape, leaf.dtype) == (expected.shape, expected.dtype)
        assert leaf.sharding.is_equivalent_to(expected.sharding, leaf.ndim)


# --- order and batch --------------------------------------------------------------------------


def test_order_is_a_fresh_permutation_of_seed_and_epoch():
    order = programs.order(tiny_task(train__batch_size=25))
    one, two = (np.asarray(order(jax.random.key(0), np.int32(epoch))) for epoch in (1, 2))
    assert one.shape == (4, 25)
    assert sorted(one.ravel()) == sorted(two.ravel()) == list(range(100))
    assert not np.array_equal(one, two)
    np.testing.assert_array_equal(one, order(jax.random.key(0), np.int32(1)))
    assert not np.array_equal(one, order(jax.random.key(1), np.int32(1)))


def test_batch_is_the_rows_of_a_step():
    made = tiny_task(8)
    # Of image i, all bytes are i.
    rows_of_bytes = np.tile(np.arange(100, dtype=np.uint8)[:, None], (1, 3072))
    images, labels = sharding.replicate((rows_of_bytes, -np.arange(100)), made.mesh)
    order = sharding.replicate(np.random.default_rng(0).permutation(96).reshape(3, 32), made.mesh)
    state = TrainState(jnp.int32(0), {}, {}, (), jax.random.key(0))
    batch = jax.jit(
        lambda step: programs.batch(made, state.replace(step=step), images, labels, order)
    )
    for step in (0, 2, 4):  # 4 is the second step of the second epoch
        found_images, found_labels = batch(jnp.int32(step))
        assert found_images.shape == (32, 32, 32, 3)
        np.testing.assert_array_equal(found_images[:, 0, 0, 0], order[step % 3])
        np.testing.assert_array_equal(found_labels, -order[step % 3])
    assert found_images.sharding.is_equivalent_to(sharding.batch_sharding(made.mesh), 4)


def test_a_run_that_mirrors_by_turns_shows_each_image_both_ways():
    """In two epochs of other orders: it goes by the image and the epoch, not by the step."""
    made = tiny_task(augment__flip="alternating", train__batch_size=25)
    random = np.random.default_rng(0)
    original = random.integers(0, 256, (100, 32, 32, 3), np.uint8)
    as_bytes = original.reshape(100, 3072), np.arange(100, dtype=np.int32)
    images, labels = sharding.replicate(as_bytes, made.mesh)
    state = TrainState(jnp.int32(0), {}, {}, (), jax.random.key(0))
    batch = jax.jit(
        lambda step, order: programs.batch(made, state.replace(step=step), images, labels, order)
    )
    seen = []
    for epoch in (0, 1):
        order = random.permutation(100).reshape(4, 25)
        batches = [batch(jnp.int32(4 * epoch + place), order) for place in range(4)]
        by_row = np.empty_like(original)
        for chosen, rows in batches:
            by_row[rows] = chosen
        seen.append(by_row)
    np.testing.assert_array_equal(seen[0], seen[1][:, :, ::-1])
    mirrored = (seen[0] != original).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(seen[0][mirrored], original[mirrored][:, :, ::-1])
    assert 30 < mirrored.sum() < 70


# --- evaluate ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluation_counts_every_image_once(finished):
    workdir, _ = finished
    config, _, variables = restore.load_variables(workdir, mesh=mesh(1))
    test = data.load("synthetic", "test")
    images = (test.images / 255 - np.array(test.mean)) / np.array(test.std)
    model = models.create_model("vgg_a_bn", width=0.05)
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = np.asarray(apply(variables, images.astype(np.float32)))
    inference = task.build_inference(config, test, mesh(1))
    arrays = programs.on_devices(test, mesh(1))
    found = programs.evaluate(inference, variables, *arrays)  # 96 + 96 + 64
    assert found["images"] == 256
    assert found["accuracy"] == (logits.argmax(-1) == test.labels).mean()
    of_labels = logits[np.arange(256), test.labels]
    entropies = np.log(np.exp(logits).sum(-1)) - of_labels
    # A mean of the three batches' means would be another number.
    assert found["loss"] == pytest.approx(entropies.mean(), rel=1e-5)
    means = [entropies[:96].mean(), entropies[96:192].mean(), entropies[192:].mean()]
    assert found["loss"] != pytest.approx(np.mean(means), rel=1e-4)
    asked = []
    stop = lambda: asked.append(1) or len(asked) == 2  # noqa: E731
    assert programs.evaluate(inference, variables, *arrays, stop=stop) is None
    assert len(asked) == 2  # after each batch


# --- train ------------------------------------------------------------------------------------


class Compilations:
    """Counts what XLA compiles."""

    def __init__(self):
        self.count = 0

    def __call__(self, event, seconds, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    counter = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    jax.monitoring.unregister_event_duration_listener(counter)


@pytest.mark.slow
def test_a_sweep_over_numbers_compiles_one_step(tmp_path, compilations):
    """Runs that differ only in these fields share every program."""
    same = {"train__epochs": 1, "optim__name": "adamw"}
    run(tiny(**same), tmp_path / "first")
    misses = [cached.cache_info().misses for cached in CACHED]
    before = compilations.count
    fields = {
        **{"optim__learning_rate": 3e-3, "optim__l1": 1e-4, "optim__l2": 1e-5, "seed": 5},
        **{"optim__weight_decay": 0.1, "optim__warmup_epochs": 1.0, "train__epochs": 3},
    }
    result = run(tiny(**same | fields), tmp_path / "second")
    # After the warm-up, half of the cosine.
    assert result["last"]["learning_rate"] == pytest.approx(3e-3 * 0.5)
    assert [cached.cache_info().misses for cached in CACHED] == misses
    assert compilations.count == before
    # So that the above can fail.
    programs.init(tiny_task(**same, optim__schedule="constant"))
    assert programs.init.cache_info().misses == misses[0] + 1
    jax.jit(lambda x: x + 1)(1)
    assert compilations.count == before + 1


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_default_matmul_precision", "float32"),
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
    ],
)
def test_no_program_is_used_after_a_setting_was_changed(setting, value):
    """It would compute something else than config.json says."""
    task, before = tiny_task(), getattr(jax.config, setting)
    assert tiny_task() == task
    try:
        jax.config.update(setting, value)
        assert tiny_task() != task
        assert programs.init(tiny_task()) is not programs.init(task)
    finally:
        jax.config.update(setting, before)


def test_a_program_is_looked_up_once_an_epoch(tmp_path, monkeypatch):
    """Threads that train many others meanwhile would have each step compiled again."""
    train, asked = programs.train, []

    def counted(task, steps):
        asked.append(steps)
        return train(task, steps)

    monkeypatch.setattr(programs, "train", counted)
    run(tiny(train__epochs=1), tmp_path / "run")
    assert len(asked) == 2  # the first was to compile it


CACHED = (programs.init, programs.train, programs.order, programs.evaluate_batch)


PENALIZED = optim.l1_and_l2(1e-2, 2e-2)
KERNELS = optim.l1_and_l2(0.0, 0.05, optim.kernels_only)
NONE = optim.l1_and_l2(0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "tx", "step_options", "loss_options"),
    [
        pytest.param(
            {"optim__l1": 1e-2, "optim__l2": 2e-2},
            optim.make_optimizer("adam", 1e-3, regularize=PENALIZED),
            {"regularizers": PENALIZED},
            {},
            id="penalties",
        ),
        pytest.param(
            {
                **{"optim__name": "sgd", "optim__momentum": 0.9, "optim__learning_rate": 0.1},
                **{"optim__l2": 0.05, "optim__penalize": "kernels"},
            },
            optim.make_optimizer("sgd", 0.1, momentum=0.9, regularize=KERNELS),
            {"regularizers": KERNELS},
            {},
            id="kernels",
        ),
        pytest.param(
            {
                **{"optim__name": "sgd", "optim__momentum": 0.9, "optim__learning_rate": 0.1},
                **{"optim__nesterov": True, "optim__bias_scale": 4.0, "optim__clip_norm": 1.0},
                **{"optim__schedule": "triangular", "optim__warmup_epochs": 0.5},
                **{"optim__start_factor": 0.2, "optim__end_factor": 0.1, "train__epochs": 2},
                **{"train__label_smoothing": 0.2, "train__lookahead_steps": 2},
            },
            optim.make_optimizer(
                "sgd",
                optim.triangular(0.1, 2, 3, peak_epoch=0.5, start_factor=0.2, end_factor=0.1),
                regularize=NONE,
                momentum=0.9,
                nesterov=True,
                bias_scale=4.0,
                clip_norm=1.0,
            ),
            {"lookahead": Lookahead(2, 6)},
            {"label_smoothing": 0.2},
            id="recipe",
        ),
    ],
)
def test_a_run_is_the_optimizer_of_its_config(tmp_path, fields, tx, step_options, loss_options):
    """Its losses are those of `make_train_step` with the numbers written in."""
    fields = {"train__epochs": 1, "data__augment": "none"} | fields
    config = tiny(**fields)
    run(config, tmp_path)
    lines = read_lines(tmp_path / "steps.jsonl")
    assert len(lines) == fields["train__epochs"]

    model = models.create_model("vgg_a_bn", width=0.05, dropout_rate=0.2)

    def prepare(_, images, labels):
        return (images.astype(jnp.float32) / 255.0 - 0.5) / 0.25, labels

    loss = make_loss(model, prepare, functools.partial(losses.cross_entropy, **loss_options))
    step = jax.jit(make_train_step(loss, tx, **step_options))
    made = tiny_task(**fields)
    state = initial(made, config.seed, **fields)
    train_set = first_images(100)
    for found in lines:
        order = np.asarray(programs.order(made)(state.key, found["epoch"]))
        for i, rows in enumerate(order):
            images, labels = (x[rows] for x in (train_set.images, train_set.labels))
            state, expected = step(state, jnp.asarray(images), jnp.asarray(labels))
            for name in ("loss", "ce", "accuracy"):
                value = pytest.approx(float(expected[name]), rel=1e-4)
                assert found[name][i] == value, (name, found["epoch"], i)
    penalized = "regularizers" in step_options
    assert (lines[0]["loss"][0] > lines[0]["ce"][0]) == penalized


# --- lowered for machines that are not there --------------------------------------------------

# Small ones of each family, with as many convolutions: what a DenseNet-121 is made of, but once.
NETWORKS = {
    "resnet": (ResNet, {"stage_sizes": (1, 1, 1, 1), "block": BasicBlock}, 12),
    "densenet": (DenseNet, {"block_sizes": (1, 1, 1, 1)}, 12),
    "vgg": (VGG, {}, 8),
}


def lowered(network, platform, lowering):
    """StableHLO of a call of several steps."""
    steps = 1 if platform == "cpu" else 2
    made = tiny_task(
        platform=platform,
        data__augment="strong",
        train__limit_train_images=64,
        train__steps_per_call=steps,
        optim__l1=1e-4,
    )
    family, options, _ = NETWORKS[network]
    model = made.model
    model = family(
        width=1.0, dropout_rate=0.2, dtype=model.dtype, platform=model.platform, **options
    )
    made = with_inference(made, model=model)
    traced = programs.training(made, steps).trace(*programs.training_arguments(made))
    return traced.lower(lowering_platforms=(lowering,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "platform", "lowering"),
    # The others are below; of all that is compiled, the crop alone knows a TPU.
    [("densenet", "gpu", "cuda"), ("vgg", "tpu", "tpu")],
)
def test_the_step_for_an_accelerator_is_plain(network, platform, lowering):
    text = lowered(network, platform, lowering)
    assert "optimization_barrier" not in text  # nothing of what CPUs need
    for word in ("infeed", "outfeed", "callback", "stablehlo.send", "stablehlo.recv"):
        assert word not in text  # nothing goes to the host
    assert "custom_call" not in text
    # One loop, of the steps: not one for each image, or each random number.
    assert text.count("stablehlo.while") == 1
    # Each once forward, once for the kernel's gradient, and all but the first for the input's.
    convolutions = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]*x(\w+)>", text)
    assert convolutions == ["bf16"] * (3 * NETWORKS[network][2] - 1)
    # The classifier's products, and that of the matrices that rotate and shift: 4 or, with VGG's
    # three linear layers, 10. No convolution became a product, or 36 of them.
    assert text.count("stablehlo.dot_general") == (10 if network == "vgg" else 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "augment", "bfloat16", "float32", "products"),
    # All layers as above; but the recipe's first, which is not trained, once, and in float32.
    [
        ("row1", "strong", 3 * 20 - 1, 0, 4),
        ("vgg6", "strong", 3 * 8 - 1, 0, 10),
        ("fast", "weak", 3 * 6, 1, 3),
    ],
)
def test_the_step_of_a_config_for_a_gpu_is_plain(name, augment, bfloat16, float32, products):
    """The whole network, in a call of as many steps as on a GPU."""
    images, config = data.without_images("cifar10", 50_000), load(name)
    config.data.augment = augment
    made = task.build(config, images, mesh(8), platform="gpu")
    assert made.steps_per_call > 1
    traced = programs.training(made, made.steps_per_call).trace(*programs.training_arguments(made))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    nowhere = "optimization_barrier|infeed|outfeed|callback|custom_call|stablehlo.(send|recv)"
    assert not re.search(nowhere, text)
    assert text.count("stablehlo.while") == 1
    convolutions = re.findall(r"stablehlo\.convolution.*-> tensor<[\dx]*x(\w+)>", text)
    assert sorted(convolutions) == ["bf16"] * bfloat16 + ["f32"] * float32
    assert text.count("stablehlo.dot_general") == products


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_the_step_for_a_cpu_has_what_cpus_need(network):
    """So that the test above can fail."""
    text = lowered(network, "cpu", "cpu")
    assert "optimization_barrier" in text
    assert "bf16" not in text
    assert text.count("stablehlo.convolution") < 3 * NETWORKS[network][2] - 1
    assert text.count("stablehlo.dot_general") > 10
    assert re.search(r"tensor<36x\d+x\d+xf32>", text) or network == "densenet"  # Winograd's


# --- compiled for this machine ----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "convolutions"), [("resnet18", 14), ("vgg_a_bn", 5)])
def test_the_step_has_the_convolutions_it_needs_and_no_more(name, convolutions):
    # 3×3 ones of images of at least 3×3 pixels and few channels: each once forward, once for the
    # kernel's gradient, and all but the first once for the input's. The others are products.
    made = tiny_task(
        model__name=name, model__width=0.125, data__augment="none", train__batch_size=8
    )
    text = programs.train(made, 1).as_text()
    assert text.count(" convolution(") == 3 * convolutions - 1
    assert "ynn" not in text  # the slow convolutions
    assert " opt-barrier(" in text  # which keep layout copies from computing layers anew
    for word in ("infeed", "outfeed", "callback", " send(", " recv("):
        assert word not in text  # nothing goes to the host


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {
            "data__augment": "strong",
            "optim__l1": 1e-4,
            "augment__mixup": 0.2,
            "augment__cutmix": 1.0,
        },
        {"model__name": "resnet18", "optim__name": "adamw", "optim__warmup_epochs": 0.5},
        {"model__name": "densenet121", "optim__name": "sgd", "optim__schedule": "cosine_per_step"},
        {
            **{"model__name": "airbench94", "optim__name": "sgd", "optim__schedule": "triangular"},
            **{"data__augment": "weak", "augment__cutout": 4, "train__lookahead_steps": 2},
            **{"augment__flip": "alternating", "data__test_augment": "mirror_translate"},
        },
    ],
)
def test_no_operation_mixes_dtypes_or_ranks_unseen(fields):
    made = tiny_task(**fields)
    if hasattr(made.model, "block_sizes"):  # more layers of the same kind tell nothing new
        made = with_inference(made, model=made.model.clone(block_sizes=(1, 1, 1, 1)))
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        arguments = programs.training_arguments(made)
        jax.eval_shape(programs.training(made, 1), *arguments)
        variables = {"params": arguments[0].params, "batch_stats": arguments[0].batch_stats}
        images = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.uint8)
        jax.eval_shape(made.inference.logits, variables, images)


@pytest.mark.slow
def test_constants_are_no_part_of_the_step():
    """The images are arguments: a step compiles as fast for 50,000 as for 64."""
    small, large = (
        programs.training(made, 1).lower(*programs.training_arguments(made)).as_text()
        for made in (dataclasses.replace(tiny_task(), n_train=n) for n in (64, 50_000))
    )
    assert abs(len(small) - len(large)) < 1000
