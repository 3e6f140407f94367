"""Where arrays live."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import sharding
from jaxcifar.errors import UserError
from tests.tiny import mesh


def test_a_mesh_is_of_all_devices():
    found = sharding.make_mesh()
    assert list(found.devices) == jax.devices()
    assert found.size == 8
    assert found.axis_names == (sharding.BATCH_AXIS,)


def test_a_mesh_of_any_kind_is_one_axis_over_its_devices():
    one = sharding.make_mesh()
    for shape, names in (((8,), ("x",)), ((2, 4), ("data", "model"))):
        assert sharding.make_mesh(jax.make_mesh(shape, names)) == one
    with pytest.raises(UserError, match="The mesh has no devices"):
        sharding.make_mesh(mesh(0))


def test_a_process_of_several_that_was_started_alone_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)  # as on a TPU slice of four hosts
    ways = "`jaxcifar train` .*--num_processes=4.*a sweep cannot .*JAX_PLATFORMS=cpu"
    with pytest.raises(UserError, match=f"sees the devices of 4 processes, .*{ways}"):
        sharding.make_mesh()


def test_one_module_asks_jax_for_processes():
    """All others ask that one, for which a process that was started alone is one."""
    asking = re.compile(r"process_(count|index|indices)\(|jax\.distributed")
    package = pathlib.Path(sharding.__file__).parent
    found = {path.name for path in package.rglob("*.py") if asking.search(path.read_text())}
    assert found == {"processes.py"}


def test_replicated_is_whole_and_a_batch_is_split():
    mesh = sharding.make_mesh()
    x = np.arange(32).reshape(16, 2)
    whole = sharding.replicate({"x": x}, mesh)["x"]
    assert [shard.data.shape for shard in whole.addressable_shards] == [(16, 2)] * 8
    split = jax.device_put(x, sharding.batch_sharding(mesh))
    assert [shard.data.shape for shard in split.addressable_shards] == [(2, 2)] * 8
    np.testing.assert_array_equal(whole, split)


def test_abstract_is_what_replicate_gives():
    mesh = sharding.make_mesh()
    tree = {"x": jnp.ones((3, 2), jnp.bfloat16), "key": jax.random.key(0)}
    given, abstract = sharding.replicate(tree, mesh), sharding.abstract(tree, mesh)
    for name, leaf in abstract.items():
        assert (leaf.shape, leaf.dtype) == (given[name].shape, given[name].dtype)
        assert leaf.sharding == given[name].sharding == sharding.replicated(mesh)


def test_programs_that_cannot_be_compiled_are_refused():
    with jax.disable_jit():
        for made in (sharding.make_mesh, lambda: sharding.make_mesh(mesh(1))):
            with pytest.raises(UserError, match="jax_disable_jit is set"):
                made()


def test_a_mesh_that_is_in_force_is_refused():
    """What is computed under it would have to be on it: checkpoints would seem damaged."""
    with jax.set_mesh(jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])):
        for made in (sharding.make_mesh, lambda: sharding.make_mesh(mesh(1))):
            with pytest.raises(UserError, match=r"jax\.set_mesh is in force, with the axes x"):
                made()
    assert sharding.make_mesh().size == 8
