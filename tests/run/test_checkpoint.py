"""Checkpoints: the best and the last, and what cannot be restored."""

import asyncio
import errno
import gc
import logging
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from jaxcifar import sharding
from jaxcifar.errors import Temporary, UserError
from jaxcifar.models import create_model
from jaxcifar.optim import make_optimizer
from jaxcifar.run.checkpoint import Checkpointer, Damaged, Saved
from jaxcifar.state import create_state
from tests.tiny import Synced, mesh


def small_state(width=0.05, optimizer="sgd", step=0):
    model = create_model("vgg_a", width=width)
    state = jax.jit(lambda: create_state(model, make_optimizer(optimizer, 0.1), 0))()
    return after(state, step)


def after(state, step):
    """The state as if after so many steps."""
    return state.replace(step=jnp.int32(step))


def test_the_best_and_the_two_newest_are_kept(tmp_path):
    state = small_state()
    checkpoints = Checkpointer(tmp_path / "c")
    for step, accuracy in ((1, 0.3), (2, 0.5), (3, None), (4, 0.5), (5, 0.4), (6, None)):
        checkpoints.save(step, after(state, step), {"at": step}, accuracy)
    checkpoints.close()
    reader = Checkpointer(tmp_path / "c")
    best, last = reader.best(), reader.last()
    assert best == Saved(2, evaluated=True)  # the first of equals
    assert last == Saved(6, evaluated=False)
    assert (best.number, last.number) == (5, 12)
    assert [Saved.of(number) for number in (5, 12)] == [best, last]
    assert reader.restore(state, best)[1] == {"at": 2}
    assert {int(p.name) for p in (tmp_path / "c").iterdir() if p.name.isdigit()} == {5, 11, 12}


def test_a_checkpoint_of_several_devices_is_not_cut_into_slices(tmp_path, caplog):
    """Which would compile a program for each shape and device, at each start."""
    state = sharding.replicate(small_state(width=0.0625), mesh(8))
    checkpoints = Checkpointer(tmp_path / "c")
    with jax.log_compiles():
        checkpoints.save(0, state, {}, None)
        checkpoints.close()
    assert not [text for text in caplog.messages if "slice" in text]
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, checkpoints.restore(state, Saved(0, False))[0].params, state.params
        )
    )


def test_a_checkpoint_is_on_the_disk_once_it_is_waited_for(tmp_path, monkeypatch):
    synced, checkpoints = Synced(monkeypatch), Checkpointer(tmp_path / "c")
    checkpoints.save(1, small_state(), {}, 0.5)
    checkpoints.wait()
    assert {str(path) for path in (tmp_path / "c" / "3").rglob("*")} <= set(synced.paths)
    assert synced.paths[-2:] == [str(tmp_path), str(tmp_path / "c")]  # the names of their folders
    checkpoints.close()


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """A power cut in the following epoch would leave the name without its content."""
    synced, rename, before = Synced(monkeypatch), os.rename, []

    def noted(one, other, **options):
        if pathlib.Path(other) == tmp_path / "c" / "3":
            before.extend(synced.paths)
        rename(one, other, **options)

    monkeypatch.setattr(os, "rename", noted)
    checkpoints = Checkpointer(tmp_path / "c")
    checkpoints.save(1, small_state(), {}, 0.5)
    checkpoints.close()
    assert [path for path in before if path.endswith("/progress/metadata")]
    assert [path for path in before if path.endswith("/state/manifest.ocdbt")]


def fill_the_disk(monkeypatch, name, number=errno.ENOSPC):
    """Lets the checkpoint of that name fail once, in the background."""
    rename = os.rename

    def full(one, other, **options):
        if pathlib.Path(other).name == name:
            monkeypatch.undo()
            raise OSError(number, os.strerror(number))
        rename(one, other, **options)

    monkeypatch.setattr(os, "rename", full)


