"""Programs compiled for TPUs without any: what must not be in them; what is reported."""

import functools
import importlib.util
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import compile_for
from experiments.compile_for import collectives, roofline, size_of
from experiments.runs.configs import Source
from experiments.scaling import CHIPS
from jaxcifar import data, programs, sharding, task
from jaxcifar.errors import UserError
from jaxcifar.options import load
from jaxcifar.signals import exit_code
from tests.tiny import mesh

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu, which compiles for TPUs, is not installed",
)


# --- the compiled text of a narrow network ----------------------------------------------------


@functools.cache
def compiled_text():
    """Returns the training program of a narrow VGG-A with BatchNorm, for eight chips."""
    mesh, _ = compile_for.mesh_of("v5e:2x4")
    config = load("vgg6")
    config.model.width = 0.125
    made = task.build(config, data.without_images("cifar10", 50_000), mesh)
    assert made.steps_per_call > 1
    # What is compiled for a machine that is not there cannot be read from the cache.
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        return programs.train(made, made.steps_per_call).as_text()
    finally:
        jax.config.update("jax_enable_compilation_cache", True)


@needs_libtpu
def test_devices_exchange_nothing_but_all_reduces():
    found = collectives(compiled_text())
    assert set(found) == {"all-reduce"}
    # Eight BatchNorms make one forward and one backward; then there are the gradients.
    assert len(found["all-reduce"]) <= 2 * 8 + 4


@needs_libtpu
def test_all_collectives_are_in_the_one_loop():
    """Nothing is exchanged but by the steps, and no other loop is one over a batch's images."""
    before, entry = compiled_text().split("\nENTRY ")
    assert (entry.count(" while("), before.count(" while(")) == (1, 0)
    outside = "\n".join(line for line in entry.splitlines() if " while(" not in line)
    assert not collectives(outside)
    for computation in before.split("\n\n"):
        if collectives(computation):
            name = re.search(r"%[\w.\-]+", computation)[0]
            assert not re.search(rf"{re.escape(name)}(?![\w.\-])", outside)


@needs_libtpu
def test_nothing_goes_through_the_host_and_nothing_is_there_for_cpus():
    text = compiled_text()
    for opcode in ("infeed", "outfeed", "send", "recv", "opt-barrier", "optimization-barrier"):
        assert f" {opcode}(" not in text
    assert "callback" not in text
    assert "S(5)" not in text  # the host's memory


@needs_libtpu
def test_the_image_set_is_not_laid_out_anew():
    copies = [
        line
        for line in compiled_text().splitlines()
        if " copy(" in line and "u8[50000" in line.split(" copy(")[0]
    ]
    assert copies == []


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5e:3x3", "v5e:2x4"), ("v5e", "v5e:2x4"), ("v5e:axb", "v5e:2x4")],
)
def test_unknown_shape_of_a_slice(topology, message, capsys):
    arguments = [f"--topology={topology}", "--rows=1"]
    assert exit_code(lambda: compile_for.main(arguments)) == 2
    assert message in capsys.readouterr().err


@needs_libtpu
def test_batch_that_the_chips_cannot_share(tmp_path, capsys):
    odd = tmp_path / "odd.py"
    odd.write_text(
        "from jaxcifar.config import base_config\n"
        "def get_config():\n"
        "    config = base_config()\n"
        "    config.train.batch_size = 100\n"
        "    return config\n"
    )
    arguments = ["--topology=v5e:2x4", f"--configs={odd}"]
    assert exit_code(lambda: compile_for.main(arguments)) == 2
    assert "8 devices cannot share equally" in capsys.readouterr().err


# --- without libtpu ---------------------------------------------------------------------------


def test_a_config_is_compiled_for_the_images_that_it_has(monkeypatch):
    sizes = []
    monkeypatch.setattr(programs, "train", lambda task, steps: sizes.append(task.n_train))
    monkeypatch.setattr(programs, "evaluate_batch", lambda inference, n: sizes.append(n))
    monkeypatch.setattr(compile_for, "facts", lambda *_: {})
    for options in ({"protocol": "test"}, {"protocol": "holdout"}, {"name": "digits"}):
        config = load("vgg6")
        config.data.update(options)
        source, one = Source("vgg6", config), mesh(1)
        compile_for.compiled_for(source, one, CHIPS["v5e"])
    config.train.limit_train_images = 1000
    compile_for.compiled_for(source, one, CHIPS["v5e"])
    digits = data.load_splits("digits")
    counts = len(digits.train), len(digits.validation)
    assert sizes == [50_000, 10_000, 45_000, 5_000, *counts, 1000, counts[1]]


