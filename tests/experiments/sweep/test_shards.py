"""Shards: parts of about equal work, which all processes agree on."""

import json
import pathlib
import re

import pytest
import yaml

from experiments.runs import configs
from experiments.sweep import estimates, shards
from experiments.sweep.jobs import checked
from jaxcifar import kernels, train
from tests.sweeps import OPTIONS, pretend, start_sweep

pytestmark = pytest.mark.usefixtures("one_device")


def test_shards_are_the_same_on_a_node_without_a_gpu(tmp_path, monkeypatch):
    """Though "auto" is another dtype there, and with it what shares a compiled program."""
    for name, model, dtype in (
        ("a", "vgg_a_bn", "auto"),
        ("b", "vgg_a", "auto"),
        ("c", "vgg_a_bn", "float32"),
    ):
        (tmp_path / f"{name}.py").write_text(
            "from jaxcifar.config import base_config\n\ndef get_config():\n"
            f"    config = base_config()\n    config.model.name = {model!r}\n"
            f"    config.model.dtype = {dtype!r}\n    return config\n"
        )
    sources = configs.named(None, f"{tmp_path}/*.py")
    found = []
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(kernels, "platform_of", lambda _, platform=platform: platform)
        jobs = checked(sources, [0], tmp_path / "out", OPTIONS)
        found.append([[job.name for job in part] for part in shards.shards(jobs, 2)])
    assert found[0] == found[1]


def keys(jobs):
    return [(job.name, job.seed) for job in jobs]


@pytest.mark.slow
def test_shards_part_the_runs_whatever_is_done(tmp_path):
    sources = configs.named("vgg2,vgg6,vgg7,row9", None)
    jobs = checked(sources, [0, 1, 2], tmp_path, OPTIONS)
    before = {count: shards.shards(jobs, count) for count in range(1, len(jobs) + 1)}
    for count, parts in before.items():
        assert len(parts) == count
        assert all(parts)
        assert sorted(key for part in parts for key in keys(part)) == sorted(keys(jobs))
    sharing = [{job.name for job in part} for part in before[2]]
    assert sharing[0] & sharing[1] <= {"row9"}  # more than a quarter of a part
    for job in jobs[::2]:
        job.workdir.mkdir(parents=True)
        for name in ("config.json", "result.json"):
            content = {"config": job.config.to_dict()}
            (job.workdir / name).write_text(json.dumps(content))
    again = checked(sources, [0, 1, 2], tmp_path, OPTIONS)
    for count, parts in before.items():
        assert list(map(keys, shards.shards(again, count))) == list(map(keys, parts))


@pytest.mark.parametrize(
    "changed",
    [
        *({"shards": value} for value in (3, None, [], [[{}], []])),
        *({"configs": value} for value in ([], {"vgg2": {"seed": "x"}}, {"vgg2": 3})),
        {"tasks": "2"},
    ],
)
def test_a_damaged_plan_is_one_message(tmp_path, capsys, changed):
    shard = ("vgg2", "0-1", "--shard=0/2", "--dry-run")
    plan = {"names": ["vgg2"], "seeds": [0, 1], "options": OPTIONS, "tasks": 2, "configs": {}}
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(plan))
    assert start_sweep(tmp_path, *shard) == 0
    path.write_text(json.dumps(plan | changed))
    assert start_sweep(tmp_path, *shard) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"jaxcifar: {path} is damaged")
    assert "Traceback" not in said


def test_shards_are_of_about_equal_work(tmp_path):
    jobs = checked(configs.named("vgg1-8,9", None), [0, 1, 2], tmp_path, OPTIONS)
    for count in (2, 3, 5):
        works = [estimates.work(part) for part in shards.shards(jobs, count)]
        assert max(works) < 1.25 * sum(works) / count, count


def test_each_pod_of_the_documented_job_takes_one_shard():
    text = (pathlib.Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    job = yaml.safe_load(block)["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert job["completionMode"] == "Indexed"  # it sets JOB_COMPLETION_INDEX
    (shard,) = [word for word in container["command"] if word.startswith("--shard=")]
    pods = [shard.replace("$(JOB_COMPLETION_INDEX)", str(i)) for i in range(job["completions"])]
    taken = [shards.parse_shard(pod.removeprefix("--shard=")) for pod in pods]
    assert taken == [(i, job["completions"]) for i in range(job["completions"])]


@pytest.mark.parametrize(("model", "batch"), [("vgg_a", 64), ("resnet18", 256)])  # the defaults
def test_tasks_keep_to_the_parts_and_configs_they_were_planned_with(
    tmp_path, monkeypatch, capsys, model, batch
):
    """Whatever becomes of the files while some of them wait in the queue."""
    text = (
        "from jaxcifar.config import base_config\n\ndef get_config():\n    config = base_config()\n"
        f"    config.model.name = {model!r}\n"
        "    config.train.batch_size = {batch}\n    return config"
    )
    mine, out, trained = tmp_path / "mine.py", tmp_path / "out", []
    mine.write_text(text.format(batch=batch))
    monkeypatch.setattr(
        train, "train_and_evaluate", lambda c, w, **_: trained.append(w) or pretend(c, w)
    )
    task = (out, "vgg6", "0-1", f"--configs={mine}")
    assert start_sweep(*task, "--shard=0/2") == 0
    first = [f"{path.parent.name}/{path.name}" for path in trained]
    there = json.loads((out / "sweep.json").read_text())
    assert there["shards"][0] == first
    # A task that computed the parts by itself would not see this.
    there["shards"] = [first + there["shards"][1][1:], there["shards"][1][:1]]
    (out / "sweep.json").write_text(json.dumps(there))
    trained.clear()
    assert start_sweep(*task, "--shard=1/2") == 0
    assert [f"{path.parent.name}/{path.name}" for path in trained] == there["shards"][1]
    mine.write_text(text.format(batch=128))
    assert start_sweep(*task, "--shard=0/2") == 2
    assert f"mine: train.batch_size: {batch} -> 128" in capsys.readouterr().err
