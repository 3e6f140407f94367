"""Weights to and from PyTorch: names, shapes, errors, and the command. Needs no PyTorch."""

import re
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar import cli, restore
from jaxcifar.errors import UserError
from jaxcifar.interop import export, files
from jaxcifar.interop import torch as interop
from jaxcifar.models import MODELS, create_model
from jaxcifar.state import abstract_variables

# Of the blocks of ResNet-50 and DenseNet-121.
DEEPER = ("resnet56", "resnet101", "resnet152", "densenet169", "densenet201", "densenet264")


def random_variables(name, **options):
    """Variables of a model with made-up values, without its initialisation."""
    module = create_model(name, **options)
    generator = np.random.default_rng(0)
    flat = {
        path: (np.abs if path[-1] == "var" else np.asarray)(generator.normal(size=leaf.shape))
        for path, leaf in flatten_dict(abstract_variables(module)).items()
    }
    flat = {path: value.astype(np.float32) for path, value in flat.items()}
    return {"params": {}, "batch_stats": {}} | unflatten_dict(flat)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in DEEPER])
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


@pytest.mark.slow
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
        "missing (2): layer1.0.conv1.weight, bn1.running_mean",
        "of another shape (1): layer3.0.bn1.bias is (7,) instead of (256,)",
        "unknown (1): extra.weight",
        "twice there (1): fc.bias and linear.bias",
    ):
        assert line in message


def test_a_misfit_is_short():
    """Of a network of other names, the first few and how many more."""
    state_dict = interop.to_torch("resnet18", random_variables("resnet18", width=0.125))
    with pytest.raises(UserError, match=r"missing \(80\): .*, and 76 more") as error:
        interop.from_torch("resnet34", state_dict)
    assert len(str(error.value)) < 400
    with pytest.raises(UserError, match=r"missing \(102\)[^\n]*\n  unknown \(102\)[^\n]*$"):
        interop.from_torch(
            "resnet18", renamed(state_dict, (r"weight|bias|running", r"other_\g<0>"))
        )


@pytest.mark.parametrize("width", [0.125, 0.3, 0.9])
@pytest.mark.parametrize("name", ["resnet18", "vgg_a", "wideresnet28_10", "airbench94"])
def test_the_width_follows_from_the_shapes(name, width):
    state_dict = interop.to_torch(name, shapes_only(name, width=width))
    module, _ = interop.fit(name, state_dict)
    found, expected = (
        jax.tree.map(lambda leaf: leaf.shape, abstract_variables(network))
        for network in (module, create_model(name, width=width))
    )
    assert found == expected


def shapes_only(name, **options):
    """Variables of a model, all of them 0."""
    shapes = abstract_variables(create_model(name, **options))
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), dict(shapes))


# --- layouts ----------------------------------------------------------------------------------

NARROW = {"width": 0.05}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {"net": renamed(w, ("^", "module.")), "acc": np.float64(95.1), "epoch": 3},
        lambda w: {"state_dict": renamed(w, ("^", "model.")), "global_step": np.zeros(())},
        lambda w: {"model": {"state_dict": w}, "optimizer": {"state": {0: {"m": np.ones(3)}}}},
        lambda w: {"ema": renamed(w, ("^", "module._orig_mod."))},
        lambda w: renamed(w, ("^", "0.")),
        lambda w: {key: value.astype(np.float64) for key, value in w.items()},
    ],
)
def test_wrappers_and_prefixes(wrap):
    variables = random_variables("vgg_a_bn", **NARROW)
    back = interop.from_torch("vgg_a_bn", wrap(interop.to_torch("vgg_a_bn", variables)))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_a_densenet_that_does_not_fit_is_not_said_to_be_wrapped():
    """Under torchvision's names nearly all is in "features"; its width may be what is wrong."""
    arrays = interop.to_torch("densenet121", shapes_only("densenet121", width=0.12))
    with pytest.raises(UserError, match=r"(?s)of another shape.* give it: --width=…$") as error:
        interop.from_torch("densenet121", arrays)
    assert "--part" not in str(error.value)
    interop.from_torch("densenet121", arrays, width=0.12)


