"""Figures: that what they show is what was computed."""

import dataclasses
import itertools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.report import figures, network
from experiments.report.__main__ import main
from experiments.runs import read
from jaxcifar import augment, data, restore
from jaxcifar.errors import UserError
from jaxcifar.files import read_lines
from jaxcifar.models import MODELS
from jaxcifar.run import plots
from tests import tiny
from tests.sweeps import write_fake_runs

pytestmark = pytest.mark.usefixtures("one_device")


def of_run(folder):
    """What a picture of one run is drawn of."""
    return read.Sweep(folder.parent, (read.read_run(folder),))


@pytest.fixture
def eight(swept, tmp_path):
    """A finished run of each row of Table 4: two were trained, the others are made up."""
    out = tmp_path / "table4"
    write_fake_runs(out, rows=[f"vgg{i}" for i in range(1, 9)], seeds=1)
    generator = np.random.default_rng(0)
    for path in out.glob("vgg*/seed0/steps.jsonl"):
        losses = generator.uniform(1, 2, (2, 3)).tolist()
        lines = [json.dumps({"epoch": epoch, "ce": of}) for epoch, of in enumerate(losses, 1)]
        path.write_text("".join(f"{line}\n" for line in lines))
    for row in ("vgg2", "vgg6"):
        shutil.rmtree(out / row)
        shutil.copytree(swept / row / "seed0", out / row / "seed0")
    return out


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are written: {"fig3": …}."""
    found, save = {}, Figure.savefig

    def saved(self, path, **options):
        found[path.name.split(".")[0]] = self
        return save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    return found


@pytest.mark.slow
def test_all_figures_are_drawn(eight, monkeypatch, drawn):
    def history(records, title, *paths, real=plots.plot_history, **options):
        draw = real if paths[0].stem == "history_vgg1" else tiny.write_numbers  # one tells it all
        draw(records, title, *paths, **options)

    monkeypatch.setattr(plots, "plot_history", history)
    assert main(["figures", str(eight)]) == 0
    folder = eight / "figures"
    names = {*figures.FIGURES, *(f"history_vgg{i}" for i in range(1, 9))} - {"history"}
    written = {f"{name}.{ending}" for name in names for ending in ("png", "pdf")}
    assert {path.name for path in folder.iterdir()} == written
    for name in drawn:
        with Image.open(folder / f"{name}.png") as picture:
            pixels = np.asarray(picture.convert("L"))
            assert np.mean(pixels[pixels.shape[0] // 4 :] < 250) > 0.01  # ink below the title
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert names - set(drawn) == {f"history_vgg{i}" for i in range(2, 9)}
    shown = ("train_ce", 1), ("val_loss", 1), ("train_accuracy", 100), ("val_accuracy", 100)
    for stem, rows in (("fig3", range(1, 5)), ("fig4", range(5, 9))):
        for axes, (quantity, scale) in zip(drawn[stem].axes, shown, strict=True):
            for i, line in zip(rows, axes.lines, strict=True):
                records = read_lines(eight / f"vgg{i}" / "seed0" / "metrics.jsonl")
                expected = [scale * record[quantity] for record in records]
                np.testing.assert_allclose(line.get_ydata(), expected)


@pytest.mark.slow
def test_figure_5_fills_from_the_best_to_the_worst_rate(eight, monkeypatch):
    drawn = {}
    real = Axes.fill_between

    def fill(self, x, low, high, **style):
        drawn.setdefault(style["label"], (x, low, high))
        return real(self, x, low, high, **style)

    monkeypatch.setattr(Axes, "fill_between", fill)
    main(["figures", str(eight), "--only=fig5"])
    for label, rows in (("without BN", range(1, 5)), ("with BN", range(5, 9))):
        curves = []
        for i in rows:
            lines = read_lines(eight / f"vgg{i}" / "seed0" / "steps.jsonl")
            curves.append([value for line in lines for value in line["ce"]])
        steps, low, high = drawn[label]  # six steps: a window of one
        np.testing.assert_array_equal(steps, np.arange(1, 7))
        np.testing.assert_allclose(low, np.min(curves, axis=0))
        np.testing.assert_allclose(high, np.max(curves, axis=0))


@pytest.mark.slow
def test_figure_5_averages_the_seeds_that_all_rows_have(tmp_path, monkeypatch):
    """In the middle of a sweep the rows have different ones."""
    write_fake_runs(tmp_path, rows=[f"vgg{i}" for i in range(1, 9)], seeds=3)
    shutil.rmtree(tmp_path / "vgg8" / "seed2")
    titles, lows, fill = [], [], Axes.fill_between
    drawing = plots.drawing

    def titled(*paths, title, **options):
        titles.append(title)
        return drawing(*paths, title=title, **options)

    def filled(self, x, low, high, **style):
        lows.append(low)
        return fill(self, x, low, high, **style)

    monkeypatch.setattr(plots, "drawing", titled)
    monkeypatch.setattr(Axes, "fill_between", filled)
    assert main(["figures", str(tmp_path), "--only=fig5"]) == 0
    assert "mean of 2 seeds" in titles[0]
    # A row's losses are its training loss times 1 + 0.001 seed: 0 and 1 in both groups.
    np.testing.assert_allclose(lows[0], 0.1168 * 1.0005, rtol=1e-6)
    (tmp_path / "vgg1" / "seed0" / "steps.jsonl").unlink()  # of 100 steps, as the others
    assert main(["figures", str(tmp_path), "--only=fig5"]) == 0
    assert "over 2 steps" in titles[1]


@pytest.mark.slow
def test_the_augmentations_drawn_are_those_of_the_run(swept, tmp_path, monkeypatch):
    run = shutil.copytree(swept / "vgg6" / "seed0", tmp_path / "run")
    content = json.loads((run / "config.json").read_text())
    content["config"]["augment"] |= {"padding_mode": "reflect", "flip": "alternating"}
    content["config"]["data"] |= {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    (run / "config.json").write_text(json.dumps(content))
    lines, imshow = [], Axes.imshow
    corner = np.full((8, 32, 32, 3), 100, np.uint8)
    corner[:, :16, :16] = 200  # at the left, until an image is mirrored

    marked = dataclasses.replace(data.load("synthetic", "train"), images=corner)
    monkeypatch.setattr(network, "training_images", lambda *_: marked)
    monkeypatch.setattr(Axes, "imshow", lambda self, x: lines.append(x) or imshow(self, x))
    network.augmentations(of_run(run), [tmp_path / "augment.png"])
    weak = np.array(lines[-16:-8])
    assert weak.min() > 0.3  # nothing black is padded
    left, right = weak[:, 2, 2, 0], weak[:, 2, -3, 0]
    np.testing.assert_array_equal(left < right, np.arange(8) % 2 == 1)
    erased = np.array(lines[-24:-16])
    assert erased.min() == 0  # the run's mean, not the image set's


@pytest.mark.slow
def test_figure_2_without_a_checkpoint(swept_copy, capsys):
    for path in swept_copy.rglob("checkpoints"):
        shutil.rmtree(path)
    assert main(["figures", str(swept_copy), "--only=fig2,fig3"]) == 1
    assert "no fig2: no finished run" in capsys.readouterr().out
    assert (swept_copy / "figures" / "fig3.png").exists()
    assert not (swept_copy / "figures" / "fig2.png").exists()


@pytest.mark.slow
def test_figures_without_the_images(swept_copy, monkeypatch, capsys):
    def missing(*_, **__):
        raise UserError("CIFAR-10 was not found")

    monkeypatch.setattr(data, "load", missing)
    assert main(["figures", str(swept_copy), "--only=augment,fig2,fig3"]) == 1
    printed = capsys.readouterr().out
    assert "no augment: CIFAR-10 was not found" in printed
    assert "no fig2: CIFAR-10 was not found" in printed
    assert (swept_copy / "figures" / "fig3.png").exists()


def test_other_images_than_those_of_the_run_are_not_drawn(swept_copy, capsys):
    run = swept_copy / "vgg6" / "seed0"
    content = json.loads((run / "config.json").read_text())
    content["data"]["train"]["sha256"] = content["data"]["validation"]["sha256"] = "0123"
    (run / "config.json").write_text(json.dumps(content))
    shutil.rmtree(swept_copy / "vgg6" / "seed1")  # runs of one name must be alike
    assert main(["figures", str(swept_copy), "--only=confusion,augment", f"--run={run}"]) == 1
    printed = capsys.readouterr().out
    assert "holds a run on other validation images" in printed
    assert "holds a run on other train images" in printed
    assert not list((swept_copy / "figures").iterdir())


@pytest.mark.slow
def test_the_image_of_figure_2(swept_copy, capsys):
    run = f"--run={swept_copy / 'vgg2' / 'seed0'}"
    assert main(["figures", str(swept_copy), "--only=fig2", run, "--image=7"]) == 0
    assert main(["figures", str(swept_copy), "--only=fig2", run, "--image=256"]) == 1
    assert "the test images are 0 to 255" in capsys.readouterr().out


def test_images_that_have_moved(swept_copy, monkeypatch):
    folders, load = [], data.load

    def from_folder(name, split, *, data_dir=""):
        folders.append(data_dir)
        return load(name, split)

    monkeypatch.setattr(data, "load", from_folder)
    arguments = ["figures", str(swept_copy), "--only=augment,fig2,confusion"]
    assert main([*arguments, "--data-dir=/moved"]) == 0
    assert set(folders) == {"/moved"}


def test_a_run_that_is_not_there(swept_copy):
    with pytest.raises(UserError, match="is not a run below"):
        main(["figures", str(swept_copy), "--run=elsewhere"])
    with pytest.raises(UserError, match="'fig6'"):
        main(["figures", str(swept_copy), "--only=fig6"])


@pytest.mark.slow
def test_any_number_of_runs_has_its_names_in_the_picture(tmp_path, drawn):
    write_fake_runs(tmp_path, rows=[f"rate_{i:02d}" for i in range(40)], seeds=1)
    assert main(["figures", str(tmp_path), "--only=accuracy"]) == 0
    for axes in drawn["accuracy"].axes:
        heights = sorted(text.xyann[1] for text in axes.texts)
        assert len(heights) == 40
        assert heights[0] >= 0
        assert heights[-1] <= 1
        assert np.diff(heights).min() == pytest.approx(1 / 40)


@pytest.mark.slow
def test_a_dollar_in_a_name_begins_no_formula(tmp_path, drawn):
    write_fake_runs(tmp_path, rows=[r"lr_$1e-3$_$\x$", "cost$a_$"], seeds=1)
    assert main(["figures", str(tmp_path), "--only=accuracy,history"]) == 0
    assert {text.get_text() for text in drawn["accuracy"].axes[0].texts} >= {"cost$a_$†"}
    assert r"lr_$1e-3$_$\x$" in drawn[r"history_lr_$1e-3$_$\x$"].get_suptitle()


def test_one_run_is_drawn_of_one_sweep(tmp_path):
    """Nothing of another sweep is drawn, and augmentations need no checkpoint."""
    for name in ("one", "two"):
        write_fake_runs(tmp_path / name, rows=["row1"], seeds=1, data__name="synthetic")
    path = tmp_path / "one" / "row1" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    content["data"]["train"] = data.load("synthetic", "train").provenance
    path.write_text(json.dumps(content))
    run = f"--run={path.parent}"
    assert main(["figures", str(tmp_path), "--only=augment", run]) == 0
    assert (tmp_path / "one" / "figures" / "augment.png").exists()
    assert not (tmp_path / "two" / "figures").exists()
    assert main(["figures", str(tmp_path), "--only=augment,history", run]) == 0
    assert [path.name for path in (tmp_path / "two" / "figures").glob("*.png")] == [
        "history_row1.png"
    ]
    with pytest.raises(UserError, match="no checkpoints/ folder"):
        main(["figures", str(tmp_path), "--only=augment,fig2", run])


@pytest.mark.slow
def test_figure_2_shows_what_the_first_layer_makes(swept, tmp_path, monkeypatch):
    run = swept / "vgg6" / "seed0"
    shown = []
    monkeypatch.setattr(network, "mosaic", lambda x: shown.append(x) or x[0])
    network.fig2(of_run(run), [tmp_path / "fig2.png"], image=3)
    config, _, variables = restore.load_variables(run)
    variables = jax.device_get(variables)
    test = data.load("synthetic", "test")
    x = augment.normalize(jnp.asarray(test.images[3:4]), test.mean, test.std)
    params, statistics = variables["params"], variables["batch_stats"]["bn1"]
    y = jax.lax.conv_general_dilated(
        x, params["conv1"]["kernel"], (1, 1), [(1, 1)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    y = np.asarray(y) + params["conv1"]["bias"]
    z = (y - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    z = z * params["bn1"]["scale"] + params["bn1"]["bias"]

    def scaled(maps):
        maps = np.moveaxis(np.asarray(maps[0]), -1, 0)
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        return (maps - low) / np.maximum(high - low, 1e-12)

    assert len(shown) == 5  # kernels in colour and averaged, and three stages
    np.testing.assert_allclose(
        shown[1], np.moveaxis(np.asarray(params["conv1"]["kernel"]).mean(2), -1, 0), rtol=1e-6
    )
    for found, expected in zip(shown[2:], (y, z, np.maximum(z, 0)), strict=True):
        np.testing.assert_allclose(found, scaled(expected), atol=2e-3)
    assert config.model.name == "vgg_a_bn"


@pytest.mark.slow
def test_pictures_say_which_seeds_are_left_out(tmp_path, drawn):
    """A mean of those that did not diverge is not the mean of all."""
    write_fake_runs(tmp_path, rows=["vgg1", "vgg2", "vgg5"], seeds=3, epochs=50)
    for name, seed in (("vgg2", 1), ("vgg5", 0)):
        (tmp_path / name / f"seed{seed}" / "result.json").unlink()
    main(["figures", str(tmp_path), "--only=fig3,history,accuracy"])
    said = {stem: figure.get_suptitle().split("\n")[-1] for stem, figure in drawn.items()}
    left_out = "Not finished, and left out: "
    assert said["fig3"] == f"{left_out}vgg2 seed 1"
    assert said["history_vgg5"] == f"{left_out}vgg5 seed 0"
    assert said["accuracy"] == f"{left_out}vgg2 seed 1, vgg5 seed 0"
    assert left_out not in said["history_vgg1"]


@pytest.mark.slow
def test_pictures_of_several_runs_say_which_were_shortened(tmp_path, drawn):
    write_fake_runs(tmp_path, rows=[f"vgg{i}" for i in (1, 3, 4, 5, 6, 7, 8)], seeds=1, epochs=50)
    write_fake_runs(tmp_path, rows=["vgg2"], seeds=1, epochs=3)
    assert main(["figures", str(tmp_path), "--only=history,fig3,fig4,fig5,accuracy"]) == 0
    note = "SHORTENED: 3 of 50 epochs"
    for stem in ("fig3", "fig5", "accuracy"):
        assert drawn[stem].get_suptitle().endswith(f"\n† vgg2: {note}")
    assert drawn["history_vgg2"].get_suptitle().endswith(f"(VGG row 2†)\n† vgg2: {note}")
    assert "†" not in drawn["fig4"].get_suptitle() + drawn["history_vgg1"].get_suptitle()
    for stem in ("fig3", "fig5"):
        curves = drawn[stem].axes[0].get_legend_handles_labels()[1]
        assert curves[:2] == ["learning rate 3e-3", "learning rate 1e-3 (vgg2†)"]
    for axes in drawn["accuracy"].axes:
        labels = {label.get_text() for label in axes.texts}
        assert labels == {"vgg2†", *(f"vgg{i}" for i in (1, 3, 4, 5, 6, 7, 8))}


def test_a_long_title_is_not_cut_off(tmp_path, monkeypatch):
    widths, save = [], Figure.savefig

    def saved(self, path, **options):
        title = next(text for text in self.texts if text.get_text() == self.get_suptitle())
        widths.append(title.get_window_extent().width / self.bbox.width)
        return save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", saved)
    fields = {"model__width": 0.05, "optim__name": "adamw", "data__augment": "strong"}
    write_fake_runs(tmp_path, rows=["vgg6"], seeds=1, epochs=2, **fields)
    assert main(["figures", str(tmp_path), "--only=history,fig4,accuracy"]) == 0
    assert len(widths) == 6
    assert max(widths) < 1


def test_points_of_several_data_sets_say_which(tmp_path, drawn):
    write_fake_runs(tmp_path, rows=["a", "b"], seeds=1)
    main(["figures", str(tmp_path), "--only=accuracy"])
    assert {label.get_text() for label in drawn["accuracy"].axes[0].texts} == {"a†", "b†"}
    held_out = {"data__name": "cifar100", "data__protocol": "holdout"}
    write_fake_runs(tmp_path, rows=["c"], seeds=1, **held_out)
    main(["figures", str(tmp_path), "--only=accuracy"])
    labels = {label.get_text() for label in drawn["accuracy"].axes[0].texts}
    assert labels == {"a† (cifar10)", "b† (cifar10)", "c† (cifar100, held out)"}


def test_a_run_without_errors_is_drawn_too(tmp_path, drawn):
    write_fake_runs(tmp_path, rows=["row1", "row3"], seeds=1)
    path = tmp_path / "row3" / "seed0" / "metrics.jsonl"
    lines = [record | {"val_accuracy": 1.0} for record in read_lines(path)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["figures", str(tmp_path), "--only=accuracy"]) == 0
    axes = drawn["accuracy"].axes[0]
    label = next(label for label in axes.texts if label.get_text().startswith("row3"))
    in_panel = (axes.transData + axes.transAxes.inverted()).transform
    assert 0.5 < in_panel((11.0, 0.0))[1] < 1  # better upwards
    assert 0 < label.get_position()[1] <= 1
    assert in_panel((11.0, 6.0))[1] < 0.5  # row 1's


def test_the_accuracies_have_a_grid_and_nothing_lies_on_them(tmp_path, drawn):
    write_fake_runs(tmp_path, rows=["row1", "row5", "row6"], seeds=1)  # 5 to 7%: within a decade
    main(["figures", str(tmp_path), "--only=accuracy"])
    (legend,) = drawn["accuracy"].legends
    for axes in drawn["accuracy"].axes:
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        low, high = sorted(axes.get_ylim())
        ticks = axes.yaxis.get_major_ticks() + axes.yaxis.get_minor_ticks()
        shown = [tick for tick in ticks if tick.gridline.get_visible()]
        assert sum(low <= tick.get_loc() <= high for tick in shown) >= 2


SOFT = {"train__label_smoothing": 0.2, "augment__mixup": 0.5}


@pytest.fixture
def labels(monkeypatch):
    """The labels of the curves that are drawn."""
    found, plot = [], Axes.plot

    def labelled(self, *points, **style):
        found.append(style.get("label"))
        return plot(self, *points, **style)

    monkeypatch.setattr(Axes, "plot", labelled)
    return found


def test_a_history_says_what_its_training_loss_has_that_validation_has_not(tmp_path, labels):
    write_fake_runs(tmp_path / "hard", rows=["row1"])
    write_fake_runs(tmp_path / "soft", rows=["row1"], **SOFT)
    assert main(["figures", str(tmp_path / "hard"), "--only=history"]) == 0
    assert labels[:4] == ["training", "training", "validation", "validation"]
    labels.clear()
    assert main(["figures", str(tmp_path / "soft"), "--only=history"]) == 0
    soft = "training, label smoothing 0.2, mixed targets"
    assert labels[:4] == [soft, "training, mixed images", "validation", "validation"]


def test_so_does_that_in_the_folder_of_a_run(finished, tmp_path, labels):
    folder = shutil.copytree(finished[0], tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    content["config"]["train"]["label_smoothing"] = 0.2
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "history.png").unlink()  # and is drawn again
    tiny.run(tiny.tiny(train__label_smoothing=0.2), folder, picture=True)
    assert labels[0] == "training, label smoothing 0.2"


def test_predictions(swept):
    run = swept / "vgg6" / "seed0"
    test, found = network.predictions(read.read_run(run))
    accuracy = restore.evaluate_workdir(run)["accuracy"]
    assert np.mean(found.argmax(1) == test.labels) == pytest.approx(accuracy)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n", [10, 20, 21, 100])
def test_any_number_of_classes_is_drawn_and_can_be_read(tmp_path, monkeypatch, drawn, n):
    labels = np.arange(10 * n) % n
    test = data.Dataset(
        np.zeros((10 * n, 32, 32, 3), np.uint8),
        labels.astype(np.int32),
        tuple(f"a_class_with_a_name_{i}" for i in range(n)),
        {},
        (0.0,) * 3,
        (1.0,) * 3,
    )
    found = np.eye(n)[np.where(np.arange(10 * n) % 3, labels, 0)]
    monkeypatch.setattr(network, "predictions", lambda run: (test, found))
    (part,) = read.sweeps(write_fake_runs(tmp_path, rows=["vgg6"], seeds=1))
    for name in ("confusion", "classes"):
        figures.FIGURES[name](part, [tmp_path / f"{name}.png"])
    confusion, classes = (drawn[name].axes[0] for name in ("confusion", "classes"))
    boxes = [classes.get_yticklabels(), confusion.get_yticklabels()]
    boxes += [confusion.get_xticklabels()] if n > 20 else []  # else they lie aslant
    for axis in boxes:
        extents = [label.get_window_extent() for label in axis]
        assert len(extents) == n
        assert not any(one.overlaps(other) for one, other in itertools.pairwise(extents))
    assert len(confusion.texts) == (n * n if n <= 20 else 0)
    # In percent; a class has ten images, of which so many are taken for the first class.
    taken = 10 * np.array([sum(i % 3 == 0 for i in range(k, 10 * n, n)) for k in range(n)])
    expected = np.diag(100 - taken)
    expected[:, 0] += taken
    np.testing.assert_allclose(confusion.images[0].get_array(), expected)
    for label, bar in zip(classes.get_yticklabels(), classes.patches, strict=True):
        number = test.class_names.index(label.get_text())
        assert bar.get_width() == pytest.approx(expected[number, number])


@pytest.mark.slow
def test_a_class_without_a_test_image_is_drawn_as_what_it_is(tmp_path, monkeypatch, drawn):
    test = data.load("synthetic", "test")
    test = test.take(np.flatnonzero(test.labels != 3), "without one class")
    monkeypatch.setattr(network, "predictions", lambda run: (test, np.eye(10)[test.labels]))
    (part,) = read.sweeps(write_fake_runs(tmp_path, rows=["vgg6"], seeds=1))
    for name in ("confusion", "classes"):
        figures.FIGURES[name](part, [tmp_path / f"{name}.png"])
    expected = np.diag(100.0 * (np.arange(10) != 3))
    np.testing.assert_array_equal(drawn["confusion"].axes[0].images[0].get_array(), expected)
    named = [label.get_text() for label in drawn["classes"].axes[0].get_yticklabels()]
    assert sorted(named) == sorted({*test.class_names} - {test.class_names[3]})


@pytest.mark.slow
def test_the_mistakes_drawn_are_the_most_confident(tmp_path, monkeypatch):
    """Of 60 images 45 are mistaken, each with a probability of its own; 40 are drawn."""
    random = np.random.default_rng(0)
    test = data.load("synthetic", "test").take(slice(60), "the first 60")
    confidence = random.permutation(np.linspace(0.5, 0.99, 60))
    mistaken = random.permutation(60) < 45
    answers = (test.labels + mistaken) % 10
    found = np.tile((1 - confidence[:, None]) / 9, (1, 10))
    found[np.arange(60), answers] = confidence
    monkeypatch.setattr(network, "predictions", lambda run: (test, found))
    (part,) = read.sweeps(write_fake_runs(tmp_path, rows=["vgg6"], seeds=1))
    images, titles, imshow, set_title = [], [], Axes.imshow, Axes.set_title
    monkeypatch.setattr(Axes, "imshow", lambda self, x: images.append(x) or imshow(self, x))
    monkeypatch.setattr(
        Axes,
        "set_title",
        lambda self, text, **style: titles.append(text) or set_title(self, text, **style),
    )
    network.mistakes(part, [tmp_path / "mistakes.png"])
    worst = sorted(np.flatnonzero(mistaken), key=lambda i: -confidence[i])[:40]
    np.testing.assert_array_equal(images, test.images[worst])
    assert titles == [
        f"{test.class_names[answers[i]]} ({confidence[i]:.0%})\n"
        f"true: {test.class_names[test.labels[i]]}"
        for i in worst
    ]


# --- models and configs that the original report does not have ---------------------------------


@pytest.mark.slow
def test_any_number_of_models_has_its_own_marker(tmp_path):
    models = [*MODELS, "mixer", "vit"]
    for i, model in enumerate(models):
        write_fake_runs(tmp_path, rows=[f"mine{i}"], seeds=1, model__name=model)
    assert main(["figures", str(tmp_path), "--only=accuracy"]) == 0
    styles = figures.model_styles(models)
    assert len(set(styles.values())) == len(models) > len(figures.MARKERS)
    assert figures.model_styles(["vgg_a"])["vgg_a"] == styles["vgg_a"]


@pytest.mark.slow
def test_figures_name_the_model_that_ran(tmp_path, labels, monkeypatch):
    write_fake_runs(tmp_path, rows=["vgg2", "wide"], epochs=50, model__name="resnet50")
    titles, plot_history = [], plots.plot_history

    def history(records, title, *paths, **options):
        titles.append(title)
        plot_history(records, title, *paths, **options)

    monkeypatch.setattr(plots, "plot_history", history)
    assert main(["figures", str(tmp_path), "--only=history,accuracy"]) == 0
    assert titles[0].startswith("ResNet-50 (VGG row 2†)")
    assert titles[1].startswith("ResNet-50 (config wide†)")
    assert "ResNet-50" in labels
    assert "VGG-A" not in labels
