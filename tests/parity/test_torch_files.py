"""Files that PyTorch writes: read under any name, and never a reason to run code."""

import argparse
import os

import numpy as np
import pytest

from jaxcifar.errors import UserError
from jaxcifar.interop.files import read
from jaxcifar.interop.torch import from_torch, to_torch

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[torch]'")

from experiments import torch_models as reference  # noqa: E402 - it needs torch


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return reference.create("vgg_a_bn", width=0.05).eval()


def check(path, expected, part=""):
    """Compares the weights in a file with a state_dict, value by value."""
    found = to_torch("vgg_a_bn", from_torch("vgg_a_bn", read(path), part=part))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.float().numpy(), err_msg=name)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle, as before PyTorch 1.6"])
@pytest.mark.parametrize("name", ["weights", "w.th", "w.pth.tar", "w.ckpt", "W.PT", "w.npz"])
def test_the_name_of_a_file_says_nothing(network, tmp_path, name, zipped):
    weights = network.state_dict()
    torch.save(weights, tmp_path / name, _use_new_zipfile_serialization=zipped)
    check(tmp_path / name, weights)


def test_what_is_saved_beside_weights(network, tmp_path):
    weights, arguments = network.state_dict(), argparse.Namespace(lr=0.1, epochs=200)
    saved = {"net": weights, "accuracy": np.float64(95.1), "args": arguments}
    torch.save(saved, tmp_path / "checkpoint.pth")
    check(tmp_path / "checkpoint.pth", weights)
    torch.save(saved | {"losses": np.ones(3)}, tmp_path / "checkpoint.pth")
    check(tmp_path / "checkpoint.pth", weights, part="net")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(network, tmp_path, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in network.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pt")
    check(tmp_path / "weights.pt", weights)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.Tensor.to_sparse, "cannot be read"),
        (lambda x: x.to("meta"), "cannot be read"),
        (lambda x: x.to(torch.complex64), "is complex. Save it in float32."),
    ],
    ids=["sparse", "meta", "complex"],
)
@pytest.mark.filterwarnings("ignore:Casting complex")
def test_tensors_that_are_no_arrays_of_numbers_are_named(network, tmp_path, change, message):
    weights = network.state_dict()
    name = next(iter(weights))
    torch.save(weights | {name: change(weights[name])}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=f"{name} {message}"):
        check(tmp_path / "weights.pt", weights)


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "pickle"])
def test_code_in_a_file_is_refused_and_never_run(network, tmp_path, zipped):
    path, folder = tmp_path / "weights.pt", tmp_path / "made"
    saved = {"net": network.state_dict(), "more": Code(folder)}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"mkdir besides the weights .* run code, which is never"):
        read(path)
    assert not folder.exists()


class Forged:
    """An array whose bytes would be taken for the addresses of objects."""

    def __reduce__(self):
        return np.ndarray, ((1,), "O", np.zeros(8, np.uint8))


def test_addresses_in_a_file_are_no_objects(network, tmp_path):
    array = {"array": np.arange(3.0), "number": np.float64(2)}
    torch.save({"net": network.state_dict()} | array, tmp_path / "weights.pt")
    assert np.array_equal(read(tmp_path / "weights.pt")["array"], array["array"])
    torch.save({"net": network.state_dict(), "more": Forged()}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="refused to make an array of bytes"):
        read(tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_no_state_dict(network, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(network, path)
    with pytest.raises(UserError, match=r"contains a experiments\.torch_models\.VGG beside"):
        read(path)
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 3, 32, 32)), path)
    with pytest.raises(UserError, match=r"is a TorchScript program. Save its state_dict\(\)"):
        read(path)
    torch.save(list(network.parameters()), path)
    with pytest.raises(UserError, match="contains a list, not a state_dict"):
        read(path)
