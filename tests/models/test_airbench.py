"""The first layer, and what a whole run with every part of the recipe leaves."""

import jax
import numpy as np
import pytest

from experiments.report import __main__ as report
from jaxcifar import augment, checks, data, predict, restore, task
from jaxcifar.errors import UserError
from jaxcifar.models import airbench, create_model
from jaxcifar.models.airbench import Airbench
from jaxcifar.optim import make_optimizer
from jaxcifar.state import create_state
from jaxcifar.train import Interrupted
from tests.tiny import SignalAt, first_images, mesh, run, state_of, tiny, without_times


def patches(images):
    """All 2×2 patches [N, 12] in the order (row, column, channel)."""
    n, height, width, _ = images.shape
    found = [
        images[i, y : y + 2, x : x + 2].ravel()
        for i in range(n)
        for y in range(height - 1)
        for x in range(width - 1)
    ]
    return np.array(found)


def test_whitened_patches_are_white():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 9, 8, 1)) @ rng.normal(size=(1, 3)) + rng.normal(size=(6, 9, 8, 3))
    kernel = np.asarray(airbench.whitening_kernel(images.astype(np.float32)), np.float64)
    assert kernel.shape == (2, 2, 3, 24)
    white = patches(images) @ kernel.reshape(12, 24)
    np.testing.assert_array_equal(white[:, 12:], -white[:, :12])
    # Each variance v becomes v / (v + ε), which is 1 but for a thousandth here.
    np.testing.assert_allclose(np.cov(white[:, :12].T), np.eye(12), atol=0.01)
    # The filter of the largest variance is the shortest, and comes first.
    lengths = np.linalg.norm(kernel.reshape(12, 24)[:, :12], axis=0)
    assert (np.diff(lengths) > 0).all()


def test_signs_are_not_those_of_a_library(monkeypatch):
    """Of images with edges and colours; another library returns any eigenvector's negative."""
    images = augment.normalize(first_images(64).images, mean=(0.5,) * 3, std=(0.25,) * 3)
    found, eigh = airbench.whitening_kernel(images), jax.numpy.linalg.eigh
    signs = np.random.default_rng(0).choice([-1.0, 1.0], 12).astype(np.float32)
    monkeypatch.setattr(jax.numpy.linalg, "eigh", lambda x: (eigh(x)[0], eigh(x)[1] * signs[None]))
    np.testing.assert_array_equal(airbench.whitening_kernel(images), found)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_its_state_is_float32_with_64_bits_too(platform):
    model, tx = create_model("airbench94", platform=platform), make_optimizer("sgd", 0.1)
    with jax.enable_x64(True):
        state = jax.eval_shape(lambda: create_state(model, tx, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype("float32")}


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_whitening_does_not_enlarge_the_rounding_of_bfloat16(platform):
    """The smallest variance is a thousandth of the largest: neighbouring pixels are alike."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 1, 1, 3)) + 0.03 * rng.normal(size=(8, 16, 16, 3))
    images = images.astype(np.float32)
    layers = [
        airbench.Whitening(jax.random.normal, dtype, platform)
        for dtype in (jax.numpy.float32, jax.numpy.bfloat16)
    ]
    stats = {"kernel": airbench.whitening_kernel(images)}
    bias = {"bias": np.linspace(-1, 1, 24, dtype=np.float32)}
    exact, rounded = (
        np.asarray(layer.apply({"params": bias, "batch_stats": stats}, images), np.float32)
        for layer in layers
    )
    noise = np.sqrt(np.mean((rounded - exact) ** 2, axis=(0, 1, 2)))
    assert (noise < 0.005 * exact.std(axis=(0, 1, 2)) + 0.002).all()  # 0.03 and more if computed so


@pytest.mark.slow
def test_only_the_first_layer_looks_at_the_images():
    model = create_model("airbench94", width=0.1)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 3)).astype(np.float32)
    variables = jax.jit(lambda key: model.init(key, images, train=False))(jax.random.key(0))
    assert isinstance(model, Airbench)
    fitted = model.fitted(variables, images)
    np.testing.assert_array_equal(
        fitted["batch_stats"]["whitening"]["kernel"], airbench.whitening_kernel(images)
    )
    assert fitted["params"] is variables["params"]
    assert fitted["batch_stats"].keys() == variables["batch_stats"].keys()


def recipe(**fields):
    return tiny(
        model__name="airbench94",
        model__activation="gelu",
        model__dropout_rate=0.0,
        augment__padding_mode="reflect",
        augment__flip="alternating",
        data__test_augment="mirror_translate",
        optim__name="sgd",
        optim__momentum=0.85,
        optim__nesterov=True,
        optim__learning_rate=0.1,
        optim__l2=6.65e-4,
        optim__bias_scale=64.0,
        optim__schedule="triangular",
        optim__warmup_epochs=0.5,
        optim__start_factor=0.2,
        train__lookahead_steps=2,
        **fields,
    )


@pytest.mark.slow
def test_a_run_resumes_and_is_evaluated_as_it_was(tmp_path, monkeypatch, capsys):
    # Fewer views compile sooner.
    two = (0.5, 0, 0, False), (0.5, 1, 1, True)
    monkeypatch.setitem(augment.VIEWS, "mirror_translate", two)
    whole = run(recipe(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(recipe(), tmp_path / "stopped", SignalAt(4))
    resumed = run(recipe(), tmp_path / "stopped")
    assert without_times([whole["last"]]) == without_times([resumed["last"]])
    variables, other = state_of(tmp_path / "whole"), state_of(tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, variables, other)
    # The kernel stays that of the images that it was measured on.
    images = first_images(100)
    inputs = task.build(recipe(), images, mesh(1)).inference.normalize(images.images)
    np.testing.assert_allclose(
        variables["batch_stats"]["whitening"]["kernel"],
        airbench.whitening_kernel(inputs),
        rtol=1e-3,
        atol=1e-4,
    )
    evaluated = restore.evaluate_workdir(tmp_path / "whole", "last", mesh=mesh(1))
    assert evaluated["accuracy"] == whole["last"]["val_accuracy"]
    # So it is by whatever else looks at images, or it says why not.
    config, _, variables = restore.load_variables(tmp_path / "whole", "last", mesh=mesh(1))
    about, images = data.without_images("synthetic"), first_images(5, "test").images
    inference = task.build_inference(config, about, mesh(1))
    expected = jax.nn.softmax(inference.logits(variables, images))
    found = predict.predict(tmp_path / "whole", images, checkpoint="last")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert report.main(["figures", str(tmp_path), "--only=fig2"]) == 1
    assert "no convolution outside" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim__name": "adam", "optim__bias_scale": 64.0}, "bias_scale is 64.0.*'sgd'.*to 1.0"),
        ({"optim__start_factor": 0.2}, "start_factor is 0.2.*'triangular'"),
        (
            {"augment__flip": "alternating", "data__augment": "none"},
            "flip is 'alt.*'weak'",
        ),
        ({"augment__cutout": 8, "data__augment": "strong"}, "cutout is 8.*'weak'"),
        ({"augment__flip": "both"}, "augment.flip"),
        ({"data__test_augment": "crops"}, "test_augment"),
        ({"train__lookahead_steps": 5, "train__ema_decay": 0.9}, "both average"),
    ],
)
def test_parts_that_would_do_nothing_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        checks.check_config(tiny(**fields))
