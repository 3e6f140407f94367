"""jaxcifar: CIFAR-10 experiments in JAX, as pure functions."""

from jaxcifar.version import __version__

__all__ = ["__version__"]
