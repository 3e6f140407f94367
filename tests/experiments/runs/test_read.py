"""Reading runs, and the statistics over their seeds."""

import json
import math
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import scipy.stats

from experiments.report import tables
from experiments.report.__main__ import main
from experiments.runs import configs, read, stats
from experiments.runs.provenance import commands, provenance
from experiments.runs.rows import TABLE_3, TABLE_4
from jaxcifar import options
from jaxcifar.errors import UserError
from jaxcifar.options import load, with_options
from jaxcifar.run import signs
from jaxcifar.runs import main as runs_main
from tests.sweeps import write_fake_runs

pytestmark = pytest.mark.usefixtures("one_device")


def test_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="jaxcifar sweep"):
        read.sweeps(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        read.sweeps(tmp_path / "absent")


@pytest.mark.slow
def test_a_name_that_is_no_row_of_the_original_report(swept_copy):
    (swept_copy / "vgg2").rename(swept_copy / "vgg9")
    (sweep,) = read.sweeps(swept_copy)
    assert sweep.names == ["vgg6", "vgg9"]
    assert sweep.rows.names == ["vgg6"]
    run = sweep.others.of("vgg9")[0]
    assert run.row is None
    assert run.label == "vgg9"
    assert run.mark == sweep.of("vgg9")[1].mark
    assert run.mark.startswith("SHORTENED: 2 of 50 epochs, 100 images; changed: data.name")
    assert "# vgg9: renamed; rename it to vgg2 before you resume it" in commands(sweep)


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_a_damaged_file(swept_copy, name):
    path = swept_copy / "vgg2" / "seed0" / name
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match=f"{name} cannot be read"):
        read.sweeps(swept_copy)


def test_damaged_metrics(swept_copy):
    path = swept_copy / "vgg2" / "seed0" / "metrics.jsonl"
    path.write_text("{oops}\n" + path.read_text())
    with pytest.raises(UserError, match="damaged"):
        read.sweeps(swept_copy)


def test_a_result_without_all_its_epochs(swept_copy):
    path = swept_copy / "vgg2" / "seed0" / "metrics.jsonl"
    path.write_text(path.read_text().splitlines(keepends=True)[0])
    with pytest.raises(UserError, match="1 of 2 epochs"):
        read.sweeps(swept_copy)


