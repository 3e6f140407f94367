"""The loss along the gradient: that it is what training saw, and resumes where it was stopped."""

import contextlib
import itertools
import json
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from experiments.landscape import gradient
from experiments.landscape.__main__ import main
from experiments.runs import read
from jaxcifar import data, losses, programs, sharding, task, train
from jaxcifar.errors import UserError
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.options import load
from jaxcifar.run import plots
from jaxcifar.signals import exit_code
from tests import tiny
from tests.sweeps import OPTIONS, on_one_device

pytestmark = pytest.mark.usefixtures("one_device")


def smooth(out, *more, rows="vgg6"):
    arguments = ["smoothness", f"--rows={rows}", f"--out={out}", "--every=2", *OPTIONS, *more]
    return exit_code(lambda: main(arguments))


def measurements(out, row="vgg6"):
    return read_lines(out / "smoothness" / f"{row}_seed0" / "measurements.jsonl")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("landscape")
    with on_one_device():
        assert smooth(out, rows="vgg2,vgg6") == 0
    return out


@pytest.mark.slow
def test_measured_losses_are_those_that_training_saw(measured, swept):
    for row in ("vgg2", "vgg6"):
        found = measurements(measured, row)
        assert [record["step"] for record in found] == [0, 2, 4]
        seen = read.sweeps(swept)[0].of(row)[0].steps("ce")
        np.testing.assert_allclose([r["loss"] for r in found], seen[[0, 2, 4]], rtol=2e-5)
    assert (measured / "smoothness" / "smoothness.png").exists()


@pytest.mark.slow
def test_a_run_in_bfloat16_is_measured_in_float32(measured, tmp_path):
    """Both start from the same weights."""
    assert smooth(tmp_path, "--config.model.dtype=bfloat16", "--steps=1") == 0
    (found,), first = measurements(tmp_path), measurements(measured)[0]
    for name in ("loss", "gradient_norm", "losses", "gradient_changes"):
        np.testing.assert_allclose(found[name], first[name], rtol=1e-5)


@pytest.mark.slow
def test_measurement_by_hand(measured):
    """The first measurement of VGG-A, by plain JAX on the same images."""
    config = load("vgg2")
    config.model.width, config.model.dropout_rate, config.data.name = 0.05, 0.2, "synthetic"
    config.train.update(batch_size=32, limit_train_images=100)
    images = data.load("synthetic", "train").take(slice(100), "100")
    mesh = sharding.make_mesh()
    made = task.build(config, images, mesh)
    pixels, _ = programs.on_devices(images, mesh)
    numbers = sharding.replicate(task.hyperparams(config), mesh)
    state = programs.init(made)(np.uint32(0), numbers, pixels)
    rows = np.asarray(programs.order(made)(state.key, 1))[0]
    key, dropout_key = jax.random.split(jax.random.fold_in(state.key, 0))
    inputs, labels = made.prepare(key, jnp.asarray(images.images[rows]), images.labels[rows])

    def loss(params):
        rngs = {"dropout": dropout_key}
        logits = made.model.apply({"params": params}, inputs, train=True, rngs=rngs)
        return losses.cross_entropy(logits, labels).mean()

    value, slope = jax.jit(loss), jax.jit(jax.grad(loss))
    here = slope(state.params)

    def flat(tree):
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])

    record = measurements(measured, "vgg2")[0]
    norm = np.linalg.norm(flat(here))
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    betas = []
    for i, size in enumerate(gradient.STEP_SIZES):
        there = jax.tree.map(lambda p, g, size=size: p - size * g, state.params, here)
        assert record["losses"][i] == pytest.approx(float(value(there)), rel=1e-4)
        change = np.linalg.norm(flat(slope(there)) - flat(here))
        assert record["gradient_changes"][i] == pytest.approx(change, rel=2e-2)
        betas.append(change / (size * norm))
    beta = gradient.effective_smoothness(record, gradient.STEP_SIZES)
    assert beta == pytest.approx(max(betas), rel=2e-2)


