"""Writes a run's network to a file that can be used without this package.

    jaxcifar export runs/row9 --to=npz

writes row9.npz, and row9.npz.json, which says what images it takes, the names of the classes and
where it comes from. The formats:

  stablehlo    the network as a program for CPU, CUDA and TPU, the weights and the normalisation in
               it; jax.export.deserialize(file.read()).call(images) -> logits needs only jax and
               flatbuffers
  torch        the weights as a state_dict of PyTorch, under torchvision's names
  safetensors  the same weights
  npz          the same weights, for NumPy

ONNX is not among them: jax2onnx needs an older orbax-checkpoint than this package does.
"""

import argparse
import importlib.util
import io
import pathlib
import sys
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
from jaxcifar.interop.torch import to_torch
from jaxcifar.options import user_path
from jaxcifar.signals import exit_code

# The format: the ending of its file.
FORMATS = {"stablehlo": "stablehlo", "torch": "pt", "safetensors": "safetensors", "npz": "npz"}
# What a format needs beyond the package's own dependencies: a module, and the extra that has it.
NEEDS = {"stablehlo": ("flatbuffers", "stablehlo"), "torch": ("torch", "torch")}


def export(
    workdir: pathlib.Path, to: str, path: pathlib.Path, *, checkpoint: str = "best"
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
    config = config.copy_and_resolve_references()
    config.model.dtype, config.model.remat = "float32", "off"
    known = data.without_images(config.data.name)
    # For a GPU the network is made of XLA's own operations, which all platforms have.
    model = task.create_model(config, len(known.class_names), "gpu")
    normalization = task.normalization(config, known)

    @jax.jit
    def logits(images: jax.Array) -> Any:
        return model.apply(variables, augment.normalize(images, **normalization), train=False)

    (n,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, 32, 32, 3), jnp.uint8)
    with jax.default_matmul_precision("float32"):  # else TPUs round to bfloat16, GPUs to TF32
        return jax.export.export(logits, platforms=("cpu", "cuda", "tpu"))(images)


def _about(config: Config, to: str) -> dict[str, Any]:
    known = data.without_images(config.data.name)
    normalization = task.normalization(config, known)
    if to == "stablehlo":
        images = {"dtype": "uint8", "shape": ["N", 32, 32, 3], "layout": "NHWC"}
        scale = {"normalization": "(x / 255 - mean) / std, which the program does itself"}
    else:
        images = {"dtype": "float32", "shape": ["N", 3, 32, 32], "layout": "NCHW"}
        scale = {"normalization": "(x / 255 - mean) / std, to be done before"}
    return {
        "format": to,
        "model": config.model.to_dict(),
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


def _command(arguments: argparse.Namespace) -> None:
    workdir, to = arguments.workdir, arguments.to
    path = arguments.out or pathlib.Path(f"{workdir.resolve().name}.{FORMATS[to]}")
    about = export(workdir, to, path, checkpoint=arguments.checkpoint)
    print(f"{workdir} ({arguments.checkpoint} checkpoint, step {about['step']}) -> {path}")
    print(f"What it takes and returns: {path}.json")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="jaxcifar export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("workdir", type=user_path, help="of the run")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--out", type=user_path, help="the file; else named after the run")
    parser.add_argument("--checkpoint", default="best", choices=restore.WHICH)
    arguments = parser.parse_args(argv)
    return exit_code(lambda: _command(arguments))


if __name__ == "__main__":
    sys.exit(main())
