"""What all networks have in common: sizes, shapes, dtypes, dropout, names."""

import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxcifar import augment, data
from jaxcifar.errors import UserError
from jaxcifar.kernels.features import Features
from jaxcifar.kernels.norm import moments
from jaxcifar.models import MODELS, Network, can_remat, create_model
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.layers import ACTIVATIONS, BatchNorm, Conv, Linear
from jaxcifar.models.resnet import BasicBlock, BottleneckBlock, ResNet
from jaxcifar.models.vgg import VGG
from jaxcifar.models.wideresnet import WideResNet
from tests.models.shapes import IMAGES, KEY, shapes

# The report's sizes to the unit, counted by hand from the architectures.
PARAMETERS = {
    "resnet20": 272_474,
    "resnet56": 855_770,
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
    "wideresnet28_10": 36_479_194,
    # Without the frozen kernel of the first layer, 288 more.
    "airbench94": 1_971_352,
    "airbench96": 9_915_416,
}


def test_every_model_is_counted():
    assert set(MODELS) == set(PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    params = shapes(create_model(name))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == PARAMETERS[name]


def test_parameter_count_of_cifar100():
    """36.5 million in the paper's Table 4: the classifier alone has 90 · 641 more."""
    params = shapes(create_model("wideresnet28_10", num_classes=100))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 36_536_884


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "densenet121", "vgg_a", "vgg_a_bn"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_logits_and_state_are_float32(name, dtype):
    model = create_model(name, num_classes=7, dtype=dtype, dropout_rate=0.1)
    # More layers of the same kind tell nothing new.
    if isinstance(model, DenseNet):
        model = model.clone(block_sizes=(1, 1, 1, 1))
    if isinstance(model, ResNet):
        model = model.clone(stage_sizes=(1, 1, 1, 1))
    variables = shapes(model)

    def train(variables, images, key):
        return model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs={"dropout": key}
        )

    logits, updates = jax.eval_shape(train, variables, IMAGES, KEY)
    assert (logits.shape, logits.dtype) == ((2, 7), jnp.float32)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, updates))} == {jnp.dtype("float32")}


def test_bfloat16_computes_in_bfloat16():
    # The widths of activations between layers decide speed and memory on an accelerator.
    model = create_model("resnet18", dtype=jnp.bfloat16, width=0.25, platform="gpu")
    apply = lambda v, x: model.apply(v, x, train=False)  # noqa: E731
    jaxpr = jax.make_jaxpr(apply)(shapes(model), IMAGES)
    convolutions = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "conv_general_dilated"]
    assert len(convolutions) == 20
    assert all(eqn.outvars[0].aval.dtype == jnp.bfloat16 for eqn in convolutions)


@pytest.mark.slow
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_reaches_the_model(activation):
    model = create_model("vgg_a", activation=activation, width=0.05)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = model.init(jax.random.key(1), images, train=False)
    logits = model.apply(variables, images, train=False)
    linear = nn.relu if activation != "relu" else nn.gelu  # any other function
    other = create_model("vgg_a", activation="gelu" if linear is nn.gelu else "relu", width=0.05)
    assert not np.allclose(logits, other.apply(variables, images, train=False), atol=1e-6)


@pytest.mark.slow
def test_evaluation_uses_and_keeps_running_statistics():
    model = create_model("resnet18", width=0.1)
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(1))
    apply = jax.jit(lambda v, x: model.apply(v, x, train=False, mutable=["batch_stats"]))
    logits, after = apply(variables, images)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], variables["batch_stats"])
    # An image's logits do not depend on the others of its batch.
    np.testing.assert_allclose(apply(variables, images[:2])[0], logits[:2], atol=1e-5)


# --- dropout ----------------------------------------------------------------------------------


# Small ones of each family, and the order of their (C)onvolutions, (D)ropouts and (L)inear layers.
SMALL = {
    # A stem and a block; the report's dropout is before the classifier.
    "resnet": (ResNet(stage_sizes=(1,), block=BasicBlock, dropout_rate=0.5, width=0.1), "CCCDL"),
    # Its block's sum has another number of channels, so the shortcut is a convolution too.
    "bottleneck": (
        ResNet(stage_sizes=(1,), block=BottleneckBlock, dropout_rate=0.5, width=0.1),
        "C" + "CCCC" + "DL",
    ),
    # A stem, and a transition between two layers, each with dropout at its end.
    "densenet": (
        DenseNet(block_sizes=(1, 1), dropout_rate=0.5, width=0.1),
        "C" + "CCD" + "C" + "CCD" + "L",
    ),
    # A stem and three blocks with dropout inside, where the number of channels changes twice.
    "wideresnet": (
        WideResNet(blocks=1, widening=1, dropout_rate=0.5, width=0.25),
        "C" + "CDC" + "CCDC" + "CCDC" + "L",
    ),
    "vgg": (VGG(dropout_rate=0.5, width=0.1), 8 * "C" + "DL" + "DL" + "L"),
}


