"""Every source of images, and every way a source can be damaged."""

import dataclasses
import errno
import fcntl
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import pathlib
import pickle
import re
import shutil
import struct
import sys
import tarfile
import threading
import time
import tracemalloc

import numpy as np
import pytest

from jaxcifar import data
from jaxcifar.data import cifar, tfds
from jaxcifar.errors import Temporary, UserError
from jaxcifar.files import read_lines
from tests.tiny import run, tiny

NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def with_records(spec: cifar.Spec, count: int) -> cifar.Spec:
    """Returns a small data set of the same kind: `count` records in each file."""
    train, test = (
        [file._replace(records=count) for file in files] for files in (spec.train, spec.test)
    )
    return dataclasses.replace(spec, train=tuple(train), test=tuple(test))


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
def few():
    """Six files of 20 (pixels [3072] channel-planar, label) records, made up."""
    generator = np.random.default_rng(0)
    return {
        name: (
            generator.integers(0, 256, (20, 3072), dtype=np.uint8),
            generator.integers(0, 10, 20),
        )
        for name in NAMES
    }


FEW = with_records(cifar.CIFAR10, 20)


def check_few(dataset, few, split):
    names = NAMES[:5] if split == "train" else NAMES[5:]
    pixels, labels = (np.concatenate([few[name][i] for name in names]) for i in (0, 1))
    np.testing.assert_array_equal(
        dataset.images, pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    )
    np.testing.assert_array_equal(dataset.labels, labels)
    assert (dataset.images.dtype, dataset.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("split", ["train", "test"])
def test_binary_folder_and_its_parent(few, tmp_path, split):
    folder = write_binary(tmp_path / "cifar-10-batches-bin", few)
    for place in (folder, tmp_path):
        dataset = cifar.load(FEW, split, str(place))
        check_few(dataset, few, split)
        assert dataset.class_names[0] == "airplane"
        assert dataset.provenance["official"] is False
        assert dataset.provenance["images"] == len(dataset)


def test_python_folder_and_both_archives(few, tmp_path):
    binary = write_binary(tmp_path / "c" / "cifar-10-batches-bin", few)
    python = write_python(tmp_path / "p" / "cifar-10-batches-py", few)
    reference = cifar.load(FEW, "test", str(binary)).provenance["sha256"]
    pack(binary, (tmp_path / "b").mkdir() or tmp_path / "b" / "cifar-10-binary.tar.gz")
    (tmp_path / "a").mkdir()
    pack(python, tmp_path / "a" / "cifar-10-python.tar.gz")
    for folder in (python.parent, tmp_path / "a", tmp_path / "b"):
        dataset = cifar.load(FEW, "test", str(folder))
        check_few(dataset, few, "test")
        assert dataset.provenance["official"] is False
        assert dataset.provenance["sha256"] == reference  # the same images, whatever the source


def test_environment_variable_names_the_folder(few, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXCIFAR_DATA", str(write_binary(tmp_path / "images", few)))
    check_few(cifar.load(FEW, "test"), few, "test")


# --- CIFAR-100 --------------------------------------------------------------------------------

FEW100 = with_records(cifar.CIFAR100, 120)


@pytest.fixture(scope="module")
def few100():
    """Two files of 120 (pixels, superclass, class) records with every class, made up."""
    generator = np.random.default_rng(1)
    classes = np.arange(120) % 100
    return {
        name: (generator.integers(0, 256, (120, 3072), dtype=np.uint8), classes % 20, order)
        for name, order in (("train", classes), ("test", classes[::-1]))
    }


def write100(folder: pathlib.Path, few100) -> pathlib.Path:
    """Writes the binary or the Python format, whichever the folder's name is of."""
    folder.mkdir(parents=True)
    for name, (pixels, superclasses, classes) in few100.items():
        if folder.name == "cifar-100-binary":
            rows = np.concatenate(
                [np.stack([superclasses, classes], 1).astype(np.uint8), pixels], 1
            )
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {b"data": pixels, b"coarse_labels": superclasses.tolist()}
            content[b"fine_labels"] = classes.tolist()
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def check100(dataset, few100, split):
    pixels, _, classes = few100[split]
    expected = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(dataset.images, expected)
    np.testing.assert_array_equal(dataset.labels, classes)
    assert (dataset.provenance["name"], len(dataset.class_names)) == ("cifar100", 100)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("release", [FEW100.binary, FEW100.python], ids=["binary", "python"])
def test_cifar100_folder_and_archive(few100, tmp_path, release, split):
    folder = write100(tmp_path / "a" / release.folder, few100)
    archive = pack(folder, (tmp_path / "b").mkdir() or tmp_path / "b" / release.archive)
    for place in (folder, folder.parent, archive.parent):
        dataset = cifar.load(FEW100, split, str(place))
        check100(dataset, few100, split)
        assert dataset.provenance["official"] is False
    release = release._replace(md5=hashlib.md5(archive.read_bytes()).hexdigest())
    kind = "binary" if release.archive == FEW100.binary.archive else "python"
    spec = dataclasses.replace(FEW100, **{kind: release})
    assert cifar.load(spec, split, str(archive.parent)).provenance["official"] is True


def test_cifar100_is_a_name_and_full_size(tmp_path):
    rows = np.zeros((10_000, 2 + 3072), np.uint8)
    rows[:, 0], rows[:, 1] = 19, np.arange(10_000) % 100
    (tmp_path / "test.bin").write_bytes(rows.tobytes())
    (tmp_path / "train.bin").touch()  # is looked at for the other split only
    dataset = data.load("cifar100", "test", data_dir=str(tmp_path))
    assert dataset.images.shape == (10_000, 32, 32, 3)
    assert (np.bincount(dataset.labels) == 100).all()
    with pytest.raises(UserError, match="0 bytes instead of 153,700,000"):
        data.load("cifar100", "train", data_dir=str(tmp_path))


def test_cifar100_classes_are_in_alphabetical_order():
    names = cifar.CIFAR100.class_names
    assert len(set(names)) == 100
    assert names == tuple(sorted(names))


def test_cifar100_label_out_of_range(few100, tmp_path):
    folder = write100(tmp_path / "cifar-100-binary", few100)
    raw = bytearray((folder / "test.bin").read_bytes())
    raw[1] = 100
    (folder / "test.bin").write_bytes(raw)
    with pytest.raises(UserError, match="record 0 has the label 100, not 0 to 99"):
        cifar.load(FEW100, "test", str(folder))


def test_cifar10_and_cifar100_share_a_folder(few, few100, tmp_path, monkeypatch):
    pack(write_binary(tmp_path / "x" / "c", few), tmp_path / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(tfds.socket, "create_connection", unreachable)
    with pytest.raises(UserError, match=r"CIFAR-100 was not found.*") as error:
        cifar.load(FEW100, "test", str(tmp_path))
    for part in ("cifar-100-binary.tar.gz", "cifar-100-python/", "without CIFAR-100"):
        assert part in str(error.value)
    write100(tmp_path / "cifar-100-python", few100)
    check_few(cifar.load(FEW, "test", str(tmp_path)), few, "test")
    check100(cifar.load(FEW100, "test", str(tmp_path)), few100, "test")


def unreachable(*args, **kwargs):
    raise OSError("Name or service not known")


def test_a_part_of_a_part_says_both(few, tmp_path):
    whole = data.load("synthetic", "train")
    part = whole.take(slice(100), "training part").take(slice(10), "the first 10")
    assert part.provenance["subset"] == "the first 10 of the training part"


# --- damage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("data_batch_3", lambda raw: raw[:-1], "61,459 bytes instead of 61,460"),
        ("data_batch_1", lambda raw: b"\x0a" + raw[1:], "record 0 has the label 10"),
        ("data_batch_5", lambda raw: raw + b"\0", "damaged"),
    ],
)
def test_damaged_binary_file(few, tmp_path, name, change, message):
    folder = write_binary(tmp_path, few)
    file = folder / f"{name}.bin"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        cifar.load(FEW, "train", str(folder))
    assert name in str(error.value)


def test_half_a_data_set(few, tmp_path):
    folder = write_binary(tmp_path / "cifar-10-batches-bin", few)
    (folder / "data_batch_4.bin").unlink()
    for split in ("train", "test"):
        with pytest.raises(UserError, match=r"data_batch_4\.bin is missing"):
            cifar.load(FEW, split, str(tmp_path))


def gz(path: pathlib.Path, content: bytes) -> pathlib.Path:
    path.write_bytes(gzip.compress(content, 1))
    return path


def tar(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_foreign_archive(tmp_path):
    gz(tmp_path / "cifar-10-binary.tar.gz", tar({"x/readme": b"not it"}))
    with pytest.raises(UserError, match=r"lacks test_batch\.bin: it is not the CIFAR-10"):
        data.load("cifar10", "test", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "cannot be read to its end"),
        (lambda raw: raw[:-8], "cannot be read to its end"),  # all records, but no checksum
        (lambda raw: raw[:-8] + bytes(4) + raw[-4:], "CRC check failed"),
        (lambda raw: raw[:-4] + bytes(4), "Incorrect length"),
        (lambda raw: raw[:200_000] + bytes([raw[200_000] ^ 16]) + raw[200_001:], "cannot be read"),
        (lambda raw: raw + b"more", "cannot be read to its end"),
        (lambda raw: b"", "cannot be read to its end"),
        (lambda raw: gzip.decompress(raw), "Not a gzipped file"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_archive_whose_bytes_are_not_what_was_packed(few, tmp_path, change, message, split):
    archive = pack(
        write_binary(tmp_path / "cifar-10-batches-bin", few), tmp_path / "cifar-10-binary.tar.gz"
    )
    check_few(cifar.load(FEW, split, str(tmp_path)), few, split)
    archive.write_bytes(change(archive.read_bytes()))
    with pytest.raises(UserError, match="is damaged") as error:
        cifar.load(FEW, split, str(tmp_path))
    assert message in str(error.value)


SIZE = 20 * 3073  # of a file of FEW
EXTENDED_HEADER = tarfile.TarInfo.create_pax_global_header({"comment": ""})


def test_archive_that_unpacks_to_too_much_stops_early(tmp_path):
    bomb = gzip.compress(bytes(2**26), 1)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(bomb[:-100])  # whose end is never seen
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"is damaged: it holds more than the 1,417,336 bytes"):
            cifar.load(FEW, "test", str(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 2**23
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar({"a/data_batch_1.bin": bytes(SIZE + 1)}), "61,461 bytes instead of 61,460"),
        (tar({"a/data_batch_1.bin": bytes(SIZE - 1)}), "61,459 bytes instead of 61,460"),
        (tar({"a/test_batch.bin": bytes(SIZE)})[:9_000], "unexpected end of data"),
        (EXTENDED_HEADER * 1000, "recursion"),
    ],
    ids=["long", "short", "cut", "nested"],
)
def test_archive_of_other_contents(tmp_path, content, message):
    gz(tmp_path / "cifar-10-binary.tar.gz", content)
    with pytest.raises(UserError, match="is damaged") as error:
        cifar.load(FEW, "test", str(tmp_path))
    assert message in str(error.value)


def test_file_of_a_wrong_size_is_not_read(few, tmp_path):
    folder = write_binary(tmp_path / "b", few)
    write_python(tmp_path / "p", few)
    for path in (folder / "test_batch.bin", tmp_path / "p" / "test_batch"):
        with path.open("r+b") as stream:
            stream.truncate(10**12)
        with pytest.raises(UserError, match=r"1,000,000,000,000 bytes instead of"):
            cifar.load(FEW, "test", str(path.parent))


def test_an_archive_whose_server_does_not_answer_for_a_while_is_not_damaged(tmp_path, monkeypatch):
    (tmp_path / "cifar-10-binary.tar.gz").touch()

    def stale(path, *_):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(gzip, "open", stale)
    with pytest.raises(Temporary, match=r"cifar-10-binary.tar.gz: Stale file handle\.$"):
        data.load("cifar10", "test", data_dir=str(tmp_path))


class Evil:
    def __init__(self, function=print, *arguments):
        self.made = function, arguments or ("code of a pickle ran",)

    def __reduce__(self):
        return self.made


class OfObjects:
    """An array whose bytes would be taken for the addresses of objects."""

    def __reduce__(self):
        return (
            np.zeros(0).__reduce__()[0],
            (np.ndarray, (0,), b"b"),
            (1, (2,), Hidden(), 0, b"A" * 16),
        )


class Hidden:
    """Its dtype, which says that it holds none."""

    def __reduce__(self):
        fields = {"a": (np.dtype("O"), 0)}
        return np.dtype, ("V8", False, True), (4, "|", None, ("a",), fields, 8, 1, 0, None)


@pytest.mark.parametrize(
    "content",
    [
        b"not a pickle",
        pickle.dumps({b"data": Evil(), b"labels": []}),
        pickle.dumps({b"data": np.zeros((5, 3072), np.uint8), b"labels": [0] * 5}, protocol=2),
        pickle.dumps({b"labels": []}),
        pickle.dumps({b"data": Evil(np.ndarray, (2,), "O", b"A" * 16), b"labels": []}),
        pickle.dumps({b"data": OfObjects(), b"labels": []}),
    ],
)
def test_damaged_pickle(tmp_path, content, capsys):
    for name in NAMES:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        data.load("cifar10", "test", data_dir=str(tmp_path))
    assert "ran" not in capsys.readouterr().out


def pickled(tmp_path, **replaced):
    """Writes six pickles of 20 records, all right but for what is replaced, and loads a split."""
    content = {b"data": np.zeros((20, 3072), np.uint8), b"labels": [0] * 20}
    content |= {name.encode(): value for name, value in replaced.items()}
    for name in NAMES:
        (tmp_path / name).write_bytes(pickle.dumps(content))
    return cifar.load(FEW, "test", str(tmp_path))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((20, 3072), np.float64), "float64"),
        (np.full((20, 3072), np.nan, np.float32), "float32"),
        (np.full((20, 3072), 256), "int64, are not from 0 to 255"),
        (np.full((20, 3072), -1, np.int8), "int8, are not from 0 to 255"),
        (np.full((20, 3072), None), "refused to load an array of 'O8'"),
        (np.zeros((20, 3072), bool), "bool"),
        (np.zeros((20, 32, 32, 3), np.uint8), "(20, 32, 32, 3)"),
        (None, "pixels of shape ()"),
    ],
)
def test_pixels_that_are_not_bytes(tmp_path, pixels, message):
    assert pickled(tmp_path, data=np.full((20, 3072), 255)).images.dtype == np.uint8
    with pytest.raises(UserError, match="test_batch is damaged") as error:
        pickled(tmp_path, data=pixels)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "not iterable"),
        (7, "not iterable"),
        ([0] * 19, "19 labels"),
        ([0] * 19 + [None], "record 19 has the label None, not 0 to 9"),
        ([0] * 19 + ["cat"], "record 19 has the label 'cat'"),
        ([0] * 19 + [float("nan")], "record 19 has the label nan"),
        ([0] * 19 + [1.0], "record 19 has the label 1.0"),
        ([0] * 19 + [10], "record 19 has the label 10"),
        ([0] * 19 + [-1], "record 19 has the label -1"),
        ([0] * 19 + [2**70], "record 19 has the label 1180591620717411303424"),
        ([0] * 19 + [10**5000], "4300"),
        ([0] * 19 + [[0]], "record 19 has the label [0]"),
        (np.full(20, np.nan), "record 0 has the label nan"),
        (np.zeros((20, 1), int), "record 0 has the label [0]"),
        ("x" * 20, "record 0 has the label 'x'"),
    ],
)
def test_labels_that_are_not_classes(tmp_path, labels, message):
    assert pickled(tmp_path, labels=np.full(20, 9)).labels.tolist() == [9] * 20
    with pytest.raises(UserError, match="test_batch is damaged") as error:
        pickled(tmp_path, labels=labels)
    assert message in str(error.value)