def test_says_how_to_install_libtpu(monkeypatch):
    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(compile_for.topologies, "get_topology_desc", missing)
    with pytest.raises(UserError, match="pip install"):
        compile_for.mesh_of("v5e:2x4")


TEXT = """\
HloModule jit_run, is_scheduled=true

%sum.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused (p: bf16[8]) -> bf16[8] {
  %p = bf16[8]{0:T(256)(128)(2,1)} parameter(0)
  ROOT %all-reduce.9 = bf16[8]{0:T(256)} all-reduce(%p), replica_groups={}, to_apply=%sum.1
}

%body.2 (arg: (s32[], f32[8,3])) -> (s32[], f32[8,3]) {
  %arg = (s32[]{:T(128)}, f32[8,3]{1,0:T(8,128)S(1)}) parameter(0)
  %r.1 = (f32[8]{0:T(128)S(1)}, /*index=1*/f32[3,3]{1,0:T(8,128)}) all-reduce(%x), to_apply=%sum.1
  %fusion.1 = bf16[8]{0} fusion(%z), kind=kCustom, calls=%fused
  ROOT %tuple = (s32[], f32[8,3]) tuple(%i, %w)
}

%condition.3 (arg: (s32[], f32[8,3])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main.4 (p0: f32[8,3]) -> (s32[], f32[8,3]) {
  %gathered = f32[64]{0} all-gather(%q), dimensions={0}
  ROOT %while.1 = (s32[], f32[8,3]) while(%tuple.5), condition=%condition.3, body=%body.2
}
"""


def test_reads_a_compiled_program():
    # What is in the loop counts once.
    assert collectives(TEXT) == {"all-gather": [256], "all-reduce": [2 * 8, 4 * (8 + 9)]}


def test_reads_a_program_without_a_loop():
    text = (
        "ENTRY %main (p: f32[2]) -> f32[16] {\n"
        "  %a = f32[2]{0} all-reduce-start(%p)\n"
        "  %b = f32[2]{0} all-reduce-done(%a)\n"
        "  %c = (f32[2]{0}, f32[16]{0}) all-gather-start(%b)\n"
        "  %d = f32[16]{0} all-gather-done(%c)\n"
        "}\n"
    )
    assert collectives(text) == {"all-reduce": [8], "all-gather": [64]}


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("f32[]{:T(128)}", 4),
        ("bf16[3,3,64,128]{3,2,1,0:T(8,128)(2,1)S(1)}", 2 * 9 * 64 * 128),
        ("(f32[8]{0}, bf16[3,3]{1,0}, pred[5], token[])", 32 + 18 + 5),
        ("u8[50000,3072]{1,0:T(8,128)(4,1)}", 50_000 * 3072),
        ("f8e4m3fn[10]", 10),
        ("s4[3]", 2),
    ],
)
def test_bytes_of_a_shape(shape, size):
    assert size_of(shape) == size


def test_roofline_is_what_each_part_needs():
    chip = CHIPS["v5e"]
    found = roofline(chip, 8, flops=197e9, traffic=819e6, reduced=0)
    assert found == pytest.approx({"arithmetic": 1e-3, "memory": 1e-3, "interconnect": 0})
    found = roofline(chip, 8, flops=0, traffic=0, reduced=4e7)
    assert found["interconnect"] == pytest.approx(7e-4)


# --- a program compiled for the CPU -----------------------------------------------------------


def program():
    """Three steps that move weights [32, 16] by what eight devices make of 64 images each."""
    shards = mesh(8)
    whole, split = sharding.replicated(shards), NamedSharding(shards, PartitionSpec(None, "batch"))

    def steps(weights, images):
        return jax.lax.scan(lambda w, x: (w - x.T @ jnp.tanh(x @ w), None), weights, images)[0]

    jitted = jax.jit(steps, in_shardings=(whole, split), out_shardings=whole, donate_argnums=0)
    shapes = (32, 16), (3, 64, 32)
    return jitted.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_facts_of_a_program_by_hand():
    chip = CHIPS["v5e"]
    found = compile_for.facts(program(), 1.5, chip, 8)
    assert found["collectives"] == {"all-reduce": {"count": 1, "bytes": 4 * 32 * 16}}
    assert found["argument_bytes"] == 4 * (32 * 16 + 3 * 8 * 32)  # of one device
    # The result takes the memory of the weights.
    assert found["memory_bytes"] == found["argument_bytes"] + found["temporary_bytes"]
    # Two products of a device's 8 images, once, and a little.
    assert found["flops"] == pytest.approx(2 * 2 * 8 * 32 * 16, rel=0.1)
    assert found["traffic_bytes"] > found["argument_bytes"]
    assert found["seconds"] == roofline(
        chip, 8, flops=found["flops"], traffic=found["traffic_bytes"], reduced=4 * 32 * 16
    )


