"""Agreement with PyTorch: forward, batch statistics, and training step by step.

The PyTorch side is experiments/torch_models.py, written independently of the package.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import cli, optim
from jaxcifar.interop.torch import from_torch, to_torch
from jaxcifar.models import MODELS, create_model
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.resnet import BasicBlock, BottleneckBlock, ResNet
from jaxcifar.models.vgg import VGG
from jaxcifar.state import TrainState, abstract_variables
from jaxcifar.step import make_loss, make_train_step

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")

from experiments import torch_models as reference  # noqa: E402 - it needs torch

IMAGES = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)


def nchw(images):
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def relative(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


# Width 1/8: every layer of every network, in the time that a narrow one takes.
NARROW = 0.125
# In a DenseNet no two layers have the same shapes: a small one stands for all four.
DENSE = (2, 3, 2, 2)
# A deeper ResNet has more of the same blocks, and rounding in a hundred layers moves its statistics
# by 3e-5: a small one stands for those with bottlenecks. That of 34 layers has the blocks of 18,
# that of 56 those of 20.
BOTTLENECKS = (1, 2)
OTHERS = ("resnet56", "resnet34", "resnet50", "resnet101", "resnet152")
FORWARD = (
    "densenet",
    "bottleneck",
    *(name for name in MODELS if not name.startswith("densenet") and name not in OTHERS),
)


def narrow(name, activation):
    """Returns PyTorch's network and ours, both narrow; the first two names are of small ones."""
    options = {"width": NARROW, "activation": activation}
    if name == "densenet":
        ours = DenseNet(block_sizes=DENSE, platform="cpu", **options)
        return reference.DenseNet(DENSE, **options), ours
    if name == "bottleneck":
        ours = ResNet(stage_sizes=BOTTLENECKS, block=BottleneckBlock, platform="cpu", **options)
        return reference.ResNet(reference.Bottleneck, BOTTLENECKS, **options), ours
    return reference.create(name, **options), create_model(name, **options)


@torch.no_grad()
def randomize(model, seed):
    """Gives every parameter and running statistic a random value that matters to the output."""
    generator = torch.Generator().manual_seed(seed)

    # Drawn in float32, so that both networks can have the same values, whatever their dtype.
    def uniform(target, low, high):
        target.copy_(torch.empty(target.shape).uniform_(low, high, generator=generator))

    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            if module.weight is not None:
                uniform(module.weight, 0.8, 1.2)
            uniform(module.bias, -0.2, 0.2)
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_var, 0.5, 1.5)
        elif isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            std = math.sqrt(2 / module.weight[0].numel())
            values = torch.empty(module.weight.shape).normal_(0, std, generator=generator)
            module.weight.copy_(values)
            if module.bias is not None:
                uniform(module.bias, -0.2, 0.2)

    # With running statistics that do not match the activations, BN does not hold a residual sum
    # in check: full-scale branches would double its variance at every block.
    for module in model.modules():
        if isinstance(module, reference.BasicBlock | reference.PreActivationBlock):
            module.conv2.weight.mul_(0.25)
        elif isinstance(module, reference.Bottleneck):
            module.conv3.weight.mul_(0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "activation"),
    [
        *((name, "relu") for name in FORWARD),
        # Each kind of layer around an activation; more layers of the same kinds tell nothing new.
        *((name, "gelu") for name in ("densenet", "resnet18", "bottleneck", "vgg_a", "airbench94")),
        ("vgg_a_bn", "silu"),
        ("vgg_a_bn", "leaky_relu"),
        ("vgg_a_bn", "mish"),
    ],
)
def test_forward_and_statistics(name, activation):
    theirs, ours = narrow(name, activation)
    randomize(theirs, seed=1)
    variables = from_torch(ours, theirs.state_dict())
    # Operation by operation: blocks of the same shapes, of any network, are compiled once.
    evaluated = ours.apply(variables, IMAGES, train=False)
    trained, updates = ours.apply(variables, IMAGES, train=True, mutable=["batch_stats"])
    stats = updates.get("batch_stats", {})
    evaluated, trained, stats = jax.device_get((evaluated, trained, stats))
    with torch.no_grad():
        expected = theirs.eval()(nchw(IMAGES)).numpy()
        assert relative(evaluated, expected) < 1e-4
        # What tells images apart is smaller than the logits: it must agree as well.
        assert relative(evaluated - evaluated[0], expected - expected[0]) < 1e-3
        assert relative(trained, theirs.train()(nchw(IMAGES))) < 1e-4
    back, state_dict = flat64(ours, {"params": {}, "batch_stats": stats}), theirs.state_dict()
    for key, value in back.items():
        np.testing.assert_allclose(value, state_dict[key], rtol=1e-5, atol=1e-5, err_msg=key)
    frozen = ("running_mean", "running_var", "whitening.weight")
    assert len(back) == sum(key.endswith(frozen) for key in state_dict)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_full_width_has_the_same_weights(name):
    """Every name and shape of the networks as the report has them, without their numbers."""
    with torch.device("meta"):
        theirs = reference.create(name).state_dict()
    shapes = abstract_variables(create_model(name))
    empty = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    ours = to_torch(name, empty)
    assert {k: v.shape for k, v in ours.items()} == {k: tuple(v.shape) for k, v in theirs.items()}


