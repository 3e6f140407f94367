"""Reads files of weights, recognised by their content and never by their ending.

No pickled code runs: from PyTorch's files only tensors, plain values and what `_allowed` lists are
loaded.
"""

import argparse
import importlib
import pathlib
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxcifar.errors import UserError, in_short, raise_temporary

_LARGEST = 2**32  # bytes of an unpacked file; no network here takes more than 2**28


def read(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns the content of a PyTorch, safetensors or NumPy (.npz) file.

    PyTorch must be installed only to read its own files.

    Raises:
      UserError: there is no such file, it cannot be read, is of another kind, would fill the
        memory, or contains objects that could be loaded only by running code.
    """
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        return _read(path)
    except UserError:
        raise
    except Exception as error:  # NumPy, safetensors and PyTorch raise almost anything
        raise_temporary(error, path)
        raise UserError(f"{path} cannot be read: {in_short(error)}.") from error


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            size = sum(member.file_size for member in archive.infolist())
        if size > _LARGEST:  # where it is compressed, a small file can fill the memory
            raise UserError(
                f"{path} unpacks to {size:,} bytes; at most {_LARGEST:,} are read. Save a file of "
                "only the weights."
            )
        if all(name.endswith(".npy") for name in names):
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        if any("/code/" in name for name in names):
            raise UserError(f"{path} is a TorchScript program. Save its state_dict() instead.")
        return _of_torch(path)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        importlib.import_module("ml_dtypes")  # gives NumPy bfloat16; else JAX does, if imported
        from safetensors.numpy import load_file

        return load_file(path)
    if start.startswith(b"\x80"):  # a pickle: PyTorch's files before version 1.6
        return _of_torch(path)
    raise UserError(
        f"{path} cannot be read: it is not a PyTorch, safetensors or NumPy (.npz) file."
    )


def _of_torch(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path} is a PyTorch file, and PyTorch is not installed: pip install "
            "'jaxcifar[torch]'. Safetensors and .npz files do not need PyTorch."
        ) from error
    try:
        # Without PyTorch, pyright takes it for the file of this name next door.
        with torch.serialization.safe_globals(_allowed()):  # pyright: ignore
            weights = torch.load(path, map_location="cpu", weights_only=True)  # pyright: ignore
    except Exception as error:
        # PyTorch's own message, on how to load it anyway, is six lines long.
        if found := re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", str(error)):
            raise UserError(
                f"{path} contains a {found[1]} besides the weights or instead of them. Loading it "
                "would run code, which is never done. Save only the weights, where that code is: "
                "torch.save(model.state_dict(), …)."
            ) from error
        raise
    if not isinstance(weights, Mapping):
        raise UserError(f"{path} contains a {type(weights).__name__}, not a state_dict.")
    return weights


class _Array(np.ndarray):
    """An array as NumPy's `_reconstruct` makes it, in two steps.

    A file that calls its class could have any bytes taken for the addresses of objects.
    """

    def __new__(cls, *_: Any, **__: Any) -> "_Array":
        raise TypeError("refused to make an array of bytes")


def _allowed() -> list[Any]:
    """What checkpoints commonly contain besides the weights, and is harmless to load."""
    scalar: Any = np.float64(0).__reduce__()[0]
    array: Any = np.zeros(0).__reduce__()[0]
    dtypes = [type(np.dtype(kind)) for kind in "?bhilBHILefd"]
    return [
        argparse.Namespace,
        np.dtype,
        (_Array, "numpy.ndarray"),
        *dtypes,
        *((function, f"{module}.multiarray.{function.__name__}")  # NumPy 2, and NumPy 1
          for function in (scalar, array)
          for module in ("numpy._core", "numpy.core")),
    ]  # fmt: skip


def named_arrays(weights: Mapping[str, Any], part: str = "") -> dict[str, Any]:
    """Returns the arrays of a checkpoint under dotted names, without their common prefix.

    `{"net": {"module.conv1.weight": …}, "epoch": 3}` becomes `{"conv1.weight": …}`. Numbers,
    strings, empty arrays and the state of an optimizer (by parameter number) are left out.

    Args:
      weights: name -> array, tensor or a mapping of such.
      part: a prefix; only names that begin with it and a dot are taken, whether or not what all
        names begin with comes before it.

    Raises:
      UserError: there are no arrays.
    """
    try:
        found = _flat(weights)
    except RecursionError as error:
        raise UserError("The file has a dictionary that contains itself.") from error
    if not found:
        raise UserError("The file contains no named arrays: it is not a state_dict.")
    inside = _unwrapped(found)
    if part:
        chosen = _below(part, inside) or _below(part, found)
        if not chosen:
            counts = Counter(name.partition(".")[0] for name in inside)
            there = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
            raise UserError(f"No name begins with {part!r}. There are: {there}.")
        inside = _unwrapped(chosen)
    return inside


def _unwrapped(found: dict[str, Any]) -> dict[str, Any]:
    while all("." in name for name in found) and len({n.partition(".")[0] for n in found}) == 1:
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found


def _below(part: str, found: dict[str, Any]) -> dict[str, Any]:
    part = f"{part}."
    return {n.removeprefix(part): value for n, value in found.items() if n.startswith(part)}


def _flat(weights: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for name, value in weights.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif (
            getattr(value, "ndim", 0) > 0
            and 0 not in value.shape
            and not name.endswith("num_batches_tracked")
            and getattr(value.dtype, "kind", "f") not in "USO"  # NumPy's names of classes, say
        ):
            found[prefix + name] = value
    return found