TRAINING = {
    "compile_seconds": 61.0,
    "memory_bytes": 4 * 2**30,
    "temporary_bytes": 2**20,
    "flops": 5e9,
    "traffic_bytes": 6e9,
    "collectives": {
        "all-reduce": {"count": 7, "bytes": 8e6},
        "all-gather": {"count": 2, "bytes": 3.0},
    },
    "seconds": {"arithmetic": 1e-3, "memory": 4e-3, "interconnect": 2e-3},
}
RESULT = {
    "name": "row1",
    "model": "resnet18",
    "batch_size": 256,
    "eval_batch_size": 1024,
    "training": TRAINING,
    "evaluation": TRAINING | {"collectives": {}},
}


def test_a_config_that_cannot_be_compiled_costs_no_other(monkeypatch, tmp_path, capsys):
    """And what is known is there at once."""
    said = []

    def compiled_for(source, *_):
        said.append(capsys.readouterr())
        if source.name == "row2":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 16G hbm.\nDetails")
        return RESULT | {"name": source.name}

    monkeypatch.setattr(compile_for, "mesh_of", lambda _: (mesh(8), CHIPS["v5e"]))
    monkeypatch.setattr(compile_for, "compiled_for", compiled_for)
    out = tmp_path / "out.json"
    arguments = ["--topology=v5e:2x4", "--rows=1-3", f"--out={out}"]
    assert exit_code(lambda: compile_for.main(arguments)) == 1
    said.append(capsys.readouterr())
    before, *after = [part.out.splitlines() for part in said]
    assert before[0].startswith("A step on v5e:2x4")
    rows = [[line[:8] for line in lines] for lines in after]
    assert rows == [["| row1 |"] * 2, [], ["| row3 |"] * 2]
    assert "row2 cannot be compiled for v5e:2x4: JaxRuntimeError: RESOURCE" in said[2].err
    assert [result["name"] for result in json.loads(out.read_text())["results"]] == ["row1", "row3"]


def test_a_config_that_cannot_be_built_is_named_before_any_is_compiled(monkeypatch, capsys):
    """195 steps of row 1 can be divided by 39, the 48 of the recipe cannot."""
    monkeypatch.setattr(compile_for, "mesh_of", lambda _: (mesh(8), CHIPS["v5e"]))
    monkeypatch.setattr(compile_for, "compiled_for", lambda *_: pytest.fail("it compiles"))
    what = ["--rows=1", "--configs=fast", "--config.train.steps_per_call=39"]
    assert exit_code(lambda: compile_for.main(["--topology=v5e:2x4", *what])) == 2
    assert "fast.py: config.train.steps_per_call is 39" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_found_before_any_is_compiled(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(compile_for, "mesh_of", lambda _: (mesh(8), CHIPS["v5e"]))
    monkeypatch.setattr(compile_for, "compiled_for", lambda *_: pytest.fail("it compiles"))
    arguments = ["--topology=v5e:2x4", "--rows=1", f"--out={tmp_path}"]
    assert exit_code(lambda: compile_for.main(arguments)) == 2
    assert f"{tmp_path}: Is a directory" in capsys.readouterr().err


def test_the_report_has_a_line_for_each_program():
    content = {
        "topology": "v5e:2x4",
        "chip": CHIPS["v5e"]._asdict(),
        "options": ["--config.data.augment=none"],
        "environment": {"devices": 8, "device": "TPU v5 lite"},
        "results": [RESULT],
    }
    title, _, _, _, *lines = str(compile_for.table(content)).splitlines()
    assert title == (
        "A step on v5e:2x4 (8 × TPU v5 lite), computed, not measured (--config.data.augment=none)"
    )
    shared = "4,096 MiB (25.0%) | 1 MiB | 5.0 | 6.00 GB"
    times = "1.00 ms | **4.00 ms** | 2.00 ms"
    assert lines == [
        f"| row1 | resnet18 | training | {shared} | 7 | 2 all-gather | 8.00 MB | {times} | 64,000 "
        "| 61 s |",
        f"| row1 | resnet18 | evaluation | {shared} | 0 | none | 0.00 MB | {times} | 256,000 "
        "| 61 s |",
    ]
