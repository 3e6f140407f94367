"""Messages: the nearest of the allowed names."""

import pytest

from jaxcifar.errors import UserError, choose, nearest


def test_choose():
    assert choose("colour", "red", ["red", "blue"]) == "red"
    with pytest.raises(UserError, match=r"colour is 'blu'. Did you mean 'blue'\? Allowed: red, b"):
        choose("colour", "blu", iter(["red", "blue"]))
    with pytest.raises(UserError, match=r"colour is 'xyz'. Allowed: red, blue\."):
        choose("colour", "xyz", ["red", "blue"])


def test_nearest():
    assert nearest("resnet-18", ["resnet18", "resnet34"]) == " Did you mean 'resnet18'?"
    assert nearest("zzz", ["resnet18"]) == ""
