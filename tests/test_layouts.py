"""CIFAR in the forms that people have it in: found, read, compared, or refused by name."""

import csv
import dataclasses
import hashlib
import io
import os
import pickle
import shutil
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from jaxcifar import data
from jaxcifar.data import cifar, pictures, splits, tfds
from jaxcifar.data.source import Read
from jaxcifar.errors import UserError
from tests.test_data import FEW, FEW100, NAMES, gz, pack, write100, write_binary, write_python

# 20 records in each of six files: 100 images to train on, 20 to test on, of each class as many.
LABELS = np.arange(20) % 10


@pytest.fixture(scope="module")
def few():
    generator = np.random.default_rng(3)
    return {n: (generator.integers(0, 256, (20, 3072), dtype=np.uint8), LABELS) for n in NAMES}


@pytest.fixture(scope="module")
def expected(few):
    """The images and labels of each split in the official order."""
    found = {}
    for split, names in (("train", NAMES[:5]), ("test", NAMES[5:])):
        pixels, labels = (np.concatenate([few[name][i] for name in names]) for i in (0, 1))
        found[split] = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
    return found


def check(folder, expected, spec=FEW):
    for split in ("train", "test"):
        found = cifar.load(spec, split, str(folder))
        np.testing.assert_array_equal(found.images, expected[split][0])
        np.testing.assert_array_equal(found.labels, expected[split][1])
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)
        assert found.provenance["source"].startswith(str(folder))
        assert found.provenance["official"] is False
    return found


def png(image, size=(32, 32), mode="RGB"):
    stream = io.BytesIO()
    Image.fromarray(image).resize(size).convert(mode).save(stream, "PNG")
    return stream.getvalue()


