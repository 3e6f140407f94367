"""Pictures and landscapes: that what they show is what was computed."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import figures, landscape, network_figures, runs, slices, smoothness, sweep
from jaxcifar import augment, data, losses, metrics, sharding, train
from jaxcifar.errors import UserError, exit_code
from jaxcifar.models.layers import BatchNorm
from jaxcifar.programs import Programs, create_model, hyperparams_of, static_part

OPTIONS = [
    "--config.data.name=synthetic", "--config.model.width=0.05", "--config.train.batch_size=32",
    "--config.train.limit_train_images=100", "--config.train.epochs=2",
    "--config.train.eval_batch_size=64",
]  # fmt: skip


def one_device(monkeypatch):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), (sharding.BATCH_AXIS,))
    monkeypatch.setattr(sharding, "make_mesh", lambda: mesh)


@pytest.fixture(autouse=True)
def _one_device(monkeypatch):
    one_device(monkeypatch)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A finished sweep of all eight rows of Table 4."""
    patch = pytest.MonkeyPatch()
    one_device(patch)
    out = tmp_path_factory.mktemp("results") / "table4"
    assert exit_code(lambda: sweep.main(["--rows=vgg1-8", f"--out={out}", *OPTIONS])) == 0
    patch.undo()
    return out


@pytest.fixture
def copied(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "table4")


# --- figures ----------------------------------------------------------------------------------


