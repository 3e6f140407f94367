"""Writes a run's network to a file that can be used without this package.

    jaxcifar export runs/row9 --to=npz

writes row9.npz, and row9.npz.json, which says what images it takes, the names of the classes and
where it comes from. The formats:

  stablehlo    the network as a program for CPU, CUDA and TPU, the weights and the normalisation in
               it; jax.export.deserialize(file.read()).call(images) -> logits needs only jax and
               flatbuffers
  onnx         the same as an ONNX model, images -> logits, for ONNX Runtime and others
  torch        the weights as a state_dict of PyTorch, under torchvision's names
  safetensors  the same weights
  npz          the same weights, for NumPy
"""

import importlib.util
import io
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxcifar import augment, data, restore, task
from jaxcifar.config import Config
from jaxcifar.errors import UserError, choose
from jaxcifar.files import replacing, write_json
from jaxcifar.interop.torch import not_in_weights, to_torch
from jaxcifar.options import Parser, user_path

# The format: the ending of its file.
FORMATS = {
    "stablehlo": "stablehlo",
    "onnx": "onnx",
    "torch": "pt",
    "safetensors": "safetensors",
    "npz": "npz",
}
# What a format needs beyond the package's own dependencies: a module, and the extra that has it.
NEEDS = {
    "stablehlo": ("flatbuffers", "stablehlo"),
    "onnx": ("jax2onnx", "onnx"),
    "torch": ("torch", "torch"),
}


def export(
    workdir: str | pathlib.Path, to: str, path: str | pathlib.Path, *, checkpoint: str = "best"
) -> dict[str, Any]:
    """Writes a run's network to `path`, and what must be known to use it to `path`.json.

    Args:
      workdir: of the run.
      to: one of `FORMATS`.
      path: of the file.
      checkpoint: "best" or "last".

    Returns:
      The content of `path`.json.

    Raises:
      UserError: there is no such checkpoint, the file exists, its folder does not, or what the
        format needs is not installed.
    """
    workdir, path = pathlib.Path(workdir), pathlib.Path(path)
    module, extra = NEEDS.get(choose("--to", to, FORMATS), ("numpy", ""))
    if importlib.util.find_spec(module) is None:
        raise UserError(f"--to={to} needs {module}: pip install 'jaxcifar[{extra}]'.")
    if path.is_dir():
        file = path / f"{workdir.name or 'run'}.{to}"
        raise UserError(f"{path} is a folder. Name a file in it: --out={file}.")
    beside = path.with_name(path.name + ".json")
    for file in (path, beside):
        if file.exists():
            raise UserError(f"{file} exists. Delete it or choose another name with --out.")
    if not path.parent.is_dir():
        raise UserError(f"There is no folder {path.parent} to write {path.name} in.")
    config, step, variables = restore.load_variables(workdir, checkpoint)
    variables = jax.device_get(variables)
    if to == "stablehlo":
        content = bytes(to_stablehlo(config, variables).serialize())
    elif to == "onnx":
        content = to_onnx(config, variables)
    else:
        content = _weights(to, to_torch(config.model.name, variables))
    about = {"run": str(workdir), "checkpoint": checkpoint, "step": step} | _about(config, to)
    with replacing(path) as half:
        half.write_bytes(content)
        write_json(beside, about)  # both or none
    return about


def to_stablehlo(config: Config, variables: dict[str, Any]) -> jax.export.Exported:
    """Returns a network as a program: images [N, 32, 32, 3] uint8 -> logits [N, classes] float32.

    The program is for CPU, CUDA and TPU and for any N ≥ 1. It normalises the images, and computes
    in float32 on each platform.

    Args:
      config: of the network.
      variables: of the network.
    """
    logits = jax.jit(_network(config, variables))
    with jax.default_matmul_precision("float32"):  # else TPUs round to bfloat16, GPUs to TF32
        return jax.export.export(logits, platforms=("cpu", "cuda", "tpu"))(_images())