def test_a_run_that_lost_its_config_is_not_left_out_silently(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"])
    (tmp_path / "row1" / "seed1" / "config.json").unlink()
    with pytest.raises(UserError, match=r"seed1/config\.json cannot be read"):
        read.sweeps(tmp_path)


def test_a_run_that_averages_its_weights_is_that_of_the_average(tmp_path):
    """The best epoch is chosen by it, and so its numbers must be those that are shown."""
    write_fake_runs(tmp_path, rows=["row1"], seeds=1, epochs=3)
    path = tmp_path / "row1" / "seed0" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record, average in zip(records, (0.7, 0.9, 0.8), strict=True):
        record |= {"val_accuracy": 1 - average, "ema_val_accuracy": average, "ema_val_loss": 0.5}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (sweep,) = read.sweeps(tmp_path)
    (run,) = sweep.runs
    assert (run.best["epoch"], run.best["val_accuracy"], run.best["val_loss"]) == (2, 0.9, 0.5)
    assert "| 90.00% |" in tables.markdown(sweep)


def test_runs_of_mixed_configs(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg2"], seeds=2)
    path = tmp_path / "vgg2" / "seed1" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["optim"]["learning_rate"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"differ in optim\.learning_rate 0\.001 -> 0\.5"):
        read.sweeps(tmp_path)
    content["config"]["optim"]["learning_rate"] = 0.001
    content["data"]["train"]["sha256"] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="differ in the images"):
        read.sweeps(tmp_path)


def test_a_run_of_another_version(swept_copy):
    path = swept_copy / "vgg2" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["optim"]["invented"] = False
    for commit, by in (("0123", "jaxcifar 0.0, commit 0123"), (None, "jaxcifar 0.0")):
        content["environment"] |= {"jaxcifar": "0.0", "commit": commit}
        path.write_text(json.dumps(content))
        message = rf"optim\.invented.*wrote it \({by}\)\. Or move the folder"
        with pytest.raises(UserError, match=message):
            read.sweeps(swept_copy)


@pytest.mark.parametrize(
    ("name", "key"),
    [("result.json", "peak_memory_bytes"), ("config.json", "cpus"), ("metrics.jsonl", "val_loss")],
)
def test_files_of_another_version(tmp_path, name, key):
    write_fake_runs(tmp_path, rows=["vgg2"], seeds=1)
    path = tmp_path / "vgg2" / "seed0" / name
    path.write_text(path.read_text().replace(f'"{key}"', '"renamed"'))
    with pytest.raises(UserError, match=f"{name} is from another version.*{key} missing"):
        read.sweeps(tmp_path)


def leaves(content, path=()):
    """The paths of all values within JSON."""
    yield path
    if isinstance(content, dict):
        for key in content:
            yield from leaves(content[key], (*path, key))


BAD = (None, "x", "\ud800", -1, math.nan, math.inf, 10**400, True, [], [[]], {}, {"a": 1})


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("config.json", marks=pytest.mark.slow),
        *("metrics.jsonl", "result.json", "failed.json"),
    ],
)
def test_whatever_value_a_file_has_there_is_a_table_or_a_message(tmp_path, capsys, name):
    """Of a run from elsewhere, say. One that cannot be read hides no other."""
    write_fake_runs(tmp_path, rows=["row1", "row3"], seeds=1)
    path = tmp_path / "row1" / "seed0" / name
    if name == "failed.json":
        (path.parent / "result.json").unlink()
        signs.fail(path.parent, "why")
    first, *rest = path.read_text().splitlines() if "jsonl" in name else [path.read_text()]
    content = json.loads(first)
    for place in leaves(content):
        if place[:1] in (("best",), ("last",)):  # they repeat metrics.jsonl, and are not read
            continue
        for bad in BAD:
            path.write_text("\n".join([json.dumps(changed(content, place, bad)), *rest, ""]))
            problems = []
            for sweep in read.sweeps(tmp_path, problems):
                tables.write(sweep)
                assert provenance(sweep.runs)
                assert commands(sweep)
                assert "row3" in sweep.names
            assert runs_main([str(tmp_path)]) == 0
    assert "row3/seed0" in capsys.readouterr().out


def changed(content, place, value):
    if not place:
        return value
    first, *rest = place
    return content | {first: changed(content[first], rest, value)}


def test_json_that_is_nested_too_deeply_is_damaged(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], seeds=1)
    for name in ("metrics.jsonl", "config.json"):
        (tmp_path / "row1" / "seed0" / name).write_text("[" * 100_000 + "\n")
        with pytest.raises(UserError, match=f"{name} .*it is nested too deeply"):
            read.sweeps(tmp_path)


def test_a_line_end_in_a_file_ends_no_comment_of_a_command(tmp_path):
    """What follows it would be run where the commands are pasted."""
    write_fake_runs(tmp_path, rows=["mine"], seeds=1)
    environment = tmp_path / "mine" / "seed0" / "config.json"
    content = json.loads(environment.read_text())
    content["environment"]["device"] = "cpu\n\\input{/etc/passwd}"
    environment.write_text(json.dumps(content))
    (tmp_path / "mine" / options.ORIGIN).write_text(
        json.dumps({"file": "x\nrm -r .\r#.py", "config": content["config"]})
    )
    (sweep,) = read.sweeps(tmp_path)
    assert all(line.startswith("#") for line in "\n".join(commands(sweep)).splitlines())
    tables.write(sweep)
    for line in (tmp_path / "table.tex").read_text().splitlines():
        assert "input{" not in line or line.startswith("% ")


def test_nothing_is_written_where_nothing_is_finished(swept_copy):
    for path in swept_copy.rglob("result.json"):
        path.unlink()
    for command in ("tables", "claims", "figures"):
        with pytest.raises(UserError, match=r"No run in .* is finished .*seed 0: epoch 2 of 2"):
            main([command, str(swept_copy)])
    assert {path.name for path in swept_copy.iterdir()} == {"vgg2", "vgg6"}