def python2_pickle(pixels, labels) -> bytes:
    """Returns a batch as Python 2 and NumPy 1 pickled it, which is how the official files are."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + number(-1) * 2 + number(0) + b"tb"
    shape = b"".join(map(number, pixels.shape)) + b"\x86"
    content = b"T" + struct.pack("<I", pixels.size) + pixels.tobytes()
    array = empty + text(b"b") + b"\x87R(" + number(1) + shape + dtype + b"\x89" + content + b"tb"
    items = text(b"data") + array + text(b"labels") + b"](" + b"".join(map(number, labels)) + b"e"
    return b"\x80\x02}(" + items + b"u."


def test_files_that_python_2_pickled(few, tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(python2_pickle(*few[name]))
    check_few(cifar.load(FEW, "train", str(tmp_path)), few, "train")
    md5s = [hashlib.md5((tmp_path / name).read_bytes()).hexdigest() for name in NAMES]
    train = tuple(
        file._replace(python_md5=md5) for file, md5 in zip(FEW.train, md5s[:5], strict=True)
    )
    spec = dataclasses.replace(FEW, train=train)
    assert cifar.load(spec, "train", str(tmp_path)).provenance["official"] is True
    assert cifar.load(spec, "test", str(tmp_path)).provenance["official"] is False


def test_missing_data_set_fails_fast_and_says_the_way_out(tmp_path, monkeypatch):
    import tensorflow_datasets

    asked = []

    def refuse(address, timeout):
        asked.append((address, timeout))
        raise OSError("Name or service not known")

    def download(*_):
        raise AssertionError("tfds was asked to download, which it retries for minutes")

    monkeypatch.setattr(tfds.urllib.request, "getproxies", dict)
    monkeypatch.setattr(tfds.socket, "create_connection", refuse)
    downloads = tensorflow_datasets.download.DownloadManager
    monkeypatch.setattr(downloads, "download", download)
    with pytest.raises(UserError) as error:
        data.load("cifar10", "train", data_dir=str(tmp_path))
    assert asked == [(("www.cs.toronto.edu", 443), 5)]  # once, and not for long
    for part in (str(tmp_path), "cifar-10-python.tar.gz", "--config.data.dir", "quickstart"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="not a folder"):
        data.load("cifar10", "train", data_dir=str(tmp_path / "none"))
    # Behind a proxy nothing else may be reached, but the proxy can be asked.
    for kind in ("https", "all"):
        proxies = {kind: "http://proxy:3128"}
        monkeypatch.setattr(tfds.urllib.request, "getproxies", lambda proxies=proxies: proxies)
        with pytest.raises(UserError, match="tfds was asked to download"):
            data.load("cifar10", "train", data_dir=str(tmp_path))
    assert len(asked) == 1


# --- tensorflow-datasets ----------------------------------------------------------------------


@pytest.fixture
def proxy(monkeypatch):
    """Where there is a proxy, whether the network can be reached is not asked."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "127.0.0.1")  # of the test's own server


