"""The tables: that they show what the runs computed, beside what the original report printed."""

import csv
import io
import json
import math
import pathlib
import shutil

import pytest

from experiments.report import claims, tables
from experiments.report.__main__ import main
from experiments.runs import names, read
from experiments.runs.rows import ROWS
from jaxcifar.errors import UserError
from jaxcifar.files import write_json
from jaxcifar.run import signs
from jaxcifar.signals import exit_code
from tests.sweeps import write_fake_runs

pytestmark = pytest.mark.usefixtures("one_device")


def test_table_numbers_are_those_of_metrics_jsonl(swept_copy):
    main(["tables", str(swept_copy)])
    rows = list(csv.DictReader(io.StringIO((swept_copy / "table.csv").read_text())))
    assert [row["row"] for row in rows] == ["vgg2", "vgg6"]
    for line in rows:
        best, last = [], []
        for path in sorted((swept_copy / line["row"]).glob("seed*/metrics.jsonl")):
            records = [json.loads(text) for text in path.read_text().splitlines()]
            best.append(max(records, key=lambda record: record["val_accuracy"]))
            last.append(records[-1])
        assert len(best) == int(line["seeds"]) == 2
        for metric in ("train_loss", "val_loss", "train_accuracy", "val_accuracy"):
            mean = sum(record[metric] for record in best) / 2
            std = abs(best[0][metric] - best[1][metric]) / math.sqrt(2)
            printed = getattr(ROWS[line["row"]], metric)
            for column, value in (
                ("best", mean),
                ("std", std),
                ("interval_half", 12.7062 * std / math.sqrt(2)),
                ("last", sum(record[metric] for record in last) / 2),
                ("last_std", abs(last[0][metric] - last[1][metric]) / math.sqrt(2)),
                ("original", printed),
                ("difference", mean - printed),
            ):
                assert float(line[f"{metric}_{column}"]) == pytest.approx(value, rel=1e-4, abs=1e-9)


def test_shortened_runs_are_marked_in_every_format(swept_copy, tmp_path):
    main(["tables", str(swept_copy)])
    marked = "2 of 50 epochs, 100 images"
    page = (swept_copy / "table.md").read_text()
    assert "**Runs marked SHORTENED" in page
    lines = [line for line in page.splitlines() if line.startswith("| 2")]
    assert len(lines) == 6  # results, comparison of four metrics, cost
    assert all(line.startswith("| 2† |") for line in lines)
    assert f"† vgg2, vgg6: SHORTENED: {marked}; changed: " in page
    assert "data.name cifar10 -> synthetic" in page
    line = next(csv.DictReader(io.StringIO((swept_copy / "table.csv").read_text())))
    assert line["shortened"] == marked.replace(", 100", "; 100")
    assert "SHORTENED" in (swept_copy / "table.tex").read_text()
    assert "% commit" in (swept_copy / "table.tex").read_text()
    full = write_fake_runs(tmp_path / "full", rows=["row5"], epochs=50)
    main(["tables", str(full)])
    for name in ("table.md", "table.csv", "table.tex"):
        assert "†" not in (full / name).read_text()
        assert "SHORTENED" not in (full / name).read_text()


def test_unfinished_runs_are_named_and_not_counted(swept_copy):
    (swept_copy / "vgg2" / "seed1" / "result.json").unlink()
    main(["tables", str(swept_copy)])
    page = (swept_copy / "table.md").read_text()
    assert "- vgg2, seed 1: epoch 2 of 2" in page
    lines = list(csv.DictReader(io.StringIO((swept_copy / "table.csv").read_text())))
    assert [line["seeds"] for line in lines] == ["1", "2"]
    assert lines[0]["val_accuracy_std"] == ""


