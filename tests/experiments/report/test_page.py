"""The page of results, opened in a real browser."""

import base64
import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from experiments.landscape import gradient
from experiments.report import claims
from experiments.report import page as pages
from experiments.report.__main__ import main
from experiments.runs.table import Table
from jaxcifar.config import base_config, flatten
from jaxcifar.errors import UserError
from jaxcifar.options import load
from jaxcifar.run import plots
from tests.sweeps import write_fake_runs

# The page in a frame as wide as a phone or a desk, and what a script beside it measures.
OUTER = """<!doctype html><body style="margin:0"><iframe width=WIDTH height=900 style="border:0"
srcdoc="PAGE"></iframe><script>window.addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, view = page.defaultView;
  const style = view.getComputedStyle(page.body);
  const found = {
    pictures: [...page.images].map(image => image.naturalWidth),
    tables: page.querySelectorAll("table").length,
    width: view.innerWidth,
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    back: style.backgroundColor, color: style.color,
    fetched: view.performance.getEntriesByType("resource").map(entry => entry.name),
    anchors: [...page.querySelectorAll("a")].filter(
      a => !page.querySelector(a.getAttribute("href"))).length,
  };
  const out = document.createElement("pre");
  out.id = "probe"; out.textContent = JSON.stringify(found); document.body.append(out);
});</script>"""


NO_PICTURE = b"\x89PNG\r\n\x1a\n and no more"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_fake_runs(folder / "table3", rows=["row1", "row3", "row9"], epochs=3)
    write_fake_runs(folder / "table4", rows=[f"vgg{i}" for i in range(1, 9)], epochs=50)
    (folder / "table4" / "vgg8" / "seed2" / "result.json").unlink()
    with pytest.MonkeyPatch.context() as patch:  # the page shows no PDF
        patch.setattr(plots, "png_and_pdf", lambda folder, stem: [folder / f"{stem}.png"])
        for sweep in ("table3", "table4"):
            assert main(["figures", str(folder / sweep)]) == 0
    main([str(folder)])
    return folder / "report.html"


def browse(page, tmp_path, width, *flags):
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    if browser is None:
        pytest.skip("no browser: install chromium")
    copy = tmp_path / "probed.html"
    content = html.escape(page.read_text(), quote=True)
    copy.write_text(OUTER.replace("WIDTH", str(width)).replace("PAGE", content))
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"),
        *("--virtual-time-budget=10000", *flags, "--dump-dom", copy.as_uri()),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r'<pre id="probe">(.*?)</pre>', dom)
    assert match, dom[-500:]
    return json.loads(html.unescape(match[1]))


@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1300])
def test_page_in_a_browser(page, tmp_path, width):
    found = browse(page, tmp_path, width)
    assert found["width"] == width
    assert found["overflow"] == 0
    pictures = list(page.parent.glob("*/figures/*.png"))
    assert len(found["pictures"]) == len(pictures) > 10
    assert all(size > 300 for size in found["pictures"])
    assert found["tables"] >= 6
    assert not [name for name in found["fetched"] if not name.startswith("data:")]
    assert found["anchors"] == 0


@pytest.mark.slow
def test_page_is_light_and_dark(page, tmp_path):
    light = browse(page, tmp_path, 1300)
    dark = browse(
        page, tmp_path, 1300, "--force-dark-mode", "--blink-settings=preferredColorScheme=0"
    )
    assert light["back"] == "rgb(255, 255, 255)"
    assert dark["back"] == "rgb(15, 19, 24)"
    assert dark["color"] != light["color"]


def test_page_needs_no_network_and_says_what_is_missing(page):
    text = page.read_text()
    assert not re.search(r'(src|href)="?(?!data:|#)\w', text)
    assert "SHORTENED: 3 of 50 epochs" in text
    assert "vgg8, seed 2: unfinished, epoch 50 of 50" in text
    assert "Rows without a finished run: row2, row4, row5" in text
    assert "jaxcifar landscape smoothness" in text
    assert "fig2, confusion, classes, mistakes: no finished run has its checkpoints/" in text
    assert "92.64% ± 0.10" in text
    assert text.count("NOT verified") == 0
    assert '<td class="supported">supported</td>' in text  # rows vgg1 to vgg8 in full
    assert "commit: abc" in text