def test_all_figures_are_drawn(copied):
    assert figures.main([str(copied)]) == 0
    folder = copied / "figures"
    names = {*figures.FIGURES, *(f"history_vgg{i}" for i in range(1, 9))} - {"history"}
    assert {path.stem for path in folder.iterdir()} == names
    for name in names:
        with Image.open(folder / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
            assert np.mean(pixels[pixels.shape[0] // 4 :] < 250) > 0.01  # ink below the title
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_figure_5_fills_from_the_best_to_the_worst_rate(copied, monkeypatch):
    drawn = {}
    from matplotlib.axes import Axes

    real = Axes.fill_between

    def fill(self, x, low, high, **style):
        drawn.setdefault(style["label"], (x, low, high))
        return real(self, x, low, high, **style)

    monkeypatch.setattr(Axes, "fill_between", fill)
    figures.main([str(copied), "--only=fig5"])
    for label, rows in (("without BN", range(1, 5)), ("with BN", range(5, 9))):
        curves = []
        for i in rows:
            lines = metrics.read_lines(copied / f"vgg{i}" / "seed0" / "steps.jsonl")
            curves.append([value for line in lines for value in line["ce"]])
        steps, low, high = drawn[label]  # six steps: a window of one
        np.testing.assert_array_equal(steps, np.arange(1, 7))
        np.testing.assert_allclose(low, np.min(curves, axis=0))
        np.testing.assert_allclose(high, np.max(curves, axis=0))


def test_figure_2_without_a_checkpoint(copied, capsys):
    for path in copied.rglob("checkpoints"):
        shutil.rmtree(path)
    assert figures.main([str(copied), "--only=fig2,fig3"]) == 1
    assert "no fig2: no finished run" in capsys.readouterr().out
    assert (copied / "figures" / "fig3.png").exists()
    assert not (copied / "figures" / "fig2.png").exists()


def test_figures_without_the_images(copied, monkeypatch, capsys):
    def missing(*_, **__):
        raise UserError("CIFAR-10 was not found")

    monkeypatch.setattr(data, "load", missing)
    assert figures.main([str(copied), "--only=augment,fig2,fig3"]) == 1
    printed = capsys.readouterr().out
    assert "no augment: CIFAR-10 was not found" in printed
    assert "no fig2: CIFAR-10 was not found" in printed
    assert (copied / "figures" / "fig3.png").exists()


def test_the_image_of_figure_2(copied, capsys):
    run = f"--run={copied / 'vgg2' / 'seed0'}"
    assert figures.main([str(copied), "--only=fig2", run, "--image=7"]) == 0
    assert figures.main([str(copied), "--only=fig2", run, "--image=256"]) == 1
    assert "the test images are 0 to 255" in capsys.readouterr().out


def test_a_run_that_is_not_there(copied):
    with pytest.raises(UserError, match="is no run below"):
        figures.main([str(copied), "--run=elsewhere"])
    with pytest.raises(UserError, match="'fig6'"):
        figures.main([str(copied), "--only=fig6"])


def test_figure_2_shows_what_the_first_layer_makes(swept, tmp_path, monkeypatch):
    run = swept / "vgg6" / "seed0"
    shown = []
    monkeypatch.setattr(network_figures, "_mosaic", lambda x: shown.append(x) or x[0])
    network_figures.fig2(run, [tmp_path / "fig2.png"], "", image=3)
    config, _, variables = train.load_variables(run)
    test = data.load("synthetic", "test")
    x = augment.normalize(jnp.asarray(test.images[3:4]), test.mean, test.std)
    params, statistics = variables["params"], variables["batch_stats"]["bn1"]
    y = jax.lax.conv_general_dilated(
        x, params["conv1"]["kernel"], (1, 1), [(1, 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ) + params["conv1"]["bias"]  # fmt: skip
    z = (y - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5)
    z = z * params["bn1"]["scale"] + params["bn1"]["bias"]

    def scaled(maps):
        maps = np.moveaxis(np.asarray(maps[0]), -1, 0)
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        return (maps - low) / np.maximum(high - low, 1e-12)

    assert len(shown) == 5  # kernels in colour and averaged, and three stages
    np.testing.assert_allclose(
        shown[1], np.moveaxis(np.asarray(params["conv1"]["kernel"]).mean(2), -1, 0), rtol=1e-6
    )
    for found, expected in zip(shown[2:], (y, z, jnp.maximum(z, 0)), strict=True):
        np.testing.assert_allclose(found, scaled(expected), atol=2e-3)
    assert config.model.name == "vgg_a_bn"


def test_predictions_and_confusion(swept):
    run = swept / "vgg6" / "seed0"
    test, found = network_figures.predictions(run)
    accuracy = train.evaluate_workdir(run)["accuracy"]
    assert np.mean(found.argmax(1) == test.labels) == pytest.approx(accuracy)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    counts = network_figures.confusion_matrix(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


# --- along the gradient -----------------------------------------------------------------------


def smooth(out, *more, rows="vgg6"):
    arguments = ["smoothness", f"--rows={rows}", f"--out={out}", "--every=2", *OPTIONS, *more]
    return exit_code(lambda: landscape.main(arguments))


def measurements(out, row="vgg6"):
    return metrics.read_lines(out / "smoothness" / f"{row}_seed0" / "measurements.jsonl")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    one_device(patch)
    out = tmp_path_factory.mktemp("landscape")
    assert smooth(out, rows="vgg2,vgg6") == 0
    patch.undo()
    return out


def test_measured_losses_are_those_that_training_saw(measured, swept):
    for row in ("vgg2", "vgg6"):
        found = measurements(measured, row)
        assert [record["step"] for record in found] == [0, 2, 4]
        seen = runs.sweeps(swept)[swept][row][0].steps("ce")
        np.testing.assert_allclose([r["loss"] for r in found], seen[[0, 2, 4]], rtol=2e-5)
    assert (measured / "smoothness" / "smoothness.png").exists()


def test_measurement_by_hand(measured):
    """The first measurement of VGG-A, by plain JAX on the same images."""
    config = runs.row_config("vgg2")
    config.model.width, config.data.name = 0.05, "synthetic"
    config.train.update(batch_size=32, limit_train_images=100)
    images = data.load("synthetic", "train")
    mesh = sharding.make_mesh()
    made = Programs(static_part(config), 100, (images.mean, images.std), mesh)
    state = made.init(np.uint32(0), sharding.replicate(hyperparams_of(config), mesh))
    rows = np.asarray(made.order(state.key, np.int32(1)))[0]
    key = jax.random.split(jax.random.fold_in(state.key, 0))[0]
    inputs = made.prepare(key, images.images[rows])

    def loss(params):
        logits = create_model(config).apply({"params": params}, inputs, train=True)
        return losses.cross_entropy(logits, images.labels[rows]).mean()

    gradient = jax.jit(jax.grad(loss))(state.params)
    flat = lambda tree: np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])  # noqa: E731
    record = measurements(measured, "vgg2")[0]
    norm = np.linalg.norm(flat(gradient))
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    betas = []
    for i, size in enumerate(smoothness.STEP_SIZES):
        there = jax.tree.map(lambda p, g, size=size: p - size * g, state.params, gradient)
        assert record["losses"][i] == pytest.approx(float(jax.jit(loss)(there)), rel=1e-4)
        change = np.linalg.norm(flat(jax.jit(jax.grad(loss))(there)) - flat(gradient))
        assert record["gradient_changes"][i] == pytest.approx(change, rel=2e-2)
        betas.append(change / (size * norm))
    beta = smoothness.effective_smoothness(record, smoothness.STEP_SIZES)
    assert beta == pytest.approx(max(betas), rel=2e-2)


def test_stopped_measurements_go_on(measured, tmp_path, monkeypatch, capsys):
    real = smoothness.Probe.__call__

    def stop_at_the_first(self, state, *batch, **more):
        if int(state.step) == 0:
            signal.raise_signal(signal.SIGTERM)
        return real(self, state, *batch, **more)

    monkeypatch.setattr(smoothness.Probe, "__call__", stop_at_the_first)
    assert smooth(tmp_path) == 128 + signal.SIGTERM
    assert "saved at step 1" in capsys.readouterr().err
    path = tmp_path / "smoothness" / "vgg6_seed0" / "measurements.jsonl"
    with path.open("a") as file:  # as of a kill after a measurement that no checkpoint followed
        file.write(json.dumps(measurements(measured)[1] | {"loss": 9.0}) + "\n")
    monkeypatch.setattr(smoothness.Probe, "__call__", real)
    assert smooth(tmp_path) == 0
    assert measurements(tmp_path) == measurements(measured)
    calls = []
    monkeypatch.setattr(smoothness.Probe, "__call__", lambda *a, **k: calls.append(1))
    assert smooth(tmp_path) == 0
    assert not calls  # all is there


def test_other_settings_are_refused(measured, capsys):
    assert smooth(measured, "--step-sizes=0.1,0.2") == 2
    assert "step_sizes: [0.05" in capsys.readouterr().err
    assert smooth(measured, "--config.optim.learning_rate=0.1") == 2
    assert "optim.learning_rate: 0.001 -> 0.1" in capsys.readouterr().err


def test_fewer_steps_than_the_row_are_marked(tmp_path, measured):
    assert smooth(tmp_path, "--steps=2") == 0
    (folder,) = (tmp_path / "smoothness").glob("*_seed0")
    note = smoothness.note_of(folder / "settings.json")
    assert "SHORTENED: 2 of 6 steps" in note
    assert "SHORTENED: 2 of 50 epochs" in note
    note = smoothness.note_of(measured / "smoothness" / "vgg6_seed0" / "settings.json")
    assert "steps" not in note
    (folder / "measurements.jsonl").unlink()  # killed before the first one
    with pytest.raises(UserError, match="holds no measurements"):
        smoothness.draw(tmp_path / "smoothness")


@pytest.mark.parametrize("option", ["--step-sizes=", "--step-sizes=0", "--every=-1", "--rows=x"])
def test_impossible_measurements(tmp_path, option, capsys):
    assert exit_code(lambda: landscape.main(["smoothness", f"--out={tmp_path}", option])) == 2
    assert option.split("=")[0] in capsys.readouterr().err


# --- around a trained network -----------------------------------------------------------------


def cut(run, out, *more):
    arguments = ["slice", str(run), f"--out={out}", "--points=3", "--images=100", *more]
    return exit_code(lambda: landscape.main(arguments))


def load(path):
    with np.load(path) as content:
        return dict(content)


def test_directions_have_the_norms_of_their_filters():
    params = {"conv": {"kernel": jax.random.normal(jax.random.key(1), (3, 3, 2, 5)),
                       "bias": jnp.ones(5)}, "fc": {"kernel": jnp.ones((4, 3))}}  # fmt: skip
    direction = slices.filter_normalized_direction(jax.random.key(0), params)
    for layer in ("conv", "fc"):
        for filters in range(params[layer]["kernel"].shape[-1]):
            one, other = (np.asarray(t[layer]["kernel"])[..., filters] for t in (params, direction))
            assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=1e-5)
    assert not np.any(direction["conv"]["bias"])
    assert np.abs(np.asarray(direction["fc"]["kernel"]) - 1).max() > 0.1


@pytest.mark.parametrize("kind", ["kept", "recomputed"])
def test_slice_by_hand(swept, tmp_path, kind):
    run = swept / "vgg6" / "seed0"
    assert cut(run, tmp_path, f"--batch-norm={kind}", "--extent=0.5") == 0
    found = load(tmp_path / "slices" / f"vgg6_seed0_2d_{kind}.npz")
    np.testing.assert_allclose(found["coordinates"], [-0.5, 0, 0.5])
    assert found["loss"].shape == (3, 3)
    config, _, variables = train.load_variables(run)
    subset = data.load("synthetic", "train").take(slice(100), "100")
    x = augment.normalize(jnp.asarray(subset.images), subset.mean, subset.std)
    model = create_model(config)
    one, two = (
        slices.filter_normalized_direction(key, variables["params"])
        for key in jax.random.split(jax.random.key(0), 2)
    )
    for i, j in ((1, 1), (2, 0)):
        a, b = found["coordinates"][[i, j]]
        moved = (one, a), (two, b)
        params = variables["params"]
        for direction, by in moved:
            params = jax.tree.map(lambda p, d, by=by: p + by * d, params, direction)
        statistics = variables["batch_stats"]
        if kind == "recomputed":  # batches of 64; the last 36 images are left out
            zeros = jax.tree.map(jnp.zeros_like, statistics)
            _, updated = model.apply({"params": params, "batch_stats": zeros}, x[:64], train=True,
                                     mutable=["batch_stats"])  # fmt: skip
            statistics = jax.tree.map(lambda s: 10 * s, updated["batch_stats"])
        logits = model.apply({"params": params, "batch_stats": statistics}, x, train=False)
        expected = float(losses.cross_entropy(logits, subset.labels).mean())
        assert found["loss"][i, j] == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "slices" / f"vgg6_seed0_2d_{kind}.png").exists()
    assert BatchNorm.momentum == 0.9  # the factor of ten above


def test_stopped_slice_goes_on(swept, tmp_path, monkeypatch):
    run = swept / "vgg2" / "seed0"
    assert cut(run, tmp_path / "whole", "--dimensions=1") == 0
    real, calls = Programs.evaluate, []

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return real(self, *arguments)

    monkeypatch.setattr(Programs, "evaluate", counted)
    assert cut(run, tmp_path / "stopped", "--dimensions=1") == 128 + signal.SIGTERM
    assert cut(run, tmp_path / "stopped", "--dimensions=1") == 0
    assert len(calls) == 3  # each point once
    name = "slices/vgg2_seed0_1d_kept.npz"
    whole, stopped = load(tmp_path / "whole" / name), load(tmp_path / "stopped" / name)
    np.testing.assert_array_equal(whole["loss"], stopped["loss"])
    assert json.loads(str(whole["settings"]))["step"] in (3, 6)


def test_slices_refuse(swept, tmp_path, capsys):
    run = swept / "vgg2" / "seed0"
    for arguments, message in (
        (("--points=4",), "odd"),
        (("--extent=0",), "positive"),
        (("--images=5000",), "there are 1,024"),
    ):
        assert cut(run, tmp_path, *arguments) == 2
        assert message in capsys.readouterr().err
    assert cut(tmp_path / "nothing", tmp_path) == 2
    assert "holds no run" in capsys.readouterr().err
    assert cut(run, tmp_path, "--dimensions=1") == 0
    assert cut(run, tmp_path, "--dimensions=1", "--extent=2") == 2
    assert "other settings" in capsys.readouterr().err