def test_markdown_shows_mean_deviation_interval_original_and_difference(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], epochs=50)
    main(["tables", str(tmp_path)])
    lines = (tmp_path / "table.md").read_text().splitlines()
    # Seeds 92.54, 92.64, 92.74: deviation 0.10, half interval 4.3027 × 0.1 / √3 = 0.25.
    shown = "92.64% ± 0.10 | 92.39 … 92.89 | 92.44% ± 0.10 | 92.64% | +0.00"
    assert f"| 1 | ResNet-18 | 3 | Val. acc. | {shown} |" in lines
    # 0.3709 at the best epoch, 0.3689 after the last.
    shown = "0.3709 ± 0.0010 | 0.3684 … 0.3734 | 0.3689 ± 0.0010 | 0.3709 | +0.0000"
    assert f"| 1 | ResNet-18 | 3 | Val. loss | {shown} |" in lines


def test_a_variation_beside_its_baseline(tmp_path, capsys):
    write_fake_runs(tmp_path, rows=["row1"], epochs=50)
    wide = {"wide": {"val_accuracy": 0.004}}
    write_fake_runs(tmp_path, wide, rows=["wide"], seeds=2, epochs=50, model__width=2.0)
    assert exit_code(lambda: main(["tables", str(tmp_path), "--against=row2"])) == 2
    assert "--against is 'row2'. Did you mean 'row1'?" in capsys.readouterr().err
    assert main(["tables", str(tmp_path), "--against=row1"]) == 0
    page = (tmp_path / "table.md").read_text()
    assert "## Beside row1" in page
    # Seeds 0.1 points apart, two and three. The standard error is √(0.005 / 2 + 0.01 / 3) = 0.0764,
    # with 2.882 degrees of freedom, for which Student's t is 3.257: 0.35 ± 0.249.
    line = "| wide† | model.width 1.0 -> 2.0 | 2, 3 | Val. acc., "
    best, last = "92.99% ± 0.07 | 92.64% ± 0.10", "92.79% ± 0.07 | 92.44% ± 0.10"
    assert f"{line}best epoch | {best} | +0.35 | 0.10 … 0.60 |" in page
    assert f"{line}last epoch | {last} | +0.35 | 0.10 … 0.60 |" in page
    assert "Beside row1" in (tmp_path / "table.tex").read_text()
    main(["tables", str(tmp_path)])
    assert "Beside row1" not in (tmp_path / "table.md").read_text()


def test_rows_of_both_tables_beside_one_go_by_their_names(tmp_path):
    write_fake_runs(tmp_path, rows=["row1", "row9", "vgg1"], seeds=1)
    (sweep,) = read.sweeps(tmp_path)
    assert {line[0] for line in tables.against_table(sweep, "row9").lines} == {"row1†", "vgg1†"}


def test_other_images_and_dtypes_are_among_what_differs(tmp_path):
    write_fake_runs(tmp_path, rows=["row1", "wide"], seeds=1, epochs=50)
    path = tmp_path / "wide" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    content["data"]["train"]["sha256"] = "4567"
    content["environment"]["dtype"] = "bfloat16"
    write_json(path, content)
    main(["tables", str(tmp_path), "--against=row1"])
    page = (tmp_path / "table.md").read_text()
    what = "the images, dtype float32 -> bfloat16"
    assert f"| wide† | {what} | 1, 1 | Val. acc., best epoch |" in page