def test_only_what_a_sweep_can_have_is_missing(tmp_path):
    write_fake_runs(tmp_path / "three", rows=["row6", "row8"], seeds=1, epochs=200)
    write_fake_runs(tmp_path / "four", rows=["vgg1", "vgg2"], seeds=1, epochs=50)
    write_fake_runs(tmp_path / "all", rows=[f"vgg{i}" for i in range(1, 9)], seeds=1, epochs=50)
    (tmp_path / "all" / "vgg3" / "seed0" / "steps.jsonl").unlink()
    (tmp_path / "all" / "figures").mkdir()
    (tmp_path / "all" / "figures" / "fig3.png").write_bytes(NO_PICTURE)
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    for folder, figure in (("four", "fig3"), ("three", "accuracy"), ("three", "augment")):
        assert f"jaxcifar report figures {tmp_path / folder} --only={figure}" in text
    never = (
        ("three", "fig3"),
        ("three", "fig4"),
        ("four", "fig4"),
        ("four", "fig5"),
        ("all", "fig5"),
    )
    for folder, figure in never:
        assert f"jaxcifar report figures {tmp_path / folder} --only={figure}" not in text
    assert "Training histories of row6, row8. " in text
    main(["figures", str(tmp_path / "three"), "--only=history"])
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert "Training histories of row6" not in text
    assert "Training histories of vgg1, vgg2. " in text


def test_a_conclusion_that_another_sweep_tests_is_not_missing(tmp_path):
    write_fake_runs(tmp_path / "three", rows=["row6", "row8"], seeds=1, epochs=200)
    write_fake_runs(tmp_path / "four", rows=[f"vgg{i}" for i in range(1, 9)], seeds=1, epochs=50)
    main([str(tmp_path)])
    text = html.unescape((tmp_path / "report.html").read_text())
    compared = ("Extensive augmentation", "Batch normalization", "BatchNorm makes")
    for claim in claims.CLAIMS:
        count = 0 if claim.startswith(compared) else 1
        assert text.count(f"Runs to test: {claim}") == count, claim


