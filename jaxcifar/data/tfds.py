"""CIFAR as tensorflow-datasets prepares it, without TensorFlow; it downloads what is missing."""

import contextlib
import fcntl
import io
import pathlib
import shutil
import socket
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxcifar.data import batches
from jaxcifar.data.dataset import SPLITS
from jaxcifar.data.source import Read, check_labels, require_count
from jaxcifar.data.spec import File, Spec
from jaxcifar.errors import UserError, in_short, note, raise_temporary

_STALE = 3600.0  # seconds after which a part of a download is nobody's


def read(spec: Spec, folder: pathlib.Path, split: str) -> Read:
    """Reads one split, in the official order, as tfds prepares it in `folder`.

    Its download is checked by SHA-256.

    Raises:
      UserError: it is not prepared, and cannot be downloaded; it is prepared in another format; or
        it is damaged.
    """
    _require_builder(spec, folder)
    try:
        builder = make_builder(spec, folder)
    except ValueError as error:
        raise UserError(
            f"{folder} holds {spec.title} as prepared by tensorflow-datasets, but not in the "
            f"format array_record, which is read without TensorFlow ({error}). Name another "
            "folder: --config.data.dir=FOLDER or JAXCIFAR_DATA=FOLDER."
        ) from error
    except Exception as error:  # of damaged JSON
        raise _damaged(spec, folder, error) from error
    if not builder.is_prepared():
        with _alone(spec, folder):
            builder = make_builder(spec, folder)
            if not builder.is_prepared():  # nor by another process meanwhile
                _prepare(builder, spec, folder)
                builder = make_builder(spec, folder)
    try:
        # tfds shuffles as it writes; the id ("train_00042") is the place in the official order.
        records = sorted(builder.as_data_source(split=split), key=lambda record: record["id"])
    except Exception as error:  # a damaged copy, or half of one, raises almost anything
        raise_temporary(error, folder)
        raise _damaged(spec, folder, error) from error
    require_count(spec, folder, split, len(records))
    images = np.stack([record["image"] for record in records])
    labels = check_labels(spec, [record["label"] for record in records], folder)
    return Read(images, labels, official=True)


def is_prepared(spec: Spec, folder: pathlib.Path) -> bool:
    """Whether tfds seems to have prepared the data set there, in the format that is read here."""
    return any((folder / spec.name).glob("[0-9]*/*.array_record*"))


