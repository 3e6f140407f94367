"""Pictures to probabilities: every mode of a picture, what is refused, and the command's output."""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxcifar import cli, data, predict, restore
from jaxcifar.errors import UserError
from jaxcifar.task import create_model
from tests.tiny import first_images, mesh

ROOT = pathlib.Path(__file__).parent.parent
RNG = np.random.default_rng(0)


@pytest.mark.slow
def test_probabilities_are_those_of_the_network(finished):
    workdir, _ = finished
    images = first_images(5, "test").images
    config, _, variables = restore.load_variables(workdir, "last", mesh=mesh(1))
    about = data.without_images("synthetic")
    inputs = (images / 255.0 - about.mean) / about.std
    model = create_model(config, 10, "cpu")
    inputs = inputs.astype(np.float32)
    apply = jax.jit(lambda variables: model.apply(variables, inputs, train=False))
    logits = np.asarray(apply(jax.device_get(variables)))
    expected = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = predict.predict(workdir, images, checkpoint="last")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_the_last_batch_may_be_smaller(finished):
    """The run evaluates 96 images at a time."""
    images = first_images(100).images
    rows = predict.predict(finished[0], images)
    assert rows.shape == (100, 10)
    np.testing.assert_allclose(rows[96:], predict.predict(finished[0], images[96:]), atol=1e-6)
    assert predict.predict(finished[0], images[:0]).shape == (0, 10)


@pytest.mark.slow
def test_predictions_share_a_compiled_program(finished):
    images, compiled = first_images(4, "test").images, []

    def count(name, *_, **__):
        compiled.extend([name] * name.endswith("backend_compile_duration"))

    predict.predict(finished[0], images[:3])
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        both = [predict.predict(finished[0], images[:n]) for n in (3, 4)]
        shared = not compiled
        jax.jit(lambda: 0)()
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert shared
    assert compiled  # where there is something to compile
    np.testing.assert_array_equal(both[0], both[1][:3])


def test_images_of_another_shape_or_dtype_are_refused(finished):
    for bad in (np.zeros((1, 28, 28, 3), np.uint8), np.zeros((1, 32, 32, 3))):
        with pytest.raises(UserError, match="uint8"):
            predict.predict(finished[0], bad)


@pytest.mark.parametrize("ending", ["png", "webp", "bmp"])
def test_a_picture_of_the_size_is_read_as_it_is(tmp_path, ending):
    pixels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    how = {"lossless": True} if ending == "webp" else {}
    Image.fromarray(pixels).save(tmp_path / f"a.{ending}", **how)
    read, size = predict.read_picture(tmp_path / f"a.{ending}")
    np.testing.assert_array_equal(read, pixels)
    assert size == (32, 32)


def test_modes(tmp_path):
    path = tmp_path / "a.png"
    red = Image.new("RGB", (32, 32), (255, 0, 0))

    def corner(picture, **how):
        picture.save(path, **how)
        return predict.read_picture(path)[0][0, 0].tolist()

    assert corner(Image.new("L", (32, 32), 77)) == [77, 77, 77]
    assert corner(Image.fromarray(np.full((32, 32), 77 * 256, np.uint16))) == [77, 77, 77]
    assert corner(Image.new("1", (32, 32), 1)) == [255, 255, 255]
    assert corner(red.quantize(4)) == [255, 0, 0]
    assert corner(Image.new("RGBA", (32, 32), (255, 0, 0, 0))) == [255, 255, 255]
    assert corner(Image.new("RGBA", (32, 32), (255, 0, 0, 255))) == [255, 0, 0]
    assert corner(Image.new("LA", (32, 32), (0, 0))) == [255, 255, 255]
    assert corner(red.quantize(4), transparency=0) == [255, 255, 255]
    grey = Image.fromarray(np.full((32, 32), 7 * 256, np.uint16))
    assert corner(grey, transparency=7 * 256) == [255, 255, 255]
    assert corner(grey, transparency=8 * 256) == [7, 7, 7]