@pytest.fixture
def served(monkeypatch, proxy, tmp_path):
    """Lets tfds download an archive of a folder from this machine, and know its checksum."""
    from tensorflow_datasets.core import DatasetBuilder, units
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import cifar as original

    (tmp_path / "served").mkdir()
    handler = functools.partial(SilentHandler, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def serve(spec, folder):
            archive = tmp_path / "served" / spec.binary.archive
            pack(folder, archive)
            url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
            builder = getattr(original, spec.builder)
            about = builder._cifar_info.fget(builder)._replace(url=url)
            monkeypatch.setattr(builder, "_cifar_info", about)
            content = archive.read_bytes()
            facts = units.Size(len(content)), hashlib.sha256(content).hexdigest(), archive.name
            known = {url: checksums.UrlInfo(*facts)}
            monkeypatch.setattr(checksums, "get_all_url_infos", lambda: known)
            monkeypatch.setattr(DatasetBuilder, "url_infos", known)

        yield serve
        server.shutdown()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def few_downloaded(few, tmp_path, served):
    """A folder for tfds to prepare the few images in: it takes a minute for all 60,000."""
    folder = write_binary(tmp_path / "extracted" / "cifar-10-batches-bin", few)
    (folder / "batches.meta.txt").write_text("\n".join(FEW.class_names) + "\n")
    served(FEW, folder)
    (tmp_path / "tfds").mkdir()
    return tmp_path / "tfds"


def test_tfds_prepares_and_is_read_in_the_official_order(few, few_downloaded):
    """tfds' own download and generation, of a made-up archive."""
    for split in ("train", "test"):
        dataset = cifar.load(FEW, split, str(few_downloaded))
        names = NAMES[:5] if split == "train" else NAMES[5:]
        for of_files, of_dataset in ((0, dataset.images), (1, dataset.labels)):
            expected = np.concatenate([few[name][of_files] for name in names])
            if of_files == 0:
                expected = expected.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            np.testing.assert_array_equal(of_dataset, expected)
        assert "tensorflow-datasets" in dataset.provenance["source"]


def test_tfds_prepared_by_another_process_meanwhile(few, few_downloaded, monkeypatch):
    import tensorflow_datasets

    builder = tensorflow_datasets.core.DatasetBuilder
    prepare = builder.download_and_prepare

    def late(self, **options):
        prepare(self, **options)
        raise FileExistsError("Cannot rename. Destination already exists")

    monkeypatch.setattr(builder, "download_and_prepare", late)
    assert len(cifar.load(FEW, "test", str(few_downloaded))) == len(few["test_batch"][1])


def test_a_broken_tfds_is_no_damage_of_what_it_prepared(few_downloaded, monkeypatch):
    module = "tensorflow_datasets.image_classification"
    cifar.load(FEW, "test", str(few_downloaded))
    monkeypatch.setitem(sys.modules, module, None)  # which `import` refuses
    with pytest.raises(UserError, match=r"cannot be imported .*Reinstall it") as error:
        cifar.load(FEW, "test", str(few_downloaded))
    assert "elete" not in str(error.value)


def test_a_part_of_another_form_does_not_hide_what_tfds_prepared(few_downloaded, capsys):
    """Such as two classes of another data set, in a folder that is shared."""
    expected = cifar.load(FEW, "train", str(few_downloaded))
    for name in ("cat", "dog"):
        (few_downloaded / "train" / name).mkdir(parents=True)
    found = cifar.load(FEW, "train", str(few_downloaded))
    np.testing.assert_array_equal(found.images, expected.images)
    assert "Skipped" in capsys.readouterr().err
    shutil.rmtree(few_downloaded / "cifar10")
    with pytest.raises(UserError, match=r"contains only a part of CIFAR-10"):
        cifar.load(FEW, "train", str(few_downloaded))


def test_a_set_that_tfds_does_not_have(tmp_path):
    own = dataclasses.replace(FEW, title="Mine", builder="")
    with pytest.raises(UserError, match=r"Mine was not found.*tensorflow-datasets does not have"):
        cifar.load(own, "test", str(tmp_path))


def test_one_process_prepares_while_the_others_wait(few, few_downloaded, tmp_path, capsys):
    cifar.load(FEW, "test", str(few_downloaded))
    folder, found = tmp_path / "shared", []
    folder.mkdir()
    with (folder / ".cifar10.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load = lambda: found.append(cifar.load(FEW, "test", str(folder)))  # noqa: E731
        thread = threading.Thread(target=load)
        thread.start()
        said = ""
        while "waiting for it" not in said:
            assert thread.is_alive(), said
            said += capsys.readouterr().err
            time.sleep(0.05)
        shutil.copytree(few_downloaded / "cifar10", folder / "cifar10")
    thread.join()
    assert len(found[0]) == len(few["test_batch"][1])
    assert not (folder / "downloads").exists()


def test_parts_of_old_downloads_are_deleted(few_downloaded):
    made = [
        few_downloaded / "downloads" / "cifar10" / "cifar-10-binary.tar.gz.tmp.0123",
        few_downloaded / "cifar10" / "incomplete.0123",
    ]
    for folder in made:
        folder.mkdir(parents=True)
        (folder / "part").touch()
        os.utime(folder, (time.time() - 7200,) * 2)
    (young := made[0].with_name("cifar-10-binary.tar.gz.tmp.4567")).mkdir()
    cifar.load(FEW, "test", str(few_downloaded))
    assert [folder.exists() for folder in made] == [False, False]
    assert young.exists()


def test_a_part_that_tfds_prepared_is_not_the_official_set(few_downloaded):
    import tensorflow_datasets

    config = tensorflow_datasets.download.DownloadConfig(max_examples_per_split=5)
    tfds.make_builder(FEW, few_downloaded).download_and_prepare(download_config=config)
    with pytest.raises(UserError, match="holds 5 test images, and CIFAR-10 has"):
        cifar.load(FEW, "test", str(few_downloaded))


def test_what_tfds_prepared_in_its_default_format(tmp_path):
    """Its records can be read in turn only, and by TensorFlow."""
    from tensorflow_datasets.image_classification.cifar import Cifar10

    folder = tmp_path / "cifar10" / str(Cifar10.VERSION)
    folder.mkdir(parents=True)
    facts = {"name": "cifar10", "version": str(Cifar10.VERSION), "fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(facts))
    (folder / "features.json").write_text("{}")
    with pytest.raises(UserError, match="not in the format array_record"):
        cifar.load(FEW, "test", str(tmp_path))


def test_tfds_prepares_cifar100(few100, tmp_path, served):
    folder = write100(tmp_path / "extracted" / "cifar-100-binary", few100)
    for kind, names in (
        ("fine", FEW100.class_names),
        ("coarse", [f"super {i}" for i in range(20)]),
    ):
        (folder / f"{kind}_label_names.txt").write_text("\n".join(names) + "\n")
    served(FEW100, folder)
    (tmp_path / "tfds").mkdir()
    for split in ("train", "test"):
        check100(cifar.load(FEW100, split, str(tmp_path / "tfds")), few100, split)
    [superclasses] = tmp_path.glob("tfds/cifar100/*/coarse_label.labels.txt")
    assert superclasses.read_text().startswith("super 0")


@pytest.mark.parametrize(
    "file", ["dataset_info.json", "cifar10-test.array_record-00000-of-00001", None]
)
@pytest.mark.parametrize("how", ["half", "empty", "lost"])
def test_a_damaged_copy_of_tfds_is_named(few_downloaded, file, how):
    """As half of one that was copied."""
    cifar.load(FEW, "test", str(few_downloaded))
    (version,) = (few_downloaded / "cifar10").iterdir()
    for path in [version / file] if file else list(version.iterdir()):
        if how == "lost":
            path.unlink()
        else:
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if how == "half" else b"")
    with pytest.raises(UserError, match=f"damaged, .* Delete {few_downloaded}/cifar10: it is then"):
        cifar.load(FEW, "test", str(few_downloaded))
    shutil.rmtree(few_downloaded / "cifar10")
    cifar.load(FEW, "test", str(few_downloaded))


@pytest.mark.parametrize("known", [True, False])
def test_tfds_refuses_what_it_cannot_verify(few, tmp_path, monkeypatch, proxy, known):
    """A wrong archive, and one for which tfds knows no checksum: both would count as official."""
    import requests
    from tensorflow_datasets.core.download import checksums

    def download(self, url, **options):
        pytest.fail(f"downloads {url}")

    folder = write_binary(tmp_path / "cifar-10-batches-bin", few)
    manual = tmp_path / "tfds" / "downloads" / "manual"  # where tfds looks before it downloads
    manual.mkdir(parents=True)
    pack(folder, manual / "cifar-10-binary.tar.gz")
    monkeypatch.setattr(requests.Session, "get", download)
    if not known:
        monkeypatch.setattr(checksums, "get_all_url_infos", dict)
    message = "has wrong checksum" if known else "Missing checksums"
    with pytest.raises(UserError, match=f"could not prepare CIFAR-10 .*{message}"):
        cifar.load(FEW, "test", str(tmp_path / "tfds"))


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


def test_holdout_of_few_images_has_one_of_each_class_that_has_others():
    labels = np.array([0] * 4 + [1] * 2 + [2], np.int32)
    train = dataclasses.replace(
        data.load("synthetic", "train").take(slice(7), "the first 7"), labels=labels
    )
    kept, held = data.split_holdout(train)
    assert sorted(held.labels) == [0, 1]
    assert sorted(kept.labels) == [0, 0, 0, 1, 2]


def test_what_is_read_instead_of_known_is_read_where_it_is(monkeypatch):
    """As of a user's own set."""
    load, folders = data.load, []

    def own(name, split, data_dir="", size=None):
        folders.append(data_dir)
        return load(name, split, size=size)

    monkeypatch.setattr(data, "load", own)
    data.without_images("digits", data_dir="/data/mine")
    assert folders == ["/data/mine"]


def test_a_test_set_of_training_images(monkeypatch):
    """As of a file that was copied over another; a few images may be in both."""
    train, own = data.load("synthetic", "train"), data.load("synthetic", "test", size=100)
    for count in (100, 51, 50):
        images = np.concatenate([train.images[-count:], own.images[count:]])
        parts = {"train": train, "test": dataclasses.replace(own, images=images)}
        monkeypatch.setattr(
            data, "load", lambda name, split, *, data_dir, parts=parts: parts[split]
        )
        for protocol in data.PROTOCOLS:
            if count == 50:
                data.load_splits("synthetic", protocol=protocol)
                continue
            with pytest.raises(UserError, match=f"{count} of the 100 test images in .* are train"):
                data.load_splits("synthetic", protocol=protocol)


def test_unknown_names():
    with pytest.raises(UserError, match="Did you mean 'cifar100'"):
        data.load("cifar1000", "train")
    with pytest.raises(UserError, match="train, test"):
        data.load("digits", "validation")


@pytest.mark.slow
def test_real_cifar10(cifar10_dir):
    train = data.load("cifar10", "train", data_dir=cifar10_dir)
    test = data.load("cifar10", "test", data_dir=cifar10_dir)
    assert (np.bincount(train.labels) == 5000).all()
    assert (np.bincount(test.labels) == 1000).all()
    assert test.provenance["images"] == 10_000
    pixels = train.images[::10] / np.float32(255)
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), train.mean, atol=0.005)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), train.std, atol=0.005)
    # The first images of the training set are a frog and two trucks.
    assert [train.class_names[label] for label in train.labels[:3]] == ["frog", "truck", "truck"]