def test_of_two_networks_in_a_file_one_is_chosen():
    one, other = (random_variables("vgg_a", **NARROW), shapes_only("vgg_a", **NARROW))
    both = {"model": interop.to_torch("vgg_a", one), "ema": interop.to_torch("vgg_a", other)}
    with pytest.raises(UserError, match="--part=model or --part=ema"):
        interop.from_torch("vgg_a", both)
    for part, expected in (("model", one), ("ema", other)):
        found = interop.from_torch("vgg_a", both, part=part)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    with pytest.raises(UserError, match=r"'net'\. There are: model \(22\), ema \(22\)"):
        interop.from_torch("vgg_a", both, part="net")
    for part in ("ema", "state_dict.ema"):  # as in Lightning's checkpoints
        found = interop.from_torch("vgg_a", {"epoch": 3, "state_dict": both}, part=part)
        jax.tree.map(np.testing.assert_array_equal, found, other)


@pytest.mark.parametrize("numbers", [(0, 2, 4), (0, 3, 6), (1, 4, 6)])
def test_the_linear_layers_of_a_vgg_by_order(numbers):
    variables = random_variables("vgg_a", **NARROW)
    state_dict = interop.to_torch("vgg_a", variables)
    numbered = {
        re.sub(r"^classifier\.(\d)", lambda m: f"classifier.{numbers[int(m[1]) // 3]}", key): value
        for key, value in state_dict.items()
    }
    back = interop.from_torch("vgg_a", numbered)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_linear_layers_without_an_activation_between_are_another_network():
    state_dict = interop.to_torch("vgg_a", random_variables("vgg_a", **NARROW))
    side_by_side = renamed(state_dict, (r"^classifier\.3", "classifier.1"))
    with pytest.raises(UserError, match=r"missing \(2\): classifier\.3"):
        interop.from_torch("vgg_a", side_by_side)


def other_names(name):
    """A name in torchvision's ResNet-18 -> that of code that puts each block into a Sequential."""
    name = re.sub(r"^conv1\.", "conv1.0.", name)
    name = re.sub(r"^bn1\.", "conv1.1.", name)
    name = re.sub(r"^layer(\d)", lambda m: f"conv{int(m[1]) + 1}_x", name)
    name = name.replace("downsample", "shortcut")
    for number, layer in ((0, "conv1"), (1, "bn1"), (3, "conv2"), (4, "bn2")):
        name = re.sub(rf"(_x\.\d)\.{layer}", rf"\1.residual_function.{number}", name)
    return name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "in_order"),
    [("conv1", True), ("conv1", False), ("stem", True)],  # sorted, "stem" comes behind "fc"
)
def test_other_names_are_matched_by_order(stem, in_order, capsys):
    """By that of the file, which is PyTorch's or none, or of the sorted names."""
    variables = random_variables("resnet18", width=0.125)
    for stats in jax.tree.leaves(variables["batch_stats"]):
        np.abs(stats, out=stats)
    state_dict = interop.to_torch("resnet18", variables)
    keys = sorted(state_dict, key=other_names) if in_order else state_dict
    other = {re.sub("^conv1", stem, other_names(key)): state_dict[key] for key in keys}
    assert {f"{stem}.0.weight", "conv3_x.0.residual_function.3.weight"} < other.keys()
    module, back = interop.fit("resnet18", other)
    assert "matched by order and shape" in capsys.readouterr().err
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    expected = create_model("resnet18", width=0.125).apply(variables, images, train=False)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(module.apply(back, images, train=False), expected)


def test_two_readings_are_none():
    """Two layers of one shape, of which the file has b first, and the sorted names a."""
    state_dict = interop.to_torch("resnet18", random_variables("resnet18", width=0.125))
    other = {}
    for key in sorted(state_dict, key=other_names):
        name = re.sub(r"(_x\.1)\.residual_function\.([01])", r"\1.b.\2", other_names(key))
        name = re.sub(r"(_x\.1)\.residual_function\.([34])", r"\1.a.\2", name)
        other[name] = state_dict[key]
    # Nor in a file that has been sorted, whose order says nothing.
    for given in (other, {key: other[key] for key in sorted(other)}):
        with pytest.raises(UserError, match=r"missing \(100\)") as error:
            interop.from_torch("resnet18", given)
        assert len(str(error.value).splitlines()) <= 3


def test_what_no_network_has_is_refused():
    state_dict = interop.to_torch("resnet18", random_variables("resnet18", width=0.125))
    state_dict["bn1.running_var"] = -state_dict["bn1.running_var"]
    with pytest.raises(UserError, match=r"negative, but a variance \(1\): bn1\.running_var"):
        interop.from_torch("resnet18", state_dict)