@contextlib.contextmanager
def _alone(spec: Spec, folder: pathlib.Path) -> Generator[None]:
    """Lets one process at a time prepare a data set, while the others wait for it."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # where there are no locks, who is first wins
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((folder / f".{spec.name}.lock").open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f"another process is preparing {spec.title} in {folder}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(builder: Any, spec: Spec, folder: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    _require_network(spec, folder)
    # What earlier attempts have left, whose processes were killed or cut off.
    for pattern in (f"downloads/{spec.name}/*.tmp.*", f"{spec.name}/incomplete.*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE:
                    shutil.rmtree(path)
    try:
        # Without a checksum to compare, tfds would download anyway.
        checked = tfds.download.DownloadConfig(force_checksums_validation=True)
        builder.download_and_prepare(download_config=checked)
    except Exception as error:  # tfds lets through what its HTTP client and disk raise
        if not make_builder(spec, folder).is_prepared():
            raise UserError(
                f"tensorflow-datasets could not prepare {spec.title} in {folder}: {error}"
            ) from error


def _damaged(spec: Spec, folder: pathlib.Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} holds {spec.title} as prepared by tensorflow-datasets, but it is damaged, or a "
        f"part is missing ({in_short(error)}). Delete {folder / spec.name}: it is then prepared "
        "again."
    )


def make_builder(spec: Spec, folder: pathlib.Path) -> Any:
    """Returns tfds' own builder, with replacements for the functions that need TensorFlow.

    Those of tfds 4.9.10 unpack the archive and open its files through tf.io, and yield arrays,
    which tfds encodes through TensorFlow. The replacements unpack in memory, and yield PNG files,
    which tfds takes as they are.
    """
    # Here, not above: tfds takes seconds to import, and a local archive does not need it.
    from PIL import Image
    from tensorflow_datasets.image_classification import cifar

    original = getattr(cifar, spec.builder)

    def png(image: np.ndarray) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG", compress_level=1)
        return stream.getvalue()

    class WithoutTensorFlow(original, skip_registration=True):  # pyright: ignore
        name = original.name

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            about = self._cifar_info
            archive = pathlib.Path(dl_manager.download(about.url))
            wanted = [*about.train_files, *about.test_files, *about.label_files]
            contents, _ = batches.unpack(spec, spec.binary, archive, wanted)
            for key, file in zip(about.label_keys, about.label_files, strict=True):
                names = contents[file].decode().splitlines()
                self.info.features[key].names = list(filter(None, names))
            return {
                split: self._generate_examples(f"{split}_", spec.files(split), contents)
                for split in SPLITS
            }

        def _generate_examples(
            self, split_prefix: str, files: Sequence[File], contents: Mapping[str, bytes]
        ) -> Iterator[tuple[int, dict[str, object]]]:
            index = 0
            for file in files:
                for record in batches.records(spec, file, contents[batches.inside(file, True)]):
                    labels, pixels = np.split(record, [spec.label_bytes])
                    image = pixels.reshape(3, 32, 32).transpose(1, 2, 0)
                    example: dict[str, object] = {
                        "id": f"{split_prefix}{index:05d}",
                        "image": png(image),
                    }
                    keys = self._cifar_info.label_keys
                    yield index, example | dict(zip(keys, labels.tolist(), strict=True))
                    index += 1

    return WithoutTensorFlow(data_dir=str(folder), file_format="array_record")


def _require_builder(spec: Spec, folder: pathlib.Path) -> None:
    """Checks that tfds works, and has this data set.

    Raises:
      UserError: it does not.
    """
    try:
        from tensorflow_datasets.image_classification import cifar
    except Exception as error:  # a broken installation raises almost anything
        raise UserError(
            f"{_not_found(spec, folder)}; and tensorflow-datasets, which may have prepared a copy "
            f"there or would download one, cannot be imported ({in_short(error)}). Reinstall it."
        ) from error
    if not hasattr(cifar, spec.builder):
        raise UserError(f"{_not_found(spec, folder)}; and tensorflow-datasets does not have it.")


def _not_found(spec: Spec, folder: pathlib.Path) -> str:
    return (
        f"{spec.title} was not found. Looked in {folder} for {spec.binary.archive}, "
        f"{spec.python.archive}, {spec.binary.folder}/, {spec.python.folder}/, Parquet files, and "
        "PNG files in a folder for each class or with trainLabels.csv"
    )


def _require_network(spec: Spec, folder: pathlib.Path) -> None:
    """Fails within seconds where the data set cannot be downloaded; tfds retries for minutes.

    Raises:
      UserError: the host cannot be reached.
    """
    host = urllib.parse.urlsplit(spec.page).hostname or ""
    proxies = urllib.request.getproxies()
    if ("https" in proxies or "all" in proxies) and not urllib.request.proxy_bypass(host):
        return  # tfds asks the proxy, and this computer may reach nothing else
    failure: list[OSError] = [TimeoutError("no answer in 5 seconds")]

    def connect() -> None:
        try:
            socket.create_connection((host, 443), timeout=5).close()
            failure.clear()
        except OSError as error:
            failure[:] = [error]

    # In a thread, as nothing else bounds the time that looking up the host's name takes.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout=5)
    if failure:
        error = failure[0]
        raise UserError(
            f"{_not_found(spec, folder)}, and a copy prepared by tensorflow-datasets; and it "
            f"cannot be downloaded ({host}: {error}).\n"
            f"Either put one of the official archives ({spec.page}) there, "
            "or name the folder that has it: --config.data.dir=FOLDER or JAXCIFAR_DATA=FOLDER.\n"
            f"To try without {spec.title}: jaxcifar train quickstart."
        ) from error