def test_a_failed_checkpoint_within_an_epoch_gives_way_to_the_next(tmp_path, monkeypatch, capsys):
    state, checkpoints = small_state(), Checkpointer(tmp_path / "c")
    fill_the_disk(monkeypatch, "2")
    checkpoints.save(1, after(state, 1), {}, None)
    checkpoints.save(2, after(state, 2), {}, None)
    checkpoints.wait()
    assert checkpoints.all() == [Saved(2, evaluated=False)]
    assert os.listdir(tmp_path / "c") == ["4"]
    assert "No space left on device" in capsys.readouterr().err
    fill_the_disk(monkeypatch, "7")
    checkpoints.save(3, after(state, 3), {}, 0.5)  # it may be the best, and is in no other
    with pytest.raises(UserError, match=r"c/7 cannot be written: .*No space left"):
        checkpoints.save(4, after(state, 4), {}, None)
    checkpoints.close()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, UserError), (errno.ESTALE, Temporary)])
def test_an_error_of_writing_says_whether_it_may_pass(tmp_path, monkeypatch, number, kind):
    checkpoints = Checkpointer(tmp_path / "c")
    fill_the_disk(monkeypatch, "3", number)
    checkpoints.save(1, small_state(), {}, 0.5)
    with pytest.raises(kind, match=os.strerror(number)) as raised:
        checkpoints.wait()
    assert type(raised.value) is kind
    checkpoints.close()


def test_what_cannot_be_read_back_replaces_nothing(tmp_path, monkeypatch):
    state, checkpoints = small_state(), Checkpointer(tmp_path / "c")
    for step in (2, 4):
        checkpoints.save(step, after(state, step), {}, None)
    checkpoints.wait()
    rename = os.rename

    def losing(source, target, **how):  # as a disk does that has promised too much
        rename(source, target, **how)
        if (progress := pathlib.Path(target, "progress", "metadata")).exists():
            progress.write_text("")

    monkeypatch.setattr(os, "rename", losing)
    checkpoints.save(6, after(state, 6), {}, None)
    with pytest.raises(UserError, match="c/12 cannot be written"):
        checkpoints.wait()
    assert [saved.step for saved in checkpoints.all()] == [2, 4, 6]


def test_what_cannot_be_deleted_stays_without_harm(tmp_path, monkeypatch):
    """As on NFS, where another process reads it."""
    state, rmtree = small_state(), shutil.rmtree

    def busy(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    checkpoints = Checkpointer(tmp_path / "c")
    for step in range(1, 5):
        checkpoints.save(step, after(state, step), {"at": step}, None)
    checkpoints.close()
    assert Checkpointer(tmp_path / "c").last() == Saved(4, evaluated=False)
    assert len(list((tmp_path / "c").glob("*.deleted"))) == 2
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    Checkpointer(tmp_path / "c").delete_unfinished()
    assert not list((tmp_path / "c").glob("*.deleted"))


def test_a_reader_touches_nothing(tmp_path):
    reader = Checkpointer(tmp_path / "c")
    assert (reader.best(), reader.last()) == (None, None)
    assert not (tmp_path / "c").exists()


def test_a_step_before_and_after_its_evaluation(tmp_path):
    state = small_state()
    checkpoints = Checkpointer(tmp_path / "c")
    checkpoints.save(0, state, {"about": {"data": {}}}, None)
    checkpoints.wait()
    assert checkpoints.best() == Saved(0, evaluated=False)  # imported weights
    checkpoints.save(3, state, {}, None)
    checkpoints.save(3, state, {}, None)  # it is there
    checkpoints.wait()
    assert checkpoints.last() == Saved(3, evaluated=False)
    checkpoints.save(3, state, {}, 0.5)
    checkpoints.wait()
    assert checkpoints.last() == checkpoints.best() == Saved(3, evaluated=True)
    shutil.rmtree(tmp_path / "c" / "6")
    checkpoints.save(3, state, {}, None)  # the evaluated one has the same state
    checkpoints.wait()
    assert checkpoints.all() == [Saved(3, evaluated=True)]
    checkpoints.close()


@pytest.mark.parametrize(
    ("progress", "imported"),
    [
        ({"about": {"data": {"train": {}}}}, False),
        ({"about": {"data": {}}}, True),
    ],
)
def test_random_weights_are_not_the_best(tmp_path, progress, imported):
    checkpoints, first = Checkpointer(tmp_path / "c"), Saved(0, evaluated=False)
    checkpoints.save(0, small_state(), progress, None)
    checkpoints.close()
    assert (checkpoints.best(), checkpoints.last()) == (first if imported else None, first)
    (tmp_path / "c" / "0" / "progress" / "metadata").write_text("{")
    assert checkpoints.best() == first  # which reading it will find out


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (OSError(errno.EIO, "Input/output error"), Temporary, "Input/output error.* may be intact"),
        (OSError(errno.ESTALE, "Stale file handle"), Temporary, "Stale"),
        (OSError(errno.EACCES, "Permission denied"), UserError, "Permission denied.* intact"),
        (MemoryError(), UserError, "may be intact"),
        # As TensorStore has them.
        (ValueError("UNKNOWN: ... [OS error 116: Stale file handle]"), Temporary, "Stale"),
        (ValueError("NOT_FOUND: ... [OS error 2: No such file]"), Damaged, "No such file"),
        (ValueError("DATA_LOSS: CRC32C checksum mismatch"), Damaged, "checksum"),
        (OSError(errno.ENOENT, "No such file"), Damaged, "cannot be read"),
        (OSError("odd"), Damaged, "cannot be read"),
        # Of the device to which it is restored.
        (JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"), UserError, "may be intact"),
        (JaxRuntimeError("INTERNAL: CUDA error"), JaxRuntimeError, "CUDA"),
    ],
)
def test_what_may_pass_is_no_damage(tmp_path, monkeypatch, error, kind, message):
    """An intact checkpoint would be set aside for it."""
    checkpoints = Checkpointer(tmp_path / "c")
    checkpoints.save(0, small_state(), {}, None)
    checkpoints.close()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(pathlib.Path, "read_text", fail)
    with pytest.raises(kind, match=message) as raised:
        checkpoints.progress(Saved(0, evaluated=False))
    assert type(raised.value) is kind


