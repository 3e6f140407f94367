"""Generated images, for tests and benchmarks: each class has a colour pattern of its own."""

import numpy as np

from jaxcifar.data.dataset import Dataset, provenance_of

_SIZES = {"train": 1024, "test": 256}


def load(split: str, size: int | None = None) -> Dataset:
    """Returns `size` images [N, 32, 32, 3] of ten classes: a pattern under heavy noise.

    The classes come in turn, so that any N consecutive images are balanced. The same `split` and
    `size` give the same images.
    """
    size = _SIZES[split] if size is None else size
    patterns = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3))
    patterns = patterns.repeat(8, axis=1).repeat(8, axis=2)
    labels = np.arange(size, dtype=np.int32) % 10
    generator = np.random.default_rng([1, split == "test"])
    noise = generator.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
    images = ((patterns[labels] + 2 * noise.astype(np.int32)) // 3).astype(np.uint8)
    provenance = provenance_of(images, labels, name="synthetic", split=split, source="generated")
    names = tuple(f"pattern {i}" for i in range(10))
    return Dataset(images, labels, names, provenance, mean=(0.5,) * 3, std=(0.25,) * 3)
