"""Jobs: which runs a sweep has, and what state they are in."""

import hashlib
import json
import os
import time

import pytest

from experiments.runs import configs
from experiments.sweep import jobs, workers
from experiments.sweep.jobs import check_dtypes, checked, parse_seeds
from jaxcifar.errors import UserError
from jaxcifar.files import write_json
from jaxcifar.run import signs
from tests.sweeps import CIFAR, OPTIONS, leave_sign_of_a_dead_process, pretend, start_sweep

pytestmark = pytest.mark.usefixtures("one_device")


def test_rows_and_seeds():
    assert configs.parse_rows("1-3,vgg2") == ["row1", "row2", "row3", "vgg2"]
    assert configs.parse_rows("vgg1-vgg8") == [f"vgg{i}" for i in range(1, 9)]
    assert configs.parse_rows("vgg7-8,row9,9") == ["vgg7", "vgg8", "row9"]
    assert parse_seeds("0-2,7,1") == [0, 1, 2, 7]


@pytest.mark.parametrize("text", ["13", "vgg9", "3-1", "row1-vgg2", "", "1-2-3", "vg2"])
def test_unknown_rows(text):
    with pytest.raises(UserError, match="--rows"):
        configs.parse_rows(text)


@pytest.mark.parametrize("text", ["", "a", "2-1", "-1"])
def test_impossible_seeds(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_nor_does_finding_out_that_a_run_is_of_too_many(no_images, tmp_path, capsys):
    more = ("--config.data.protocol=holdout", "--config.train.limit_train_images=45001")
    assert start_sweep(tmp_path / "out", "vgg2", "0", CIFAR[0], *more, "--dry-run") == 2
    assert "there are 45,000 training images" in capsys.readouterr().err


def test_states_in_words(tmp_path, monkeypatch):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    assert job.describe() == "new"
    assert job.describe("Priority") == "waiting: Priority"
    job.workdir.mkdir(parents=True)
    (job.workdir / "config.json").write_text("{}")
    assert job.describe() == "to resume"
    mark = {"host": "node7", "pid": 1, "job": "77_3", "time": ""}
    path = job.workdir / ".running"
    path.write_text(json.dumps(mark))
    os.utime(path, (time.time() + 7200,) * 2)  # however slow this machine is
    assert job.describe("Priority") == "running on node7 (job 77_3), last sign 0s ago"
    os.utime(path, (time.time() - 7200,) * 2)
    assert job.describe() == "to resume (node7 fell silent 2h00m ago)"
    signs.fail(job.workdir, "it broke\nin many words")
    assert job.describe() == "failed: it broke"
    # One that is dead on this machine is known to be.
    signs.give(job.workdir)
    assert signs.running(job.workdir).alive
    leave_sign_of_a_dead_process(job.workdir)
    assert not signs.running(job.workdir).alive
    pretend(job.config, job.workdir)
    assert job.describe() == "done"
    (job.workdir / "metrics.jsonl").write_text("")
    assert job.state == "damaged"
    assert "metrics.jsonl has 0 of 2 epochs" in job.damage


@pytest.mark.parametrize("name", ["config.json", "steps.jsonl"])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "cut"])
def test_a_finished_run_that_was_copied_in_part_is_damaged(tmp_path, name, lost):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    pretend(job.config, job.workdir)
    (job.workdir / "steps.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n')
    digest = hashlib.sha256((job.workdir / "steps.jsonl").read_bytes()).hexdigest()
    write_json(job.workdir / "result.json", {"files": {"steps.jsonl": digest, "a.png": "0"}})
    assert job.state == "done"
    if lost:
        (job.workdir / name).unlink()
    else:
        os.truncate(job.workdir / name, 12)
    assert job.state == "damaged"
    assert str(job.workdir / name) in job.damage


@pytest.mark.parametrize("there", [True, False])
def test_a_run_of_other_options_in_which_nothing_was_trained(tmp_path, there):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    pretend(job.config, job.workdir)
    if not there:
        (job.workdir / "metrics.jsonl").unlink()
        (job.workdir / "result.json").unlink()
    environment = {"environment": {"dtype": "float32"}, "data": {}}
    write_json(job.workdir / "config.json", {"config": job.config.to_dict()} | environment)
    with pytest.raises(UserError, match="holds a run of another config") as error:
        checked([source], [0], tmp_path, [*OPTIONS, "--config.optim.l2=1e-4"])
    empty = f"delete {job.workdir / 'config.json'} to begin anew"
    assert (empty in str(error.value)) != there
    assert ("Give the same options" in str(error.value)) == there


@pytest.fixture
def of_a_gpu(tmp_path):
    """The folder of a sweep with one finished run, in bfloat16."""
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    pretend(job.config, job.workdir)
    facts = {"environment": {"dtype": "bfloat16", "device": "H200"}, "data": {"train": {}}}
    write_json(job.workdir / "config.json", {"config": job.config.to_dict()} | facts)
    return tmp_path


def test_seeds_of_another_dtype_than_those_that_are_there(of_a_gpu):
    """As where a driver fails, and JAX goes on with the CPU: no report could take both."""
    sources = configs.named("vgg2,vgg6", None)
    first, second, *others = checked(sources, [0, 1], of_a_gpu, OPTIONS)
    with pytest.raises(UserError) as error:
        check_dtypes([first, second, *others], "cpu")
    for part in (f"{first.workdir} was trained in bfloat16 (on H200)", "'auto', which is float32"):
        assert part in str(error.value)
    assert "Train vgg2, seed 1 on a device like that one, or in another --out." in str(error.value)
    for platform in ("gpu", "tpu"):
        check_dtypes([first, second, *others], platform)
    check_dtypes([first, *others], "cpu")  # of vgg2 nothing is left to train here


def test_seeds_of_a_cpu_beside_those_of_a_gpu(of_a_gpu):
    facts = {"environment": {"dtype": "float32"}, "data": {"train": {}}}
    first, second = checked(configs.named("vgg2", None), [0, 1], of_a_gpu, OPTIONS)
    write_json(first.workdir / "config.json", {"config": first.config.to_dict()} | facts)
    with pytest.raises(UserError, match=r"like that one \(JAX_PLATFORMS=cpu is the CPU\), or"):
        check_dtypes([second], "gpu")


def test_the_command_knows_where_it_trains(of_a_gpu, monkeypatch, capsys):
    assert start_sweep(of_a_gpu, "vgg2", "0-1", "--dry-run") == 2
    assert "was trained in bfloat16 (on H200), but here" in capsys.readouterr().err
    assert start_sweep(of_a_gpu, "vgg2", "0-1", "--status") == 0
    # Workers on a GPU; those of TPUs, and of what nvidia-smi does not list, look themselves.
    gpu, unknown = workers.Place(gpu="0"), workers.Place(cores=frozenset({0}))
    for dtype, place, code in (
        ("bfloat16", gpu, 0),
        ("bfloat16", unknown, 0),
        ("float32", gpu, 2),
        ("float32", unknown, 0),
    ):
        about = of_a_gpu / "vgg2" / "seed0" / "config.json"
        facts = json.loads(about.read_text()) | {"environment": {"dtype": dtype}}
        write_json(about, facts)
        monkeypatch.setattr(workers, "places", lambda _, place=place: [place])
        assert start_sweep(of_a_gpu, "vgg2", "0-1", "--dry-run", "--workers=1") == code


def test_a_result_that_is_none_is_damaged(tmp_path):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    pretend(job.config, job.workdir)
    (job.workdir / "result.json").write_text("[]")
    assert job.state == "damaged"
    assert "result.json is not the result of a run" in job.damage


def test_nothing_is_to_be_deleted_where_another_process_has_begun(tmp_path):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    job.workdir.mkdir(parents=True)
    environment = {"environment": {"dtype": "float32"}, "data": {}}
    write_json(job.workdir / "config.json", {"config": job.config.to_dict()} | environment)
    with signs.shown(job.workdir), pytest.raises(UserError) as error:
        checked([source], [0], tmp_path, [*OPTIONS, "--config.optim.l2=1e-4"])
    assert "to begin anew" not in str(error.value)
    # What cannot be looked into costs its own run only.
    (job.workdir / "checkpoints").touch()
    assert checked([source], [0], tmp_path, OPTIONS) == [job]


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    (source,) = configs.named("vgg2", None)
    (job,) = checked([source], [0], tmp_path, OPTIONS)
    pretend(job.config, job.workdir)
    real, reads = jobs.read_records, []
    monkeypatch.setattr(jobs, "read_records", lambda path: reads.append(path) or real(path))
    path = job.workdir / "metrics.jsonl"
    assert [job.state, len(job.records), job.describe()] == ["done", 2, "done"]
    assert reads == [path]
    with path.open("a") as file:
        file.write('{"epoch": 3}\n')
    assert len(job.records) == 3
    assert reads == [path] * 2