def test_imported_weights_are_no_unfinished_run(tmp_path, capsys):
    weights = write_fake_runs(tmp_path / "imported", rows=["row1"], seeds=1) / "row1" / "seed0"
    path = weights / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {}}))
    for name in ("result.json", "metrics.jsonl", "steps.jsonl"):
        (weights / name).unlink()
    said = f"{weights} holds imported weights, not trained. Evaluate them: jaxcifar eval {weights}"
    with pytest.raises(UserError) as found:
        main(["tables", str(tmp_path)])
    assert str(found.value) == said
    write_fake_runs(tmp_path / "trained", rows=["row1"], seeds=1)
    assert main(["tables", str(tmp_path)]) == 0
    assert said in capsys.readouterr().out
    # Beside runs that were trained it is not one that was lost.
    (tmp_path / "imported" / "row1").rename(tmp_path / "trained" / "weights")
    assert main(["tables", str(tmp_path / "trained")]) == 0
    for name in ("table.md", "table.csv", "table.tex"):
        assert "weights, seed 0" not in (tmp_path / "trained" / name).read_text()


def test_runs_of_the_main_command_are_read_too(swept_copy, tmp_path):
    (tmp_path / "runs").mkdir()
    (swept_copy / "vgg2" / "seed0").rename(tmp_path / "runs" / "vgg2")
    (sweep,) = read.sweeps(tmp_path / "runs")
    assert sweep.folder == tmp_path / "runs"
    assert sweep.names == ["vgg2"]


@pytest.mark.parametrize("where", ["vgg2_seed0", "vgg2_seed0/run"])
def test_runs_of_measurements_are_left_out(swept_copy, where):
    folder = swept_copy / "landscape" / "smoothness" / where
    shutil.copytree(swept_copy / "vgg2" / "seed0", folder)
    (swept_copy / "landscape" / "smoothness" / "vgg2_seed0" / "settings.json").write_text("{}")
    (sweep,) = read.sweeps(swept_copy)
    assert [run.folder.parent.name for run in sweep.runs] == ["vgg2", "vgg2", "vgg6", "vgg6"]
    with pytest.raises(UserError, match="contains no runs"):
        read.sweeps(swept_copy / "landscape")


def test_every_start_of_a_run_is_told(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg2"], seeds=1)
    path = tmp_path / "vgg2" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    later = {"commit": "def", "device": "gpu", "started": "2026-01-02T00:00:00Z"}
    content["resumed"] = [content["environment"], content["environment"] | later]
    path.write_text(json.dumps(content))
    facts = provenance(read.sweeps(tmp_path)[0].runs)
    assert "commit: abc | def" in facts
    assert "machine: 1 × cpu, 2 CPU cores, float32 | 1 × gpu, 2 CPU cores, float32" in facts
    assert "started: 2026-01-01 | 2026-01-02" in facts
    del content["resumed"][1]["cpus"]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"config\.json is from another version.*cpus missing"):
        read.sweeps(tmp_path)


def write_origin(folder, **changes):
    config = load("row1")
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    options.write_origin(folder, f"mine/{folder.name}.py", config)


def test_a_config_file_says_what_its_runs_started_from(tmp_path):
    write_fake_runs(tmp_path, rows=["wide", "deep"], seeds=2)
    write_origin(tmp_path / "wide", **{"optim.l1": 0.25})
    write_origin(tmp_path / "deep")
    (sweep,) = read.sweeps(tmp_path)
    assert sweep.names == ["deep", "wide"]
    assert sweep.mark("deep") == "SHORTENED: 2 of 50 epochs"
    assert sweep.mark("wide") == "SHORTENED: 2 of 50 epochs; changed: optim.l1 0.25 -> 0.0"
    (tmp_path / "deep" / "origin.json").write_text('{"file": 3')
    with pytest.raises(UserError, match=r"origin\.json cannot be read"):
        read.sweeps(tmp_path)


def test_an_origin_is_written_anew_only_where_it_changed(tmp_path):
    inodes = []
    for l1 in (0.25, 0.25, 0.5):
        write_origin(tmp_path / "wide", **{"optim.l1": l1})
        inodes.append((tmp_path / "wide" / "origin.json").stat().st_ino)
    assert inodes[0] == inodes[1] != inodes[2]