def test_errors_of_the_users_own_tasks_are_still_told(tmp_path, caplog):
    """Those of Orbax are raised to the user, and are not told again by asyncio."""
    Checkpointer(tmp_path / "c")  # from now on

    async def own():
        raise ZeroDivisionError("the user's")

    async def main():
        task = asyncio.ensure_future(own())
        await asyncio.sleep(0)
        del task

    with caplog.at_level(logging.ERROR, "asyncio"):
        asyncio.run(main())
        gc.collect()
    assert "never retrieved" in caplog.text
    assert "the user's" in caplog.text


def test_what_cannot_be_restored_is_named(tmp_path):
    state = small_state(step=1)
    checkpoints = Checkpointer(tmp_path / "c")
    checkpoints.save(1, state, {}, None)
    checkpoints.wait()
    last = checkpoints.last()
    assert last is not None
    restored, _ = checkpoints.restore(state, last)
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    assert (jax.random.key_data(restored.key) == jax.random.key_data(state.key)).all()
    wide = small_state(width=0.1)
    with pytest.raises(UserError, match=r"/2 belongs to a different model: params/conv1/bias has"):
        checkpoints.restore(wide, last)
    variables = {"params": wide.params, "batch_stats": {}}
    with pytest.raises(UserError, match=r"params/conv1/bias has shape \(3,\) in it, and \(6,\)"):
        checkpoints.restore_variables(variables, last)
    with pytest.raises(UserError, match=r"opt_state/.* in it, .*in this config's model"):
        checkpoints.restore(small_state(optimizer="adam"), last)
    checkpoints.close()


class Waiting:
    def __await__(self):
        yield


def test_what_storage_gives_up_reading_is_not_reported(tmp_path):
    """Its error is that of another read, which is raised. (pytest fails on those it sees.)"""
    Checkpointer(tmp_path)
    text = (
        "async def read():\n"
        "    try:\n"
        "        await waiting\n"
        "    except BaseException as error:\n"
        "        raise RuntimeError('it is given up') from error\n"
    )
    names = {"waiting": Waiting()}
    exec(compile(text, "/lib/orbax/checkpoint/serialization.py", "exec"), names)
    reading = names["read"]()
    reading.send(None)
    del reading
    gc.collect()
