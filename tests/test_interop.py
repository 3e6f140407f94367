"""Weights to and from PyTorch: names, shapes, errors, and the command. Needs no PyTorch."""

import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar import restore
from jaxcifar.config import base_config
from jaxcifar.errors import UserError
from jaxcifar.interop import torch as interop
from jaxcifar.models import MODELS, create_model
from jaxcifar.state import abstract_variables


def random_variables(name, **options):
    """Variables of a model with made-up values, without its initialisation."""
    module = create_model(name, **options)
    generator = np.random.default_rng(0)
    flat = {
        path: generator.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flatten_dict(abstract_variables(module)).items()
    }
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_the_identity(name):
    width = 1.0 if name.startswith("vgg") else 0.25
    variables = random_variables(name, width=width)
    state_dict = interop.to_torch(name, variables)
    back = interop.from_torch(name, state_dict, width=width)
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert jax.tree.structure(back) == jax.tree.structure(variables)
    again = interop.to_torch(name, back)
    assert again.keys() == state_dict.keys()
    assert all(np.array_equal(again[key], state_dict[key]) for key in again)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", {"conv1.weight": (64, 3, 3, 3),
                      "layer2.0.downsample.0.weight": (128, 64, 1, 1),
                      "layer2.0.downsample.1.running_var": (128,), "fc.weight": (10, 512),
                      "layer4.1.bn2.num_batches_tracked": ()}),
        ("densenet121", {"features.conv0.weight": (64, 3, 3, 3),
                         "features.denseblock1.denselayer1.norm1.weight": (64,),
                         "features.denseblock4.denselayer16.conv2.weight": (24, 96, 3, 3),
                         "features.transition3.conv.weight": (386, 772, 1, 1),
                         "features.norm5.running_mean": (770,), "classifier.weight": (10, 770)}),
        ("vgg_a", {"features.0.weight": (64, 3, 3, 3), "features.18.bias": (512,),
                   "classifier.3.weight": (512, 512), "classifier.6.bias": (10,)}),
        ("vgg_a_bn", {"features.1.running_mean": (64,), "features.25.weight": (512, 512, 3, 3),
                      "features.26.weight": (512,), "classifier.0.weight": (512, 512)}),
    ],
)  # fmt: skip
def test_names_are_torchvisions(name, expected):
    state_dict = interop.to_torch(name, random_variables(name))
    for key, shape in expected.items():
        assert state_dict[key].shape == shape, key


def test_layout():
    variables = random_variables("resnet18", width=0.25)
    state_dict = interop.to_torch("resnet18", variables)
    kernel = variables["params"]["conv1"]["kernel"]  # [row, column, in, out]
    assert state_dict["conv1.weight"][5, 2, 0, 1] == kernel[0, 1, 2, 5]
    assert state_dict["fc.weight"][3, 7] == variables["params"]["fc"]["kernel"][7, 3]


def renamed(state_dict, *pairs):
    result = {}
    for key, value in state_dict.items():
        for pattern, replacement in pairs:
            key = re.sub(pattern, replacement, key)
        result[key] = value
    return result


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        ("resnet18", [("downsample", "shortcut"), (r"^fc\.", "linear.")]),
        ("resnet18", [("^", "module.")]),
        ("resnet50", [("^", "_orig_mod.module.")]),
        ("densenet121", [(r"^features\.", ""), (r"^classifier\.", "linear.")]),
        ("vgg_a_bn", [("^", "module.")]),
    ],
)
def test_common_other_names(name, pairs):
    variables = random_variables(name)
    state_dict = renamed(interop.to_torch(name, variables), *pairs)
    back = interop.from_torch(name, state_dict)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_number_of_classes_is_taken_from_the_weights():
    for name in ("resnet18", "densenet121", "vgg_a"):
        variables = random_variables(name, num_classes=3)
        back = interop.from_torch(name, interop.to_torch(name, variables))
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_all_misfits_are_listed():
    state_dict = interop.to_torch("resnet18", random_variables("resnet18"))
    del state_dict["layer1.0.conv1.weight"], state_dict["bn1.running_mean"]
    state_dict["layer3.0.bn1.bias"] = np.zeros(7, np.float32)
    state_dict["extra.weight"] = np.zeros(7, np.float32)
    state_dict["linear.bias"] = np.zeros(10, np.float32)
    with pytest.raises(UserError) as error:
        interop.from_torch("resnet18", state_dict)
    message = str(error.value)
    for line in (
        "layer1.0.conv1.weight is missing",
        "bn1.running_mean is missing",
        "layer3.0.bn1.bias has shape (7,) instead of (256,)",
        "extra.weight is unknown",
        "fc.bias and linear.bias are the same entry",
    ):
        assert line in message


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    config = base_config()
    config.model.name = "vgg_a_bn"
    variables = random_variables("vgg_a_bn")
    for stats in variables["batch_stats"].values():
        stats["var"] = np.abs(stats["var"])
    path = tmp_path / "weights.npz"
    np.savez(path, **interop.to_torch("vgg_a_bn", variables))
    return path, variables


def test_import_evaluate_export(weights, tmp_path, capsys, one_device):
    path, variables = weights
    workdir = tmp_path / "run"
    arguments = ["import", str(path), "--model=vgg_a_bn", "--activation=gelu"]
    assert interop.main([*arguments, f"--workdir={workdir}"]) == 0
    assert "--mode=eval" in capsys.readouterr().out
    config, step, loaded = restore.load_variables(workdir)
    assert (config.model.name, config.model.activation, step) == ("vgg_a_bn", "gelu", 0)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), variables)
    exported = tmp_path / "exported.npz"
    assert interop.main(["export", str(exported), f"--workdir={workdir}"]) == 0
    one, other = np.load(exported), np.load(path)
    assert all(np.array_equal(one[key], other[key]) for key in other.files)
    # Nothing is overwritten.
    assert interop.main(["export", str(exported), f"--workdir={workdir}"]) == 2
    assert interop.main([*arguments, f"--workdir={workdir}"]) == 2
    errors = capsys.readouterr().err
    assert "exists" in errors
    assert "holds a run already" in errors


def test_command_refuses(tmp_path, capsys):
    arguments = ["--model=vgg_a", f"--workdir={tmp_path / 'run'}"]
    assert interop.main(["import", str(tmp_path / "none.npz"), *arguments]) == 2
    assert "no file" in capsys.readouterr().err
    (tmp_path / "weights.bin").write_bytes(b"")
    assert interop.main(["import", str(tmp_path / "weights.bin"), *arguments]) == 2
    assert ".npz, .pt or .pth" in capsys.readouterr().err
    (tmp_path / "damaged.npz").write_bytes(b"not an archive")
    assert interop.main(["import", str(tmp_path / "damaged.npz"), *arguments]) == 2
    assert "cannot be read" in capsys.readouterr().err
    wide = interop.to_torch("vgg_a", random_variables("vgg_a", num_classes=100))
    np.savez(tmp_path / "wide.npz", **wide)
    assert interop.main(["import", str(tmp_path / "wide.npz"), *arguments]) == 2
    assert "10 classes" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()