@pytest.mark.slow
def test_full_width():
    """One network as the report has it, without the shortcut of a narrow one."""
    theirs = reference.create("resnet18")
    randomize(theirs, seed=2)
    variables = from_torch("resnet18", theirs.state_dict())
    # At once, as its operations are those of no other test.
    apply = jax.jit(functools.partial(create_model("resnet18").apply, train=False))
    ours = apply(variables, IMAGES[:1])
    with torch.no_grad():
        assert relative(ours, theirs.eval()(nchw(IMAGES[:1]))) < 1e-4


# --- training ---------------------------------------------------------------------------------

STEPS, STEPS_PER_EPOCH, EPOCHS = 8, 2, 4
RATE, STRENGTH = 1e-2, 1e-3

NETWORKS = {
    "resnet": (
        lambda: reference.ResNet(reference.BasicBlock, [1, 1, 1, 1], width=0.125),
        ResNet(stage_sizes=(1, 1, 1, 1), block=BasicBlock, width=0.125, dtype=jnp.float64),
    ),
    "bottleneck": (
        lambda: reference.ResNet(reference.Bottleneck, [1, 2], width=0.125),
        ResNet(stage_sizes=(1, 2), block=BottleneckBlock, width=0.125, dtype=jnp.float64),
    ),
    "densenet": (
        lambda: reference.DenseNet((2, 2, 2), growth_rate=24, width=0.125),
        DenseNet(block_sizes=(2, 2, 2), width=0.125, dtype=jnp.float64),
    ),
    "vgg": (
        lambda: reference.VGG(False, width=0.125),
        VGG(batch_norm=False, width=0.125, dtype=jnp.float64),
    ),
    "vgg_bn": (
        lambda: reference.VGG(True, width=0.125),
        VGG(batch_norm=True, width=0.125, dtype=jnp.float64),
    ),
}
OPTIMIZERS = {
    "adam": {},
    "sgd": {},
    "adam_l1": {"l1": STRENGTH},
    "adam_l2": {"l2": STRENGTH},
    "adam_cosine": {},
    "sgd_momentum": {"momentum": 0.9},
}


def batches(network):
    # VGG has five poolings; float64 is slow.
    images, pixels = (2, 32) if network.startswith("vgg") else (8, 8)
    generator = np.random.default_rng(7)
    return [
        (generator.normal(size=(images, pixels, pixels, 3)), generator.integers(0, 10, images))
        for _ in range(STEPS)
    ]


def train_theirs(model, network, optimizer):
    name = optimizer.partition("_")[0]
    if name == "adam":
        stepper = torch.optim.Adam(model.parameters(), lr=RATE)
    else:
        momentum = OPTIMIZERS[optimizer].get("momentum", 0.0)
        stepper = torch.optim.SGD(model.parameters(), lr=RATE, momentum=momentum)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, T_max=EPOCHS)
    losses = []
    for step, (images, labels) in enumerate(batches(network)):
        loss = torch.nn.functional.cross_entropy(model(nchw(images)), torch.tensor(labels))
        if optimizer == "adam_l1":
            loss = loss + STRENGTH * sum(w.abs().sum() for w in model.parameters())
        if optimizer == "adam_l2":
            loss = loss + STRENGTH * sum((w**2).sum() for w in model.parameters())
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
        if optimizer == "adam_cosine" and (step + 1) % STEPS_PER_EPOCH == 0:
            cosine.step()
    return losses