@pytest.mark.parametrize("name", SMALL)
def test_dropout_is_between_the_layers_that_its_paper_says(name):
    model, expected = SMALL[name]
    called = ""

    def record(next_fun, args, kwargs, context):
        nonlocal called
        if isinstance(context.module, Conv | Linear | nn.Dropout):
            assert context.method_name == "__call__"
            called += type(context.module).__name__[0]
        return next_fun(*args, **kwargs)

    variables = shapes(model)
    with nn.intercept_methods(record):
        jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, IMAGES)
    assert called == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_dropout_only_in_training(name):
    model, _ = SMALL[name]
    images = jax.random.normal(jax.random.key(0), (4, 32, 32, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: rng.uniform(0.01, 0.1, x.shape).astype(x.dtype), shapes(model)
    )

    @jax.jit
    def train(key):
        rngs = {"dropout": key}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    one, again, other = (train(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.allclose(one, other)
    evaluate = jax.jit(
        lambda key: model.apply(variables, images, train=False, rngs={"dropout": key})
    )
    np.testing.assert_array_equal(evaluate(jax.random.key(0)), evaluate(jax.random.key(1)))


# --- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SMALL, "vgg_a", "airbench96"])
def test_gradients_are_not_summed_in_bfloat16(name):
    """A sum over all pixels of a batch would lose small addends; the 3×3 last ones are few."""
    model = SMALL[name][0] if name in SMALL else create_model(name)
    model = model.clone(dtype=jnp.bfloat16, platform="gpu")

    def loss(params, rest, images, key):
        variables, rngs = {"params": params, **rest}, {"dropout": key}
        logits, _ = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return logits.sum()

    rest = shapes(model)
    program = jax.jit(jax.grad(loss)).lower(rest.pop("params"), rest, IMAGES, KEY).as_text()
    sums = re.findall(r"stablehlo\.add across .*: \(tensor<(.*?)>.*-> tensor<(.*)>", program)
    assert sums
    for addends, result in sums:
        *addends, dtype = addends.split("x")
        count = math.prod(map(int, addends)) / math.prod(map(int, result.split("x")[:-1]))
        assert dtype == "f32" or count <= 9, f"{count:.0f} numbers of {dtype} are added"


# --- the base ---------------------------------------------------------------------------------


class Two(Network):
    """A convolution and a BatchNorm, made by the base."""

    @nn.compact
    def __call__(self, x, *, train):
        x = self.conv()(int(8 * self.width), 3, 2, name="conv")(x)
        return self.act(self.norm()(name="norm")(x, train=train)).mean((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vgg_a_bn", "resnet18", "wideresnet28_10", "airbench94", "densenet"]
)
def test_variances_of_the_first_step_are_exact_on_accelerators_too(name):
    """There they are computed about the running mean, which is still 0."""
    key = jax.random.key(0)
    train = data.load("synthetic", "train").images[:64]
    x = augment.normalize(train, train.mean((0, 1, 2)) / 255, train.std((0, 1, 2)) / 255)
    if name == "densenet":
        model = DenseNet(block_sizes=(2, 2, 2, 2), width=0.25, platform="cpu")
    else:
        width = 0.25 if name != "wideresnet28_10" else 0.1
        model = create_model(name, width=width, platform="cpu")
    variables = jax.jit(model.init, static_argnames="train")(key, x[:1], train=False)

    @jax.jit
    def normalised(variables, x):
        seen = []

        def watch(function, args, kwargs, context):
            if isinstance(context.module, BatchNorm):
                inputs = args[0].concatenated if isinstance(args[0], Features) else args[0]
                zero = jnp.zeros(inputs.shape[-1])
                seen.append((inputs, moments(inputs, "gpu", near=zero)[1]))
            return function(*args, **kwargs)

        with nn.intercept_methods(watch):
            model.apply(variables, x, train=True, mutable="batch_stats", rngs={"dropout": key})
        return seen

    found = normalised(variables, x)
    leaves = flatten_dict(variables["batch_stats"])
    assert len(found) == sum(path[-1] == "mean" for path in leaves) > 0
    for values, var in found:
        exact = np.asarray(values, np.float64).var(tuple(range(values.ndim - 1)))
        np.testing.assert_allclose(var, exact, rtol=2e-6)


def test_the_fields_of_a_network_reach_its_layers():
    seen = []

    def record(next_fun, args, kwargs, context):
        seen.append(context.module)
        return next_fun(*args, **kwargs)

    model = Two(width=0.5, dtype=jnp.bfloat16, platform="tpu")
    with nn.intercept_methods(record):
        logits = jax.eval_shape(lambda k, x: model.init_with_output(k, x, train=False), KEY, IMAGES)
    conv, norm = (next(m for m in seen if m.name == name) for name in ("conv", "norm"))
    assert (conv.features, conv.stride, conv.dtype, conv.platform) == (4, 2, jnp.bfloat16, "tpu")
    assert (norm.dtype, norm.platform) == (jnp.bfloat16, "tpu")
    assert logits[0].shape == (2, 4)


def test_init_takes_a_key_or_keys_by_name():
    model, images = Two(platform="cpu"), jnp.zeros((1, 8, 8, 3))
    one = model.init(jax.random.key(1), images, train=False)
    other = model.init({"params": jax.random.key(1)}, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    assert model.normal is jax.random.normal  # the model is as it was


# --- misuse -----------------------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        create_model("resnet-18")
    with pytest.raises(UserError, match="Did you mean 'gelu'"):
        create_model("resnet18", activation="gelus")
    with pytest.raises(UserError, match="at least"):
        create_model("resnet18", width=0.01)
    with pytest.raises(UserError, match=r"at least 0\.0625"):
        create_model("wideresnet28_10", width=0.06)
    with pytest.raises(UserError, match=r"at least 0\.0625"):
        create_model("resnet20", width=0.06)
    assert create_model("resnet18", width=0.05).features == 64
    with pytest.raises(UserError, match=r"only these support it: densenet121, .*densenet264"):
        create_model("resnet18", remat=True)
    assert [name for name in MODELS if can_remat(name)] == [n for n in MODELS if "dense" in n]


def test_networks_do_as_those_of_flax_where_flax_transforms_them():
    """Their methods are no module calls, `train` is found by position, and one key is one start."""
    images, key = jnp.zeros((1, 8, 8, 3)), jax.random.key(0)
    sizes = {"stage_sizes": (1,), "features": 4, "platform": "cpu"}
    model = ResNet(block=BasicBlock, **sizes)
    logits, variables = model.init_with_output(key, images, train=False)
    again = model.init(key, images, train=False)
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    capture = {"capture_intermediates": lambda *_: True, "mutable": ["intermediates"]}
    kept = jax.jit(lambda v: model.apply(v, images, train=False, **capture))(variables)[1]
    assert {"conv", "norm"} & kept["intermediates"].keys() == set()
    remade = ResNet(block=nn.remat(BasicBlock, static_argnums=(2,)), **sizes)
    np.testing.assert_array_equal(remade.apply(variables, images, train=False), logits)
    several = nn.vmap(
        ResNet, in_axes=(0, None), variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
    )(block=BasicBlock, **sizes)  # fmt: skip
    stacked = several.init(key, images[None].repeat(2, 0), False)
    first, second = stacked["params"]["conv1"]["kernel"]
    assert not np.allclose(first, second)


class Stacked(Network):
    """Three layers in one array, as deep networks are written for short compile times."""

    @nn.compact
    def __call__(self, x, *, train):
        layer = self.conv()

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return layer(3, 3, name="conv")(x), None

        scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        x, _ = scanned(name="blocks")(x, None)
        return x.mean((1, 2))


def test_stacked_layers_begin_with_weights_of_their_own():
    images = jnp.zeros((1, 32, 32, 3))
    variables = Stacked(platform="cpu").init(jax.random.key(0), images, train=False)
    (kernel,) = jax.tree.leaves(variables["params"])
    assert kernel.shape == (3, 3, 3, 3, 3)
    assert not np.allclose(kernel[0], kernel[1])
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 3)), rel=0.3)