@pytest.mark.slow
def test_stopped_measurements_go_on(measured, tmp_path, monkeypatch, capsys):
    real = train.train_and_evaluate

    class StopAfterTheFirst(Hook):
        def before_call(self, run):
            if run.step == 1:
                signal.raise_signal(signal.SIGTERM)

    def stopped(config, workdir, *, hooks):
        return real(config, workdir, hooks=[*hooks, StopAfterTheFirst()])

    monkeypatch.setattr(train, "train_and_evaluate", stopped)
    assert smooth(tmp_path) == 128 + signal.SIGTERM
    assert "saved at step 1" in capsys.readouterr().err
    path = tmp_path / "smoothness" / "vgg6_seed0" / "measurements.jsonl"
    with path.open("a") as file:  # as of a kill after a measurement that no checkpoint followed
        file.write(json.dumps(measurements(measured)[1] | {"loss": 9.0}) + "\n")
    monkeypatch.setattr(train, "train_and_evaluate", real)
    assert smooth(tmp_path) == 0
    assert measurements(tmp_path) == measurements(measured)
    monkeypatch.setattr(train, "train_and_evaluate", lambda *_, **__: pytest.fail("it started"))
    assert smooth(tmp_path) == 0  # all is there


def test_other_settings_are_refused(measured, capsys):
    assert smooth(measured, "--step-sizes=0.1,0.2") == 2
    assert "step_sizes: (0.05" in capsys.readouterr().err
    assert smooth(measured, "--config.optim.learning_rate=0.1") == 2
    assert "optim.learning_rate: 0.001 -> 0.1" in capsys.readouterr().err


@pytest.mark.slow
def test_fewer_steps_than_the_row_are_marked(tmp_path, measured):
    assert smooth(tmp_path, "--steps=2", "--config.model.dtype=float32") == 0
    (folder,) = (tmp_path / "smoothness").glob("*_seed0")
    (found,) = gradient.measured(tmp_path / "smoothness")
    note = found.note
    assert "SHORTENED: 2 of 6 steps" in note
    assert "SHORTENED: 2 of 50 epochs" in note
    assert "trained in" not in note  # float32, as every training on CPUs
    assert not any("steps" in one.note for one in gradient.measured(measured / "smoothness"))
    (folder / "measurements.jsonl").unlink()  # killed before the first one
    with pytest.raises(UserError, match="contains no measurements"):
        gradient.draw(tmp_path / "smoothness")


def measure(folder, config, steps=100, official=True):
    """Writes two measurements of a run."""
    folder.mkdir(parents=True)
    settings = {"steps": steps, "every": 50, "step_sizes": [0.1, 0.2]}
    facts = {"sha256": "0123", "images": 512, "official": official}
    gradient.write_settings(folder / "settings.json", config, settings, facts)
    record = {"loss": 2.0, "gradient_norm": 1.0, "losses": [2.0, 3.0]}
    lines = [record | {"step": step, "gradient_changes": [1.0, 2.0]} for step in (0, 50)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "measurements.jsonl").write_text(text)


def test_what_a_loss_is_and_how_it_was_trained_is_said(tmp_path):
    """Of a GPU's run, in bfloat16 by itself, and of one with other targets."""
    smoothing = {"train__label_smoothing": 0.2}
    measure(tmp_path / "row1_seed0", load("row1"))
    config = {"environment": {"dtype": "bfloat16"}}
    (tmp_path / "row1_seed0" / "config.json").write_text(json.dumps(config))
    measure(tmp_path / "mine_seed0", tiny.tiny(**smoothing))
    other, row = gradient.measured(tmp_path)
    assert "trained in bfloat16" in row.note
    assert "the loss is of training, label smoothing 0.2" in other.note
    assert "the loss is of" not in row.note


def test_each_of_eight_runs_looks_another_way(tmp_path, monkeypatch):
    looks, gap = [], plots.gap

    def seen(axes, x, curves, *, label, color, hatch):
        looks.append((color, hatch))
        gap(axes, x, curves, label=label, color=color, hatch=hatch)

    monkeypatch.setattr(plots, "gap", seen)
    for number in range(1, 9):
        measure(tmp_path / f"vgg{number}_seed0", load(f"vgg{number}"))
    gradient.draw(tmp_path)
    assert len(set(looks)) == 8
    measure(tmp_path / "vgg1_seed1", load("vgg1"))
    gradient.draw(tmp_path)  # of nine, two look alike