def to_onnx(config: Config, variables: dict[str, Any]) -> bytes:
    """Returns a network as an ONNX model: what `to_stablehlo` returns, as another program.

    Its input is named "images", and its output "logits".

    Args:
      config: of the network.
      variables: of the network.
    """
    import jax2onnx  # pyright: ignore

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # else it warns of each unknown shape
    model: Any = jax2onnx.to_onnx(
        _network(config, variables),
        [_images()],
        model_name=config.model.name,
        input_names=["images"],
        output_names=["logits"],
    )
    return model.SerializeToString()


def _network(config: Config, variables: dict[str, Any]) -> Callable[[jax.Array], Any]:
    """Returns the network as a function of images, in float32 and of XLA's own operations."""
    config = config.copy_and_resolve_references()
    config.model.dtype, config.model.remat = "float32", "off"
    known = data.without_images(config.data.name, data_dir=config.data.dir)
    # That for a GPU is made of operations that all platforms have.
    model = task.create_model(config, len(known.class_names), "gpu")
    normalization = task.normalization(config, known)

    def logits(images: jax.Array) -> Any:
        return model.apply(variables, augment.normalize(images, **normalization), train=False)

    return logits


def _images() -> jax.ShapeDtypeStruct:
    """Returns what a network takes: [n, 32, 32, 3] uint8, for any n ≥ 1."""
    return jax.ShapeDtypeStruct((*jax.export.symbolic_shape("n"), 32, 32, 3), jnp.uint8)


def _about(config: Config, to: str) -> dict[str, Any]:
    known = data.without_images(config.data.name, data_dir=config.data.dir)
    normalization = task.normalization(config, known)
    if to in ("stablehlo", "onnx"):
        images = {"dtype": "uint8", "shape": ["N", 32, 32, 3], "layout": "NHWC"}
        scale = {"normalization": "(x / 255 - mean) / std, which the program does itself"}
    else:
        images = {"dtype": "float32", "shape": ["N", 3, 32, 32], "layout": "NCHW"}
        scale = {"normalization": "(x / 255 - mean) / std, to be done before"}
    network = task.create_model(config, len(known.class_names), "cpu")
    return {
        "format": to,
        "model": config.model.to_dict(),
        "network": not_in_weights(network),
        "input": images | {"channels": "RGB"} | scale | normalization,
        "output": "logits",
        # An evaluation here averages the logits of these views; the network takes one.
        "test_augment": config.data.test_augment,
        "classes": known.class_names,
    }


def _weights(to: str, state_dict: dict[str, np.ndarray]) -> bytes:
    arrays = {name: np.array(value, order="C") for name, value in state_dict.items()}
    if to == "safetensors":
        return safetensors.numpy.save(arrays)
    file = io.BytesIO()
    if to == "npz":
        np.savez(file, **arrays)  # pyright: ignore
    else:
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in arrays.items()}  # pyright: ignore
        torch.save(tensors, file)  # pyright: ignore
    return file.getvalue()


def main(argv: list[str] | None = None) -> None:
    parser = Parser("jaxcifar export", __doc__)
    parser.add_argument("workdir", type=user_path, help="the run's folder")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--out", type=user_path, help="the file (default: named after the run)")
    parser.add_argument("--checkpoint", default="best", choices=restore.WHICH)
    arguments = parser.parse_args(argv)
    workdir, to = arguments.workdir, arguments.to
    path = arguments.out or pathlib.Path(f"{workdir.resolve().name}.{FORMATS[to]}")
    about = export(workdir, to, path, checkpoint=arguments.checkpoint)
    print(f"{workdir} ({arguments.checkpoint} checkpoint, step {about['step']}) -> {path}")
    if to not in ("stablehlo", "onnx"):
        activation = about["model"]["activation"]
        print(f"What the weights do not say: {about['network']}; {activation}")
    print(f"What it takes and returns: {path}.json")
