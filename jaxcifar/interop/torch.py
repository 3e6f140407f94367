"""Weights to and from PyTorch, under torchvision's names.

    variables = from_torch("resnet18", torch.load("weights.pt", weights_only=True))
    state_dict = to_torch("resnet18", variables)

and as a command:

    python -m jaxcifar.interop.torch import weights.pt --model=resnet18 --workdir=runs/imported
    python -m jaxcifar.interop.torch export weights.npz --workdir=runs/row1

PyTorch itself is needed only to read or write .pt files.
"""

import argparse
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar import restore
from jaxcifar.config import base_config
from jaxcifar.errors import UserError, exit_code
from jaxcifar.models import ACTIVATIONS, MODELS, create_model
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.vgg import STAGES, VGG
from jaxcifar.options import user_path
from jaxcifar.state import abstract_variables

Path = tuple[str, ...]  # ("params", "layer1_0", "conv1", "kernel")

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Names of other common code -> torchvision's, tried in turn on every key.
_ALIASES = (
    (r"^(module\.|_orig_mod\.)+", ""),
    (r"\.shortcut\.", ".downsample."),
    (r"^linear\.", "fc."),
)
# Where a checkpoint file may hold the state_dict among other things.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def from_torch(
    name: str | nn.Module, state_dict: Mapping[str, Any], *, width: float = 1.0
) -> dict[str, Any]:
    """Converts a PyTorch state_dict to variables for `model.apply`.

    torchvision's names are expected. Accepted too: `shortcut` for downsample and `linear` for fc
    or classifier, as in common CIFAR-10 code; DenseNet's names without `features.`; the prefixes
    `module.` and `_orig_mod.`. `num_batches_tracked` is not needed and not kept.

    Args:
      name: one of `jaxcifar.models.MODELS`, or a module of this package. The number of classes is
        taken from the last linear layer of `state_dict`.
      state_dict: name -> tensor or array; convolutions [O, I, H, W], linear layers [O, I].
      width: the model's, where `name` is a name.

    Returns:
      {"params": …, "batch_stats": …} of float32 arrays.

    Raises:
      UserError: entries are missing, unknown, twice there, of another shape or not finite; all are
        listed.
    """
    given: dict[str, list[tuple[str, np.ndarray]]] = {}
    for key, value in state_dict.items():
        if not key.endswith("num_batches_tracked"):
            given.setdefault(_plain_name(key), []).append((key, _to_numpy(value)))
    module = _module(name, width, {plain: entries[0][1] for plain, entries in given.items()})
    problems: list[str] = []
    flat: dict[Path, jax.Array] = {}
    for path, leaf in _shapes(module).items():
        torch_name = _torch_name(module, path)
        entries = given.pop(_plain_name(torch_name), [])
        if not entries:
            problems.append(f"{torch_name} is missing")
        elif len(entries) > 1:
            problems.append(f"{' and '.join(key for key, _ in entries)} are the same entry")
        else:
            key, value = entries[0]
            if not np.isfinite(value).all():
                problems.append(f"{key} has values that are not finite")
            value = _transposed(value, to_torch=False)
            if value.shape == leaf.shape:
                flat[path] = jnp.asarray(value, jnp.float32)
            else:
                wanted = _transposed(np.empty(leaf.shape), to_torch=True).shape
                problems.append(f"{key} has shape {entries[0][1].shape} instead of {wanted}")
    problems += [f"{key} is unknown" for entries in given.values() for key, _ in entries]
    if problems:
        what = name if isinstance(name, str) else type(name).__name__
        raise UserError(f"The weights do not fit {what}:\n  " + "\n  ".join(problems))
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


