"""Weights to and from PyTorch, under torchvision's names.

    variables = from_torch("resnet18", torch.load("weights.pt", weights_only=True))
    state_dict = to_torch("resnet18", variables)

and as a command, whose counterpart is `jaxcifar.interop.export`:

    jaxcifar import weights.pt --model=resnet18 --workdir=runs/imported

PyTorch itself is needed only to read its own files.
"""

import argparse
import contextlib
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar import data, start
from jaxcifar.config import base_config
from jaxcifar.errors import UserError, in_short, note
from jaxcifar.interop.files import named_arrays, read
from jaxcifar.models import ACTIVATIONS, MODELS, create_model
from jaxcifar.models.airbench import Airbench
from jaxcifar.models.densenet import DenseNet
from jaxcifar.models.layers import BatchNorm
from jaxcifar.models.resnet import BottleneckBlock
from jaxcifar.models.vgg import STAGES, VGG
from jaxcifar.options import Parser, user_path
from jaxcifar.state import abstract_variables

Path = tuple[str, ...]  # ("params", "layer1_0", "conv1", "kernel")
# `_plain_name` of a name -> [(the name in the file, its array)]; more than one is an error.
_Entries = dict[str, list[tuple[str, np.ndarray]]]

_LEAF_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# Names of other common code -> torchvision's, tried in turn on every key.
_ALIASES = (
    (r"\b(module|_orig_mod)\.", ""),
    (r"\.shortcut\.", ".downsample."),
    (r"^linear\.", "fc."),
)
_SHOWN = 4  # names of each kind of misfit


def from_torch(
    name: str | nn.Module,
    state_dict: Mapping[str, Any],
    *,
    width: float | None = None,
    part: str = "",
) -> dict[str, Any]:
    """Converts a PyTorch state_dict to variables for `model.apply`.

    torchvision's names are expected. Accepted too: `shortcut` for downsample and `linear` for fc
    or classifier, as in common CIFAR-10 code; DenseNet's names without `features.`; VGG's three
    linear layers under other numbers, in their order; convolutions without the bias that a
    BatchNorm behind them cancels; other names altogether (except VGG's), where the order of the
    layers and their shapes allow only one reading. The state_dict may be in a wrapper
    (`{"net": …, "epoch": 9}`), and its names may all begin alike (`module.`, `model.`, `0.`).
    `num_batches_tracked` is not needed and not kept.

    Args:
      name: one of `jaxcifar.models.MODELS`, or a module of this package. The number of classes is
        taken from the layer named fc, linear or classifier, or else from the last matrix of
        `state_dict`.
      state_dict: name -> tensor or array; convolutions [O, I, H, W], linear layers [O, I].
      width: the model's, where `name` is a name; None is what follows from the shapes.
      part: which of the names to take, those that begin with it: "ema", "model_ema.module".

    Returns:
      {"params": …, "batch_stats": …} of float32 arrays.

    Raises:
      UserError: entries are missing, unknown, twice there, of another shape or not finite.
    """
    return fit(name, state_dict, width=width, part=part)[1]