@functools.cache
def compiled_step(model, name, schedule, momentum):
    """Our step and its optimizer as functions of the strengths, which share one program."""
    loss = make_loss(model, lambda key, images, labels: (images, labels))

    def make(l1, l2):
        penalties = optim.l1_and_l2(l1, l2)
        rate = optim.cosine_annealing(RATE, EPOCHS, STEPS_PER_EPOCH) if schedule else RATE
        tx = optim.make_optimizer(name, rate, momentum=momentum, regularize=penalties)
        return tx, make_train_step(loss, tx, regularizers=penalties)

    def step(strengths, *batch):
        return make(*strengths)[1](*batch)

    return jax.jit(step), make


def train_ours(model, variables, network, optimizer):
    options = OPTIMIZERS[optimizer]
    strengths = options.get("l1", 0.0), options.get("l2", 0.0)
    step, make = compiled_step(
        model,
        optimizer.partition("_")[0],
        optimizer == "adam_cosine",
        options.get("momentum", 0.0),
    )
    tx, _ = make(*strengths)
    state = TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        key=jax.random.key(0),
    )
    losses = []
    for images, labels in batches(network):
        state, metrics = step(strengths, state, jnp.asarray(images), jnp.asarray(labels, jnp.int32))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        *(("resnet", optimizer) for optimizer in OPTIMIZERS),
        *((network, "adam") for network in NETWORKS if network != "resnet"),
        ("densenet", "adam_l1"),
    ],
)
def test_eight_steps_in_float64(network, optimizer):
    """float64 on both sides: agreement far below what any wrong constant would leave."""
    make_theirs, ours = NETWORKS[network]
    theirs = make_theirs().double().train()
    randomize(theirs, seed=3)
    # On purpose, as nowhere else: inputs in float64 meet parameters that are declared float32.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        variables = jax.tree.map(
            lambda x: jnp.asarray(x, jnp.float64), from_torch(ours, float_dict(theirs))
        )
        theirs.load_state_dict({k: torch.tensor(v) for k, v in to_torch(ours, variables).items()})
        losses, state = train_ours(ours, variables, network, optimizer)
        expected = train_theirs(theirs, network, optimizer)
        np.testing.assert_allclose(losses, expected, rtol=1e-7)
        assert abs(losses[-1] - losses[0]) > 1e-2 * abs(losses[0])  # it did train
        result = flat64(ours, state.variables)
    for key, value in result.items():
        expected = theirs.state_dict()[key].numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(value / scale, expected / scale, atol=1e-6, err_msg=key)


def float_dict(model):
    return {k: v.float() for k, v in model.state_dict().items()}


def flat64(model, variables):
    """`to_torch` in float64: each value as a float32 and its remainder; no count of batches."""
    rest = jax.tree.map(lambda x: x - x.astype(np.float32).astype(x.dtype), variables)
    high, low = to_torch(model, variables), to_torch(model, rest)
    return {k: high[k] + low[k].astype(np.float64) for k in high if "tracked" not in k}


def test_cosine_agrees_with_torch_to_1e_12():
    for epochs in (1, 4, 50, 200):
        parameter = torch.nn.Parameter(torch.zeros(1))
        stepper = torch.optim.SGD([parameter], lr=1e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, T_max=epochs)
        ours = optim.cosine_annealing(1e-3, epochs, 195)
        for epoch in range(epochs):
            assert abs(ours(epoch * 195 + 194) - stepper.param_groups[0]["lr"]) < 1e-12
            stepper.step()
            scheduler.step()


@pytest.mark.slow
def test_pt_files(tmp_path, one_device):
    from jaxcifar.interop import export

    theirs = reference.create("vgg_a", width=NARROW)
    torch.save({"epoch": 3, "state_dict": theirs.state_dict()}, tmp_path / "weights.pt")
    workdir = tmp_path / "run"
    arguments = [str(tmp_path / "weights.pt"), "--model=vgg_a", f"--workdir={workdir}"]
    assert cli.main(["import", *arguments]) == 0
    export.export(workdir, "torch", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(back[k], v) for k, v in theirs.state_dict().items())