def test_the_count_of_batches_is_not_needed_in_any_shape():
    variables = random_variables("resnet18", width=0.125)
    state_dict = interop.to_torch("resnet18", variables)
    state_dict |= {"bn1.num_batches_tracked": np.ones(1, np.int64)}  # as ascontiguousarray has it
    jax.tree.map(
        np.testing.assert_array_equal, interop.from_torch("resnet18", state_dict), variables
    )


def test_no_bias_before_batch_norm_is_a_bias_of_zero():
    variables = random_variables("vgg_a_bn", **NARROW)
    state_dict = interop.to_torch("vgg_a_bn", variables)
    convs = [key for key, value in state_dict.items() if value.ndim == 4]
    for key in convs:
        del state_dict[key.replace("weight", "bias")]
    back = interop.from_torch("vgg_a_bn", state_dict)
    assert len(convs) == 8
    for number in range(1, 9):
        assert not np.any(back["params"][f"conv{number}"]["bias"])


def test_variables_and_state_dict_share_no_memory():
    """PyTorch trains on in the arrays that it gave, and in those that it gets."""
    source = interop.to_torch("vgg_a_bn", random_variables("vgg_a_bn", **NARROW))
    variables = interop.from_torch("vgg_a_bn", source)
    before = jax.tree.map(np.array, variables)
    for array in source.values():
        array += 1
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    for array in interop.to_torch("vgg_a_bn", variables).values():
        array += 1
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_variables_are_float32_with_x64_too():
    state_dict = interop.to_torch("vgg_a_bn", random_variables("vgg_a_bn", **NARROW))
    del state_dict["features.0.bias"]
    with jax.enable_x64(True):
        variables = interop.from_torch("vgg_a_bn", state_dict)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(variables)} == {"float32"}


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    variables = random_variables("vgg_a_bn", **NARROW)
    for stats in variables["batch_stats"].values():
        stats["var"] = np.abs(stats["var"])
    path = tmp_path / "weights.npz"
    np.savez(path, **interop.to_torch("vgg_a_bn", variables))
    return path, variables


def test_what_is_assumed_is_of_the_network(tmp_path, capsys, one_device):
    path, options = tmp_path / "weights.npz", ["--activation=gelu"]
    for name, what in (
        ("airbench94", "a 2×2 whitening layer without padding; BatchNorm's ε of 1e-12; logits div"),
        ("resnet18", "a 3×3 stem of stride 1, no pooling; BatchNorm's ε of 1e-05; gelu"),
        ("resnet50", "a 3×3 stem of stride 1, no pooling; the stride of a bottleneck in its 3×3"),
        ("vgg_a", "five poolings; gelu"),
    ):
        np.savez(path, **interop.to_torch(name, random_variables(name, width=0.125)))
        workdir = f"--workdir={tmp_path / name}"
        assert cli.main(["import", str(path), f"--model={name}", *options, workdir]) == 0
        assert f"weights do not say it: {what}" in capsys.readouterr().out