@pytest.mark.slow
def test_real_cifar10_trains(cifar10_dir, tmp_path, monkeypatch):
    """Validated on the first 1,000 test images."""
    config = tiny(data__name="cifar10", model__width=0.1, train__epochs=2)
    config.data.dir = cifar10_dir
    config.data.augment = "none"
    config.train.limit_train_images = 1024
    config.train.batch_size = 64
    load = data.load

    def fewer(name, split, **options):
        found = load(name, split, **options)
        return found.take(slice(1000), "the first 1,000") if split == "test" else found

    monkeypatch.setattr(data, "load", fewer)
    result = run(config, tmp_path)
    records = read_lines(tmp_path / "metrics.jsonl")
    assert records[1]["train_loss"] < records[0]["train_loss"]
    assert result["best"]["val_accuracy"] > 0.15
    assert result["data"]["validation"]["images"] == 1000


def test_fingerprint_is_of_pixels_and_labels():
    images, labels = np.zeros((2, 32, 32, 3), np.uint8), np.array([1, 2], np.int32)
    expected = hashlib.sha256(images.tobytes() + bytes([1, 2])).hexdigest()
    assert data.dataset.fingerprint(images, labels) == expected


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "digits"])
@pytest.mark.parametrize("protocol", data.PROTOCOLS)
def test_how_many_images_the_parts_have(name, protocol, monkeypatch, tmp_path):
    """Of CIFAR, which need not be there; CIFAR-100 has 600 images of each class, too."""
    monkeypatch.setenv("JAXCIFAR_DATA", str(tmp_path / "nothing"))
    found = data.splits_without_images(name, protocol=protocol, limit=1000)
    assert len(found.train) == 1000
    whole = data.splits_without_images(name, protocol=protocol)
    held = {"test": (50_000, 10_000, None), "holdout": (45_000, 5_000, 10_000)}[protocol]
    if name == "digits":
        held = tuple(part and len(part) for part in data.load_splits(name, protocol=protocol))
    assert tuple(part and len(part) for part in whole) == held


