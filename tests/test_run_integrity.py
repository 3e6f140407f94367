"""A run's folder after something in it was damaged, lost or exchanged."""

import errno
import itertools
import json
import os
import pathlib
import shutil
import time

import jax
import numpy as np
import pytest

from jaxcifar import data, replay, restore, sharding
from jaxcifar.errors import Interrupted, UserError
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.models import create_model
from jaxcifar.optim import make_optimizer
from jaxcifar.run import machine
from jaxcifar.run.checkpoint import Checkpointer, Damaged, Saved
from jaxcifar.run.digest import digests, sha256
from jaxcifar.state import create_state
from tests import tiny as tiny_run
from tests.tiny import Watch, first_images, mesh, run, state_of, without_times

ONE = mesh(1)


def tiny(**fields):
    """`tests.tiny.tiny` for three epochs, with half the layers and no optimizer's state: a
    checkpoint is written and read in a third of the time.
    """
    less = {"model__name": "vgg_a", "optim__name": "sgd", "optim__learning_rate": 0.01}
    return tiny_run.tiny(**less | {"train__epochs": 3} | fields)


# Saves each step. How often does not change what is computed.
OFTEN = {"train__checkpoint_minutes": 1e-9}


class StopAt(Hook):
    """Asks for the end where `step` steps are done."""

    def __init__(self, step):
        self.step = step

    def before_call(self, run):
        if run.step == self.step:
            run.stop.request("on purpose")


def numbers(folder):
    """What no two runs of a config may differ in."""
    untimed = without_times(read_lines(folder / "metrics.jsonl"))
    bits = b"".join(leaf.tobytes() for leaf in jax.tree.leaves(state_of(folder)))
    result = json.loads((folder / "result.json").read_text())
    steps = read_lines(folder / "steps.jsonl")
    return untimed, steps, result["best"]["epoch"], result.get("test"), bits


class Predict(Hook):
    """Makes the network answer one class from the end of an epoch on: the rarest of the validation
    images, or in epoch `best` the most common.
    """

    def __init__(self, best):
        self.best = best
        counts = np.bincount(first_images(256, "test").labels)
        assert counts.max() > counts.min()
        self.rarest, self.commonest = int(counts.argmin()), int(counts.argmax())

    def before_evaluation(self, run):
        answer = self.commonest if run.step == 3 * self.best else self.rarest
        params = jax.device_get(run.state.params)
        params["fc3"] = {
            "kernel": np.zeros_like(params["fc3"]["kernel"]),
            "bias": np.eye(10, dtype=np.float32)[answer],
        }
        run.state = run.state.replace(params=sharding.replicate(params, run.task.mesh))