@pytest.mark.slow
def test_import_and_export(weights, tmp_path, capsys, one_device):
    path, variables = weights
    workdir = tmp_path / "run"
    arguments = [str(path), "--model=vgg_a_bn", "--activation=gelu"]
    assert cli.main(["import", *arguments, f"--workdir={workdir}"]) == 0
    assert f"jaxcifar eval {workdir}\n" in capsys.readouterr().out
    config, step, loaded = restore.load_variables(workdir)
    assert (config.model.name, config.model.activation, step) == ("vgg_a_bn", "gelu", 0)
    assert config.model.dropout_rate == 0  # else a run from it would be told that it had some
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), variables)
    exported = tmp_path / "exported.npz"
    export.export(str(workdir), "npz", str(exported))
    one, other = np.load(exported), np.load(path)
    assert all(np.array_equal(one[key], other[key]) for key in other.files)
    # Nothing is overwritten.
    assert cli.main(["import", *arguments, f"--workdir={workdir}"]) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_command_refuses(tmp_path, capsys):
    arguments = ["--model=vgg_a", f"--workdir={tmp_path / 'run'}"]
    (tmp_path / "damaged.npz").write_bytes(b"not an archive")
    assert cli.main(["import", str(tmp_path / "damaged.npz"), *arguments]) == 2
    assert "cannot be read" in capsys.readouterr().err
    wide = interop.to_torch("vgg_a", random_variables("vgg_a", num_classes=7, **NARROW))
    np.savez(tmp_path / "wide.npz", **wide)
    assert cli.main(["import", str(tmp_path / "wide.npz"), *arguments]) == 2
    assert "has 7 classes, which no data set here has" in capsys.readouterr().err
    for dtype, shown in ((jnp.bfloat16, "|V2"), (np.complex64, "complex64")):
        np.savez(tmp_path / "other.npz", **{"features.0.weight": np.ones((4, 3, 3, 3), dtype)})
        assert cli.main(["import", str(tmp_path / "other.npz"), *arguments]) == 2
        assert f"weight is of dtype {shown}. Save it in float32" in capsys.readouterr().err
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("names", [("a.npy", "b.npy"), ("weights/data.pkl", "weights/data/0")])
def test_an_archive_that_would_fill_the_memory_is_refused(names, tmp_path):
    """NumPy's and PyTorch's; by what it says of its members, before any of them is unpacked."""
    path = tmp_path / "weights"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    content = path.read_bytes()
    for entry in re.finditer(rb"PK\x01\x02", content):  # whose bytes 24 to 27 are the size
        place = entry.start() + 24
        content = content[:place] + b"\xfe\xff\xff\xff" + content[place + 4 :]
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights unpacks to 8,589,934,588 bytes; at most 4,294,9"):
        files.read(path)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_file_is_recognised_by_its_content(kind, tmp_path, capsys):
    """A narrow network of 100 classes, its file without an ending, its normalisation as said."""
    variables = random_variables("vgg_a", num_classes=100, **NARROW)
    state_dict = interop.to_torch("vgg_a", variables)
    path = tmp_path / "weights"
    if kind == "npz":
        with path.open("wb") as file:
            np.savez(file, **state_dict)
    else:
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(value) for name, value in state_dict.items()}, path
        )
    arguments = [str(path), "--model=vgg_a", f"--workdir={tmp_path / 'run'}"]
    assert cli.main(["import", *arguments, "--std=0.2023,0.1994,0.2010"]) == 0
    said = capsys.readouterr().out
    for words in (
        "width 0.0488",
        "100 classes",
        "RGB",
        "(0.5071, 0.4865, 0.4409)",
        "0.2023, 0.1994",
    ):
        assert words in said
    config, _, loaded = restore.load_variables(tmp_path / "run")
    assert (config.data.name, config.data.std) == ("cifar100", (0.2023, 0.1994, 0.2010))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(loaded), variables)


def test_bfloat16_is_read_without_jax(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"w": np.array([1.5, -2.0], jnp.bfloat16)}, path)
    code = (
        "import pathlib, sys; from jaxcifar.interop import files; "
        "w = files.read(pathlib.Path(sys.argv[1]))['w']; "
        "print(w.astype(float).tolist(), 'jax' in sys.modules)"
    )
    said = subprocess.check_output([sys.executable, "-c", code, path], text=True)
    assert said == "[1.5, -2.0] False\n"


def test_a_deeper_network_does_not_fit():
    """VGG-19: half of the layers of the same names are as wide as VGG-A's, and half are half."""
    weights, before = {}, 3
    for place, width in ((0, 64), (2, 64), (5, 128), (7, 128), (10, 256), (12, 256), (14, 256)):
        weights[f"features.{place}.weight"] = np.zeros((width, before, 3, 3), np.float32)
        weights[f"features.{place}.bias"], before = np.zeros(width, np.float32), width
    for place in (16, 19, 21, 23, 25, 28, 30, 32, 34):
        width = 256 if place == 16 else 512
        weights[f"features.{place}.weight"] = np.zeros((width, before, 3, 3), np.float32)
        weights[f"features.{place}.bias"], before = np.zeros(width, np.float32), width
    weights |= {"classifier.weight": np.zeros((10, 512), np.float32)}
    weights |= {"classifier.bias": np.zeros(10, np.float32)}
    with pytest.raises(UserError, match="do not fit vgg_a"):
        interop.from_torch("vgg_a", weights)


def test_what_lies_beside_the_weights_and_what_they_have_too_much():
    variables = random_variables("resnet18", width=0.125)
    weights = interop.to_torch("resnet18", variables)
    names = {"classes": np.array(["airplane", "automobile"]), "seen": np.zeros((0, 3))}
    same = interop.from_torch("resnet18", weights | names)
    jax.tree.map(np.testing.assert_array_equal, same, variables)
    with pytest.raises(UserError, match="subtract it from that BatchNorm's running_mean"):
        interop.from_torch("resnet18", weights | {"layer1.0.conv1.bias": np.zeros(8, np.float32)})


@pytest.mark.parametrize("width", [float("nan"), float("inf"), 0.001])
def test_a_width_of_no_network(width):
    with pytest.raises(UserError, match="finite, and at least"):
        create_model("resnet18", width=width)
