"""The eleven models: sizes, shapes, and what BatchNorm and dropout do in training and not."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import compilation
from jaxcifar.errors import UserError
from jaxcifar.models import MODELS, create_model, winograd
from jaxcifar.models.conv import conv2d
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.layers import ACTIVATIONS, BatchNorm, avg_pool, max_pool
from jaxcifar.models.resnet import BasicBlock, BottleneckBlock, ResNet

# The report's sizes to the unit, counted by hand from the architectures.
PARAMETERS = {
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet50": 23_520_842,
    "resnet101": 42_512_970,
    "resnet152": 58_156_618,
    "densenet121": 3_972_210,
    "densenet169": 7_109_042,
    "densenet201": 10_286_770,
    "densenet264": 17_397_874,
    "vgg_a": 9_750_922,
    "vgg_a_bn": 9_756_426,
}

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


@pytest.fixture(autouse=True)
def _strict_promotion():
    """No operation of ours mixes dtypes unseen. (optax's own does.)"""
    with jax.numpy_dtype_promotion("strict"):
        yield


def shapes(model):
    """The variables of a model, without computing them."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(lambda k, x: model.init(k, x, train=False), key, IMAGES)


def test_models_are_the_eleven():
    assert set(MODELS) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    params = shapes(create_model(name))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "vgg_a", "vgg_a_bn"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_and_state_are_float32(name, dtype):
    model = create_model(name, num_classes=7, dtype=dtype, dropout_rate=0.1)
    variables = shapes(model)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def train(variables, images, key):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    logits, updates = jax.eval_shape(train, variables, IMAGES, key)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates))} == {jnp.dtype("float32")}


def test_bfloat16_computes_in_bfloat16(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # where it is the default
    # The widths of activations between layers decide speed and memory on an accelerator.
    model = create_model("resnet18", dtype=jnp.bfloat16, width=0.25)
    apply = lambda v, x: model.apply(v, x, train=False)  # noqa: E731
    jaxpr = jax.make_jaxpr(apply)(shapes(model), IMAGES)
    convolutions = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 20
    assert all(eqn.outvars[0].aval.dtype == jnp.bfloat16 for eqn in convolutions)


def test_feature_map_sizes():
    # 32×32 after the stem, halved by each later stage: the report's "output size".
    sizes = []

    def record(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        if isinstance(context.module, BasicBlock):
            sizes.append(y.shape[1:])
        return y

    with nn.intercept_methods(record):
        shapes(create_model("resnet18"))
    assert sizes[::2] == [(32, 32, 64), (16, 16, 128), (8, 8, 256), (4, 4, 512)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_reaches_the_model(activation):
    model = create_model("vgg_a", activation=activation, width=0.05)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = model.init(jax.random.key(1), images, train=False)
    logits = model.apply(variables, images, train=False)
    linear = nn.relu if activation != "relu" else nn.gelu  # any other function
    other = create_model("vgg_a", activation="gelu" if linear is nn.gelu else "relu", width=0.05)
    assert not np.allclose(logits, other.apply(variables, images, train=False), atol=1e-6)


def test_gelu_is_the_exact_one():
    x = jnp.linspace(-3, 3, 13)
    exact = 0.5 * x * (1 + jax.scipy.special.erf(x / np.sqrt(2)))
    np.testing.assert_allclose(ACTIVATIONS["gelu"](x), exact, atol=1e-6)
    assert np.abs(nn.gelu(x, approximate=True) - exact).max() > 1e-4  # so the line above can fail


# --- BatchNorm --------------------------------------------------------------------------------


def batch_norm(x, train, **options):
    layer = BatchNorm(**options)
    variables = layer.init(jax.random.key(0), x, train=False)
    return layer.apply(variables, x, train=train, mutable=["batch_stats"])


def test_batch_norm_by_the_formula():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (4, 5, 6, 7))
    y, updates = batch_norm(x, train=True)
    flat = np.asarray(x, np.float64).reshape(-1, 7)
    mean, var = flat.mean(0), flat.var(0)
    np.testing.assert_allclose(y, (np.asarray(x) - mean) / np.sqrt(var + 1e-5), atol=1e-5)
    stats = updates["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var * 120 / 119, rtol=1e-5)


def test_batch_norm_biased_variance_is_another_number():
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
    var = np.asarray(x, np.float64).reshape(-1, 3).var(0)
    for unbiased, factor in ((True, 8 / 7), (False, 1.0)):
        _, updates = batch_norm(x, train=True, unbiased_variance=unbiased)
        expected = 0.9 + 0.1 * factor * var
        np.testing.assert_allclose(updates["batch_stats"]["var"], expected, rtol=1e-5)


def test_batch_norm_survives_a_large_mean():
    # E[x²] − E[x]² would be off by 100% here, or negative.
    x = 1000 + 0.01 * jax.random.normal(jax.random.key(0), (8, 4, 4, 2))
    y, _ = batch_norm(x, train=True, epsilon=0.0)
    np.testing.assert_allclose(np.asarray(y).std((0, 1, 2)), 1, rtol=1e-2)


def test_batch_norm_statistics_are_float32_of_bfloat16_input():
    x = (10 + jax.random.normal(jax.random.key(0), (64, 8, 8, 2))).astype(jnp.bfloat16)
    y, updates = batch_norm(x, train=True, dtype=jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    expected = 0.1 * np.asarray(x, np.float64).mean((0, 1, 2))
    np.testing.assert_allclose(updates["batch_stats"]["mean"], expected, rtol=1e-5)


def test_evaluation_uses_and_keeps_running_statistics():
    model = create_model("resnet18", width=0.1)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = model.init(jax.random.key(1), images, train=False)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False, mutable=["batch_stats"]))
    logits, after = apply(variables, images)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    # An image's logits do not depend on the others of its batch.
    np.testing.assert_allclose(apply(variables, images[:2])[0], logits[:2], atol=1e-5)


# --- dropout ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"),
    [("resnet18", 1), ("densenet121", 58), ("vgg_a", 2)],
)
def test_dropout_where_the_report_has_it(name, layers):
    # ResNet: one, before the FC layer; DenseNet: one in each of its 6 + 12 + 24 + 16 layers.
    inputs = []

    def record(next_fun, args, kwargs, context):
        if isinstance(context.module, nn.Dropout):
            inputs.append(args[0].shape)
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes(create_model(name, dropout_rate=0.2))
    assert len(inputs) == layers
    if name == "resnet18":
        assert inputs == [(2, 512)]
    if name == "densenet121":
        assert {shape[-1] for shape in inputs} == {24}


def test_dropout_only_in_training():
    model = create_model("vgg_a", dropout_rate=0.5, width=0.1)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = model.init(jax.random.key(1), images, train=False)
    one, two = (
        model.apply(variables, images, train=True, rngs={"dropout": jax.random.key(i)})
        for i in (0, 1)
    )
    assert not np.allclose(one, two)
    same = [model.apply(variables, images, train=False) for _ in range(2)]
    np.testing.assert_array_equal(*same)


# --- initialisation ---------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2**0.5), ("gelu", 1.0)])
def test_kaiming_fan_out(activation, gain):
    model = ResNet(stage_sizes=(1, 1), block=BottleneckBlock, activation=activation)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"]
    kernel = params["layer2_0"]["conv2"]["kernel"]  # 3×3, 128 out
    np.testing.assert_allclose(kernel.std(), gain / np.sqrt(9 * 128), rtol=0.02)
    assert np.abs(kernel).max() > 3.5 * kernel.std()  # not truncated
    bound = 1 / np.sqrt(params["fc"]["kernel"].shape[0])
    for leaf in params["fc"].values():
        assert 0.8 * bound < np.abs(leaf).max() <= bound


def test_densenet_head_and_vgg_xavier():
    params = DenseNet(block_sizes=(1, 1, 1, 1)).init(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False
    )["params"]
    assert not params["classifier"]["bias"].any()
    params = create_model("vgg_a").init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)[
        "params"
    ]
    std = np.sqrt(2 / (9 * 512 + 9 * 512))
    np.testing.assert_allclose(params["conv8"]["kernel"].std(), std, rtol=0.02)
    np.testing.assert_allclose(params["fc1"]["kernel"].std(), np.sqrt(2 / 1024), rtol=0.02)
    assert not params["conv8"]["bias"].any()


# --- operations -------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [2, 4, 5, 8, 32])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [(5, 6), (64, 72)])  # few, and enough for Winograd's
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_convolution_and_gradients_equal_xla(pixels, size, stride, channels, dtype, tolerance):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (9, pixels, pixels, channels[0])).astype(dtype)
    kernel = jax.random.normal(keys[1], (size, size, *channels)).astype(dtype)
    pad = (size - 1) // 2

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip

    y, vjp = jax.vjp(lambda x, kernel: conv2d(x, kernel, stride), x, kernel)
    dy = jax.random.normal(keys[2], y.shape).astype(dtype)
    # The definition in float32, of the same rounded numbers.
    exact = [array.astype(jnp.float32) for array in (x, kernel, dy)]
    expected, expected_vjp = jax.vjp(plain, *exact[:2])
    for ours, theirs in zip((y, *vjp(dy)), (expected, *expected_vjp(exact[2])), strict=True):
        assert ours.dtype == dtype
        ours = np.asarray(ours, np.float32)
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max())


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 8, 12)])
def test_winograd_is_exact_but_for_rounding(shape):
    # In float64, so that a weight that is slightly wrong shows.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(*shape, 3))
    kernel = rng.normal(size=(3, 3, 3, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + shape[1], j : j + shape[2]] @ kernel[i, j]
        for i in range(3)
        for j in range(3)
    )
    with jax.enable_x64(True):
        y = winograd.conv3x3(jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(y, expected, atol=1e-12)


def test_gradient_of_a_long_product_in_pieces():
    from jaxcifar.models import conv

    keys = jax.random.split(jax.random.key(0), 3)
    rows = 3 * conv._ROWS + 8  # 8 pieces at most, of uneven size if it did not divide
    x = jax.random.normal(keys[0], (rows, 4))
    dy = jax.random.normal(keys[1], (rows, 3))
    _, vjp = jax.vjp(conv._product, x, jax.random.normal(keys[2], (4, 3)))
    expected = np.asarray(x, np.float64).T @ np.asarray(dy, np.float64)
    np.testing.assert_allclose(vjp(dy)[1], expected, atol=1e-5 * np.abs(expected).max())


def test_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 6, 4, 3))
    squares = np.stack([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])
    np.testing.assert_array_equal(max_pool(x), squares.max(0))
    np.testing.assert_allclose(avg_pool(x), squares.mean(0), rtol=1e-6, atol=1e-6)
    # Of four equals, the first in reading order gets the whole gradient.
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


# --- rematerialisation ------------------------------------------------------------------------


def densenet_gradients(remat, dtype=jnp.float32, **options):
    """A function of (params, batch_stats, images) to (loss, new statistics), and gradients."""
    model = DenseNet(growth=12, width=0.5, dropout_rate=0.3, remat=remat, dtype=dtype, **options)

    def loss(params, batch_stats, images):
        logits, updates = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(5)},
        )
        return jnp.square(logits).sum(), updates

    return model, compilation.jit(jax.value_and_grad(loss, has_aux=True))


def test_remat_changes_no_gradient():
    with jax.enable_x64(True):
        images = jax.random.normal(jax.random.key(0), (3, 8, 8, 3), jnp.float64)
        found = []
        for remat in (False, True):
            model, gradients = densenet_gradients(remat, jnp.float64, block_sizes=(2, 2))
            init = jax.jit(partial(model.clone(dtype=jnp.float32).init, train=False))
            variables = init(jax.random.key(1), images.astype(jnp.float32))
            variables = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
            found.append(gradients(variables["params"], variables["batch_stats"], images))
    plain, again = found
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(a).max())


def test_remat_halves_the_memory():
    images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
    needed = {}
    for remat in (False, True):
        model, gradients = densenet_gradients(remat, block_sizes=(8,))
        variables = shapes(model)
        compiled = gradients.lower(variables["params"], variables["batch_stats"], images).compile()
        needed[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert needed[True] < needed[False] / 2, needed


# --- misuse -----------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        create_model("resnet-18")
    with pytest.raises(UserError, match="Did you mean 'gelu'"):
        create_model("resnet18", activation="gelus")
    with pytest.raises(UserError, match="at least"):
        create_model("resnet18", width=0.01)
    with pytest.raises(UserError, match="only DenseNets"):
        create_model("resnet18", remat=True)