def change(path, old, new):
    """Replaces what a file says."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def state_files(folder, number):
    found = (folder / "checkpoints" / str(number) / "state").rglob("*")
    return [path for path in found if path.is_file()]


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def flip_arrays(folder, number):
    """Flips bits where the arrays' data are."""
    for path in state_files(folder, number):
        if path.parent.name == "d" and path.stat().st_size > 100:
            for twentieth in range(1, 20):
                flip(path, twentieth / 20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(tiny(**OFTEN), folder)
    return folder


@pytest.fixture(scope="module")
def expected(finished):
    """The numbers of the run that was never interrupted."""
    return numbers(finished)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        run(tiny(**OFTEN), folder, StopAt(7))
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """Stopped after step 7 of 9: its checkpoints are 12 or 13, the best of 7 and 13, and 14."""
    shutil.copytree(stopped_once, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# --- the digest -------------------------------------------------------------------------------


def tree():
    generator = np.random.default_rng(0)
    return {
        "params": {"b": generator.normal(size=(3, 5)), "a": generator.normal(size=7)},
        "opt_state": (np.int32(3), generator.normal(size=(4, 4))),
        "key": jax.random.key(1),
    }


def as_arrays(tree):
    to_array = lambda x: x if isinstance(x, jax.Array) else jax.numpy.asarray(x, None)  # noqa: E731
    return jax.tree.map(to_array, tree)


def test_any_bit_changes_the_digest():
    before, _ = digests(as_arrays(tree()))
    for bit in range(32):
        for place in ((0, 0), (2, 4)):
            changed = as_arrays(tree())
            array = np.asarray(changed["params"]["b"]).copy()
            array.view(np.uint32)[place] ^= np.uint32(1 << bit)
            changed["params"]["b"] = jax.numpy.asarray(array)
            after, _ = digests(changed)
            assert after["params"].bits != before["params"].bits
            assert (after["opt_state"], after["key"]) == (before["opt_state"], before["key"])


def test_the_digest_sees_what_is_exchanged():
    before, _ = digests(as_arrays(tree()))
    changed = tree()
    changed["params"]["b"] = changed["params"]["b"][::-1]
    assert digests(as_arrays(changed))[0]["params"] != before["params"]
    # Two signs: they cancel in a plain sum.
    changed = tree()
    changed["params"]["b"][:2, 0] *= -1
    assert digests(as_arrays(changed))[0]["params"] != before["params"]


def test_64_bits_change_no_digest(finished):
    """$JAX_ENABLE_X64 must not make an intact checkpoint a damaged one."""
    arrays = {"params": {"w": jax.numpy.arange(1000, dtype=np.float32)}}
    digest, expected = digests(arrays), restore.evaluate_workdir(finished, "last", mesh=ONE)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # as users have it
        assert digests(arrays) == digest
        found = restore.evaluate_workdir(finished, "last", mesh=ONE)
    assert found["accuracy"] == expected["accuracy"]


@pytest.mark.slow
def test_a_run_trains_with_64_bits(tmp_path):
    config = tiny_run.tiny(data__augment="strong", train__epochs=1, optim__warmup_epochs=0.5)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):  # as users have it
        result = run(config, tmp_path)
    assert result["last"]["step"] == 3
    assert {leaf.dtype for leaf in jax.tree.leaves(state_of(tmp_path))} == {np.dtype("float32")}


def test_the_digest_is_that_of_any_number_of_devices():
    alone, _ = digests(as_arrays(tree()))
    mesh = sharding.make_mesh()
    assert mesh.size == 8
    assert digests(sharding.replicate(as_arrays(tree()), mesh))[0] == alone
    split = as_arrays({"params": {"a": np.arange(64.0)}})
    there = jax.device_put(split, sharding.batch_sharding(mesh))
    assert digests(there) == digests(split)


def test_only_variables_must_be_finite():
    for part, expected in (("params", False), ("ema", False), ("opt_state", True)):
        for value in (np.nan, np.inf):
            _, finite = digests({part: {"x": jax.numpy.array([1.0, value])}})
            assert finite == expected
    assert digests({"params": {"x": jax.numpy.array([1.0, 3e38])}})[1]


# --- checkpoints ------------------------------------------------------------------------------


@pytest.mark.slow
def test_flipped_bits_are_noticed_and_the_checkpoint_before_is_taken(expected, stopped, capsys):
    flip_arrays(stopped, 14)
    result = run(tiny(), stopped)
    assert numbers(stopped) == expected
    assert result["damaged_checkpoints"] == 1
    assert (stopped / "checkpoints" / "damaged-14-1").is_dir()
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoints/14" in line
    assert "set aside as damaged-14-1" in line


class Fail(Hook):
    def start(self, run):
        raise KeyError("as a kill would end it")


@pytest.mark.slow
def test_a_checkpoint_set_aside_is_counted_though_that_start_saved_nothing(stopped):
    flip_arrays(stopped, 14)
    with pytest.raises(RuntimeError, match="as a kill"):
        run(tiny(), stopped, Fail())
    assert run(tiny(), stopped)["damaged_checkpoints"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["progress/metadata", "state/_METADATA", "state/manifest.ocdbt"])
@pytest.mark.parametrize("how", ["half", "empty", "delete", "folder"])
def test_any_file_of_a_checkpoint(expected, stopped, name, how, capsys):
    path = stopped / "checkpoints" / "14" / name
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        path.write_bytes(content[: len(content) // 2] if how == "half" else b"")
    watch = Watch()
    result = run(tiny(), stopped, watch)
    assert numbers(stopped) == expected
    assert (result["damaged_checkpoints"], watch.steps) == (1, [6, 7, 8])
    assert "set aside as damaged-14-1" in capsys.readouterr().err


def test_a_checkpoint_that_cannot_be_read_now_is_not_set_aside(stopped, monkeypatch):
    there, read = sorted((stopped / "checkpoints").iterdir()), pathlib.Path.read_text

    def failing(path, *more, **options):
        if path.parts[-3:] == ("14", "progress", "metadata"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, *more, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_text", failing)
        with pytest.raises(UserError, match=r"Input/output error.*may be intact"):
            run(tiny(), stopped)
    assert sorted((stopped / "checkpoints").iterdir()) == there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"epochs_done": 2', '"epochs_done": 1'),
        ('"val_accuracy": null', '"val_accuracy": 0.99'),
        ('"train_loss": 2.', '"train_loss": 1.'),
        ('"best": [7, ', '"best": [14, '),
    ],
    ids=["epochs_done", "val_accuracy", "train_loss", "best"],
)
def test_a_changed_score_or_position_is_noticed(expected, stopped, capsys, old, new):
    change(stopped / "checkpoints" / "14" / "progress" / "metadata", old, new)
    assert run(tiny(), stopped)["damaged_checkpoints"] == 1
    assert numbers(stopped) == expected
    (line,) = capsys.readouterr().err.splitlines()
    assert "checkpoints/14 cannot be read (ValueError: its progress differs" in line


def rewrite(folder, number, **fields):
    """Changes what a checkpoint's progress says, as a faulty version would have written it."""
    path = folder / "checkpoints" / str(number) / "progress" / "metadata"
    content = json.loads(path.read_text())
    del content["sha256"]
    content = {name: fields.get(name, value) for name, value in content.items()}
    content["progress"] |= {name: fields[name] for name in fields if name in content["progress"]}
    path.write_text(json.dumps(content | {"sha256": sha256(content)}))
    return content


@pytest.mark.slow
def test_the_best_record_and_the_best_checkpoint_must_be_of_one_epoch(tmp_path):
    with pytest.raises(Interrupted):
        run(tiny(**OFTEN), tmp_path, Predict(1), StopAt(8))
    for saved in Checkpointer(tmp_path / "checkpoints").all()[1:]:
        rewrite(tmp_path, saved.number, best=[13, 0.9])
    with pytest.raises(UserError, match=r"the best epoch is 1 \(step 3\), but .* of step 6"):
        run(tiny(), tmp_path, Predict(1))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.slow
def test_a_result_is_written_after_the_last_checkpoint_is_complete(tmp_path, monkeypatch):
    """However long that takes, and though another one is the best."""
    rename, replace, there, slept = os.rename, os.replace, [], []

    def slow(one, other, **options):
        time.sleep(1)
        slept.append(other)
        rename(one, other, **options)

    def noted(one, other, **options):
        if str(other).endswith("result.json"):
            there.extend(Checkpointer(tmp_path / "checkpoints").all())
        replace(one, other, **options)

    monkeypatch.setattr(os, "rename", slow)  # which completes a checkpoint, in a thread
    monkeypatch.setattr(os, "replace", noted)
    assert run(tiny(), tmp_path, Predict(1))["best"]["epoch"] == 1
    assert there[-1] == Saved(9, evaluated=True)
    assert slept


def test_no_whole_checkpoint_is_one_message_and_nothing_is_changed(stopped):
    numbers = [path.name for path in (stopped / "checkpoints").iterdir()]
    for number in numbers:
        flip_arrays(stopped, number)
    with pytest.raises(UserError, match=r"All checkpoints in .* are damaged; nothing was changed"):
        run(tiny(), stopped)
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == sorted(numbers)


@pytest.mark.slow
def test_a_start_that_was_refused_is_none(stopped, tmp_path, capsys):
    """What rounds otherwise is said of the start that computed the checkpoint."""
    checkpoints, aside = stopped / "checkpoints", tmp_path / "aside"
    newest = max(map(int, os.listdir(checkpoints)))
    about = json.loads((stopped / "config.json").read_text())
    about["environment"]["cpus"] = 99
    (stopped / "config.json").write_text(json.dumps(about))
    rewrite(stopped, newest, about=about)
    shutil.copytree(checkpoints, aside)
    for number in os.listdir(checkpoints):
        flip_arrays(stopped, number)
    before = (stopped / "config.json").read_bytes()
    with pytest.raises(UserError, match="nothing was changed"):
        run(tiny(), stopped)
    assert (stopped / "config.json").read_bytes() == before
    assert "cpus" not in capsys.readouterr().err
    shutil.rmtree(checkpoints)
    aside.rename(checkpoints)
    with pytest.raises(Interrupted):
        run(tiny(), stopped, StopAt(8))
    assert "resumed under conditions that change rounding: cpus 99 -> " in capsys.readouterr().err
    assert len(json.loads((stopped / "config.json").read_text())["resumed"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("best", "how", "message"),
    [
        (1, "flipped", r"checkpoints/7 cannot be read .*last checkpoint may be intact"),
        (1, "lost", r"checkpoints/7 cannot be read \(it is not there"),
        (3, "flipped", r"checkpoints/19 cannot be read .*last checkpoint may be intact"),
        (3, "lost", r"best checkpoint .* is of step 3, but its result\.json says 9"),
    ],
    ids=["first-flipped", "first-lost", "last-flipped", "last-lost"],
)
def test_what_is_evaluated_is_never_another_checkpoint(tmp_path, best, how, message):
    """The best epoch is the first, whose checkpoint is kept apart, or the last."""
    assert run(tiny(**OFTEN), tmp_path, Predict(best))["best"]["epoch"] == best
    uninterrupted = numbers(tmp_path)
    number = {1: 7, 3: 19}[best]
    if how == "flipped":
        flip_arrays(tmp_path, number)
    else:
        shutil.rmtree(tmp_path / "checkpoints" / str(number))
    with pytest.raises(UserError, match=message):
        restore.evaluate_workdir(tmp_path, "best", mesh=ONE)
    if (best, how) == (3, "lost"):  # the step before it is there, and is evaluated again
        run(tiny(), tmp_path, Predict(best))
        assert numbers(tmp_path) == uninterrupted


@pytest.mark.slow
def test_a_lost_last_checkpoint_is_not_taken_for_the_one_before(expected, copied):
    shutil.rmtree(copied / "checkpoints" / "19")
    run(tiny(), copied)
    assert Saved(9, evaluated=True) in Checkpointer(copied / "checkpoints").all()
    assert numbers(copied) == expected


def test_logs_without_their_checkpoints_are_kept(copied, capsys):
    """As where checkpoints/ is not mounted, or was purged: nothing is changed."""
    (copied / "result.json").unlink()
    shutil.move(copied / "checkpoints", copied / "elsewhere")
    before = {path: path.read_bytes() for path in copied.glob("*.json*")}
    with pytest.raises(UserError, match=r"logs of 3 epochs, and no checkpoint.*metrics\.jsonl"):
        run(tiny(), copied)
    assert {path: path.read_bytes() for path in copied.glob("*.json*")} == before
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:2]))  # as a kill may leave it
    with pytest.raises(Interrupted):
        run(tiny(), copied, StopAt(1))
    assert "no checkpoint in" in capsys.readouterr().err


