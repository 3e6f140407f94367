"""What the tests of sweeps share."""

import pytest

from jaxcifar import data
from jaxcifar.errors import UserError


@pytest.fixture
def no_images(monkeypatch):
    def missing(*_, **__):
        raise UserError("There are no images here.")

    monkeypatch.setattr(data, "load", missing)