def test_runs_of_which_nothing_says_how_they_were_made(tmp_path):
    write_fake_runs(tmp_path, rows=["wide"], seeds=1)
    (sweep,) = read.sweeps(tmp_path)
    (line,) = commands(sweep)
    assert line.startswith("# wide: nothing says which config it was trained by")
    assert line in tables.markdown(sweep)


def test_a_seed_counts_once(tmp_path):
    """A folder of another seed, renamed or copied; without problems all others are read."""
    write_fake_runs(tmp_path, rows=["vgg1"], seeds=3)
    shutil.copytree(tmp_path / "vgg1" / "seed1", tmp_path / "vgg1" / "seed7")
    with pytest.raises(UserError, match=r"seed1 and .*seed7 .*not even the seed"):
        read.sweeps(tmp_path)
    problems = []
    (sweep,) = read.sweeps(tmp_path, problems)
    assert [run.seed for run in sweep.runs] == [0, 1, 2]
    assert len(problems) == 1


def test_a_run_unlike_the_others_leaves_the_others(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg1"], seeds=3)
    path = tmp_path / "vgg1" / "seed1" / "config.json"
    path.write_text(path.read_text().replace('"float32"', '"bfloat16"'))
    problems = []
    (sweep,) = read.sweeps(tmp_path, problems)
    assert [run.seed for run in sweep.runs] == [0, 2]
    assert ["seed1" in problem for problem in problems] == [True]


def test_where_the_images_are_is_part_of_the_command(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg1"], seeds=1, data__dir="/data/cifar 10")
    (command,) = commands(read.sweeps(tmp_path)[0])
    assert "'--config.data.dir=/data/cifar 10'" in command
    assert read.sweeps(tmp_path)[0].mark("vgg1") == "SHORTENED: 2 of 50 epochs"


def test_commands_make_the_same_runs_again(tmp_path):
    """In a folder with spaces, with options that a shell would take apart."""
    out = tmp_path / "my results"
    area = {"augment__erasing_area": (0.02, 0.4)}
    write_fake_runs(out, rows=["row2", "vgg1"], seeds=2)
    write_fake_runs(out, rows=["deep", "wide"], seeds=2, **area)
    write_fake_runs(out, rows=["row9"], seeds=1)
    for name in ("deep", "wide"):
        write_origin(out / name)
    (out / "row9" / "seed0").rename(out / "row9.tmp")
    (out / "row9").rmdir()
    (out / "row9.tmp").rename(out / "row9")
    found = [shlex.split(line) for line in commands(read.sweeps(out)[0])]
    assert found[0][:2] == ["jaxcifar", "train"]
    assert [line[:2] for line in found[1:]] == [["jaxcifar", "sweep"]] * 2
    epochs = "--config.train.epochs=2"
    assert found[0][2:] == ["row9", f"--workdir={out / 'row9'}", epochs]
    shared = ["--seeds=0,1", f"--out={out}"]
    assert found[1][2:] == ["--rows=row2,vgg1", *shared, epochs]
    option = "--config.augment.erasing_area=(0.02, 0.4)"
    assert found[2][2:4] == ["--configs=mine/deep.py,mine/wide.py", shared[0]]
    assert set(found[2][4:]) == {shared[1], epochs, option}
    config = with_options(load("row1"), [option])
    assert config.augment.erasing_area == (0.02, 0.4)


def test_each_seed_that_was_trained_by_itself_has_a_command(tmp_path):
    """As on a TPU slice, on which a sweep does not run."""
    write_fake_runs(tmp_path, rows=["row9"], seeds=3)
    for seed in range(3):
        options.write_origin(
            tmp_path / "row9" / f"seed{seed}", options.config_file("row9"), load("row9")
        )
    (sweep,) = read.sweeps(tmp_path)
    for seed, command in enumerate(commands(sweep)):
        assert f"jaxcifar train row9 --workdir={tmp_path}/row9/seed{seed} " in command
        assert (f"--config.seed={seed}" in command) == (seed > 0)
    for seed in (1, 2):
        (tmp_path / "row9" / f"seed{seed}" / options.ORIGIN).unlink()
    trained, swept = commands(read.sweeps(tmp_path)[0])
    assert trained == commands(sweep)[0]
    assert swept.startswith("jaxcifar sweep --rows=row9 --seeds=1,2 ")


def test_a_seed_of_a_grid_that_was_resumed_by_itself_is_one_of_its_seeds(tmp_path):
    """`jaxcifar train vgg6 --optim.l2=1e-4 --seed=1 --workdir=…`, which leaves its own origin."""
    (source,) = configs.varied(configs.named("vgg6", None), ["optim.l2=1e-4"])
    write_fake_runs(tmp_path, rows=[source.name], seeds=3, model__name="vgg_a_bn", optim__l2=1e-4)
    file = options.config_file("vgg6")
    options.write_origin(tmp_path / source.name, file, source.config, source.grid)
    options.write_origin(tmp_path / source.name / "seed1", file, load("vgg6"))
    (sweep,) = read.sweeps(tmp_path)
    assert [(run.name, run.seed) for run in sweep.runs] == [(source.name, s) for s in range(3)]
    (command,) = commands(sweep)
    assert command.startswith("jaxcifar sweep --configs=vgg6 --seeds=0,1,2 ")
    assert "--grid=optim.l2=0.0001" in command


def test_images_that_a_grid_varies_are_named_once(tmp_path):
    (source,) = configs.varied(configs.named("vgg6", None), ["data.dir=official"])
    write_fake_runs(tmp_path, rows=[source.name], seeds=1, data__dir="official")
    options.write_origin(
        tmp_path / source.name, options.config_file("vgg6"), source.config, source.grid
    )
    (command,) = commands(read.sweeps(tmp_path)[0])
    assert command.count("data.dir") == 1


def test_a_workdir_called_seed_is_a_run_of_its_own(tmp_path):
    """`jaxcifar train vgg6 --workdir=runs/seed3`, which is not of a config "runs"."""
    write_fake_runs(tmp_path, rows=["vgg6"], seeds=1)
    folder = (tmp_path / "vgg6").rename(tmp_path / "runs") / "seed0"
    options.write_origin(folder, options.config_file("vgg6"), load("vgg6"))
    (sweep,) = read.sweeps(tmp_path / "runs")
    assert (sweep.folder, [run.name for run in sweep.runs]) == (tmp_path / "runs", ["seed0"])
    assert commands(sweep)[0].startswith(f"jaxcifar train vgg6 --workdir={folder} ")


def test_seeds_of_a_variation_that_were_trained_one_by_one_are_seeds(tmp_path):
    """`jaxcifar train vgg6 --optim.l2=1e-4 --seed=1 --workdir=runs/decayed/seed1`."""
    write_fake_runs(tmp_path, rows=["vgg6"], seeds=2)
    whole = (tmp_path / "vgg6").rename(tmp_path / "decayed")
    for seed in range(2):
        options.write_origin(whole / f"seed{seed}", options.config_file("vgg6"), load("vgg6"))
    (sweep,) = read.sweeps(tmp_path)
    assert (sweep.folder, sweep.names) == (tmp_path, ["decayed"])
    assert [run.seed for run in sweep.runs] == [0, 1]


def test_seeds_with_other_options_have_their_own_command(tmp_path):
    """As where the images are elsewhere on another machine."""
    write_fake_runs(tmp_path, rows=["vgg1"], seeds=3)
    path = tmp_path / "vgg1" / "seed1" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["data"]["dir"] = "/scratch"
    path.write_text(json.dumps(content))
    one, other = commands(read.sweeps(tmp_path)[0])
    assert "--seeds=0,2 " in one
    assert "data.dir" not in one
    assert "--seeds=1 " in other
    assert "--config.data.dir=/scratch" in other


def test_imported_weights_have_no_command(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], seeds=1)
    path = tmp_path / "row1" / "seed0" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": {}}))
    assert commands(read.sweeps(tmp_path)[0]) == ["# row1: imported weights, not trained"]


@pytest.mark.parametrize("here", [".", "vgg6", "vgg6/seed0"])
@pytest.mark.parametrize("given", [".", ".."])
def test_runs_seen_from_within(tmp_path, monkeypatch, here, given):
    """By "." and "..", which are no names."""
    out = tmp_path / "table4"
    write_fake_runs(out, rows=["vgg6"], seeds=1)
    monkeypatch.chdir(out / here)
    (sweep,) = read.sweeps(given)
    assert (sweep.names, sweep.folder.resolve()) == (["vgg6"], out)
    assert sweep.mark("vgg6") == "SHORTENED: 2 of 50 epochs"
    (command,) = commands(sweep)
    (place,) = re.findall("--out=([^ ]+)", command)
    assert pathlib.Path(place).resolve() == out


def test_a_link_takes_no_run_from_its_sweep(tmp_path):
    write_fake_runs(tmp_path / "table4", rows=["vgg6"], seeds=1)
    (tmp_path / "best").symlink_to(tmp_path / "table4" / "vgg6" / "seed0")
    (sweep,) = read.sweeps(tmp_path)
    assert (sweep.names, sweep.folder) == (["vgg6"], tmp_path / "table4")


def test_a_sweep_has_its_linked_runs_wherever_it_is_seen_from(tmp_path):
    for name, row in (("a", "vgg2"), ("b", "vgg6")):
        write_fake_runs(tmp_path / name, rows=[row], seeds=1)
    (tmp_path / "a" / "vgg6").symlink_to(pathlib.Path("..", "b", "vgg6"))
    for top, sweeps in ((tmp_path / "a", ["a"]), (tmp_path, ["a", "b"])):
        found = {sweep.folder.name: sweep.names for sweep in read.sweeps(top)}
        assert list(found) == sweeps
        assert found["a"] == ["vgg2", "vgg6"]


def test_each_seed_may_start_from_the_run_of_its_own(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg6"], seeds=3)
    sources = ["a/vgg6/seed0", "a/vgg6/seed1", "a/vgg6/seed1"]
    for seed, source in enumerate(sources):
        path = tmp_path / "vgg6" / f"seed{seed}" / "config.json"
        content = json.loads(path.read_text())
        content["config"]["init_from"] = source
        path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="init_from a/vgg6/seed0 -> a/vgg6/seed1"):
        read.sweeps(tmp_path)
    shutil.rmtree(tmp_path / "vgg6" / "seed2")
    (sweep,) = read.sweeps(tmp_path)
    assert len(sweep.of("vgg6")) == 2


def test_results_of_the_original_report():
    # Sums of the printed columns, added up from the original itself.
    for table, sums in (
        (TABLE_3, (2.6070, 5.0851, 11.1674, 10.6758)),
        (TABLE_4, (1.8389, 4.1138, 7.3693, 6.8325)),
    ):
        columns = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
        found = [sum(getattr(row, column) for row in table) for column in columns]
        assert found == pytest.approx(sums)
    assert [row.size for row in TABLE_3].count("10.29M") == 6
    assert len(TABLE_3) == 12
    assert len(TABLE_4) == 8


def test_estimate_and_difference_are_students_and_welchs():
    ours, others = [0.91, 0.93, 0.925], [0.90, 0.905]
    value = stats.estimate(ours)
    interval = scipy.stats.ttest_1samp(ours, 0).confidence_interval(0.95)
    assert (value.mean - value.half, value.mean + value.half) == pytest.approx(interval)
    assert value.std == pytest.approx(np.std(ours, ddof=1))
    change = stats.difference(ours, others)
    welch = scipy.stats.ttest_ind(ours, others, equal_var=False).confidence_interval(0.95)
    assert (change.mean - change.half, change.mean + change.half) == pytest.approx(welch)
    assert math.isnan(stats.estimate([0.9]).half)
    assert math.isnan(stats.difference([0.9], [0.8, 0.7]).half)


def test_smoothing_is_a_moving_mean():
    values = np.random.default_rng(0).normal(size=30)
    expected = np.convolve(values, np.ones(7) / 7, mode="valid")
    np.testing.assert_allclose(stats.smoothed(values, 7), expected)
    values[10] = np.inf  # in the windows that begin at 4 to 10
    expected[4:11] = np.inf
    np.testing.assert_allclose(stats.smoothed(values, 7), expected)