# --- pickles ----------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickled_again(few, expected, tmp_path, protocol, order):
    """With text for keys, by protocol 5, and with NumPy's numbers for labels."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name, (pixels, labels) in few.items():
        content = {"data": np.asarray(pixels, order=order), "labels": list(labels)}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    check(tmp_path, expected)


@pytest.mark.parametrize(
    "place",
    [
        "cifar-10-batches-py",  # torchvision's, and that of Keras 2
        "cifar-10-batches-py-target/cifar-10-batches-py",
        "cifar-10-batches-py/cifar-10-batches-py",
    ],
)
def test_folders_of_the_python_format(few, expected, tmp_path, place):
    write_python(tmp_path / place, few)
    check(tmp_path, expected)


@pytest.mark.parametrize(
    "name",
    [
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py.tar.gz",
        "cifar-10-batches-py-target_archive",
    ],
)
def test_archives_of_the_python_format(few, expected, tmp_path, name):
    pack(write_python(tmp_path / "x" / "cifar-10-batches-py", few), tmp_path / name)
    check(tmp_path, expected)
    md5 = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    spec = dataclasses.replace(FEW, python=FEW.python._replace(md5=md5))
    assert cifar.load(spec, "test", str(tmp_path)).provenance["official"] is True


def test_the_cache_of_keras_where_nothing_else_is(few, expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAXCIFAR_DATA", raising=False)
    write_python(tmp_path / ".keras" / "datasets" / "cifar-10-batches-py", few)
    found = cifar.load(FEW, "test")
    np.testing.assert_array_equal(found.images, expected["test"][0])
    assert "/.keras/datasets/" in found.provenance["source"]
    other = {name: (255 - pixels, labels) for name, (pixels, labels) in few.items()}
    write_python(tmp_path / ".cache" / "jaxcifar" / "data" / "cifar-10-batches-py", other)
    assert (cifar.load(FEW, "test").images == 255 - found.images).all()


def test_a_part_of_the_cache_of_keras_is_passed_over(few, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JAXCIFAR_DATA", raising=False)
    cache = write_python(tmp_path / ".keras" / "datasets" / "cifar-10-batches-py", few)
    for path in cache.iterdir():
        if path.name != "data_batch_1":
            path.unlink()
    read = Read(np.zeros((3, 32, 32, 3), np.uint8), np.zeros(3, np.int32))
    monkeypatch.setattr(tfds, "read", lambda *_: read)  # prepared before, or downloaded now
    assert len(cifar.load(FEW, "train")) == 3
    assert "Skipped: " in capsys.readouterr().err
    shutil.rmtree(cache)
    (cache.parent / "cifar-10-batches-py.tar.gz").write_bytes(b"half of an archive")
    assert len(cifar.load(FEW, "train")) == 3


@pytest.mark.parametrize(
    ("folder", "message"),
    [("~nobody-here/images", "Set HOME, "), ("gs://bucket/images", "is not a local path")],
)
def test_a_folder_that_cannot_be_one_is_refused(folder, message, monkeypatch):
    """A user without a home; a bucket."""
    monkeypatch.setenv("JAXCIFAR_DATA", folder)
    for given in ("", folder):
        with pytest.raises(UserError, match=message):
            cifar.load(FEW, "test", given)


# --- several in one folder --------------------------------------------------------------------


def test_a_torchvision_root_has_the_archive_and_its_folder(few, expected, tmp_path, capsys):
    folder = write_python(tmp_path / "cifar-10-batches-py", few)
    pack(folder, tmp_path / "cifar-10-python.tar.gz")
    check(tmp_path, expected)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_that_disagree_are_refused(few, expected, tmp_path, split):
    write_binary(tmp_path / "cifar-10-batches-bin", few)
    changed = dict(few)
    name = "data_batch_4" if split == "train" else "test_batch"
    changed[name] = (few[name][0] ^ (np.arange(3072) == 7).astype(np.uint8), few[name][1])
    write_python(tmp_path / "cifar-10-batches-py", changed)
    with pytest.raises(UserError, match=f"cifar-10-batches-bin and .*-py hold different {split}"):
        cifar.load(FEW, split, str(tmp_path))
    shutil.rmtree(tmp_path / "cifar-10-batches-bin")
    cifar.load(FEW, split, str(tmp_path))


def test_the_same_labels_of_other_images_disagree(few, tmp_path):
    write_binary(tmp_path / "cifar-10-batches-bin", few)
    pixels, labels = few["test_batch"]
    changed = few | {"test_batch": (pixels, (labels + 1) % 10)}
    write_python(tmp_path / "cifar-10-batches-py", changed)
    with pytest.raises(UserError, match="different test images"):
        cifar.load(FEW, "test", str(tmp_path))


def test_a_whole_folder_beside_half_a_one(few, expected, tmp_path, capsys):
    half = {name: few[name] for name in NAMES[:2]}
    write_binary(tmp_path / "cifar-10-batches-bin", half)
    write_python(tmp_path / "cifar-10-batches-py", few)
    check(tmp_path, expected)
    [line] = capsys.readouterr().err.splitlines()  # of the training images alone
    assert "cifar-10-batches-bin contains only a part" in line
    assert "cifar-10-batches-py is used" in line


def test_a_whole_archive_beside_a_damaged_one(few, tmp_path):
    write_python(tmp_path / "cifar-10-batches-py", few)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"<html>")
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz is damaged"):
        cifar.load(FEW, "test", str(tmp_path))
    os.rename(tmp_path / "cifar-10-batches-py", tmp_path / "elsewhere")
    write_binary(tmp_path / "cifar-10-batches-bin", few)
    (tmp_path / "cifar-10-binary.tar.gz").unlink()
    write_python(tmp_path / "cifar-10-batches-py", few)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(b"x")
    with pytest.raises(UserError, match=r"is damaged.*Or move it elsewhere: .*-bin is there too"):
        cifar.load(FEW, "test", str(tmp_path))


# --- archives that somebody else packed -------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_what_is_no_file_in_an_archive_is_not_read(tmp_path, kind):
    stream, info = io.BytesIO(), tarfile.TarInfo("a/test_batch.bin")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(info)
    gz(tmp_path / "cifar-10-binary.tar.gz", stream.getvalue())
    with pytest.raises(UserError, match=r"lacks test_batch\.bin"):
        cifar.load(FEW, "test", str(tmp_path))


# --- pictures in a folder for each class ------------------------------------------------------


def write_classes(folder, expected, spec=FEW):
    counts = {}
    for split, (images, labels) in expected.items():
        for image, label in zip(images, labels, strict=True):
            place = folder / split / spec.class_names[label]
            place.mkdir(parents=True, exist_ok=True)
            number = counts[place] = counts.get(place, 0) + 1
            (place / f"{number}.png").write_bytes(png(image))  # "10.png" is after "9.png"
    return folder


def test_jpeg_in_a_folder_for_each_class(expected, tmp_path):
    for path in write_classes(tmp_path, expected).glob("*/*/*.png"):
        path.rename(path.with_suffix(".jpg"))
        path.with_name(".DS_Store").touch()
    with pytest.raises(UserError, match=r"no \.png files, only files like \d+\.jpg"):
        cifar.load(FEW, "train", str(tmp_path))


def test_a_folder_for_each_class(expected, tmp_path):
    # The classes come in turn in the made-up set, so that the order is the same.
    check(write_classes(tmp_path, expected), expected)


def test_a_folder_for_each_class_agrees_in_another_order(few, expected, tmp_path):
    write_classes(tmp_path, {"train": expected["train"], "test": expected["test"]})
    shuffled = {}
    order = np.random.default_rng(0).permutation(20)
    for name, (pixels, labels) in few.items():
        shuffled[name] = pixels[order], labels[order]
    write_binary(tmp_path / "cifar-10-batches-bin", shuffled)
    found = cifar.load(FEW, "test", str(tmp_path))
    np.testing.assert_array_equal(found.labels, LABELS[order])
    (tmp_path / "test" / "cat" / "1.png").write_bytes(png(expected["test"][0][0]))
    with pytest.raises(UserError, match="hold different test images"):
        cifar.load(FEW, "test", str(tmp_path))


def test_cifar100_in_class_folders_and_again(tmp_path):
    generator = np.random.default_rng(5)
    classes = np.arange(120) % 100
    sets = {
        split: (generator.integers(0, 256, (120, 3072), dtype=np.uint8), classes % 20, classes)
        for split in ("train", "test")
    }
    images = {
        split: (pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels)
        for split, (pixels, _, labels) in sets.items()
    }
    check(write_classes(tmp_path / "png", images, FEW100), images, FEW100)
    # Keras' name of the archive is the official one; its folder has an ending.
    write100(tmp_path / "keras" / "cifar-100-python-target" / "cifar-100-python", sets)
    check(tmp_path / "keras", images, FEW100)
    write_parquet(tmp_path / "hf" / "cifar100", images, label="fine_label")
    check(tmp_path / "hf", images, FEW100)


PICTURE = np.zeros((32, 32, 3), np.uint8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot identify"),
        (png(PICTURE)[:60], "is damaged"),
        (png(PICTURE, (28, 28)), "28×28 pixels, not 32×32"),
        (png(PICTURE, (3000, 3000), "L"), "3000×3000 pixels"),
        (png(PICTURE, mode="RGBA"), "of type RGBA, not RGB"),
        (png(PICTURE) + bytes(2**14), "bytes, more than"),
        (b"GIF89a" + png(PICTURE), "cannot identify"),
    ],
)
def test_pictures_that_are_none(expected, tmp_path, content, message):
    write_classes(tmp_path, expected)
    (tmp_path / "test" / "ship" / "2.png").write_bytes(content)
    with pytest.raises(UserError, match=r"ship/2\.png is damaged") as error:
        cifar.load(FEW, "test", str(tmp_path))
    assert message in str(error.value)
    cifar.load(FEW, "train", str(tmp_path))


def test_gray_and_palette_pictures_are_read_as_colours(expected, tmp_path):
    write_classes(tmp_path, expected)
    gray = np.full((32, 32, 3), 51, np.uint8)  # a colour of the palette
    for number, mode in ((1, "L"), (2, "P")):
        (tmp_path / "test" / "cat" / f"{number}.png").write_bytes(png(gray, mode=mode))
    found = cifar.load(FEW, "test", str(tmp_path))
    assert (found.images[found.labels == 3] == 51).all()


def test_class_folders_that_lack_something(expected, tmp_path):
    write_classes(tmp_path, expected)
    (tmp_path / "test" / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match="holds 19 test images, and CIFAR-10 has 20"):
        cifar.load(FEW, "test", str(tmp_path))
    os.mkfifo(tmp_path / "test" / "dog" / "1.png")
    with pytest.raises(UserError, match=r"dog/1\.png is missing, or is not a file"):
        cifar.load(FEW, "test", str(tmp_path))
    shutil.rmtree(tmp_path / "train" / "frog")
    with pytest.raises(UserError, match="only a part of CIFAR-10: train/frog/ is missing"):
        cifar.load(FEW, "test", str(tmp_path))


# --- Kaggle -----------------------------------------------------------------------------------


def write_kaggle(folder, expected, place="train"):
    (folder / place).mkdir(parents=True, exist_ok=True)
    with (folder / "trainLabels.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(["id", "label"])
        for number, (image, label) in enumerate(zip(*expected["train"], strict=True), start=1):
            table.writerow([number, FEW.class_names[label]])
            (folder / place / f"{number}.png").write_bytes(png(image))
    return folder


def test_a_quote_without_its_end_in_the_table_of_kaggle(expected, tmp_path):
    write_kaggle(tmp_path, expected)
    table = tmp_path / "trainLabels.csv"
    table.write_text(table.read_text().replace("\n", '\n"', 1) + "x" * 200_000)
    with pytest.raises(UserError, match=r"trainLabels\.csv.*field larger than"):
        cifar.load(FEW, "train", str(tmp_path))


@pytest.mark.parametrize("place", ["train", "train/train"])
def test_kaggle(expected, tmp_path, place):
    write_kaggle(tmp_path, expected, place)
    table = tmp_path / "trainLabels.csv"
    if place == "train/train":  # as some programs save a table again
        table.write_text(table.read_text(), encoding="utf-8-sig")
    train = cifar.load(FEW, "train", str(tmp_path))
    np.testing.assert_array_equal(train.images, expected["train"][0])
    np.testing.assert_array_equal(train.labels, expected["train"][1])
    with pytest.raises(data.Unlabelled, match=r"have no labels.*protocol=holdout"):
        cifar.load(FEW, "test", str(tmp_path))
    held = splits.split(train, None, protocol="holdout")
    assert (len(held.train), len(held.validation), held.test) == (90, 10, None)
    with pytest.raises(UserError, match="no test images"):
        splits.split(train, None, protocol="test")


@pytest.mark.parametrize("other", ["archive", "classes"])
def test_kaggle_beside_another_form(few, expected, tmp_path, other):
    """Its test images have no labels, and so contradict no others; the order is the other's."""
    if other == "classes":
        write_classes(tmp_path, expected)
    else:
        write_binary(tmp_path / "cifar-10-batches-bin", few)
    images, labels = expected["train"]
    write_kaggle(tmp_path, {"train": (images[::-1], labels[::-1])})
    for split in ("train", "test"):
        found = cifar.load(FEW, split, str(tmp_path))
        np.testing.assert_array_equal(found.labels, expected[split][1])