# --- a data set of one's own ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((16, 3, 32, 32), np.uint8)}, "images of shape (16, 3, 32, 32) and"),
        ({"images": np.zeros((16, 32, 32, 3), np.float32)}, "be [N, 32, 32, 3] uint8"),
        ({"images": np.zeros((16, 28, 28, 3), np.uint8)}, "images of shape (16, 28, 28, 3) and"),
        ({"labels": np.zeros(16, np.int64)}, "type int64; they must be [16] int32"),
        ({"labels": np.zeros((16, 1), np.int32)}, "labels of shape (16, 1) and"),
        ({"labels": np.full(16, 10, np.int32)}, "from 10 to 10; they must be from 0 to 9"),
        ({"labels": np.full(16, -1, np.int32)}, "from -1 to -1; they must be from 0 to 9"),
        ({"class_names": ("cat", "dog")}, "2 class names; its entry says 10 classes"),
    ],
)
def test_a_data_set_is_what_it_must_be(monkeypatch, changes, message):
    found = dataclasses.replace(data.load("synthetic", "train", size=16), **changes)
    monkeypatch.setattr(data.synthetic, "load", lambda split, size: found)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        data.load("synthetic", "train")
    assert "'synthetic', split 'train'" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("mean", (0.4,) * 3), ("std", (0.3,) * 3), ("class_names", "zyxwvutsrq")]
)
def test_what_is_evaluated_is_normalised_like_what_was_trained_on(monkeypatch, field, value):
    parts = {name: data.load("synthetic", name) for name in ("train", "test")}
    parts["test"] = dataclasses.replace(parts["test"], **{field: tuple(value)})
    monkeypatch.setattr(data.synthetic, "load", lambda split, size: parts[split])
    with pytest.raises(UserError, match=f"'synthetic' has the {field} .* and .* for testing"):
        data.load_splits("synthetic")


# --- without images ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", data.DATASETS)
def test_a_set_without_its_images(name, monkeypatch, tmp_path):
    """Its classes and normalisation are those of the whole one, which need not be there."""
    monkeypatch.setenv("JAXCIFAR_DATA", str(tmp_path / "nothing"))
    found = data.without_images(name)
    assert len(found) == 0
    counted = data.without_images(name, 50_000)
    assert (len(counted), counted.images.shape) == (50_000, (50_000, 0, 0, 3))
    assert set(counted.labels) == set(range(data.num_classes(name)))
    assert len(found.class_names) == data.num_classes(name)
    if name in ("digits", "synthetic"):
        whole = data.load(name, "train")
        assert (found.class_names, found.mean, found.std) == (
            whole.class_names,
            whole.mean,
            whole.std,
        )
    else:
        assert found.class_names[0] in ("airplane", "apple")
        assert 0.4 < found.mean[0] < 0.6