def test_a_picture_says_which_of_its_measurements_are_fewer(tmp_path, monkeypatch):
    titles, drawing = [], plots.drawing

    def titled(*paths, size, title):
        titles.append(title)
        return drawing(*paths, size=size, title=title)

    monkeypatch.setattr(plots, "drawing", titled)
    record = {"step": 0, "loss": 2.0, "gradient_norm": 1.0, "losses": [2.0, 3.0]}
    for row, images in (("vgg2", 512), ("vgg6", 512), ("vgg5", 1024)):
        folder = tmp_path / f"{row}_seed0"
        folder.mkdir()
        config = load(row)  # at batch 256, 2 and 4 steps for each of 50 epochs
        settings = {"steps": 100, "every": 100, "step_sizes": [0.1, 0.2]}
        facts = {"sha256": "0123", "images": images, "official": row != "vgg5"}
        gradient.write_settings(folder / "settings.json", config, settings, facts)
        line = json.dumps(record | {"gradient_changes": [1.0, 2.0]})
        (folder / "measurements.jsonl").write_text(line + "\n")
    gradient.draw(tmp_path)
    short = "SHORTENED: 100 of 200 steps"
    of_others = f"{short}; images NOT verified as the official files"
    assert titles[0].splitlines()[1:] == [f"VGG-A(BN), vgg5, seed0: {of_others}"]
    (tmp_path / "vgg2_seed0" / "measurements.jsonl").unlink()
    (tmp_path / "vgg6_seed0" / "measurements.jsonl").unlink()
    gradient.draw(tmp_path)
    assert titles[1].splitlines()[1:] == [of_others]


def write_measurements(folder, name, steps=(0, 8)):
    """Writes measurements as large as those of the first steps."""
    (folder / name).mkdir(parents=True)
    settings = {"steps": 16, "every": 8, "step_sizes": [0.1, 0.2]}
    facts = {"sha256": "0123", "images": 512, "official": True}
    config = load(name.partition("_")[0])
    gradient.write_settings(folder / name / "settings.json", config, settings, facts)
    record = {"loss": 2.0, "gradient_norm": 1.0, "losses": [2.0, 3.0], "gradient_changes": [1, 20]}
    lines = "".join(json.dumps({"step": step} | record) + "\n" for step in steps)
    (folder / name / "measurements.jsonl").write_text(lines)


def test_one_measurement_can_be_seen(tmp_path, monkeypatch):
    drawn, drawing = [], plots.drawing

    @contextlib.contextmanager
    def kept(*arguments, **options):
        with drawing(*arguments, **options) as figure:
            yield figure
            drawn.append([(axes.lines, axes.collections) for axes in figure.axes])

    monkeypatch.setattr(plots, "drawing", kept)
    write_measurements(tmp_path, "vgg6_seed0", steps=(0,))
    gradient.draw(tmp_path)
    (losses, changes, smoothness), (low, high) = drawn[0], (2.0, 3.0)
    for (_, collections), values in ((losses, (low, high)), (changes, (1, 20))):
        (bar,) = (each for each in collections if isinstance(each, LineCollection))
        assert [point[1] for point in bar.get_segments()[0]] == list(values)
    assert smoothness[0][0].get_marker() == "o"


def test_what_stands_beside_an_axis_is_not_on_its_neighbour(tmp_path, monkeypatch):
    overlaps, save = [], Figure.savefig

    def saved(self, path, **options):
        for left, right in itertools.pairwise(self.axes):
            label, *ticks = (
                text.get_window_extent() for text in (right.yaxis.label, *right.get_yticklabels())
            )
            overlaps.extend(box.overlaps(left.get_window_extent()) for box in (label, *ticks))
            overlaps.extend(label.overlaps(tick) for tick in ticks)
        return save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    for name in ("vgg2_seed0", "vgg6_seed0"):
        write_measurements(tmp_path, name)
    gradient.draw(tmp_path)
    assert overlaps
    assert not any(overlaps)


def test_a_gradient_that_explodes_is_not_passed_over():
    record = {"gradient_norm": 2.0, "gradient_changes": [1.0, float("nan")]}
    assert np.isnan(gradient.effective_smoothness(record, [0.1, 0.2]))
    record["gradient_changes"] = [1.0, 3.0]  # over distances of 0.2 and 0.4
    assert gradient.effective_smoothness(record, [0.1, 0.2]) == pytest.approx(7.5)