def test_cifar10_of_kaggle_and_of_hugging_face_is_not_cifar100(expected, tmp_path):
    images = {split: (x, y.astype(np.int32)) for split, (x, y) in expected.items()}
    spec = dataclasses.replace(FEW, name="cifar100")
    write_kaggle(tmp_path, expected)
    write_parquet(tmp_path / "plain_text", images)
    assert pictures.find(spec, tmp_path) == []
    assert len(pictures.find(FEW, tmp_path)) == 2


def test_what_macos_adds_is_no_picture(expected, tmp_path):
    write_classes(tmp_path, expected)
    (tmp_path / "train" / FEW.class_names[0] / "._1.png").write_bytes(b"\0\5\x16\7")
    check(tmp_path, expected)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../../secret,cat", "row '../../secret', 'cat', not a number and a class"),
        ("7,lion", "row '7', 'lion'"),
        ("101,cat", "holds 101 train images"),
        ("7,cat", "it lists an image twice"),
        ("7", "row '7', ''"),
    ],
)
def test_tables_of_labels_that_are_wrong(expected, tmp_path, row, message):
    write_kaggle(tmp_path, expected)
    with (tmp_path / "trainLabels.csv").open("a") as stream:
        stream.write(row + "\n")
    with pytest.raises(UserError) as error:
        cifar.load(FEW, "train", str(tmp_path))
    assert message in str(error.value)


