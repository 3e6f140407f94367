"""What is exported is of use without this package, and gives the same logits there."""

import importlib.util
import json
import re
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest

from jaxcifar import cli, models, restore
from jaxcifar.augment import normalize
from jaxcifar.interop import export
from jaxcifar.state import abstract_variables
from tests.tiny import first_images, mesh

# With -I there is no current folder; an installed copy is hidden too.
ALONE = "import sys; sys.modules['jaxcifar'] = None\n"
STABLEHLO = """
import jax.export, numpy as np
with open(sys.argv[1], "rb") as file:
    network = jax.export.deserialize(file.read())
assert network.platforms == ("cpu", "cuda", "tpu")
images = np.load(sys.argv[2])
logits = network.call(images)
np.testing.assert_allclose(network.call(images[:1]), logits[:1], atol=1e-4)
np.save(sys.argv[3], logits)
"""
ONNX = """
import numpy as np, onnxruntime
network = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = np.load(sys.argv[2])
(logits,) = network.run(["logits"], {"images": images})
(first,) = network.run(["logits"], {"images": images[:1]})
np.testing.assert_allclose(first, logits[:1], atol=1e-4)
np.save(sys.argv[3], logits)
"""
# VGG-A with BatchNorm in NumPy, from torchvision's names and the JSON file alone.
WEIGHTS = """
import json, numpy as np
path = sys.argv[1]
if path.endswith(".npz"):
    w = dict(np.load(path))
elif path.endswith(".pt"):
    import torch
    w = {name: t.numpy() for name, t in torch.load(path, weights_only=True).items()}
else:
    from safetensors.numpy import load_file
    w = load_file(path)
with open(path + ".json") as file:
    given = json.load(file)["input"]
assert (given["layout"], given["channels"]) == ("NCHW", "RGB")
x = np.load(sys.argv[2]).transpose(0, 3, 1, 2) / 255
x = (x - np.reshape(given["mean"], (1, 3, 1, 1))) / np.reshape(given["std"], (1, 3, 1, 1))
each = lambda v: v.reshape(1, -1, 1, 1)
place = 0
for convolutions in (1, 1, 2, 2, 2):
    for _ in range(convolutions):
        k, h = w[f"features.{place}.weight"], x.shape[2]
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        x = sum(np.einsum("nihw,oi->nohw", x[:, :, i:i + h, j:j + h], k[:, :, i, j])
                for i in range(3) for j in range(3)) + each(w[f"features.{place}.bias"])
        scale, shift, mean, var = (each(w[f"features.{place + 1}.{name}"])
                                   for name in ("weight", "bias", "running_mean", "running_var"))
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + shift, 0)
        place += 3
    n, c, h, _ = x.shape
    x = x.reshape(n, c, h // 2, 2, h // 2, 2).max((3, 5))
    place += 1
x = x.reshape(len(x), -1)
for number in (0, 3, 6):
    x = x @ w[f"classifier.{number}.weight"].T + w[f"classifier.{number}.bias"]
    x = np.maximum(x, 0) if number < 6 else x
np.save(sys.argv[3], x)
"""


@pytest.fixture(scope="module")
def expected(finished):
    """The logits of five test images, by this package."""
    config, _, variables = restore.load_variables(finished[0], "last", mesh=mesh(1))
    model = models.create_model("vgg_a_bn", width=config.model.width)
    inputs = normalize(first_images(5, "test").images, (0.5,) * 3, (0.25,) * 3)
    return jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("to", export.FORMATS)
def test_the_same_logits_without_this_package(finished, expected, tmp_path, to, capsys):
    module, extra = export.NEEDS.get(to, ("numpy", ""))
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install '.[{extra}]'")
    path, images, logits = (tmp_path / name for name in ("network", "images.npy", "logits.npy"))
    path = path.with_suffix(f".{export.FORMATS[to]}")
    arguments = [str(finished[0]), f"--to={to}", f"--out={path}", "--checkpoint=last"]
    assert cli.main(["export", *arguments]) == 0
    np.save(images, first_images(5, "test").images)
    program = ALONE + {"stablehlo": STABLEHLO, "onnx": ONNX}.get(to, WEIGHTS)
    subprocess.run([sys.executable, "-I", "-c", program, path, images, logits], check=True)
    np.testing.assert_allclose(np.load(logits), expected, rtol=1e-3, atol=1e-4)
    about = json.loads((tmp_path / f"{path.name}.json").read_text())
    assert about["test_augment"] == "none"
    assert (about["format"], about["checkpoint"], about["step"]) == (to, "last", 6)
    assert about["classes"] == [f"pattern {i}" for i in range(10)]
    assert (about["input"]["mean"], about["input"]["std"]) == ([0.5] * 3, [0.25] * 3)
    # What a network of the same weights could do otherwise.
    assert about["network"] == "five poolings; BatchNorm's ε of 1e-05"
    said = f"What the weights do not say: {about['network']}; relu\n"
    assert (said in capsys.readouterr().out) == (to not in ("stablehlo", "onnx"))
    # Nothing is overwritten.
    before = path.read_bytes()
    assert cli.main(["export", *arguments]) == 2
    assert path.read_bytes() == before


@pytest.mark.parametrize(("name", "convolutions"), [("vgg_a_bn", 8), ("resnet18", 20)])
def test_the_program_is_made_of_what_all_platforms_have(finished, name, convolutions):
    """Nothing that is for CPUs alone, and no product in a precision lower than float32's."""
    config, _, variables = restore.load_variables(finished[0], "last", mesh=mesh(1))
    if name != config.model.name:
        config.model.name = name
        shapes = abstract_variables(models.create_model(name, width=config.model.width))
        variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), dict(shapes))
    config.model.dtype = "bfloat16"  # as it may have been trained
    program = export.to_stablehlo(config, variables).mlir_module()
    products = [line for line in program.splitlines() if "stablehlo.convolution" in line]
    assert len(products) == 3 * convolutions  # there are as many branches as platforms
    assert all("HIGHEST" in line and "bf16" not in line for line in products)
    assert set(re.findall(r"custom_call @(\w+)", program)) <= {"shape_assertion"}  # N ≥ 1
    assert "bf16" not in program


def test_wrong_arguments(finished, tmp_path, capsys):
    beside = tmp_path / "network.npz.json"
    beside.write_text("mine")
    for run, out, message in (
        (finished[0], tmp_path / "network.npz", "network.npz.json exists"),
        (finished[0], tmp_path / "none" / "x.npz", "no folder"),
        (tmp_path, tmp_path / "x.npz", "contains no run"),
    ):
        assert cli.main(["export", str(run), "--to=npz", f"--out={out}"]) == 2
        assert message in capsys.readouterr().err
    assert beside.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [beside]


def test_a_full_disk_leaves_no_half_of_a_file(finished, tmp_path, capsys):
    """No file of this process may grow beyond 1,000 bytes for a moment."""
    restore.load_variables(finished[0])  # else what this compiles would be cut short in the cache
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        arguments = [str(finished[0]), "--to=npz", f"--out={tmp_path / 'weights.npz'}"]
        assert cli.main(["export", *arguments]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
