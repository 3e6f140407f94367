"""jaxcifar: CIFAR-10 experiments in JAX, as pure functions."""

__version__ = "0.1.0"