def test_pictures_of_other_runs_than_the_tables_say_so(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg1", "vgg2"], seeds=1, epochs=50)
    main(["figures", str(tmp_path), "--only=history,fig3"])
    main([str(tmp_path)])
    other = "Drawn from other runs than those in the tables. "
    assert other not in (tmp_path / "report.html").read_text()
    write_fake_runs(tmp_path / "more", rows=["vgg1"], seeds=2, epochs=50)
    (tmp_path / "more" / "vgg1" / "seed1").rename(tmp_path / "vgg1" / "seed1")
    shutil.rmtree(tmp_path / "more")
    main([str(tmp_path)])
    captions = (tmp_path / "report.html").read_text().split("<figcaption>")[1:]
    stale = [caption.split("</figcaption>")[0] for caption in captions if other in caption]
    assert [caption.split(other)[0] for caption in stale] == [
        "The original&#x27;s Fig. 3: VGG-A without batch normalization. ",
        "Training history of vgg1. ",
    ]
    assert f"jaxcifar report figures {tmp_path} --only=fig3" in stale[0]
    assert f"jaxcifar report figures {tmp_path} --only=history" in stale[1]


def test_a_picture_of_a_run_that_was_trained_again(tmp_path):
    write_fake_runs(tmp_path, rows=["vgg1", "vgg5"], seeds=1, epochs=50)
    main(["figures", str(tmp_path), "--only=history,fig4"])
    for path in tmp_path.glob("vgg1/seed0/config.json"):
        path.write_text(path.read_text().replace("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"))
    shutil.rmtree(tmp_path / "vgg5")
    main([str(tmp_path)])
    captions = (tmp_path / "report.html").read_text().split("<figcaption>")[1:]
    captions = [caption.split("</figcaption>")[0] for caption in captions]
    other = "Drawn from other runs than those in the tables."
    (again,) = (caption for caption in captions if "Training history of vgg1." in caption)
    assert f"{other} To redraw it: " in again
    (gone,) = (caption for caption in captions if "Fig. 4" in caption)
    assert gone.endswith(f"{other} If those are gone, delete {tmp_path / 'figures' / 'fig4.png'}.")


def test_a_picture_of_a_network_may_be_of_any_run_in_the_tables(swept_copy, one_device):
    run = swept_copy / "vgg2" / "seed1"
    assert main(["figures", str(swept_copy), "--only=augment", f"--run={run}"]) == 0
    other = "Drawn from other runs than those in the tables."
    main([str(swept_copy)])
    assert other not in (swept_copy / "report.html").read_text()
    shutil.rmtree(run)
    main([str(swept_copy)])
    assert f"What each augmentation does. {other}" in (swept_copy / "report.html").read_text()


def test_seeds_needed_are_explained(tmp_path):
    write_fake_runs(tmp_path, rows=["row1", "row3"], changes={"row1": {"val_accuracy": 0.0033}})
    main([str(tmp_path)])
    assert "Seeds needed: so many of each row" in (tmp_path / "report.html").read_text()


RECORD = {"step": 0, "loss": 2.0, "gradient_norm": 1.0, "losses": [2.0, 3.0]}
RECORD |= {"gradient_changes": [1.0, 2.0]}


def write_measurements(folder, *records):
    """Writes measurements of row vgg2 along the gradient."""
    folder.mkdir(parents=True)
    settings = {"steps": 2, "every": 1, "step_sizes": [0.1, 0.2]}
    facts = {"sha256": "0123", "images": 100, "official": True}
    gradient.write_settings(folder / "settings.json", load("vgg2"), settings, facts)
    lines = [json.dumps(record) + "\n" for record in records]
    (folder / "measurements.jsonl").write_text("".join(lines))


def write_slice(path):
    """Writes as much of a slice as the page reads."""
    path.parent.mkdir(parents=True)
    settings = {"model": "vgg_a", "checkpoint": "best", "step": 3, "images": 96, "seed": 0}
    settings |= {"batch_norm": "kept", "sha256": "0123", "official": True}
    machine = {"commit": "abc", "devices": 1, "device": "cpu"}
    np.savez(path, settings=json.dumps(settings), environment=json.dumps(machine))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder with a run, measurements and a slice; not to be changed."""
    folder = tmp_path_factory.mktemp("everything")
    write_fake_runs(folder, rows=["vgg2"], seeds=1)
    write_measurements(folder / "landscape" / "smoothness" / "vgg2_seed0", RECORD)
    write_slice(folder / "landscape" / "slices" / "vgg2_seed0_1d_kept.npz")
    for name in ("smoothness/smoothness.png", "slices/vgg2_seed0_1d_kept.png"):
        (folder / "landscape" / name).write_bytes(NO_PICTURE)
    return folder


def encrypted(archive):
    """Sets the bit that says so of the first file of a zip archive."""
    place = archive.index(b"PK\x01\x02") + 8
    return archive[:place] + bytes([archive[place] | 1]) + archive[place + 1 :]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("slices/vgg2_seed0_1d_kept.npz", lambda _: b""),
        ("slices/vgg2_seed0_1d_kept.npz", lambda _: b"PK\x03\x04 and no more"),
        ("slices/vgg2_seed0_1d_kept.npz", encrypted),
        ("smoothness/vgg2_seed0/settings.json", lambda _: b"{}"),
        ("smoothness/vgg2_seed0/settings.json", lambda _: b"{"),
        ("smoothness/vgg2_seed0/settings.json", lambda raw: raw.replace(b"p_sizes", b"p_sizez")),
        ("smoothness/vgg2_seed0/measurements.jsonl", lambda _: b"{\n"),
        ("smoothness/vgg2_seed0/measurements.jsonl", lambda raw: raw.replace(b"losses", b"lossds")),
    ],
)
def test_a_damaged_landscape_is_named_and_the_rest_is_there(everything, tmp_path, name, change):
    folder = shutil.copytree(everything, tmp_path / "everything")
    path = folder / "landscape" / name
    path.write_bytes(change(path.read_bytes()))
    assert main([str(folder)]) == 0
    text = html.unescape((folder / "report.html").read_text())
    problem, command = re.findall("<pre>([^<]*)</pre>", text)
    assert problem.startswith(f"{path} ")
    assert command.startswith("jaxcifar sweep ")
    assert ("Around trained" in text, "Along the gradient, while" in text) == (
        "slices" not in name,
        "slices" in name,
    )


def test_what_is_no_picture_is_not_on_the_page(everything, tmp_path):
    """As where a folder of somebody else's has a link to a file of yours, and you publish it."""
    folder = shutil.copytree(everything, tmp_path / "everything")
    (tmp_path / "key").write_text("PRIVATE KEY")
    (folder / "figures").mkdir()
    names = ("figures/accuracy.png", "landscape/slices/vgg2_seed0_1d_kept.png")
    for name in names:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "key")
    assert main([str(folder)]) == 0
    text = (folder / "report.html").read_text()
    assert base64.b64encode(b"PRIVATE KEY").decode() not in text
    assert all(f"{folder / name} is not a PNG picture, and is left out" in text for name in names)


