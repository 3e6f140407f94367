"""Every source of images, and every way a source can be damaged."""

import dataclasses
import hashlib
import pathlib
import pickle
import tarfile
import time

import numpy as np
import pytest

from jaxcifar import data
from jaxcifar.data import cifar
from jaxcifar.errors import UserError

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def with_records(spec: cifar.Spec, count: int) -> cifar.Spec:
    """Returns a small data set of the same kind: `count` records in each file."""
    train, test = (
        [file._replace(records=count) for file in files] for files in (spec.train, spec.test)
    )
    return dataclasses.replace(spec, train=tuple(train), test=tuple(test))


@pytest.fixture(scope="module")
def records():
    """Six files of 10,000 (pixels [3072] channel-planar, label) records, made up."""
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.integers(0, 256, (10_000, 3072), dtype=np.uint8),
            generator.integers(0, 10, 10_000),
        )
        for name in NAMES
    }


def write_binary(folder: pathlib.Path, records) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in records.items():
        rows = np.concatenate([labels[:, None].astype(np.uint8), pixels], axis=1)
        (folder / f"{name}.bin").write_bytes(rows.tobytes())
    return folder


def write_python(folder: pathlib.Path, records) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pixels, labels) in records.items():
        content = {b"data": pixels, b"labels": [int(label) for label in labels]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def pack(folder: pathlib.Path, archive: pathlib.Path) -> pathlib.Path:
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(folder, folder.name)
    return archive


@pytest.fixture(scope="module")
def binary(records, tmp_path_factory):
    return write_binary(tmp_path_factory.mktemp("b") / "cifar-10-batches-bin", records)


def check(dataset, records, split):
    """The first image of each file, pixel by pixel from the channel-planar record."""
    names = NAMES[:5] if split == "train" else NAMES[5:]
    assert dataset.images.shape == (10_000 * len(names), 32, 32, 3)
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int32)
    for i, name in enumerate(names):
        pixels, labels = records[name]
        image = dataset.images[10_000 * i]
        assert image[2, 5, 1] == pixels[0][1 * 1024 + 2 * 32 + 5]  # row 2, column 5, green
        np.testing.assert_array_equal(dataset.labels[10_000 * i : 10_000 * (i + 1)], labels)
    assert dataset.class_names[0] == "airplane"
    assert dataset.provenance["official"] is False
    assert dataset.provenance["images"] == len(dataset)


@pytest.mark.parametrize("split", ["train", "test"])
def test_binary_folder_and_its_parent(binary, records, split):
    for folder in (binary, binary.parent):
        check(data.load("cifar10", split, data_dir=str(folder)), records, split)


def test_python_folder_and_both_archives(binary, records, tmp_path):
    python = write_python(tmp_path / "p" / "cifar-10-batches-py", records)
    reference = data.load("cifar10", "test", data_dir=str(binary)).provenance["sha256"]
    pack(binary, (tmp_path / "b").mkdir() or tmp_path / "b" / "cifar-10-binary.tar.gz")
    (tmp_path / "a").mkdir()
    pack(python, tmp_path / "a" / "cifar-10-python.tar.gz")
    for folder in (python.parent, tmp_path / "a", tmp_path / "b"):
        dataset = data.load("cifar10", "test", data_dir=str(folder))
        check(dataset, records, "test")
        assert dataset.provenance["sha256"] == reference  # the same images, whatever the source


def test_official_by_checksum(binary, tmp_path):
    archive = pack(binary, tmp_path / "cifar-10-binary.tar.gz")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    spec = dataclasses.replace(cifar.CIFAR10, binary=cifar.CIFAR10.binary._replace(md5=md5))
    assert cifar.load(spec, "test", str(tmp_path)).provenance["official"] is True


def test_environment_variable_names_the_folder(binary, records, monkeypatch):
    monkeypatch.setenv("JAXCIFAR_DATA", str(binary))
    check(data.load("cifar10", "test"), records, "test")


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_3", lambda raw: raw[:-1], "30,729,999 bytes instead of 30,730,000"),
        ("data_batch_1", lambda raw: b"\x0a" + raw[1:], "record 0 has the label 10"),
        ("data_batch_5", lambda raw: raw + b"\0", "damaged"),
    ],
)
def test_damaged_binary_file(records, tmp_path, name, change, message):
    folder = write_binary(tmp_path, records)
    file = folder / f"{name}.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        data.load("cifar10", "train", data_dir=str(folder))
    assert name in str(error.value)


def test_half_a_data_set(records, tmp_path):
    folder = write_binary(tmp_path / "cifar-10-batches-bin", records)
    (folder / "data_batch_4.bin").unlink()
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"data_batch_4\.bin is missing"):
            data.load("cifar10", split, data_dir=str(tmp_path))


def test_truncated_and_foreign_archives(binary, tmp_path):
    archive = pack(binary, tmp_path / "cifar-10-binary.tar.gz")
    raw = archive.read_bytes()
    archive.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(UserError, match="cannot be read to its end"):
        data.load("cifar10", "test", data_dir=str(tmp_path))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "readme").write_text("not it")
    pack(tmp_path / "x", archive)
    with pytest.raises(UserError, match=r"holds no test_batch\.bin"):
        data.load("cifar10", "test", data_dir=str(tmp_path))