def test_kaggle_not_unpacked(tmp_path):
    (tmp_path / "trainLabels.csv").write_text("id,label\n1,cat\n")
    with pytest.raises(UserError, match=r"train/ \(unpack train\.7z\) is missing"):
        cifar.load(FEW, "train", str(tmp_path))


# --- Parquet ----------------------------------------------------------------------------------


def write_parquet(folder, expected, label="label", pattern="{}-00000-of-00001.parquet"):
    import pyarrow
    from pyarrow import parquet

    for split, (images, labels) in expected.items():
        path = folder / pattern.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = [{"bytes": png(image), "path": None} for image in images]
        # Hugging Face's `datasets` writes groups of 100 rows.
        parquet.write_table(pyarrow.table({"img": pictures, label: labels}), path, row_group_size=7)
    return folder


@pytest.mark.parametrize(
    ("place", "pattern"),
    [
        ("plain_text", "{}-00000-of-00001.parquet"),
        (".", "{}-00000-of-00001.parquet"),
        ("plain_text", "{}/0000.parquet"),
    ],
)
def test_parquet(expected, tmp_path, place, pattern):
    write_parquet(tmp_path / place, expected, pattern=pattern)
    check(tmp_path, expected)


def test_parquet_that_is_wrong(expected, tmp_path, monkeypatch):
    folder = write_parquet(tmp_path / "x", expected, label="fine_label")
    with pytest.raises(UserError, match=r"parquet is damaged: .*but no \['label'\]"):
        cifar.load(FEW, "test", str(folder))
    folder = write_parquet(tmp_path / "y", {"train": expected["test"], "test": expected["train"]})
    with pytest.raises(UserError, match="holds 20 train images, and CIFAR-10 has 100"):
        cifar.load(FEW, "train", str(folder))
    with pytest.raises(UserError, match=r"100 images of .* bytes are too many"):
        cifar.load(FEW, "test", str(folder))
    [path] = folder.glob("test-*")
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"test-.*\.parquet is damaged"):
        cifar.load(FEW, "test", str(folder))
    path.unlink()
    with pytest.raises(UserError, match=r"test-\*\.parquet is missing"):
        cifar.load(FEW, "train", str(folder))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'jaxcifar\[parquet\]'"):
        cifar.load(FEW, "test", str(write_parquet_without_reading(tmp_path / "z")))


def write_parquet_without_reading(folder):
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}-0.parquet").touch()
    return folder