def fit(
    name: str | nn.Module,
    state_dict: Mapping[str, Any],
    *,
    width: float | None = None,
    part: str = "",
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (the network that the weights are of, its variables); see `from_torch`."""
    arrays = {key: _to_numpy(key, value) for key, value in named_arrays(state_dict, part).items()}
    given: _Entries = {}
    for key, value in arrays.items():
        given.setdefault(_plain_name(key), []).append((key, value))
    module = _module(name, width, {plain: entries[0][1] for plain, entries in given.items()})
    given = _with_numbered_head(given) if isinstance(module, VGG) else _by_order(module, given)
    problems: dict[str, list[str]] = {}
    flat: dict[Path, jax.Array] = {}
    expected = {path: _torch_name(module, path) for path in _shapes(module)}
    for path, leaf in _shapes(module).items():
        torch_name = expected[path]
        entries = given.pop(_plain_name(torch_name), [])
        if not entries:
            of_convolution = path[-2].startswith("conv") and path[-1] == "bias"
            if isinstance(module, VGG) and module.batch_norm and of_convolution:
                # BatchNorm takes away any bias before it.
                flat[path] = jnp.zeros(leaf.shape, leaf.dtype)
            else:
                problems.setdefault("missing", []).append(torch_name)
        elif len(entries) > 1:
            keys = " and ".join(key for key, _ in entries)
            problems.setdefault("twice there", []).append(keys)
        else:
            key, value = entries[0]
            wanted = _torch_shape(leaf)
            if value.shape != wanted:
                what = f"{key} is {value.shape} instead of {wanted}"
                problems.setdefault("of another shape", []).append(what)
            elif not np.isfinite(value).all():
                problems.setdefault("not finite", []).append(key)
            elif path[-1] == "var" and (value < 0).any():
                problems.setdefault("negative, but a variance", []).append(key)
            else:
                # A copy, as PyTorch may train on in the same memory.
                flat[path] = jnp.array(_transposed(value, to_torch=False), jnp.float32)
    if unknown := [key for entries in given.values() for key, _ in entries]:
        problems["unknown"] = unknown
    if problems:
        what = name if isinstance(name, str) else type(name).__name__
        lines = [f"The weights do not fit {what} of width {getattr(module, 'width', 1):g}."]
        for kind, names in problems.items():
            more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"{kind} ({len(names)}): {', '.join(names[:_SHOWN])}{more}")
        if width is None and problems.keys() == {"of another shape"}:
            lines.append("If its width is another than these shapes suggest, give it: --width=…")
        if any(re.search(r"conv\d*\.bias$", key) for key in problems.get("unknown", ())):
            lines.append(
                "A convolution before BatchNorm has no bias here: subtract it from that "
                "BatchNorm's running_mean."
            )
        if parts := _parts(arrays, {_plain_name(name) for name in expected.values()}):
            lines.append(
                "The names of such a network are there behind "
                + " and ".join(f"{part!r}" for part in parts)
                + ". Choose: "
                + " or ".join(f"--part={part}" for part in parts)
            )
        raise UserError("\n  ".join(lines))
    return module, {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


def to_torch(name: str | nn.Module, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Converts variables to a PyTorch state_dict of arrays, under torchvision's names.

    Args:
      name: one of `jaxcifar.models.MODELS`, or a module of this package.
      variables: {"params": …, "batch_stats": …}.

    Returns:
      name -> float32 array, and an int64 `num_batches_tracked` of 0 for each BatchNorm. As
      tensors they are what `load_state_dict(strict=True)` takes.
    """
    module = name if isinstance(name, nn.Module) else create_model(name)
    state_dict = {}
    leaves = flatten_dict({k: variables[k] for k in ("params", "batch_stats") if k in variables})
    for path, leaf in leaves.items():
        torch_name = _torch_name(module, path)
        # A copy, which may be written to.
        state_dict[torch_name] = _transposed(np.array(leaf, np.float32), to_torch=True)
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


def _with_numbered_head(given: _Entries) -> _Entries:
    """Gives the three linear layers of a VGG torchvision's numbers, in their order.

    Their numbers are the places in an nn.Sequential, and follow from where dropout stands: 0, 2, 4
    without it, 0, 3, 6 behind each layer, 1, 4, 6 before each. Layers side by side have no
    activation between them, which is another network.
    """
    found = [re.fullmatch(r"classifier\.(\d+)\.weight", key) for key in given]
    numbers = sorted(int(match[1]) for match in found if match)
    if len(numbers) != 3 or 1 in np.diff(numbers):
        return given
    new = {str(number): str(3 * place) for place, number in enumerate(numbers)}
    return {
        re.sub(r"(?<=^classifier\.)\d+", lambda match: new.get(match[0], match[0]), key): entries
        for key, entries in given.items()
    }


def _by_order(module: nn.Module, given: _Entries) -> _Entries:
    """Gives layers that other code names torchvision's names, by their order and their shapes.

    Their order is that of the file, as PyTorch keeps it. Other files sort their names: where that
    order fits as well, and would match other layers, nothing is matched. In a file that is sorted,
    layers of equal shapes can only be told apart by numbers in their names.
    """
    if all(_plain_name(_torch_name(module, path)) in given for path in _shapes(module)):
        return given
    expected: dict[str, dict[str, tuple[int, ...]]] = {}
    for path, leaf in _in_order(module).items():
        layer, _, kind = _plain_name(_torch_name(module, path)).rpartition(".")
        expected.setdefault(layer, {})[kind] = _torch_shape(leaf)
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    sort_keys: dict[str, list[Any]] = {}  # of each layer, from its name in the file
    for name, entries in given.items():
        layer, _, kind = name.rpartition(".")
        layers.setdefault(layer, {})[kind] = entries[0][1].shape
        sort_keys.setdefault(layer, _natural_key(entries[0][0].rpartition(".")[0]))
    readings = {
        order
        for order in (tuple(layers), tuple(sorted(layers, key=sort_keys.__getitem__)))
        if [layers[layer] for layer in order] == list(expected.values())
    }
    names = [entries[0][0] for entries in given.values()]
    is_sorted = names in (sorted(names), sorted(names, key=_natural_key))
    if len(readings) != 1 or (is_sorted and not _numbered(layers, sort_keys)):
        return given
    new = dict(zip(readings.pop(), expected, strict=True))
    if any(new[layer] != layer for layer in expected.keys() & new.keys()):
        return given
    note(
        f"the weights have unfamiliar names: {len(new)} layers were matched by order and shape. "
        "Evaluate the run to check that they are right"
    )
    renamed = {}
    for name, entries in given.items():
        layer, _, kind = name.rpartition(".")
        renamed[f"{new[layer]}.{kind}"] = entries
    return renamed


def _numbered(
    layers: dict[str, dict[str, tuple[int, ...]]], sort_keys: dict[str, list[Any]]
) -> bool:
    """Whether the names of any two layers with matrices of equal shapes first differ in a number.

    BatchNorms have none: they follow the convolutions that share their names.
    """
    with_matrix = [layer for layer, shapes in layers.items() if len(shapes.get("weight", ())) > 1]
    for one, other in itertools.combinations(with_matrix, 2):
        if layers[one] == layers[other]:
            pairs = zip(sort_keys[one], sort_keys[other], strict=False)
            first = next(((a, b) for a, b in pairs if a != b), None)
            if first is None or not (first[0][0] and first[1][0]):
                return False
    return True


def _in_order(module: nn.Module) -> dict[Path, Any]:
    """Returns what `_shapes` does, in the order in which the network calls its layers."""
    order: list[Path] = []

    def init(key: jax.Array, images: jax.Array) -> None:
        # Looked at here, since jax.eval_shape returns dicts in the order of their keys.
        _, variables = nn.Module.init_with_output(module, key, images, train=False)
        order.extend(path[1:-1] for path in flatten_dict(variables))

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), images)
    place = {layer: number for number, layer in reversed(list(enumerate(order)))}
    shapes = _shapes(module)
    return {path: shapes[path] for path in sorted(shapes, key=lambda path: place[path[1:-1]])}