def test_a_sweep_without_the_baseline_says_so(tmp_path, capsys):
    write_fake_runs(tmp_path / "a", rows=["row1", "row2"], seeds=1, epochs=50)
    write_fake_runs(tmp_path / "b", rows=["row2"], seeds=1, epochs=50)
    assert main(["tables", str(tmp_path), "--against=row1"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "to compare" in line)
    assert line.startswith(f"{tmp_path / 'b'} has no finished run of row1, so there is nothing to")
    assert "--configs beside --rows" in line


def test_a_sweep_of_the_baseline_alone_says_so(tmp_path, capsys):
    """Such as a row that was swept again, into a folder of its own."""
    write_fake_runs(tmp_path, rows=["row1"], seeds=1, epochs=50)
    assert main(["tables", str(tmp_path), "--against=row1"]) == 0
    assert f"{tmp_path} has only row1, so there is nothing to compare." in capsys.readouterr().out


def test_holdout_runs_are_compared_by_their_test_accuracy_too(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], epochs=50, data__protocol="holdout")
    for seed in range(3):
        path = tmp_path / "row1" / f"seed{seed}" / "result.json"
        test = {"test": {"loss": 0.5, "accuracy": 0.90 + 0.01 * seed, "images": 10_000}}
        write_json(path, json.loads(path.read_text()) | test)
    main(["tables", str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "Test accuracy, once | 91.00% ± 1.00 | 88.52 … 93.48 | – | 92.64% | -1.64 |" in page
    assert "changed: data.protocol test -> holdout" in page
    line = next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert float(line["test_accuracy"]) == pytest.approx(0.91)
    assert float(line["test_accuracy_std"]) == pytest.approx(0.01)
    assert float(line["test_accuracy_interval_half"]) == pytest.approx(0.0248, abs=1e-4)


def test_momentum_and_schedule_are_among_the_settings(tmp_path):
    sgd = {"optim__name": "sgd", "optim__momentum": 0.9, "optim__nesterov": True}
    write_fake_runs(tmp_path, rows=["vgg2"], epochs=50, optim__schedule="cosine_per_step", **sgd)
    main(["tables", str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "| SGD, momentum 0.9, Nesterov | 1e-3, cosine per step | 256 |" in page
    line = next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert (float(line["lr"]), line["schedule"]) == (1e-3, "cosine_per_step")


def test_settings_are_those_of_the_run(tmp_path):
    optim = {"optim__learning_rate": 1.25e-3, "optim__l1": 1e-4, "optim__l2": 3e-5}
    write_fake_runs(tmp_path, rows=["vgg2"], epochs=50, model__name="resnet18", **optim)
    main(["tables", str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "| ResNet-18 | 1.00M | ReLU | 0 | L1, 1e-4; L2, 3e-5 | Adam | 1.25e-3 | 256 |" in page


def test_decoupled_weight_decay_is_a_regularization(tmp_path):
    fields = {"optim__name": "adamw", "optim__weight_decay": 0.05}
    write_fake_runs(tmp_path, rows=["vgg2"], epochs=50, **fields)
    main(["tables", str(tmp_path)])
    assert "| ReLU | 0 | decay, 5e-2 | AdamW |" in (tmp_path / "table.md").read_text()


def test_each_line_names_its_data_and_whether_a_part_was_held_out(tmp_path):
    write_fake_runs(tmp_path, rows=["a"], epochs=50)
    held_out = {"data__name": "cifar100", "data__protocol": "holdout"}
    write_fake_runs(tmp_path, rows=["b"], epochs=50, **held_out)
    main(["tables", str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "| a† | cifar10 | ResNet-18 |" in page
    assert "| b† | cifar100, held out | ResNet-18 |" in page
    lines = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert [line["data"] for line in lines] == ["cifar10", "cifar100, held out"]


def test_several_sweeps_and_one_that_is_not_finished(tmp_path, capsys):
    write_fake_runs(tmp_path / "a", rows=["row1"], epochs=50)
    write_fake_runs(tmp_path / "b", rows=["row1"], epochs=50, seeds=1)
    (tmp_path / "b" / "row1" / "seed0" / "result.json").unlink()
    main(["tables", str(tmp_path)])
    said = capsys.readouterr().out
    assert f"No run in {tmp_path / 'b'} is finished (row1 seed 0: epoch 50 of 50)" in said
    assert f"\n  jaxcifar sweep --rows=row1 --seeds=0 --out={tmp_path / 'b'}" in said
    assert (
        exit_code(lambda: main(["figures", str(tmp_path), f"--run={tmp_path}/b/row1/seed0"])) == 2
    )
    assert "Of the runs beside --run=" in capsys.readouterr().err
    assert (tmp_path / "a" / "table.md").exists()
    assert not (tmp_path / "b" / "table.md").exists()


@pytest.mark.parametrize(("official", "cell"), [(True, "True"), (False, "False"), (None, "")])
def test_the_csv_says_whether_the_images_are_official_where_there_are_such(
    tmp_path, official, cell
):
    write_fake_runs(tmp_path, rows=["row1"], seeds=1)
    path = tmp_path / "row1" / "seed0" / "config.json"
    content = json.loads(path.read_text())
    for part in content["data"].values():
        part["official"] = official
    path.write_text(json.dumps(content))
    main(["tables", str(tmp_path)])
    (line,) = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert line["data_official"] == cell


def rewrite(path, change):
    """Changes what a JSON file holds."""
    content = json.loads(path.read_text())
    change(content)
    write_json(path, content)


def test_other_images_than_the_official_ones_are_marked_in_every_format(tmp_path):
    """Their accuracies are not comparable with the original's, and do not test what it says."""
    lower = {"row1": {"val_accuracy": -0.035}}
    write_fake_runs(tmp_path, lower, rows=["row1"], epochs=50)
    for path in tmp_path.glob("row1/*/config.json"):
        rewrite(path, lambda content: content["data"]["train"].update(official=False))
    main(["tables", str(tmp_path)])
    main(["claims", str(tmp_path)])
    note = "images NOT verified as the official files"
    page = (tmp_path / "table.md").read_text()
    assert "| 1† | ResNet-18 | 3 | Val. acc. | 89.14% ± 0.10 |" in page
    assert f"† row1: {note}\n" in page
    assert rf"  \par\footnotesize $^\dagger$ row1: {note}" in (tmp_path / "table.tex").read_text()
    assert next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))["note"] == note
    page = (tmp_path / "claims.md").read_text()
    assert "0 supported, 0 contradicted, 0 undecided, 25 no runs." in page
    assert "do not test the conclusions: 0 supported, 1 contradicted, 0 undecided." in page


def test_a_seed_that_diverged_is_named_wherever_the_others_are_counted(tmp_path):
    """Else the mean would silently be that of the survivors."""
    write_fake_runs(tmp_path, rows=["row1", "row5"], epochs=50)
    folder = tmp_path / "row1" / "seed2"
    (folder / "result.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:7]))
    signs.fail(folder, "The training loss of step 1400 is not finite. And more.\nA second line.")
    left_out = "row1, seed 2: epoch 7 of 50, failed: The training loss of step 1400 is not finite"
    main(["tables", str(tmp_path)])
    main(["claims", str(tmp_path)])
    for name in ("table.md", "claims.md"):
        page = (tmp_path / name).read_text()
        assert f"## Not finished, and left out\n\n- {left_out}\n" in page
    assert f"footnotesize Not finished, and left out: {left_out}" in (
        (tmp_path / "table.tex").read_text()
    )
    one, other = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert (one["unfinished"], other["unfinished"]) == (left_out, "")
    assert (one["seeds"], other["seeds"]) == ("2", "3")
    level = "| validation accuracy of row 1 (read as: above 92%) | above 92.00% | 92.59% | "
    assert (
        f"{level}91.95% … 93.23% | 2 | 92.64% | undecided" in (tmp_path / "claims.md").read_text()
    )


def test_a_config_none_of_whose_seeds_came_through_is_named_everywhere(tmp_path):
    """Else it would look as if it had never been tried."""
    write_fake_runs(tmp_path, rows=["row1", "vgg1"], seeds=2, epochs=50)
    for seed in range(2):
        (tmp_path / "vgg1" / f"seed{seed}" / "result.json").unlink()
    main(["tables", str(tmp_path)])
    one, other = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert (one["row"], one["seeds"], one["unfinished"]) == ("row1", "2", "")
    assert (other["row"], other["seeds"], other["val_accuracy_best"]) == ("vgg1", "0", "")
    lost = [f"vgg1, seed {seed}: epoch 50 of 50" for seed in range(2)]
    assert other["unfinished"] == "; ".join(lost)
    for name in ("table.md", "table.tex"):
        page = (tmp_path / name).read_text()
        assert [line in page for line in lost] == [True, True]


def test_what_is_not_in_the_tables_is_not_in_their_notes_and_origin(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], epochs=50)
    write_fake_runs(tmp_path, rows=["vgg1"], epochs=3, seeds=1)
    (tmp_path / "vgg1" / "seed0" / "result.json").unlink()
    commit = {"commit": "of vgg1"}
    path = tmp_path / "vgg1" / "seed0" / "config.json"
    rewrite(path, lambda content: content["environment"].update(commit))
    main(["tables", str(tmp_path)])
    page, tex = ((tmp_path / name).read_text() for name in ("table.md", "table.tex"))
    assert "- commit: abc\n" in page
    assert "SHORTENED" not in page + tex
    assert "footnotesize" not in tex  # below the tables of row 1
    assert "- vgg1, seed 0: epoch 3 of 3" in page


def test_images_per_second_are_all_images_by_all_seconds(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], seeds=1, epochs=50)
    path = tmp_path / "row1" / "seed0" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[0] |= {"images_per_second": 100.0, "seconds": 500.0}  # as beside other work
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    main(["tables", str(tmp_path)])
    # 50 epochs of 50,000 images, in 49 × 50 + 500 seconds.
    assert "| 49m10s | 5s | 847 |" in (tmp_path / "table.md").read_text()


def test_a_marked_baseline_keeps_its_mark(tmp_path):
    write_fake_runs(tmp_path, rows=["row9"], epochs=3)
    write_fake_runs(tmp_path, rows=["row8"], epochs=200)
    main(["tables", str(tmp_path), "--against=row9"])
    page = (tmp_path / "table.md").read_text()
    assert "## Beside row9†\n" in page
    assert "| Here | row9† | Difference |" in page
    assert "| row8 | " in page


def test_mixed_and_smoothed_targets_are_among_the_settings(tmp_path):
    fields = {"augment__mixup": 0.2, "augment__cutmix": 1.0, "train__label_smoothing": 0.1}
    write_fake_runs(tmp_path, rows=["row1"], epochs=50, optim__l2=5e-4, **fields)
    main(["tables", str(tmp_path)])
    page = (tmp_path / "table.md").read_text()
    assert "| L2, 5e-4; label smoothing, 0.1 | " in page
    assert "| 50 | weak, mixup 0.2, CutMix 1 |" in page


def test_special_characters_in_names(tmp_path):
    names = ["x^2", "y~z", "p{q}", "c$d", "a|b", "<img src=x>"]
    write_fake_runs(tmp_path, rows=names, epochs=50)
    main(["tables", str(tmp_path)])
    tex, page = ((tmp_path / name).read_text() for name in ("table.tex", "table.md"))
    for name in (r"x\^{}2", r"y\textasciitilde{}z", r"p\{q\}", r"c\$d"):
        assert f"    {name}$^\\dagger$ & " in tex
    assert r"| a\|b† |" in page
    assert "| &lt;img src=x>† |" in page


def test_latex_is_balanced_and_escaped(swept_copy):
    main(["tables", str(swept_copy)])
    text = (swept_copy / "table.tex").read_text()
    assert text.count(r"\begin{") == text.count(r"\end{")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("% "))
    assert "_" not in text.replace(r"\_", "")
    assert "%" not in text.replace(r"\%", "").replace("{%\n", "")
    header = next(line for line in text.splitlines() if "Train. loss" in line)
    body = next(line for line in text.splitlines() if "VGG-A" in line and "&" in line)
    assert header.count("&") == body.count("&")


def test_negative_numbers_have_a_minus_sign_in_latex(tmp_path):
    write_fake_runs(tmp_path, {"row1": {"val_accuracy": -0.02}}, rows=["row1"], epochs=50)
    main(["tables", str(tmp_path)])
    text = (tmp_path / "table.tex").read_text()
    assert "& $-$2.00" in text
    assert "& -" not in text
    assert "& 1e-3 &" in text


def test_the_tables_of_the_kept_results_are_those_of_their_runs(monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[3])
    found = {sweep.folder.name: sweep for sweep in read.sweeps("experiments/results")}
    parts = {name for name, sweep in found.items() if sweep.folder.parent.name == "ablation"}
    assert len(parts) == 8
    whole = {"recipe", "recipe_h200", "table4_constant", "table4_full", "table4_h200"}
    assert found.keys() == {*whole, *parts, "table4", "table4_longer"}
    for name in found.keys() - parts:  # of the parts, the documents have a table
        sweep = found[name]
        assert tables.markdown(sweep) == (sweep.folder / "table.md").read_text()
        assert tables.comma_separated(sweep) == (sweep.folder / "table.csv").read_text()
    for name in ("table4", "table4_longer", "table4_full", "table4_h200"):
        sweep = found[name]
        kept = (sweep.folder / "claims.md").read_text()
        assert claims.markdown(claims.judge(sweep), sweep) == kept
    for name, sweep in found.items():
        assert {bool(run.shortened) for run in sweep.runs} == {name not in whole}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-3, "1e-3"), (1.25e-3, "1.25e-3"), (0.1, "0.1"), (1.5, "1.5"), (11.5, "1.15e1")],
)
def test_numbers_as_the_original_report_writes_them(value, text):
    assert names.power_of_ten(value) == text


# --- what the original report does not have ---------------------------------------------------


def test_the_tables_of_a_sweep_are_not_replaced_by_those_of_a_part(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg2", "vgg6"], seeds=1)
    assert main(["tables", str(tmp_path)]) == 0
    before = (tmp_path / "table.csv").read_text()
    for command in ("tables", "claims", "figures"):
        for part in (tmp_path / "vgg6", tmp_path / "vgg6" / "seed0"):
            with pytest.raises(UserError, match=f"is a part of {tmp_path}, .*Give {tmp_path}"):
                main([command, str(part)])
    (tmp_path / "vgg6").rename(elsewhere := tmp_path.with_name("on_another_disk"))
    (tmp_path / "vgg6").symlink_to(elsewhere)
    with pytest.raises(UserError, match="is a part of"):
        main(["tables", str(tmp_path / "vgg6")])
    assert (tmp_path / "table.csv").read_text() == before
    shutil.rmtree(tmp_path / "vgg2")
    assert main(["tables", str(tmp_path / "vgg6")]) == 0  # it is the whole now


def test_every_table_names_the_model_that_ran(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg2"], epochs=50, model__name="resnet18")
    (sweep,) = read.sweeps(tmp_path)
    for grid in tables.tables(sweep):
        models = {line[grid.header.index("Model")] for line in grid.lines}
        assert models == {"ResNet-18"}, grid.title


def test_new_models_optimizers_and_activations_show_their_own_names(tmp_path):
    fields = {"model__name": "mixer", "optim__name": "lion", "model__activation": "tanh"}
    write_fake_runs(tmp_path, rows=["row1"], epochs=50, **fields)
    assert main(["tables", str(tmp_path)]) == 0
    page = (tmp_path / "table.md").read_text()
    assert "| mixer | 1.00M | tanh | 0.2 | None | lion |" in page


def test_dropout_is_shown_only_of_networks_that_have_it(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], epochs=50, model__name="airbench94")
    write_fake_runs(tmp_path, rows=["row2"], epochs=50, model__name="of_another_version")
    assert main(["tables", str(tmp_path)]) == 0
    page = (tmp_path / "table.md").read_text()
    assert "| airbench94 | 1.00M | ReLU | – | None |" in page
    assert "| of_another_version | 1.00M | GELU | 0.2 | None |" in page
    lines = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert [line["dropout"] for line in lines] == ["", "0.2"]


def test_other_configs_are_shown_without_original_numbers(tmp_path):
    write_fake_runs(tmp_path, rows=["row1", "wide"], epochs=50)
    assert main(["tables", str(tmp_path)]) == 0
    page = (tmp_path / "table.md").read_text()
    assert "## Other configs: results at the best epoch" in page
    shown = "92.64% ± 0.10 | 92.39 … 92.89 | 92.44% ± 0.10"
    assert f"| wide† | ResNet-18 | 3 | Val. acc. | {shown} | – | – |" in page
    assert "| wide† | ResNet-18 | 1,000,000 | – | 41m40s |" in page
    one, other = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    assert other["row"] == "wide"
    assert other["val_accuracy_best"] == one["val_accuracy_best"]
    empty = {name for name, value in other.items() if not value} - {n for n in one if not one[n]}
    both = ("original", "difference")
    assert empty == {f"{m.name}_{what}" for m in tables.METRICS for what in both}
    assert other["size"] == "1.00M"
    assert "wide" in (tmp_path / "table.tex").read_text()