def test_the_first_of_several_pictures_is_used(tmp_path, capsys):
    frames = [Image.new("RGB", (32, 32), color) for color in ("black", "white")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert predict.read_picture(tmp_path / "a.gif")[0].max() == 0
    assert "a.gif has 2 frames; the first is used" in capsys.readouterr().err


def test_a_picture_is_turned_upright(tmp_path):
    pixels = RNG.integers(0, 256, (32, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be seen upright, turn it clockwise by 90 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    read, _ = predict.read_picture(tmp_path / "a.png")
    np.testing.assert_array_equal(read, np.rot90(pixels, k=-1))
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
        with Image.open(tmp_path / "a.png") as picture:
            upright = np.asarray(ImageOps.exif_transpose(picture))
        np.testing.assert_array_equal(predict.read_picture(tmp_path / "a.png")[0], upright)


def test_a_picture_is_turned_upright_whatever_else_its_camera_wrote(tmp_path):
    """A resolution of −1/1, unsigned by the standard, which Pillow reads and cannot write."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x011A, 10, 1, 38)
    tiff = b"II*\x00\x08\x00\x00\x00\x02\x00" + entries + b"\x00" * 4 + struct.pack("<ii", -1, 1)
    path = tmp_path / "a.jpg"
    Image.fromarray(pixels).save(path, exif=b"Exif\x00\x00" + tiff)
    read, _ = predict.read_picture(path)
    assert read[:, 16:].min() > 200
    assert read[:, :16].max() < 50


@pytest.mark.filterwarnings("ignore")  # Pillow's, of some kinds of damage
def test_whatever_is_damaged_in_a_picture_is_refused_by_name(tmp_path):
    path, refused = tmp_path / "a.png", []
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    content = path.read_bytes()
    for place in (i for i in range(len(content)) if content[i]):
        for value in (1, 2, 5):
            path.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            try:
                predict.read_picture(path)
            except UserError as error:
                refused.append(str(error))
    assert len(refused) > 20
    assert all("a.png" in message for message in refused)


def test_what_is_no_picture_is_refused_by_name(tmp_path, monkeypatch):
    whole = tmp_path / "whole.png"
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8)).save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:4000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("cut.png", "text.png", "empty.png", "absent.png", "program.png"):
        with pytest.raises(UserError, match=name):
            predict.read_picture(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(UserError, match=r"whole\.png has more than 3,000 pixels"):
        predict.read_picture(whole)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="none contains no images"):
        predict.pictures([tmp_path / "none"])


def test_of_a_folder_only_what_can_be_a_picture_is_taken(tmp_path):
    for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):  # the third is macOS's
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert predict.pictures([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]
    # What is named is read, or refused when it is read.
    assert predict.pictures([tmp_path / "._a.jpg"]) == [tmp_path / "._a.jpg"]


@pytest.mark.slow
def test_the_names_are_those_of_the_checkpoint(finished, tmp_path, capsys):
    """As the network is: config.json may have been changed."""
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    content["config"]["data"]["name"] = "digits"
    path.write_text(json.dumps(content))
    Image.fromarray(first_images(1, "test").images[0]).save(tmp_path / "a.png")
    assert cli.main(["predict", str(tmp_path / "run"), str(tmp_path / "a.png"), "--json"]) == 0
    (seen,) = json.loads(capsys.readouterr().out)
    assert set(seen["classes"]) <= set(data.without_images("synthetic").class_names)


@pytest.mark.slow
def test_the_command(finished, tmp_path, capsys):
    workdir, folder = finished[0], tmp_path / "some"
    folder.mkdir()
    images = first_images(2, "test").images
    Image.fromarray(images[0]).save(folder / "a.png")
    Image.fromarray(images[1]).resize((300, 100)).save(folder / "b.JPG", "JPEG")
    for name, side in (("c.png", 200), ("d.png", 128), ("e.png", 15)):
        Image.fromarray(images[1]).resize((side, side)).save(folder / name)
    (folder / "notes.txt").write_text("left out")
    assert cli.main(["predict", str(workdir), str(folder), "--json", "--top=10"]) == 0
    out, err = capsys.readouterr()
    seen = json.loads(out)
    assert [pathlib.Path(entry["file"]).name[0] for entry in seen] == list("abcde")
    names = data.without_images("synthetic").class_names
    row = [seen[0]["classes"][name] for name in names]
    np.testing.assert_allclose(row, predict.predict(workdir, images[:1])[0], atol=1e-6)
    assert list(seen[0]["classes"].values()) == sorted(row, reverse=True)
    assert [re.sub(r".*/", "", line) for line in err.splitlines()] == [
        "b.JPG is 300×100: squeezed into a square. A square crop may do better.",
        "c.png is 200×200, resized to 32×32, the size used in training.",
        "e.png is 15×15, resized to 32×32, the size used in training.",
    ]
    assert cli.main(["predict", str(workdir), str(folder / "a.png")]) == 0
    first, *bars = capsys.readouterr().out.splitlines()
    assert first == str(folder / "a.png")
    ranked = sorted(zip(row, names, strict=True), reverse=True)[:3]
    for line, (p, name) in zip(bars, ranked, strict=True):
        found, percent, bar = re.fullmatch(r"  (pattern \d) +(\d+\.\d)%(?: (█+))?", line).groups()
        assert (found, float(percent)) == (name, pytest.approx(100 * p, abs=0.06))
        assert len(bar or "") == pytest.approx(24 * p, abs=0.51)  # which is 24 for certainty
    with pytest.MonkeyPatch.context() as patch:  # as where it was closed
        patch.setattr(sys, "stdout", None)
        assert cli.main(["predict", str(workdir), str(folder / "a.png")]) == 0
    assert cli.main(["predict", str(tmp_path), str(folder / "a.png")]) == 2
    assert "contains no run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_platform_that_is_not_there_is_one_message(finished, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    done = subprocess.run(
        [sys.executable, "-m", "jaxcifar", "predict", finished[0], tmp_path / "black.png"],
        **{"capture_output": True, "text": True, "cwd": ROOT},
        env=os.environ | {"JAX_PLATFORMS": "cdua"},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("jaxcifar: JAX_PLATFORMS is 'cdua'")
