"""Optimizers, schedules and regularizers against the written formulas."""

import doctest
import inspect
import subprocess
import sys
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxcifar import optim
from jaxcifar.errors import UserError

PARAMS = {
    "conv": {"kernel": jnp.array([[0.5, -2.0], [0.0, 1.0]])},
    "bn": {"scale": jnp.array([1.0]), "bias": jnp.array([-0.3])},
}


def gradients(step):
    """Made-up gradients that change with the step."""
    return jax.tree.map(lambda w: jnp.cos(3 * w + step), PARAMS)


def run(tx, steps=10):
    """Parameters after some steps; the update compiled once."""
    compiled = 0

    @jax.jit
    def step(params, state, grads):
        nonlocal compiled
        compiled += 1
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for i in range(steps):
        params, state = step(params, state, gradients(i))
    assert compiled == 1
    return params


def by_hand(name, learning_rate, *, momentum=0.0, l1=0.0, l2=0.0, chosen=lambda path: True):
    """Ten steps in NumPy float64, straight from the papers; the penalty enters first."""
    result = {}
    for path, w in jax.tree_util.tree_flatten_with_path(PARAMS)[0]:
        w = np.asarray(w, np.float64)
        m, v = np.zeros_like(w), np.zeros_like(w)
        on = chosen(path)
        w0 = w
        for t in range(1, 11):
            g = np.cos(3 * w0 + (t - 1)) + on * (l1 * np.sign(w) + 2 * l2 * w)
            if name == "adam":
                m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
                step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            else:
                m = momentum * m + g
                step = m
            w = w - learning_rate * step
        result[path] = w
    return result


def is_kernel(path):
    return path[-1].key == "kernel"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {}),
        ("adam", {"l1": 0.1}),
        ("adam", {"l2": 0.1}),
        ("adam", {"l1": 0.05, "l2": 0.1}),
        ("sgd", {}),
        ("sgd", {"momentum": 0.9}),
        ("sgd", {"momentum": 0.9, "l1": 0.1, "l2": 0.2}),
    ],
)
@pytest.mark.parametrize("kernels", [False, True])
def test_optimizer_by_the_formula(name, options, kernels):
    mask = optim.kernels_only if kernels else None
    penalties = optim.l1_and_l2(options.get("l1", 0.0), options.get("l2", 0.0), mask)
    momentum = options.get("momentum", 0.0)
    ours = run(optim.make_optimizer(name, 0.01, momentum=momentum, regularize=penalties))
    expected = by_hand(name, 0.01, **options, chosen=is_kernel if kernels else lambda path: True)
    for path, w in jax.tree_util.tree_flatten_with_path(ours)[0]:
        np.testing.assert_allclose(w, expected[path], rtol=2e-5, atol=1e-6)


def test_coupled_l2_is_not_adamw():
    coupled = run(optim.make_optimizer("adam", 0.01, regularize=optim.l1_and_l2(0.0, 0.1)))
    decoupled = run(optim.make_optimizer("adamw", 0.01, weight_decay=0.2))
    assert np.abs(coupled["conv"]["kernel"] - decoupled["conv"]["kernel"]).max() > 1e-3


def test_optimizer_follows_a_schedule():
    schedule = lambda count: jnp.where(count < 5, 0.01, 0.0)  # noqa: E731
    five = run(optim.make_optimizer("sgd", 0.01), steps=5)
    ten = run(optim.make_optimizer("sgd", schedule), steps=10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), five, ten)


# --- penalties --------------------------------------------------------------------------------

arrays = hnp.arrays(
    np.float32,
    st.sampled_from([(1,), (4,), (2, 3), (3, 1, 2)]),  # each new one is compiled for
    elements=st.floats(-10, 10, width=32),
)
trees = st.recursive(
    arrays,
    lambda inner: (
        st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(trees, st.floats(0, 2, width=32), st.integers(0, 2**16))
def test_gradient_of_the_penalty_is_what_the_transform_adds(tree, strength, bits):
    tree = jax.tree.map(jnp.asarray, tree)
    leaves, structure = jax.tree.flatten(tree)
    some = jax.tree.unflatten(structure, [bool(bits >> i & 1) for i in range(len(leaves))])
    zeros = jax.tree.map(jnp.zeros_like, tree)
    for make in (optim.l1, optim.l2):
        for mask in (None, some, lambda params, some=some: some):
            penalty, tx = make(strength, mask)  # both halves from one constructor
            added, _ = tx.update(zeros, tx.init(tree), tree)
            gradient = jax.grad(penalty)(tree)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), added, gradient)


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_halves_of_a_regularizer_can_be_had_alone(kind):
    penalty, tx = getattr(optim, kind)(0.3, optim.kernels_only)
    alone = getattr(optim, f"{kind}_penalty")(PARAMS, 0.3, optim.kernels_only)
    assert penalty(PARAMS) == alone
    added = [
        transform.update(gradients(0), transform.init(PARAMS), PARAMS)[0]
        for transform in (tx, getattr(optim, f"add_{kind}")(0.3, optim.kernels_only))
    ]
    jax.tree.map(np.testing.assert_array_equal, *added)