def test_landscapes_in_a_linked_folder_are_on_the_page(everything, tmp_path):
    folder = shutil.copytree(everything, tmp_path / "everything")
    for name, place in (("slices", folder), ("smoothness", tmp_path)):
        (folder / "landscape" / name).rename(place / f"the {name}")
        (folder / "landscape" / name).symlink_to(place / f"the {name}")
    assert main([f"--out={tmp_path / 'page.html'}", str(folder)]) == 0
    text = (tmp_path / "page.html").read_text()
    assert "Around trained networks" in text
    assert "Along the gradient, while training" in text


@pytest.mark.parametrize("field", flatten(base_config()))
def test_runs_and_landscapes_from_before_a_field_are_on_the_page(everything, tmp_path, field):
    folder = shutil.copytree(everything, tmp_path / "everything")
    group, _, name = field.rpartition(".")
    paths = folder / "vgg2/seed0/config.json", folder / "landscape/smoothness/vgg2_seed0"
    for path in (paths[0], paths[1] / "settings.json"):
        content = json.loads(path.read_text())
        del (content["config"][group] if group else content["config"])[name]
        path.write_text(json.dumps(content))
    if field == "train.epochs":  # which no version was without: the run is not of two epochs then
        (paths[0].parent / "result.json").unlink()
    text = pages.page(folder)
    assert "Along the gradient, while training" in text
    assert "After Li et al. 2018: vgg2_seed0_1d_kept. Checkpoint best at step 3" in text
    assert "VGG-A" in text or field in ("model.name", "train.epochs")
    (found,) = gradient.measured(paths[1].parent)  # which is all that the picture is drawn of
    assert found.config.keys() == flatten(base_config()).keys()


def test_a_measurement_that_overflowed_is_not_passed_over(tmp_path):
    folder = tmp_path / "landscape" / "smoothness" / "vgg2_seed0"
    exploded = {"step": 1, "losses": [2.0, math.nan], "gradient_changes": [1.0, math.nan]}
    write_measurements(folder, RECORD, RECORD | exploded)
    gradient.draw(folder.parent)
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert "<td>2, every 1 steps</td>" + 4 * "<td>nan</td>" in text


def test_verdicts_of_shortened_runs_keep_their_colour():
    shown = pages.table(Table("", ["Verdict"], [["contradicted †"], ["undecided (one seed)"]]))
    assert '<td class="contradicted">contradicted †</td>' in shown
    assert "<td>undecided (one seed)</td>" in shown


def test_nothing_to_report(tmp_path):
    with pytest.raises(UserError, match="contains no runs"):
        main([str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_other_configs_are_on_the_page(tmp_path):
    write_fake_runs(tmp_path, rows=["wide"], epochs=50)
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text()
    assert "0 finished runs of 0 of the original report’s 20 rows, and 3 of other configs" in text
    assert "Other configs: results at the best epoch" in text
    assert "The original report’s conclusions, tested" not in text
    assert "# wide: nothing says which config it was trained by" in text


def test_a_page_of_one_run(tmp_path):
    write_fake_runs(tmp_path, rows=["row1"], seeds=1)
    main(["page", str(tmp_path / "row1"), f"--out={tmp_path / 'page.html'}"])
    assert "Table 3: what it took" in (tmp_path / "page.html").read_text()
