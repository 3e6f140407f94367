"""The page of results, opened in a real browser."""

import html
import json
import re
import shutil
import subprocess

import pytest

from experiments.report import page as pages
from experiments.report.__main__ import main
from experiments.runs.table import Table
from jaxcifar.errors import UserError
from tests.conftest import write_fake_runs

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


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_fake_runs(folder / "table3", rows=["row1", "row3", "row9"], epochs=3)
    write_fake_runs(folder / "table4", rows=[f"vgg{i}" for i in range(1, 9)], epochs=50)
    (folder / "table4" / "vgg8" / "seed2" / "result.json").unlink()
    for sweep in ("table3", "table4"):
        main(["figures", str(folder / sweep)])
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
    assert "--only=fig2" in text  # no checkpoint: no picture
    assert "92.64% ± 0.10" in text
    assert text.count("NOT verified") == 0
    assert '<td class="supported">supported</td>' in text  # rows vgg1 to vgg8 in full
    assert "commit: abc" in text


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
