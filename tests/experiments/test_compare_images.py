"""Two versions of the same images: the paired difference by hand, and a network on both."""

import numpy as np
import pytest

from experiments import compare_images
from jaxcifar import data, predict, restore
from jaxcifar.errors import UserError
from jaxcifar.signals import exit_code
from tests.tiny import run, tiny


def test_paired_difference_by_hand():
    # Of 100 images, 80 right in both, 8 only in ours, 2 only in theirs, 10 in neither.
    ours = np.array([1] * 80 + [1] * 8 + [0] * 2 + [0] * 10, bool)
    theirs = np.array([1] * 80 + [0] * 8 + [1] * 2 + [0] * 10, bool)
    found = compare_images.compare(ours, theirs)
    assert (found["ours"], found["theirs"]) == (0.88, 0.82)
    assert found["difference"] == pytest.approx(-0.06)
    error = np.sqrt((0.08 + 0.02 - 0.06**2) / 100)
    assert found["interval"] == pytest.approx([-0.06 - 1.96 * error, -0.06 + 1.96 * error])


@pytest.fixture
def train(finished):
    config, _, _ = restore.load_variables(finished[0])
    return data.load(config.data.name, "train", data_dir=config.data.dir)


def write(path, train, places, **changes):
    places = np.asarray(places)
    content = {"image": train.images[places], "label": train.labels[places], "index": places}
    np.savez(path, **content | changes)
    return path


@pytest.mark.slow
def test_the_same_images_make_no_difference(finished, train, tmp_path, capsys):
    path = write(tmp_path / "same.npz", train, [3, 1, 4, 5, 9])
    assert exit_code(lambda: compare_images.main([str(finished[0]), str(path)])) == 0
    assert "difference +0.00 points (95%: +0.00 … +0.00)" in capsys.readouterr().out


@pytest.mark.slow
def test_other_images_are_evaluated(finished, train, tmp_path):
    """Black images all get the same class, so the accuracy on them is that class's share."""
    # Of the classes in turn 1, 2, … 10 images, so that no two have the same share.
    of_class = [np.flatnonzero(train.labels[:100] == label)[: label + 1] for label in range(10)]
    assert [len(places) for places in of_class] == list(range(1, 11))
    places = np.concatenate(of_class)
    black = np.zeros((55, 32, 32, 3), np.uint8)
    found = compare_images.run(
        finished[0], write(tmp_path / "black.npz", train, places, image=black)
    )
    answer = int(predict.predict(finished[0], black[:1]).argmax())
    assert found["theirs"] == (answer + 1) / 55
    own = predict.predict(finished[0], train.images[places]).argmax(1)
    assert found["ours"] == np.mean(own == train.labels[places])
    assert found["images"] == 55
    squares = np.square(train.images[places].astype(float))
    assert found["squared_error"] == pytest.approx(squares.mean(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": np.full(3, 77)}, "3 of its 3 labels differ"),
        ({"index": np.array([0, 1, 10**6])}, "images of the places 0 to 1000000"),
        ({"index": np.array([0, 1, 100])}, "the run's training images are 0 to 99"),  # its limit
        ({"index": np.array([0, 1, 1])}, "an image twice: 3 places, 2 of them"),
        ({"image": np.zeros((3, 32, 32, 3))}, "float64"),
        ({"image": np.array([{}] * 3, object)}, "cannot be used"),
        ({"index": np.array(1)}, r"index \(\)"),
    ],
)
def test_files_of_something_else(finished, train, tmp_path, changes, message):
    path = write(tmp_path / "wrong.npz", train, [0, 1, 2], **changes)
    with pytest.raises(UserError, match=message):
        compare_images.run(finished[0], path)


@pytest.mark.slow
def test_a_part_of_the_images_was_held_out(finished, train, tmp_path):
    path = write(tmp_path / "some.npz", train, [0, 1, 2])
    run(tiny(data__protocol="holdout", train__epochs=1), tmp_path / "held")
    with pytest.raises(UserError, match="held out a tenth"):
        compare_images.run(tmp_path / "held", path)


def test_no_such_file(finished, tmp_path, capsys):
    assert exit_code(lambda: compare_images.main([str(finished[0]), str(tmp_path / "no.npz")])) == 2
    assert "no.npz cannot be used" in capsys.readouterr().err