def to_torch(name: str | nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state_dict of arrays, under torchvision's names.

    Args:
      name: one of `jaxcifar.models.MODELS`, or a module of this package.
      variables: {"params": …, "batch_stats": …}.

    Returns:
      name -> float32 array, and an int64 `num_batches_tracked` of 0 for each BatchNorm. As
      tensors they are what `load_state_dict(strict=True)` takes.
    """
    module = _module(name, 1.0, {})
    state_dict = {}
    leaves = flatten_dict({k: variables[k] for k in ("params", "batch_stats") if k in variables})
    for path, leaf in leaves.items():
        torch_name = _torch_name(module, path)
        state_dict[torch_name] = _transposed(np.asarray(leaf, np.float32), to_torch=True)
        if path[-1] == "var":
            tracked = torch_name.replace("running_var", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    return state_dict


# --- names ------------------------------------------------------------------------------------


def _torch_name(module: nn.Module, path: Path) -> str:
    """torchvision's name of the leaf at `path`: ("params", "bn1", "scale") -> bn1.weight."""
    *modules, leaf = path[1:]
    name = ".".join(modules)
    if isinstance(module, VGG):
        kind, number = re.fullmatch(r"(conv|bn|fc)(\d)", name).groups()  # pyright: ignore
        if kind == "fc":
            name = f"classifier.{3 * (int(number) - 1)}"
        else:
            name = f"features.{_vgg_places(module.batch_norm)[kind, int(number)]}"
    elif isinstance(module, DenseNet):
        name = re.sub(r"^denseblock(\d+)_layer(\d+)", r"denseblock\1.denselayer\2", name)
        name = name if name == "classifier" else f"features.{name}"
    else:
        name = re.sub(r"^layer(\d+)_(\d+)", r"layer\1.\2", name)
        name = name.replace("downsample_conv", "downsample.0")
        name = name.replace("downsample_bn", "downsample.1")
    return f"{name}.{_LEAF_NAMES[leaf]}"


def _vgg_places(batch_norm: bool) -> dict[tuple[str, int], int]:
    """("conv", 3) -> its place in torchvision's nn.Sequential of conv, bn, activation and pool."""
    places, place, number = {}, 0, 0
    for stage in STAGES:
        for _ in stage:
            number += 1
            places["conv", number] = place
            places["bn", number] = place + 1
            place += 3 if batch_norm else 2
        place += 1  # the pooling
    return places


def _plain_name(key: str) -> str:
    """One name for all spellings of an entry; on torchvision's own names it may be shorter."""
    for pattern, replacement in _ALIASES:
        key = re.sub(pattern, replacement, key)
    # DenseNet: features.conv0 or conv0, classifier.weight or linear.weight.
    key = re.sub(r"^features\.(?=\D)", "", key)
    return re.sub(r"^(fc|classifier)\.(?=\D)", "head.", key)


def _module(name: str | nn.Module, width: float, given: Mapping[str, np.ndarray]) -> nn.Module:
    if isinstance(name, nn.Module):
        return name
    heads = [array for key, array in given.items() if key in ("head.weight", "classifier.6.weight")]
    classes = heads[0].shape[0] if heads and heads[0].ndim == 2 else 10
    return create_model(name, num_classes=classes, width=width)


def _shapes(module: nn.Module) -> dict[Path, Any]:
    return flatten_dict(abstract_variables(module))


# --- values -----------------------------------------------------------------------------------


def _to_numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, perhaps on a GPU, perhaps bfloat16
        value = value.detach().cpu().float().numpy()
    return np.asarray(value)


def _transposed(array: np.ndarray, *, to_torch: bool) -> np.ndarray:
    """Convolutions HWIO <-> OIHW, linear layers IO <-> OI, vectors as they are."""
    if array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    return array.T


# --- the command ------------------------------------------------------------------------------


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    torch = None if path.suffix == ".npz" else _import_torch(path)
    try:
        if torch is None:
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # NumPy, pickle and PyTorch raise almost anything on a bad file
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(weights, Mapping):
        raise UserError(f"{path} holds a {type(weights).__name__}, not a state_dict.")
    for wrapper in _WRAPPERS:
        if isinstance(weights.get(wrapper), Mapping):
            return weights[wrapper]
    return weights


def _write(path: pathlib.Path, state_dict: dict[str, np.ndarray]) -> None:
    if path.exists():
        raise UserError(f"{path} exists. Delete it or choose another name.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} in.")
    if path.suffix == ".npz":
        np.savez(path, **state_dict)  # pyright: ignore
    else:
        torch = _import_torch(path)
        torch.save({key: torch.tensor(value) for key, value in state_dict.items()}, path)


def _import_torch(path: pathlib.Path) -> Any:
    if path.suffix not in (".pt", ".pth"):
        raise UserError(f"{path} must end in .npz, .pt or .pth.")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path.suffix} files need PyTorch: pip install 'jaxcifar[parity]'. .npz does not."
        ) from error
    return torch


def _import(arguments: argparse.Namespace) -> str:
    config = base_config()
    config.model.name = arguments.model
    config.model.activation = arguments.activation
    variables = from_torch(arguments.model, _read(arguments.file))
    restore.start_from(config, arguments.workdir, variables)
    return (
        f"{arguments.file} is now a run in {arguments.workdir}. To evaluate it: "
        f"python -m jaxcifar.main --mode=eval --workdir={arguments.workdir}"
    )


def _export(arguments: argparse.Namespace) -> str:
    config, _, variables = restore.load_variables(arguments.workdir, arguments.checkpoint)
    _write(arguments.file, to_torch(config.model.name, variables))
    return f"{arguments.workdir} ({arguments.checkpoint} checkpoint) -> {arguments.file}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxcifar.interop.torch")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("import", help="make a run of PyTorch weights")
    command.set_defaults(run=_import)
    command.add_argument("file", type=user_path, help="a .pt, .pth or .npz state_dict")
    command.add_argument("--model", required=True, choices=MODELS)
    command.add_argument("--activation", default="relu", choices=ACTIVATIONS)
    command.add_argument("--workdir", required=True, type=user_path)
    command = commands.add_parser("export", help="write a run's weights for PyTorch")
    command.set_defaults(run=_export)
    command.add_argument("file", type=user_path, help="a .pt, .pth or .npz file to write")
    command.add_argument("--workdir", required=True, type=user_path)
    command.add_argument("--checkpoint", default="best", choices=("best", "last"))
    arguments = parser.parse_args(argv)
    return exit_code(lambda: print(arguments.run(arguments)))


if __name__ == "__main__":
    sys.exit(main())