def _natural_key(name: str) -> list[tuple[bool, int, str]]:
    """A key that sorts layer2 before layer10."""
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in re.split(r"(\d+)", name)]


def _parts(names: Iterable[str], expected: set[str]) -> list[str]:
    """Returns what nearly all names of a network stand behind; "model" of model.conv1.weight."""
    counts: Counter[str] = Counter()
    for name in names:
        pieces = name.split(".")
        if _plain_name(name) in expected:  # as "features" of a DenseNet, which is no wrapper
            continue
        for i in range(1, len(pieces) - 1):
            counts[".".join(pieces[:i])] += _plain_name(".".join(pieces[i:])) in expected
    return [part for part, count in counts.items() if count > 0.8 * len(expected)]


def _module(name: str | nn.Module, width: float | None, arrays: Mapping[str, Any]) -> nn.Module:
    """Returns the module that plain names and their arrays are of."""
    if isinstance(name, nn.Module):
        return name
    heads = [array for key, array in arrays.items() if re.match(r"(head|classifier\.\d+)\.w", key)]
    heads = heads or [array for array in arrays.values() if array.ndim == 2]
    classes = heads[-1].shape[0] if heads and heads[-1].ndim == 2 else 10
    if width is None:
        width = _width(create_model(name), arrays)
    return create_model(name, num_classes=classes, width=width)


def _width(module: nn.Module, arrays: Mapping[str, Any]) -> float:
    """Returns the width of weights, from their channels and those of a network of width 1.

    As channel counts are rounded down, the largest ratio gives all of them.
    """
    ratios = []
    for path, leaf in _shapes(module).items():
        array = arrays.get(_plain_name(_torch_name(module, path)))
        if (
            array is not None
            and array.ndim == leaf.ndim
            # Not layers that have one feature for each class, or as many at any width.
            and path[1] not in ("fc", "classifier", "fc3", "whitening")
        ):
            ratios.append(array.shape[0] / leaf.shape[-1])
    if not ratios:  # the names are of other code: those of the widest convolutions
        found = [array.shape[0] for array in arrays.values() if array.ndim == 4]
        wanted = [leaf.shape[-1] for leaf in _shapes(module).values() if leaf.ndim == 4]
        return max(found) / max(wanted) if found else 1.0
    # Those far from most are of a layer that does not fit, which is said later.
    near = [ratio for ratio in ratios if abs(ratio / np.median(ratios) - 1) < 0.25]
    return max(near or ratios)


def _shapes(module: nn.Module) -> dict[Path, Any]:
    return flatten_dict(abstract_variables(module))


# --- values -----------------------------------------------------------------------------------