class Evil:
    def __reduce__(self):
        return (print, ("code of a pickle ran",))


@pytest.mark.parametrize(
    "content",
    [
        b"not a pickle",
        pickle.dumps({b"data": Evil(), b"labels": []}),
        pickle.dumps({b"data": np.zeros((5, 3072), np.uint8), b"labels": [0] * 5}, protocol=2),
        pickle.dumps({b"labels": []}),
    ],
)
def test_damaged_pickle(tmp_path, content, capsys):
    for name in NAMES:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        data.load("cifar10", "test", data_dir=str(tmp_path))
    assert "ran" not in capsys.readouterr().out


def test_missing_data_set_fails_fast_and_says_the_way_out(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(cifar.socket, "create_connection", unreachable)
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        data.load("cifar10", "train", data_dir=str(tmp_path))
    assert time.monotonic() - began < 30  # tfds alone would retry for minutes
    for part in (str(tmp_path), "cifar-10-python.tar.gz", "--config.data.dir", "quickstart"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="not a folder"):
        data.load("cifar10", "train", data_dir=str(tmp_path / "none"))


# --- tensorflow-datasets ----------------------------------------------------------------------


def test_tfds_prepares_and_is_read_in_the_official_order(records, tmp_path, monkeypatch):
    """tfds' own generation, on a made-up archive in the place of the download."""
    import tensorflow_datasets as tfds

    spec = with_records(cifar.CIFAR10, 100)  # tfds takes a minute for all 60,000
    records = {name: (pixels[:100], labels[:100]) for name, (pixels, labels) in records.items()}
    extracted = tmp_path / "extracted"
    folder = write_binary(extracted / "cifar-10-batches-bin", records)
    (folder / "batches.meta.txt").write_text("\n".join(spec.class_names) + "\n")
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(extracted)
    )
    monkeypatch.setattr(cifar, "_require_network", lambda spec, folder: None)
    (tmp_path / "tfds").mkdir()
    for split in ("train", "test"):
        dataset = cifar.load(spec, split, str(tmp_path / "tfds"))
        names = NAMES[:5] if split == "train" else NAMES[5:]
        for of_files, of_dataset in ((0, dataset.images), (1, dataset.labels)):
            expected = np.concatenate([records[name][of_files] for name in names])
            if of_files == 0:
                expected = expected.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            np.testing.assert_array_equal(of_dataset, expected)
        assert "tensorflow-datasets" in dataset.provenance["source"]


# --- the others -------------------------------------------------------------------------------


def test_digits_are_the_real_ones_split_once():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1442, 355)
    assert train.images.shape[1:] == (32, 32, 3)
    seen = {image.tobytes() for image in train.images}
    assert sum(image.tobytes() in seen for image in test.images) == 0
    assert np.bincount(test.labels).min() >= 34  # a fifth of each class
    pixels = train.images / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), train.mean, atol=5e-4)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), train.std, atol=5e-4)


def test_synthetic_is_repeatable_and_learnable():
    one, two = (data.load("synthetic", "train", size=100) for _ in range(2))
    np.testing.assert_array_equal(one.images, two.images)
    assert (np.bincount(one.labels) == 10).all()
    test = data.load("synthetic", "test")
    means = np.stack([one.images[one.labels == c].mean(0) for c in range(10)])
    distance = ((test.images[:, None] - means) ** 2).sum((2, 3, 4))
    assert (distance.argmin(1) == test.labels).mean() > 0.9
    with pytest.raises(UserError, match="only 'synthetic'"):
        data.load("digits", "train", size=5)


def test_holdout_is_a_tenth_of_each_class_and_fixed():
    train = data.load("synthetic", "train", size=1000)
    kept, held = data.split_holdout(train)
    assert (len(kept), len(held)) == (900, 100)
    assert (np.bincount(held.labels) == 10).all()
    both = {image.tobytes() for image in kept.images} & {image.tobytes() for image in held.images}
    assert not both
    again = data.split_holdout(train)[1]
    np.testing.assert_array_equal(held.images, again.images)
    assert held.provenance["sha256"] != kept.provenance["sha256"]


def test_unknown_names():
    with pytest.raises(UserError, match="Did you mean 'cifar10'"):
        data.load("cifar100", "train")
    with pytest.raises(UserError, match="train, test"):
        data.load("digits", "validation")


def test_real_cifar10(cifar10_dir):
    train = data.load("cifar10", "train", data_dir=cifar10_dir)
    test = data.load("cifar10", "test", data_dir=cifar10_dir)
    assert (np.bincount(train.labels) == 5000).all()
    assert (np.bincount(test.labels) == 1000).all()
    pixels = train.images[::10] / np.float32(255)
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), train.mean, atol=0.005)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), train.std, atol=0.005)
    # The first images of the training set are a frog and two trucks.
    assert [train.class_names[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]


def test_fingerprint_is_of_pixels_and_labels():
    images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.array([1, 2], np.int32)
    expected = hashlib.sha256(images.tobytes() + bytes([1, 2])).hexdigest()
    assert data.dataset.fingerprint(images, labels) == expected