def test_more_steps_than_the_config_has(tmp_path, capsys):
    assert smooth(tmp_path, "--steps=7") == 2
    assert "--steps is 7; the config trains for 6." in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_fewer_images_than_a_batch(tmp_path, capsys):
    assert smooth(tmp_path, "--config.train.limit_train_images=3") == 2
    assert "config.train.batch_size is" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_signal_as_all_is_measured_ends_the_command(tmp_path, monkeypatch):
    real = train.train_and_evaluate

    class Signal(Hook):
        def before_call(self, run):
            signal.raise_signal(signal.SIGTERM)

    def stopped(config, workdir, *, hooks):
        return real(config, workdir, hooks=[Signal(), *hooks])

    monkeypatch.setattr(train, "train_and_evaluate", stopped)
    assert smooth(tmp_path, "--steps=1", rows="vgg6,vgg2") == 128 + signal.SIGTERM
    assert len(measurements(tmp_path)) == 1
    assert not (tmp_path / "smoothness" / "vgg2_seed0").exists()


def test_measurements_that_are_lost_are_missed(tmp_path):
    """They are not made again, as the run has passed their steps."""
    hook = gradient.AlongGradient(tmp_path, steps=9, every=2, step_sizes=(0.1,))
    run = types.SimpleNamespace(step=3, workdir=tmp_path)
    with pytest.raises(UserError, match=r"measurements\.jsonl lacks measurements before step 3"):
        hook.start(run)


def test_all_configs_are_checked_before_the_first_is_trained(tmp_path, capsys):
    for name in ("sgd", "adam"):
        (tmp_path / f"{name}.py").write_text(
            "from jaxcifar.options import load\n\n\ndef get_config():\n    config = load('vgg2')\n"
            f"    config.optim.name = '{name}'\n    return config\n"
        )
    files = ",".join(str(tmp_path / f"{name}.py") for name in ("sgd", "adam"))
    out = tmp_path / "out"
    arguments = ["smoothness", f"--configs={files}", f"--out={out}", "--steps=1", *OPTIONS]
    assert exit_code(lambda: main([*arguments, "--config.optim.momentum=0.9"])) == 2
    assert "momentum is 0.9, which is only for 'sgd'" in capsys.readouterr().err
    assert not out.exists()


def test_checking_settings_writes_nothing(tmp_path):
    config, facts = load("vgg2"), {"sha256": "0123", "images": 100}
    path, settings = tmp_path / "settings.json", {"steps": 3, "every": 1, "step_sizes": [0.1]}
    with pytest.raises(UserError, match="cannot be read"):
        gradient.check_settings(path, config, settings, facts)
    assert not path.exists()
    gradient.write_settings(path, config, settings, facts)
    written = path.read_bytes()
    gradient.check_settings(path, config, settings, facts)
    with pytest.raises(UserError, match="steps: 3 -> 4"):
        gradient.check_settings(path, config, settings | {"steps": 4}, facts)
    assert path.read_bytes() == written


def test_measurements_from_before_a_field_are_resumed(tmp_path):
    config, facts = load("vgg2"), {"sha256": "0123", "images": 100}
    path, settings = tmp_path / "settings.json", {"steps": 3, "every": 1, "step_sizes": [0.1]}
    gradient.write_settings(path, config, settings, facts)
    content = json.loads(path.read_text())
    del content["config"]["optim"]["momentum"]
    path.write_text(json.dumps(content))
    gradient.check_settings(path, config, settings, facts)


def test_a_config_of_ones_own_is_measured(tmp_path, monkeypatch):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from jaxcifar.options import load\n\n\ndef get_config():\n    config = load('vgg6')\n"
        "    config.data.name = 'synthetic'\n"
        "    config.model.update(width=0.05, dropout_rate=0.2)\n"
        "    config.train.update(batch_size=32, eval_batch_size=96)\n    return config\n"
    )
    out = tmp_path / "out"
    given = [f"--configs={mine}", f"--out={out}", "--steps=2", "--every=1", "--step-sizes=0.1,0.2"]
    assert (
        exit_code(lambda: main(["smoothness", *given, "--config.train.limit_train_images=100"]))
        == 0
    )
    (found,) = gradient.measured(out / "smoothness")
    assert found.folder.name == "mine_seed0"
    assert found.config["model.width"] == 0.05
    assert found.note.startswith("SHORTENED: 100 images; SHORTENED: 2 of ")
    shorter = "    config.train.limit_train_images = 100\n    return config\n"
    mine.write_text(mine.read_text().replace("    return config\n", shorter))
    assert exit_code(lambda: main(["smoothness", *given])) == 0  # all is measured
    assert gradient.measured(out / "smoothness")[0].note == found.note
