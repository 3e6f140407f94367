"""Digests of a state: sums over its bits that change if any single bit does."""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcifar.kernels import compilation

# The parts that the network computes with, which must be finite.
_VARIABLES = ("params", "batch_stats", "ema")


class Digest(NamedTuple):
    """The digest of one part of a state.

    Attributes:
      bits: digest of the arrays' content, 16 hex digits.
      shapes: digest of the arrays' names and shapes, 16 hex digits.
    """

    bits: str
    shapes: str


def digests(parts: Mapping[str, Any]) -> tuple[dict[str, Digest], bool]:
    """Returns (the digest of each part, whether all variables are finite).

    Each 32-bit word is mixed with its position in the part by a function that is one-to-one in the
    word, and the results are summed modulo 2³²; a digest is two such sums, by different functions.
    So a change of any single word always changes it, and it does not depend on the order of
    summation, the number of devices, or the layout of the arrays on them.

    Args:
      parts: name -> pytree of arrays, such as {"params": …, "opt_state": …}. Those named "params",
        "batch_stats" and "ema" must be float32, and finite.
    """
    parts = {name: tree for name, tree in parts.items() if jax.tree.leaves(tree)}
    (device, *_) = jax.tree.leaves(parts)[0].devices()
    found = jax.device_get(_compiled(device.platform)(parts))
    digests = {
        name: Digest(f"{first:08x}{second:08x}", shapes_digest(parts[name]))
        for name, (first, second, _) in found.items()
    }
    return digests, all(bool(finite) for *_, finite in found.values())


def shapes_digest(tree: Any) -> str:
    """Returns a digest of the names and shapes of a pytree's arrays, 16 hex digits."""
    return sha256(shapes(tree))[:16]


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns {path: shape} of a pytree of arrays, see `leaves`."""
    return {path: tuple(leaf.shape) for path, leaf in leaves(tree).items()}


def leaves(tree: Any) -> dict[str, Any]:
    """Returns {path: array} of a pytree, by the names that Orbax stores them under."""
    found = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in found}


def sha256(content: Any) -> str:
    """Returns the SHA-256 of a JSON-serialisable value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@functools.cache
def _compiled(platform: str) -> Callable[..., Any]:
    return compilation.jit(
        lambda parts: {name: _sum(name, tree) for name, tree in parts.items()}, platform=platform
    )


def _sum(name: str, tree: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    by_dtype: dict[str, list[jax.Array]] = {}
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        by_dtype.setdefault(leaf.dtype.name, []).append(leaf.reshape(-1))
    sums, finite, before = np.zeros(2, np.uint32), jnp.bool_(True), 0
    for _, leaves in sorted(by_dtype.items()):
        # Concatenating is a fast copy, after which a single loop serves however many leaves.
        words = _words(jax.lax.optimization_barrier(jnp.concatenate(leaves)))
        place = _mix(jax.lax.iota(jnp.uint32, words.size) + np.uint32(before))
        both = _mix(words ^ place), _mix((words + place) ^ _SALT)
        # Of 32 bits, where JAX may have 64; one by one, so that neither is ever an array in memory.
        sums += jnp.stack([mixed.sum(dtype=jnp.uint32) for mixed in both])
        if name in _VARIABLES:
            finite &= jnp.all(words & _INFINITY != _INFINITY)
        before += words.size
    return sums[0], sums[1], finite


_SALT = np.uint32(0x9E3779B9)  # 2³² / golden ratio, so that the second sum is another function
_INFINITY = np.uint32(0x7F800000)  # float32's exponent bits: all set only in infinity and NaN


def _words(array: jax.Array) -> jax.Array:
    """The bits of the elements of an array [N], as uint32."""
    if array.dtype == bool:
        return array.astype(jnp.uint32)
    word = {1: jnp.uint8, 2: jnp.uint16}.get(array.dtype.itemsize, jnp.uint32)
    return jax.lax.bitcast_convert_type(array, word).reshape(-1).astype(jnp.uint32)


def _mix(word: jax.Array) -> jax.Array:
    """The finalizer of MurmurHash3, which is one-to-one on 32 bits."""
    word = (word ^ (word >> 16)) * np.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * np.uint32(0xC2B2AE35)
    return word ^ (word >> 16)