def _to_numpy(key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor, perhaps on a GPU, perhaps bfloat16
        if value.is_complex():
            raise UserError(f"{key} is complex. Save it in float32.")
        try:
            value = value.detach().cpu().float().numpy()
        except Exception as error:  # sparse, quantized, or without values (device "meta")
            raise UserError(
                f"{key} cannot be read ({in_short(error)}). Save it as a dense tensor of float32."
            ) from error
    value = np.asarray(value)
    # np.savez makes void of bfloat16, whose kind in NumPy is that of void too.
    if value.dtype.type is np.void or value.dtype.kind not in "biufV":
        raise UserError(f"{key} is of dtype {value.dtype}. Save it in float32.")
    return value.astype(np.float32, copy=False)


def _transposed(array: np.ndarray, *, to_torch: bool) -> np.ndarray:
    """Convolutions HWIO <-> OIHW, linear layers IO <-> OI, vectors as they are."""
    if array.ndim == 4:
        return array.transpose((3, 2, 0, 1) if to_torch else (2, 3, 1, 0))
    return array.T


def _torch_shape(leaf: Any) -> tuple[int, ...]:
    """The shape of a leaf in PyTorch."""
    return _transposed(np.empty(leaf.shape), to_torch=True).shape


# --- the command ------------------------------------------------------------------------------


def _import(arguments: argparse.Namespace) -> str:
    weights = read(arguments.file)
    try:
        module, variables = fit(
            arguments.model, weights, width=arguments.width, part=arguments.part
        )
    except UserError as error:
        raise UserError(f"{arguments.file}: {error}") from error
    classes: int = module.num_classes  # pyright: ignore
    fitting = [name for name in data.DATASETS if data.num_classes(name) == classes]
    name = arguments.data or next(iter(fitting), "")
    if name not in fitting:
        raise UserError(
            f"{arguments.file} has {classes} classes, which "
            f"{f'{name} does not have' if name else 'no data set here has'}. "
            f"--data with {classes}: {', '.join(fitting) or 'none, see CONTRIBUTING.md'}."
        )
    config = base_config()
    config.model.name, config.model.width = arguments.model, module.width  # pyright: ignore
    config.model.activation = arguments.activation
    config.model.dropout_rate = 0.0  # weights do not say it, and evaluation has none
    config.data.name = name
    config.data.mean, config.data.std = arguments.mean, arguments.std
    start.run_of_weights(config, arguments.workdir, variables)
    known, workdir = data.without_images(name), shlex.quote(str(arguments.workdir))
    return (
        f"{arguments.file} is now a run in {arguments.workdir}: {arguments.model}, width "
        f"{config.model.width:g}, {classes} classes.\nAssumed, because weights do not say it: "
        f"{not_in_weights(module)}; {arguments.activation}; no dropout; RGB images, each evaluated "
        f"in one view, normalised by mean {arguments.mean or known.mean} and std "
        f"{arguments.std or known.std} (--mean, --std); the classes of {name} in their order.\n"
        f"To evaluate it: jaxcifar eval {workdir}\n"
        "To train on from it, by a config of this network: jaxcifar train CONFIG "
        f"--init_from={workdir} --optim.learning_rate=RATE --workdir=runs/NEW"
    )


def not_in_weights(module: nn.Module) -> str:
    """Says what a network does that weights of the same names and shapes do not show."""
    if isinstance(module, Airbench):
        return "a 2×2 whitening layer without padding; BatchNorm's ε of 1e-12; logits divided by 9"
    found = "five poolings" if isinstance(module, VGG) else "a 3×3 stem of stride 1, no pooling"
    if getattr(module, "block", None) is BottleneckBlock:
        found += "; the stride of a bottleneck in its 3×3 convolution"
    if getattr(module, "batch_norm", False):
        found += f"; BatchNorm's ε of {BatchNorm.epsilon:g}"
    return found


def _three_numbers(text: str) -> tuple[float, ...]:
    with contextlib.suppress(ValueError):
        red, green, blue = map(float, text.strip("()").split(","))
        return red, green, blue
    raise argparse.ArgumentTypeError(f"{text!r} are not three numbers, such as 0.5,0.5,0.5")


def main(argv: list[str] | None = None) -> None:
    parser = Parser("jaxcifar import", "Makes a run of PyTorch weights.")
    parser.add_argument("file", type=user_path, help="a PyTorch, safetensors or .npz file")
    parser.add_argument("--model", required=True, choices=MODELS)
    parser.add_argument(
        "--part", default="", help="take only names that begin with this, such as ema"
    )
    parser.add_argument(
        "--width", type=float, help="the model's width (default: inferred from the shapes)"
    )
    parser.add_argument("--data", choices=data.DATASETS, help="the data set that it was trained on")
    for field in ("mean", "std"):
        what = f"the {field} of each channel that images were normalised by: 0.5,0.5,0.5"
        parser.add_argument(f"--{field}", type=_three_numbers, default=(), help=what)
    parser.add_argument("--activation", default="relu", choices=ACTIVATIONS)
    parser.add_argument("--workdir", required=True, type=user_path)
    arguments = parser.parse_args(argv)
    print(_import(arguments))