def test_older_checkpoints_beside_a_finished_run_are_refused(copied, expected, tmp_path, capsys):
    """As restored from a backup: what would be trained again is there."""
    with pytest.raises(Interrupted):
        run(tiny(), tmp_path / "older", StopAt(2))
    shutil.rmtree(copied / "checkpoints")
    shutil.copytree(tmp_path / "older" / "checkpoints", copied / "checkpoints")
    files = [path for path in copied.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(UserError, match=r"checkpoints/ are older \(step 2 of 9\)\. Restore"):
        run(tiny(), copied)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before
    (copied / "result.json").unlink()
    run(tiny(), copied)
    assert numbers(copied) == expected
    assert "steps.jsonl: the checkpoint is 3 epochs older" in capsys.readouterr().err


def test_a_checkpoint_in_the_folder_of_another_is_noticed(stopped):
    there = stopped / "checkpoints"
    best = Checkpointer(there).best()
    for one, other in ((str(best.number), "away"), ("14", str(best.number)), ("away", "14")):
        (there / one).rename(there / other)
    for which, holds in (("best", "14, of step 7"), ("last", best.number)):
        with pytest.raises(UserError, match=f"damaged: it holds checkpoint {holds}"):
            restore.evaluate_workdir(stopped, which, mesh=ONE)


@pytest.mark.slow
def test_a_result_that_is_not_believed_is_gone_while_the_run_goes_on(expected, copied):
    for number in (18, 19):
        shutil.rmtree(copied / "checkpoints" / str(number), ignore_errors=True)
    with pytest.raises(Interrupted):
        run(tiny(), copied, StopAt(8))
    assert not (copied / "result.json").exists()
    run(tiny(), copied)
    assert numbers(copied) == expected


@pytest.mark.slow
def test_a_result_stays_until_the_run_goes_on(copied):
    """It may be all that is left."""
    before = (copied / "result.json").read_bytes()
    for path in copied.glob("checkpoints/*/progress/metadata"):
        path.write_text("{}")
    with (copied / "steps.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match="All checkpoints"):
        run(tiny(), copied)
    assert (copied / "result.json").read_bytes() == before


@pytest.mark.slow
def test_what_a_start_took_that_trained_nothing_is_not_what_the_run_took(
    copied, tmp_path, monkeypatch
):
    growing = itertools.count(1)
    monkeypatch.setattr(machine, "peak_memory", lambda mesh: next(growing))
    (copied / "result.json").unlink()
    again, new = run(tiny(), copied), run(tiny(train__epochs=1), tmp_path / "new")
    assert (again["peak_memory_bytes"], again["compile_seconds"]) == (None, None)
    assert new["peak_memory_bytes"]
    assert new["compile_seconds"] is not None  # 0 where an earlier run of this process compiled


@pytest.mark.parametrize("name", ["metrics.jsonl", "history.png"])
def test_what_cannot_be_read_now_is_no_damage_of_a_finished_run(copied, name, monkeypatch):
    """As where a file server has lost the handle of an intact file."""
    if name == "metrics.jsonl":
        shutil.rmtree(copied / "checkpoints")  # else its log is not needed
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    read = pathlib.Path.read_bytes

    def failing(path):
        if path == copied / name:
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "read_bytes", failing)
        with pytest.raises(UserError, match=f"{name}: Stale"):
            run(tiny(), copied)
    assert before == {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("keep_ema", [False, True])
def test_readable_arrays_that_are_not_those_saved_are_refused(tmp_path, keep_ema):
    """As where a bit is flipped in data that have no checksum, or files were mixed up."""
    model = create_model("vgg_a_bn", width=0.05)
    tx = make_optimizer("sgd", 0.1, momentum=0.9)

    @jax.jit
    def create(seed):
        state = create_state(model, tx, seed, keep_ema=keep_ema)
        others = {name: getattr(state, name) for name in ("step", "batch_stats", "opt_state")}
        return state.replace(**jax.tree.map(lambda leaf: leaf + seed.astype(leaf.dtype), others))

    for seed in (0, 1):
        state = create(seed)
        checkpoints = Checkpointer(tmp_path / str(seed))
        checkpoints.save(0, state, {"at": 0}, None)
        checkpoints.close()
    shutil.rmtree(tmp_path / "0" / "0" / "state")
    shutil.copytree(tmp_path / "1" / "0" / "state", tmp_path / "0" / "0" / "state")
    reader = Checkpointer(tmp_path / "0")
    ema = "ema, " * keep_ema
    with pytest.raises(Damaged, match=rf": batch_stats, {ema}key, opt_state, params, step\."):
        reader.restore(state, Saved(0, False))
    read = "ema" if keep_ema else "batch_stats, params"
    with pytest.raises(Damaged, match=rf"Changed since it was saved: {read}\."):
        reader.restore_variables(state.variables, Saved(0, False))


# --- the other files --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["half", "empty", "delete"])
def test_files_are_made_again_from_the_checkpoint(expected, stopped, how, capsys):
    names = ("config.json", "metrics.jsonl", "steps.jsonl")
    for name in names:
        path = stopped / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if how == "half" else b"")
        if how == "delete":
            path.unlink()
    run(tiny(), stopped)
    assert numbers(stopped) == expected
    said = capsys.readouterr().err
    assert all(name in said for name in names)


def test_one_damage_is_told_once(copied, capsys):
    (copied / "config.json").write_text("{")
    restore.evaluate_workdir(copied, mesh=ONE)
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.json is damaged" in line
    assert "the copy in the checkpoint of step 9 is used" in line


@pytest.mark.slow
def test_a_flipped_digit_of_a_log_is_mended(expected, stopped):
    change(stopped / "metrics.jsonl", '"epoch": 1', '"epoch": 7')
    run(tiny(), stopped)
    assert numbers(stopped) == expected


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "{", "{}", '{"best": 1}', "[]", "3"])
def test_a_damaged_result_is_not_believed(expected, copied, text):
    (copied / "result.json").write_text(text)
    run(tiny(), copied)
    assert numbers(copied) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how"),
    [
        *itertools.product(
            ["config.json", "result.json"], ["half", "empty", "flip", "delete", "folder"]
        ),
        # Any change of these is told by a digest.
        *itertools.product(
            ["metrics.jsonl", "steps.jsonl", "history.png", "tensorboard/*"],
            ["flip", "delete", "folder"],
        ),
        *itertools.product([".lock"], ["delete", "folder"]),  # it is empty
    ],
)
def test_any_file_of_a_finished_run(expected, copied, name, how, capsys):
    """Is made again; or is named in one message, and what was damaged can be put back."""
    (path,) = copied.glob(name)
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how != "delete":
        path.write_bytes({"half": content[: len(content) // 2], "flip": content}.get(how, b""))
    if how == "flip":
        flip(path)
    message = ""
    try:
        run(tiny(), copied)
    except UserError as error:
        message = str(error)
    if message:
        assert how == "folder" or (name, how) == ("config.json", "flip")  # a field's name
        assert str(path) in message
        path.rmdir() if how == "folder" else path.unlink()
        path.write_bytes(content)
        run(tiny(), copied)
    assert numbers(copied) == expected
    if name in ("history.png", "tensorboard/*"):  # no numbers
        assert path.name in capsys.readouterr().err
    if path.name.startswith("events"):  # each start writes its own
        (path,) = (p for p in (copied / "tensorboard").iterdir() if p.is_file())
        assert epochs_in(path) == [1, 2, 3]
    else:
        assert path.is_file() or (name, how) == ("history.png", "folder")
        assert name != "history.png" or how == "folder" or path.read_bytes() == content


def epochs_in(path):
    """The epochs of a TensorBoard file."""
    from tensorboardX.proto import event_pb2

    content, epochs = path.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        epochs += [event.step for v in event.summary.value if v.tag == "val/loss"]
        content = content[16 + size :]
    return epochs


@pytest.mark.slow
def test_tensorboard_holds_every_epoch_once(finished, stopped):
    run(tiny(), stopped)
    for folder in (finished, stopped):
        (path,) = (folder / "tensorboard").iterdir()
        assert epochs_in(path) == [1, 2, 3]


# --- what belongs together --------------------------------------------------------------------


def test_checkpoints_without_their_config_are_not_adopted_by_another(stopped):
    (stopped / "config.json").unlink()
    with pytest.raises(UserError, match=r"another config .*\n.*seed: 0 -> 1"):
        run(tiny(seed=1), stopped)


@pytest.mark.slow
def test_checkpoints_of_another_run_are_refused(stopped, tmp_path):
    with pytest.raises(Interrupted):
        run(tiny(seed=1), tmp_path / "other", StopAt(7))
    shutil.rmtree(stopped / "checkpoints")
    shutil.copytree(tmp_path / "other" / "checkpoints", stopped / "checkpoints")
    with pytest.raises(UserError, match="another config"):
        run(tiny(), stopped)


def test_a_changed_config_is_not_evaluated_by(copied, capsys):
    expected = restore.evaluate_workdir(copied, mesh=ONE)
    change(copied / "config.json", '"relu"', '"gelu"')
    # As where it is another run's, on other images: what is wrong about one is wrong about both.
    images = json.loads((copied / "config.json").read_text())["data"]["validation"]["sha256"]
    change(copied / "config.json", images, images[::-1])
    assert restore.evaluate_workdir(copied, mesh=ONE) == expected
    assert "model.activation: 'relu' -> 'gelu'" in capsys.readouterr().err


def test_other_images_are_not_evaluated(copied, monkeypatch):
    load = data.load

    def others(*args, **options):
        found = load(*args, **options)
        return found.take(np.arange(len(found))[::-1], "other way round")

    monkeypatch.setattr(data, "load", others)
    with pytest.raises(UserError, match="other validation images"):
        restore.evaluate_workdir(copied, mesh=ONE)


def test_what_rounds_otherwise_is_said_and_what_is_random_otherwise_refused(stopped, capsys):
    path = stopped / "config.json"
    content = json.loads(path.read_text())
    assert {"x64", "prng", "cpus", "jaxlib", "processes"} <= content["environment"].keys()
    other = {"cpus": 64, "cpu": "Another 9000", "xla_flags": "--xla_x=1", "jax": "0", "jaxlib": "1"}
    other |= {"device": "Gamma", "devices": 3, "matmul_precision": "high"}
    other |= {"commit": "abc", "code": "4567"}
    here = content["environment"] | other
    path.write_text(json.dumps(content | {"environment": here}))
    rewrite(stopped, 14, about=content | {"environment": here})
    with pytest.raises(Interrupted):
        run(tiny(), stopped, StopAt(7))
    said = capsys.readouterr().err
    assert all(f"{name} {value} -> " in said for name, value in other.items())
    for field, value, message in (
        ("prng", ["rbg", True], "random numbers"),
        ("x64", True, "jax_enable_x64 set to True"),
        ("dtype", "bfloat16", "a run in bfloat16"),
    ):
        here = content["environment"] | {field: value}
        path.write_text(json.dumps(content | {"environment": here, "resumed": []}))
        with pytest.raises(UserError, match=message):
            run(tiny(), stopped)
        if field != "dtype":
            with pytest.raises(UserError, match=message):  # it would be another run
                replay.replay(stopped, mesh=ONE)


@pytest.mark.slow
def test_the_test_accuracy_is_never_of_another_epoch(tmp_path):
    """Of a run whose best epoch is its first: the checkpoint of that is lost."""
    # A network that stays as it is: all epochs are equally good, and the first of equals is best.
    config = tiny(data__protocol="holdout", optim__learning_rate=1e-7)
    with pytest.raises(Interrupted):
        run(config, tmp_path, StopAt(8))
    best = Checkpointer(tmp_path / "checkpoints").best()
    assert best.step == 3
    shutil.rmtree(tmp_path / "checkpoints" / str(best.number))
    with pytest.raises(UserError, match="checkpoint of the best epoch, 1, is lost"):
        run(config, tmp_path)
    assert not (tmp_path / "result.json").exists()