def test_l1_and_l2_with_a_mask():
    first, second = optim.l1_and_l2(0.1, 0.2, optim.kernels_only)
    assert first.penalty(PARAMS) == pytest.approx(0.1 * 3.5)
    assert second.penalty(PARAMS) == pytest.approx(0.2 * 5.25)
    assert [optim.MASKS[name] for name in ("all", "kernels")] == [None, optim.kernels_only]
    with pytest.raises(ValueError, match="No parameter is named 'kernel'"):
        optim.kernels_only({"layer": {"weight": jnp.ones((2, 2))}})
    assert optim.kernels_only(PARAMS) == {
        "conv": {"kernel": True},
        "bn": {"scale": False, "bias": False},
    }


@flax.struct.dataclass
class Layer:
    """Parameters that can be called, as a module of Equinox can; so is a mask of them."""

    kernel: Any
    bias: Any

    def __call__(self, x):
        return x @ self.kernel + self.bias


@pytest.mark.parametrize(
    ("mask", "params"),
    [
        ({"conv": True, "bn": False}, PARAMS),
        (lambda _: {"conv": True, "bn": False}, PARAMS),
        (Layer(True, False), Layer(jnp.ones((2, 2)), jnp.ones(2))),
    ],
)
def test_a_mask_is_one_as_optax_has_it(mask, params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, expected = (
        tx.update(zeros, tx.init(params), params)[0]
        for tx in (optim.add_l2(0.1, mask), optax.masked(optax.add_decayed_weights(0.2), mask))
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert optim.l2_penalty(params, 1.0, mask) > 0


def test_strengths_and_rate_may_be_traced():
    """Runs that differ in numbers share one compiled step."""
    traced = []

    @jax.jit
    def update(rate, l1, l2):
        traced.append(rate)
        tx = optim.make_optimizer("sgd", rate, regularize=optim.l1_and_l2(l1, l2))
        return tx.update(gradients(0), tx.init(PARAMS), PARAMS)[0]

    for rate, l1, l2 in ((0.1, 0.0, 0.0), (0.2, 0.3, 0.4)):
        expected = jax.tree.map(
            lambda g, w, r=rate, a=l1, b=l2: -r * (g + a * jnp.sign(w) + 2 * b * w),
            gradients(0),
            PARAMS,
        )
        found = update(rate, l1, l2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    assert len(traced) == 1


def test_penalties_by_hand():
    assert optim.l1_penalty(PARAMS, 0.1) == pytest.approx(0.1 * (0.5 + 2 + 1 + 1 + 0.3))
    assert optim.l2_penalty(PARAMS, 0.1) == pytest.approx(0.1 * (0.25 + 4 + 1 + 1 + 0.09))
    assert optim.l1_penalty(PARAMS, 0.1, optim.kernels_only) == pytest.approx(0.35)
    with jax.enable_x64(True):
        assert optim.l1_penalty(PARAMS, 0.1, optim.kernels_only).dtype == jnp.float32
    # At 0 the subgradient is 0, as PyTorch's sign and abs have it.
    tx = optim.add_l1(0.1)
    added, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(added["conv"]["kernel"], [[0.1, -0.1], [0.0, 0.1]])
    gradient = jax.grad(optim.l1_penalty)(PARAMS, 0.1)
    np.testing.assert_allclose(gradient["conv"]["kernel"], [[0.1, -0.1], [0.0, 0.1]])


def test_kernels_are_known_by_their_name():
    chosen = optim.kernels_only({"conv": {"kernel": 1.0, "bias": 2.0}})
    assert chosen == {"conv": {"kernel": True, "bias": False}}
    for params in (jnp.ones(3), {"weight": jnp.ones(3)}, [jnp.ones(3)]):
        with pytest.raises(UserError, match="No parameter is named 'kernel'"):
            optim.kernels_only(params)


def test_weights_are_known_in_a_box():
    """With `nn.with_partitioning` a leaf is the value of a box under the parameter's name."""
    boxed = nn.Partitioned(jnp.ones((2, 2)), names=(None, None))
    params = {"fc": {"kernel": boxed, "bias": boxed}, "conv": {"kernel": jnp.ones((2, 2))}}
    assert jax.tree.leaves(optim.kernels_only(params)) == [True, False, True]
    added, _ = optim.add_l2(0.5, optim.kernels_only).update(params, optax.EmptyState(), params)
    assert [leaf[0, 0] for leaf in jax.tree.leaves(added)] == [2, 1, 2]


def test_an_update_that_is_none_stays_none():
    """As in optax, where it is that of a parameter that is not trained."""
    updates = {"conv": {"kernel": None}, "bn": gradients(0)["bn"]}
    for tx in (optim.add_l1(0.1), optim.add_l2(0.1), optim.proximal_l1(0.1, 0.5)):
        found, _ = tx.update(updates, tx.init(PARAMS), PARAMS)
        expected, _ = tx.update(gradients(0), tx.init(PARAMS), PARAMS)
        assert found == {"conv": {"kernel": None}, "bn": expected["bn"]}


def test_float16_parameters():
    params = {"kernel": jnp.full(90_000, 1, jnp.float16), "bias": jnp.full(9, 300, jnp.float16)}
    for mask, expected in ((None, 90_000 + 9 * 300.0**2), (optim.kernels_only, 90_000)):
        with jax.numpy_dtype_promotion("strict"):
            assert optim.l2_penalty(params, 1.0, mask) == expected
    assert optim.l1_penalty(params, 1.0) == 90_000 + 9 * 300
    # Neither of these strengths is above 0 in float16, and their product is.
    w = jnp.full(1, 1e-4, jnp.float16)
    tx = optim.proximal_l1(1e-8, 1e3)
    updates, _ = tx.update(jnp.zeros_like(w), tx.init(w), w)
    assert updates.dtype == jnp.float16
    assert -w < updates < 0


def test_transforms_need_the_parameters():
    with pytest.raises(ValueError, match="needs the parameters"):
        optim.add_l1(0.1).update(PARAMS, optax.EmptyState())


# --- schedules --------------------------------------------------------------------------------


def test_cosine_per_epoch_and_per_step():
    per_epoch = optim.cosine_annealing(0.1, 4, 10)
    expected = [0.1 * (1 + np.cos(np.pi * e / 4)) / 2 for e in range(5)]
    for epoch in range(5):
        for step in (10 * epoch, 10 * epoch + 9):
            assert per_epoch(step) == pytest.approx(expected[epoch], abs=1e-15)
    assert per_epoch(1000) == pytest.approx(0, abs=1e-15)
    per_step = optim.cosine_annealing(0.1, 4, 10, per="step")
    assert per_step(15) == pytest.approx(0.1 * (1 + np.cos(np.pi * 1.5 / 4)) / 2)
    traced = jax.jit(per_epoch)(jnp.arange(45))
    np.testing.assert_allclose(traced, [per_epoch(i) for i in range(45)], rtol=1e-5, atol=1e-12)


def test_schedule_names():
    assert optim.make_schedule("constant", 0.1, 4, 10)(39) == 0.1
    assert optim.make_schedule("cosine", 0.1, 4, 10)(9) == 0.1
    assert optim.make_schedule("cosine_per_step", 0.1, 4, 10)(9) < 0.1
    with pytest.raises(UserError, match="cosine_per_step"):
        optim.make_schedule("linear", 0.1, 4, 10)
    with pytest.raises(UserError, match="epoch, step"):
        optim.cosine_annealing(0.1, 4, 10, per="batch")
    with pytest.raises(UserError, match="Did you mean 'adam'"):
        optim.make_optimizer("adamax", 0.1)


@pytest.mark.parametrize(
    ("name", "option", "value", "users"),
    [
        ("adam", "momentum", 0.9, "'sgd'"),
        ("adamw", "nesterov", True, "'sgd'"),
        ("adam", "bias_scale", 4.0, "'sgd'"),
        ("adam", "mask", optim.kernels_only, "'adamw'"),
        (
            "sgd",
            "weight_decay",
            0.5,
            "'adamw', but .*Leave it out. In PyTorch's sgd and adam that is regularize=l2",
        ),
    ],
)
def test_an_option_that_the_optimizer_does_not_have_is_refused(name, option, value, users):
    with pytest.raises(UserError, match=f"{option} is .*, which is only for {users}") as error:
        optim.make_optimizer(name, 0.1, **{option: value})
    assert f"but the optimizer is {name!r}" in str(error.value)
    unset = inspect.signature(optim.make_optimizer).parameters[option].default
    optim.make_optimizer(name, 0.1, **{option: unset})
    if option == "weight_decay":
        with pytest.raises(UserError, match="weight_decay is"):
            jax.jit(lambda decay: optim.make_optimizer(name, 0.1, weight_decay=decay).init(()))(0.0)


@pytest.mark.parametrize("per", ["epoch", "step"])
def test_cosine_of_no_epochs_is_over(per):
    schedule = optim.cosine_annealing(0.1, 0, 10, per)
    after_warm_up = optim.make_schedule("cosine", 0.1, 5, 10, warmup_epochs=5.0)
    for step in (0, 7):
        assert schedule(step) == pytest.approx(0, abs=1e-15)
        assert jax.jit(schedule)(step) == pytest.approx(0, abs=1e-15)
        assert after_warm_up(50 + step) == pytest.approx(0, abs=1e-15)
    assert after_warm_up(49) == 0.1


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_numbers_may_be_traced_where_the_step_is_not(name):
    def rate(base, epochs, warm):
        return optim.make_schedule(name, base, epochs, 10, warm, milestones=(2.5, 3))(27)

    numbers = 0.1, 4.0, 2.0
    assert jax.jit(rate)(*numbers) == pytest.approx(rate(*numbers), rel=1e-5)
    alone = jax.jit(lambda epochs: optim.cosine_annealing(0.1, epochs, 10)(27))
    assert alone(4.0) == pytest.approx(optim.cosine_annealing(0.1, 4.0, 10)(27), rel=1e-5)


def test_proximal_l1_by_hand():
    tx = optax.chain(optax.sgd(0.5), optim.proximal_l1(0.4, learning_rate=0.5))  # t = 0.2
    w = jnp.array([1.0, -1.0, 0.1, -0.1, 0.0, 0.5])
    g = jnp.array([0.2, 0.2, 0.0, 0.2, 1.0, 0.5])  # w − 0.5 g: 0.9 −1.1 0.1 −0.2 −0.5 0.25
    updates, _ = tx.update(g, tx.init(w), w)
    new = optax.apply_updates(w, updates)
    np.testing.assert_allclose(new, [0.7, -0.9, 0, 0, -0.3, 0.05], atol=1e-6)
    np.testing.assert_array_equal(new[2:4], 0)  # exactly


@pytest.mark.slow
def test_proximal_l1_minimizes_the_penalized_loss():
    x = jax.random.normal(jax.random.key(0), (30, 6))
    y = x @ jnp.array([1.0, 0.0, -0.5, 0.0, 0.0, 0.05])
    gradient = jax.grad(lambda w: jnp.mean(jnp.square(x @ w - y)) / 2)
    strength = 0.1
    tx = optax.chain(optax.sgd(0.2), optim.proximal_l1(strength, learning_rate=0.2))
    w = jnp.ones(6)
    state = tx.init(w)
    step = jax.jit(tx.update)
    for _ in range(300):
        updates, state = step(gradient(w), state, w)
        w = optax.apply_updates(w, updates)
    # The conditions of a minimum: g = −λ sign(w) where w ≠ 0, |g| ≤ λ where w = 0.
    g, zero = gradient(w), w == 0
    assert 0 < int(zero.sum()) < 6
    np.testing.assert_allclose(g[~zero], -strength * jnp.sign(w[~zero]), atol=1e-5)
    assert bool((jnp.abs(g[zero]) <= strength).all())


TRANSFORMS = {
    "add_l1": lambda strength, mask=None: optim.add_l1(strength, mask),
    "add_l2": lambda strength, mask=None: optim.add_l2(strength, mask),
    "proximal_l1": lambda strength, mask=None: optim.proximal_l1(strength, 0.5, mask),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_regularizers_compose_with_optax(name):
    """`masked`, `multi_transform` and `inject_hyperparams` do what the mask and the number do."""
    make, grads = TRANSFORMS[name], gradients(0)

    def updates(tx, state=None):
        return tx.update(grads, tx.init(PARAMS) if state is None else state, PARAMS)[0]

    expected = updates(make(0.3, optim.kernels_only))
    np.testing.assert_array_equal(expected["bn"]["scale"], grads["bn"]["scale"])
    assert not np.array_equal(expected["conv"]["kernel"], grads["conv"]["kernel"])
    labels = jax.tree.map(lambda on: "penalized" if on else "free", optim.kernels_only(PARAMS))
    parts = {"penalized": make(0.3), "free": optax.identity()}
    for tx in (
        optax.masked(make(0.3), optim.kernels_only),
        optax.multi_transform(parts, labels),
        optax.inject_hyperparams(make, static_args="mask")(0.3, mask=optim.kernels_only),
        optax.inject_hyperparams(make, static_args="mask")(lambda _: 0.3, optim.kernels_only),
    ):
        jax.tree.map(np.testing.assert_array_equal, updates(tx), expected)

    injected = optax.inject_hyperparams(make)(0.0)
    state = injected.init(PARAMS)
    state.hyperparams["strength"] = jnp.asarray(0.3)
    jax.tree.map(np.testing.assert_array_equal, updates(injected, state), updates(make(0.3)))


def test_an_optimizer_whose_learning_rate_is_set_from_outside():
    static = ("momentum", "nesterov", "bias_scale", "clip_norm", "weight_decay")
    tx = optax.inject_hyperparams(optim.make_optimizer, static_args=static)("sgd", 0.1)
    w = jnp.ones(3)
    state = tx.init(w)
    for rate in (0.1, 0.2):
        state.hyperparams["learning_rate"] = jnp.asarray(rate)
        updates, state = jax.jit(tx.update)(w, state, w)
        np.testing.assert_allclose(updates, -rate, rtol=1e-6)


def test_complex_parameters_are_refused():
    """The square of one is no penalty, and neither is it times its sign."""
    params = {"a": jnp.array([3 + 4j]), "b": jnp.array([2.0])}
    for penalty in (optim.l1_penalty, optim.l2_penalty):
        with pytest.raises(UserError, match="complex64"):
            penalty(params, 1.0)
        assert penalty(params, 1.0, {"a": False, "b": True}) in (2.0, 4.0)
    for add in (optim.add_l1, optim.add_l2):
        with pytest.raises(UserError, match="complex64"):
            add(1.0).update(params, optax.EmptyState(), params)


def test_proximal_l1_follows_a_schedule():
    schedule = lambda count: 0.5 / (jnp.asarray(count, jnp.float32) + 1)  # noqa: E731
    tx = optax.inject_hyperparams(optim.proximal_l1)(0.4, learning_rate=schedule)
    w = jnp.array([1.0, -1.0, 0.05])
    state = tx.init(w)
    for expected in ([0.8, -0.8, 0], [0.7, -0.7, 0]):  # t = 0.2, then 0.1
        updates, state = tx.update(jnp.zeros(3), state, w)
        w = optax.apply_updates(w, updates)
        np.testing.assert_allclose(w, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["optimizers", "regularizers", "schedules"])
def test_examples_of_the_docstrings(name):
    result = doctest.testmod(getattr(optim, name))
    assert result.failed == 0
    assert result.attempted or name != "regularizers"


def test_optim_loads_nothing_else():
    """For use in another project: neither the rest of this one nor what only it needs."""
    code = "import sys, jaxcifar.optim; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    heavy = {"flax", "orbax", "matplotlib", "tensorflow_datasets", "sklearn", "ml_collections"}
    assert not heavy & set(loaded)
    ours = {name for name in loaded if name.startswith("jaxcifar.")}
    others = {name for name in ours if not name.startswith("jaxcifar.optim")}
    assert others == {"jaxcifar.errors", "jaxcifar.version"}


def test_triangular_by_hand():
    # Ten steps an epoch, four epochs; the peak at step 10.
    rate = optim.triangular(2.0, 4, 10, peak_epoch=1.0, start_factor=0.2, end_factor=0.1)
    by_hand = {0: 0.4, 5: 1.2, 10: 2.0, 25: 1.1, 40: 0.2, 50: 0.2}
    for step, wanted in by_hand.items():
        assert rate(step) == pytest.approx(wanted)
        assert jax.jit(rate)(jnp.int32(step)) == pytest.approx(wanted)
    # 2.3 epochs of 48 steps are 110.4 steps: the peak is at the whole step before.
    assert optim.make_schedule("triangular", 1.0, 10, 48, 2.3)(110) == 1.0


def test_a_learning_rate_for_the_biases_of_normalisation():
    params = {"norm1": {"bias": jnp.ones(2)}, "fc": {"bias": jnp.ones(2), "kernel": jnp.ones(2)}}
    gradients = jax.tree.map(lambda x: 0.5 * x, params)
    regularize = optim.l1_and_l2(0.0, 0.05)  # a gradient of 0.1
    tx = optim.make_optimizer("sgd", 1.0, bias_scale=4.0, regularize=regularize)
    updates, _ = tx.update(gradients, tx.init(params), params)
    np.testing.assert_allclose(updates["norm1"]["bias"], -(4 * 0.5 + 0.1), rtol=1e-6)
    # Of ResNet and VGG, DenseNet, ResNet; Flax's own.
    for name in ("bn1", "norm0", "downsample_bn", "BatchNorm_0"):
        updates, _ = tx.update({name: gradients["norm1"]}, tx.init(params), {name: params["norm1"]})
        np.testing.assert_allclose(updates[name]["bias"], -(4 * 0.5 + 0.1), rtol=1e-6)
    updates, _ = tx.update(gradients, tx.init(params), params)
    for leaf in updates["fc"].values():
        np.testing.assert_allclose(leaf, -(0.5 + 0.1), rtol=1e-6)
    boxed = {"bn": {"bias": nn.Partitioned(jnp.ones(2), names=(None,))}}
    updates, _ = tx.update(boxed, tx.init(boxed), boxed)
    np.testing.assert_allclose(updates["bn"]["bias"].value, -(4 + 0.1), rtol=1e-6)
    frozen = {"bn": {"bias": None}, "fc": gradients["fc"]}  # optax passes None on
    state = tx.init({"bn": {"bias": jnp.ones(2)}, "fc": params["fc"]})
    updates, _ = tx.update(frozen, state, {"bn": {"bias": jnp.ones(2)}, "fc": params["fc"]})
    assert updates["bn"]["bias"] is None
    with pytest.raises(UserError, match=r"bias_scale is 4\.0, but no parameter is the bias of a"):
        tx.init({"fc": params["fc"], "batch": {"bias": jnp.ones(2)}})


class Layer(NamedTuple):
    """As equinox, NamedTuples and dataclasses hold weights: by attributes."""

    kernel: jax.Array
    bias: jax.Array


def test_kernels_are_found_by_attributes_too():
    layer = Layer(jnp.ones((2, 2)), jnp.ones(2))
    assert optim.kernels_only(layer) == Layer(kernel=True, bias=False)
    mixed = {"a": layer, "b": {"kernel": jnp.ones(2), "value": jnp.ones(2)}}
    assert optim.kernels_only(mixed) == {
        "a": Layer(kernel=True, bias=False),
        "b": {"kernel": True, "value": False},
    }


@pytest.mark.parametrize("penalty", [optim.l1_penalty, optim.l2_penalty])
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.int8])
def test_penalties_of_integers_are_refused(penalty, dtype):
    """Whose strength, of their type, would be 0."""
    with pytest.raises(UserError, match="L1 and L2 need real ones"):
        penalty({"w": jnp.array([1, -2, 3], dtype)}, 0.1)


def test_one_penalty_need_not_be_a_tuple():
    w = jnp.array([2.0])
    for regularize in (optim.l2(0.5), (optim.l2(0.5),)):
        tx = optim.make_optimizer("sgd", 1.0, regularize=regularize)
        updates, _ = tx.update(jnp.array([0.0]), tx.init(w), w)
        assert float(updates[0]) == pytest.approx(-2.0)


def test_injected_hyperparameters_with_a_mask():
    """`static_args` as the docstring of `make_optimizer` has them."""
    static = ("momentum", "nesterov", "bias_scale", "clip_norm", "mask")
    make = optax.inject_hyperparams(optim.make_optimizer, static_args=static)
    mask = lambda params: jax.tree.map(lambda w: w.ndim > 1, params)  # noqa: E731
    tx = make("adamw", 1e-3, weight_decay=0.5, mask=mask)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -5e-4, rtol=1e-5)
    np.testing.assert_array_equal(updates["bias"], 0.0)
