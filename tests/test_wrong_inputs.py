"""What people type wrongly: each gets one message with the way out, exit code 2, and no traceback.

A row is a command line and words that its message must have. All are run by one process, which
imports everything once and is forked for each.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).parent.parent

GOOD = (
    "from jaxcifar.config import base_config\n\n\ndef get_config():\n    config = base_config()\n"
)
# Where the commands are typed. The folder `results` is a sweep whose checkpoints were left out.
FILES = {
    "good.py": "config.model.width, config.train.epochs = 0.0625, 1",
    "my runs/good.py": "",
    "syntax.py": "def get_config(:\n",
    "missing.py": "import no_such_module\n",
    "sibling.py": "from . import good\n",
    "raises.py": "raise RuntimeError('not today')\n",
    "zero.py": "x = 1 / 0\n",
    "argument.py": "def get_config(size):\n    return size\n",
    "none.py": "def get_config():\n    pass\n",
    "dict.py": "def get_config():\n    return {'seed': 1}\n",
    "nothing.py": "x = 1\n",
    "exits.py": "raise SystemExit(0)\n",
    "lr.py": "config.optim.lr = 0.1",
    "typo.py": "config.train.epoch = 3",
    "half.py": "config.train.epochs = 2.5",
    "text.py": "config.train.batch_size = '64'",
    "group.py": "config.model = 'resnet50'",
    "adamm.py": "config.optim.name = 'adamm'",
    "run/config.json": "{}",
    "broken/config.json": "{",
    "list/config.json": "[]",
    "unknown/config.json": '{"config": {"optim": {"momentun": 0.5}}}',
    "file": "not a folder",
    "weights.npz": "not one",
    "empty/readme": "",
}

MAIN, SWEEP = "jaxcifar.main", "experiments.sweep.__main__"
REPORT, LANDSCAPE = "experiments.report.__main__", "experiments.landscape.__main__"
FOR, SCALING = "experiments.compile_for", "experiments.scaling"
SPEED, TORTURE = "experiments.benchmark", "experiments.torture"
SOAK = "experiments.soak"
REPLAY, TORCH = "jaxcifar.replay", "jaxcifar.interop.torch"
EXPORT, PREDICT, RUNS = "jaxcifar.interop.export", "jaxcifar.predict", "jaxcifar.runs"
MADE = "--config=good.py --config.data.name=synthetic"
ONE_OF_TWO = "--coordinator_address=127.0.0.1:9 --num_processes=2 --process_id=1 --start_timeout=1"

TABLE = [
    # Config files.
    (MAIN, "", "Name a config file, such as --config=configs/quickstart.py"),
    (MAIN, "--config=none_such.py", "There is no config file none_such.py"),
    (MAIN, "--config=", "The path is empty"),
    (MAIN, f"{MADE} --config.nooptim.nesterov", "--config.optim.nesterov=False"),
    (MAIN, f"{MADE} --noconfig.optim.nesterov", "Did you mean --config.optim.nesterov=False?"),
    (SWEEP, "--out=", "Argument --out: The path is empty. See jaxcifar sweep --help."),
    (FOR, "--rows=1 --toplogy=v5e:2x4", "required: --topology"),
    (MAIN, f"{MADE} --flagfile=/nowhere", "'--flagfile' is not an option"),
    (MAIN, f"{MADE} --config.seed=1{310 * '0'}", "at most 4294967295"),
    (MAIN, "--config=good.py --config=bad.py", "Give one config file; these are 2"),
    (MAIN, "--config=a:b.py", "There is no config file a:b.py"),
    (MAIN, "--config=empty", "There is no config 'empty'"),
    (MAIN, "--config=syntax.py", "syntax.py", "SyntaxError"),
    (MAIN, "--config=missing.py", "missing.py", "No module named 'no_such_module'"),
    (MAIN, "--config=sibling.py", "sibling.py", "ImportError"),
    (MAIN, "--config=raises.py", "raises.py", "RuntimeError: not today"),
    (MAIN, "--config=zero.py", "zero.py", "ZeroDivisionError"),
    (MAIN, "--config=argument.py", "argument.py", "missing 1 required", "'size'"),
    (MAIN, "--config=none.py", "none.py returns None, not a config", "base_config()"),
    (MAIN, "--config=dict.py", "dict.py returns a dict, not a config", "base_config()"),
    (MAIN, "--config=nothing.py", "has no function get_config()"),
    (MAIN, "--config=exits.py", "exits.py", "SystemExit"),
    (MAIN, "--config=run/config.json", "is not a config file", "jaxcifar train runs/NAME"),
    (MAIN, "--config=empty/", "empty contains no run (no config.json)"),
    (MAIN, "--config=results/vgg1/seed0 --workdir=x", "resumed in it: omit --workdir"),
    (MAIN, "--config=weights.npz", "weights.npz", "not a config file"),
    (MAIN, "--config=lr.py", "lr.py", "Did you mean 'optim.learning_rate'?"),
    (MAIN, "--config=typo.py", "typo.py", "Did you mean", "epochs"),
    (MAIN, "--config=half.py", "half.py", "'epochs'", "2.5"),
    (MAIN, "--config=text.py", "text.py", "batch_size", "64"),
    (MAIN, "--config=group.py", "group.py", "model"),
    (MAIN, "--config=adamm.py", "'adamm'", "Did you mean 'adam'?"),
    # Flags.
    (MAIN, "--config=good.py --lr=0.1", "'--lr'", "--config.optim.learning_rate=0.1"),
    (MAIN, "--config=good.py --confg.seed=1", "Did you mean --config.seed=1?"),
    (MAIN, "--config=good.py --epochs=3", "--config.train.epochs=3"),
    (MAIN, "--config=good.py --batch-size=3", "--config.train.batch_size=3"),
    (MAIN, "--config=good.py --data_dir=x", "--config.data.dir=x"),
    (MAIN, "--config=good.py --config.model=resnet50", "--config.model.name=resnet50"),
    (MAIN, "--config=good.py --config.epochs=3", "--config.train.epochs=3"),
    (MAIN, "--config=good.py --config.optim.lr=3", "--config.optim.learning_rate=3"),
    (MAIN, "--config=good.py --config.train.epochs=many", "'many'; it must be a whole number"),
    (MAIN, "--config=good.py --config.train.epochs=2.5", "'2.5'; it must be a whole number"),
    (MAIN, "--config=good.py --config.seed=3 --config.optim.l1=1:2", "optim.l1 is '1:2'; it"),
    (MAIN, "--config=good.py --config.optim.nesterov=maybe", "it must be True or False"),
    (MAIN, "--config=good.py --config.data.mean=(1,2", "'(1,2'; it must be () or three numbers"),
    (MAIN, "--config=good.py --config.augment.erasing_area=0.1", "two numbers, such as (0"),
    (MAIN, "--config=good.py --config.augment.erasing_area=(0.3,0.1)", "the first must not be"),
    (MAIN, "--config=good.py --config.train.epochs", "Missing value"),
    (MAIN, "--config=good.py train.epochs=3", "'train.epochs=3' is not an option"),
    (MAIN, "good.py", "'good.py' is not an option"),
    (MAIN, "--config=good.py --mode=test", "choose from 'train', 'eval'"),
    (MAIN, "--config=good.py --checkpoint=first", "choose from 'best', 'last'"),
    (MAIN, "--config=good.py --profile=0", "--profile is 0", "1 or more"),
    (MAIN, "--config=good.py --profile=many", "--profile: invalid int value: 'many'"),
    (MAIN, "--config=good.py --start_timeout=inf", "--start_timeout is inf; give seconds"),
    (MAIN, "--config=good.py --start_timeout=nan", "--start_timeout is nan; give seconds"),
    (MAIN, "--config=good.py --start_timeout=-1", "--start_timeout is -1.0; give seconds"),
    (MAIN, "--mode=eval --workdir=run --profile=3", "--mode=eval runs none"),
    (MAIN, "--config=quickstart --checkpoint=last", "--checkpoint=last is for --mode=eval"),
    (MAIN, f"{MADE} --workdir=", "The path is empty"),
    (MAIN, "--config=good.py --wrokdir=x", "Did you mean '--workdir'?"),
    # Names and numbers that only a config as a whole shows to be wrong.
    (MAIN, f"{MADE} --config.model.name=resnet51", "model.name is 'resnet51'", "resnet50"),
    (MAIN, f"{MADE} --config.model.name=ResNet18", "Did you mean 'resnet18'?"),
    (MAIN, f"{MADE} --config.model.activation=rleu", "Did you mean 'relu'?"),
    (MAIN, f"{MADE} --config.model.dtype=float16", "float16", "bfloat16"),
    (MAIN, f"{MADE} --config.model.remat=yes", "'yes'", "auto"),
    (MAIN, f"{MADE} --config.optim.name=adma", "Did you mean 'adam'?"),
    (MAIN, f"{MADE} --config.optim.schedule=cosin", "Did you mean 'cosine'?"),
    (MAIN, f"{MADE} --config.optim.penalize=kernel", "Did you mean 'kernels'?"),
    (MAIN, f"{MADE} --config.data.augment=week", "Did you mean 'weak'?"),
    (MAIN, f"{MADE} --config.data.protocol=hold", "holdout"),
    (MAIN, "--config=good.py --config.data.name=cifar-10", "Did you mean 'cifar10'?"),
    (MAIN, "--config=good.py --config.data.dir=nowhere", "'nowhere', which is not a folder"),
    (MAIN, "--config=good.py --config.data.dir=file", "'file', which is not a folder"),
    (MAIN, f"{MADE} --config.train.batch_size=5000", "batch_size is 5000", "1,024"),
    (MAIN, f"{MADE} --config.train.limit_train_images=5000", "5,000", "1,024"),
    (MAIN, f"{MADE} --config.optim.momentum=0.9", "momentum", "sgd"),
    (MAIN, f"{MADE} --config.optim.warmup_epochs=60", "only 1 epochs", "smaller value"),
    (MAIN, f"{MADE} --config.seed=-1", "seed is -1", "at least 0"),
    (MAIN, f"{MADE} --config.optim.learning_rate=nan", "learning_rate is nan"),
    # The folder of a run.
    (MAIN, f"{MADE} --workdir=file", "The workdir file cannot be written"),
    (MAIN, f"{MADE} --workdir=file/x", "cannot be written to", "Not a directory"),
    (MAIN, f"{MADE} --workdir=gs://bucket/run", "gs://bucket/run", "not a local path"),
    (MAIN, "--mode=eval", "--mode=eval needs the folder of a run"),
    (MAIN, "--mode=eval --workdir=nowhere", "nowhere contains no run"),
    (MAIN, "--mode=eval --workdir=empty", "empty contains no run"),
    (MAIN, "--mode=eval --workdir=file", "file is a file, not the folder of a run"),
    (MAIN, "--mode=eval --workdir=s3://bucket/run", "s3://bucket/run", "not a local path"),
    (MAIN, "--mode=eval --workdir=broken", "broken/config.json", "damaged"),
    (MAIN, "--mode=eval --workdir=list", "list/config.json", "damaged"),
    (MAIN, "--mode=eval --workdir=unknown", "momentun", "Did you mean"),
    (MAIN, "--mode=eval --workdir=results/vgg1/seed0", "checkpoint"),
    (MAIN, "--mode=eval --workdir=nowhere --config.data.dir=x", "nowhere contains no run"),
    (MAIN, "--mode=eval --workdir=results/vgg1/seed0 --config.data.dri=x", "--config.data.dir=x"),
    (MAIN, "--mode=eval --workdir=results/vgg1/seed0 --lr=3", "--config.optim.learning_rate=3"),
    (MAIN, f"--mode=eval --workdir=nowhere {ONE_OF_TWO}", "runs in one process, but this is one"),
    (REPLAY, "nowhere", "nowhere", "no run"),
    (REPLAY, "", "workdir"),
    (REPLAY, "gs://bucket/run", "not a local path"),
    # Sweeps.
    (SWEEP, "", "--out"),
    (SWEEP, "--out=x", "Name what to train"),
    (SWEEP, "--out=x --rows=13", "row13", "Did you mean"),
    (SWEEP, "--out=x --rows=3-1", "'3-1'"),
    (SWEEP, "--out=x --rows=", "Allowed: row1, row2"),
    (SWEEP, "--out=x --rows=1 --seeds=a", "--seeds", "'a'"),
    (SWEEP, "--out=x --rows=1 --seeds=2-0", "give a number (0), or a range (0-2)"),
    (SWEEP, "--out=x --configs=none*.txt", "'none*.txt', which matches no file"),
    (SWEEP, "--out=x --configs=zero.py", "zero.py", "ZeroDivisionError"),
    (SWEEP, "--out=x --configs=good.py,my*/good.py", "would share the run folder good"),
    (SWEEP, "--out=x --rows=1 --lr=0.1", "--config.optim.learning_rate=0.1"),
    (SWEEP, "--out=x --rows=1 --config.train.epoch=1", "epochs"),
    (SWEEP, "--out=x --rows=1 --config.train.epochs=0", "at least 1"),
    (SWEEP, "--out=x --rows=1 surplus", "'surplus' is not an option"),
    (SWEEP, "--out=x --rows=1 --config.seed=3", "seed", "--seeds"),
    (SWEEP, "--out=x --rows=1 --workers=some --dry-run", "give a number, or auto"),
    (SWEEP, "--out=x --rows=1 --shard=3/2", "give i/N, with i from 0 to N"),
    (SWEEP, "--out=x --rows=1 --workers=2 --status", "--workers and --status cannot be combined"),
    (SWEEP, "--out=x --rows=1 --tasks=2", "--tasks is for --slurm"),
    (SWEEP, "--out=x --rows=1 --tasks=two --slurm", "Argument --tasks: invalid int value"),
    (SWEEP, "--out=file --rows=1 --config.data.name=synthetic", "is a file. Give a folder"),
    (SWEEP, "--out=gs://bucket/x --rows=1", "gs://bucket/x", "not a local path"),
    # Reports.
    (REPORT, "nowhere", "There is no folder nowhere", "jaxcifar sweep"),
    (REPORT, "tables", "folder"),
    (REPORT, "tables empty", "empty contains no runs"),
    (REPORT, "table results", "Did you mean 'tables'?"),
    (REPORT, "figures results --only=fig9", "fig9", "fig2"),
    (REPORT, "figures results --image=x", "'x'"),
    (REPORT, "figures results --image=-1 --only=fig2", "at least 0"),
    (REPORT, "figures results --run=nowhere", "not a run below results"),
    (REPORT, "page results --out=nowhere/x.html", "There is no folder nowhere"),
    (LANDSCAPE, "", "required"),
    (LANDSCAPE, "smoothness --rows=13", "row13"),
    (LANDSCAPE, "smoothness --steps=-1", "positive, or 0 to choose"),
    (LANDSCAPE, "smoothness --every=-1", "positive, or 0 to choose"),
    (LANDSCAPE, "smoothness --step-sizes=a", "--step-sizes", "'a'"),
    (LANDSCAPE, "smoothness --step-sizes=-1", "positive numbers, such as"),
    (LANDSCAPE, "smoothness --seed=-1", "at least 0"),
    (LANDSCAPE, "smoothness --config.seed=3", "Give --seed instead"),
    (LANDSCAPE, "smoothness --out=gs://bucket/x", "not a local path"),
    (LANDSCAPE, "slice nowhere", "contains no run", "Train first"),
    (LANDSCAPE, "slice results/vgg1/seed0 --points=2", "an odd number, at least 3"),
    (LANDSCAPE, "slice results/vgg1/seed0 --extent=0", "must be positive"),
    (LANDSCAPE, "slice results/vgg1/seed0 --extent=nan", "must be positive"),
    (LANDSCAPE, "slice results/vgg1/seed0 --images=0", "must be positive"),
    (LANDSCAPE, "slice results/vgg1/seed0 --dimensions=3", "--dimensions: invalid choice"),
    (LANDSCAPE, "slice results/vgg1/seed0 --seed=-1", "--seed is -1"),
    (LANDSCAPE, "slice results/vgg1/seed0 --seed=4294967296", "--seed is 4294967296"),
    (LANDSCAPE, "slice results/vgg1/seed0 --points=200001", "--points", "1,000,000"),
    # Other tools.
    (TORTURE, "--out=x --kills=-1", "at least 0"),
    (TORTURE, "--out=x --signals=-1", "at least 0"),
    (TORTURE, "--out=x --flips=-1", "at least 0"),
    (TORTURE, "--out=x --damage=some", "invalid choice", "none", "all"),
    (TORTURE, "--out=file --flips=1", "File exists"),
    (TORTURE, "", "--out"),
    (SOAK, "", "--out"),
    (SOAK, "--out=x --epochs=19", "--epochs is 19"),
    (FOR, "", "--topology"),
    (FOR, "--topology=v5e:2x4", "Name what to train"),
    (FOR, "--topology=v5e --rows=1", "such as v5e:2x4"),
    (FOR, "--topology=z9:2x2 --rows=1", "Allowed: v4, v5e"),
    (FOR, "--topology=v5e:2x4 --rows=1 --out=nowhere/x.json", "There is no folder nowhere"),
    (FOR, "--topology=v5e:2x4 --rows=1 --config.train.epoch=3", "Did you mean"),
    (SCALING, "--chip=z9", "z9", "v5e"),
    (SCALING, "--devices=0", "--devices is 0"),
    (SCALING, "--batch=-1", "--batch is -1"),
    (SCALING, "--utilization=2", "--utilization is 2"),
    (SPEED, "--models=resnet", "Did you mean"),
    (SPEED, "--batch=0", "--batch is 0"),
    (SPEED, "--steps=x", "'x'"),
    (SPEED, "--repeats=-1", "--repeats is -1"),
    (SPEED, "--dtype=float16", "invalid choice", "bfloat16"),
    (SPEED, "--out=nowhere/x.json", "There is no folder nowhere"),
    (TORCH, "", "required"),
    (TORCH, "none.npz --model=resnet18 --workdir=x", "There is no file none.npz"),
    (TORCH, "weights.npz --model=resnet18 --workdir=x", "not a PyTorch, safetensors"),
    (TORCH, "weights.npz --model=resnet --workdir=x", "invalid choice", "resnet18"),
    (TORCH, "weights.npz --model=resnet18 --workdir=gs://b/x", "not a local path"),
    (TORCH, "weights.npz --model=resnet18 --workdir=x --mean=0.5", "'0.5' are not three numbers"),
    (TORCH, "weights.npz --model=resnet18 --workdir=x --std=a,b,c", "'a,b,c' are not three"),
    (EXPORT, "nowhere --to=npz", "nowhere contains no run"),
    (EXPORT, "results/vgg1/seed0 --to=tflite", "invalid choice: 'tflite'", "safetensors"),
    (EXPORT, "results/vgg1/seed0 --to=npz --checkpoint=any", "invalid choice", "best"),
    (EXPORT, "results/vgg1/seed0 --to=npz --out=weights.npz", "weights.npz exists"),
    # The network of a run, and the list of runs.
    (PREDICT, "run", "required: image"),
    (PREDICT, "run cat.png", "There is no file cat.png"),
    (PREDICT, "run file", "file cannot be read as an image. Give a PNG, JPEG or WebP"),
    (PREDICT, "run empty", "The folder empty contains no images", ".png"),
    (PREDICT, "run white.png --top=0", "give 1 or more"),
    (PREDICT, "run white.png --checkpoint=first", "invalid choice", "best"),
    (PREDICT, "nowhere white.png", "nowhere contains no run", "Train first"),
    (PREDICT, "gs://b/x white.png", "not a local path"),
    (PREDICT, "results/vgg1/seed0 white.png", "Restore them, or train it again in another"),
    (RUNS, "nowhere", "There is no folder nowhere. Name one that holds runs"),
    (RUNS, "empty", "empty contains no runs (no config.json below it)"),
    (RUNS, "results other", "nrecognized arguments: other"),
    (RUNS, "gs://b/x", "not a local path"),
]

# Reads rows, and answers each with the exit code and what was printed on stderr.
DRIVER = """
import importlib, json, os, signal, sys, tempfile, traceback
from jaxcifar.signals import exit_code
rows = json.load(sys.stdin)
modules = {name: importlib.import_module(name) for name, _ in rows}
found = []
for name, arguments in rows:
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            signal.alarm(60)  # it has begun to work
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            sys.argv[1:] = arguments
            command = modules[name].run if name == "jaxcifar.main" else modules[name].main
            try:
                code = exit_code(command)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stderr.flush()
            os._exit(code or 0)  # tidying up takes longer than most of the rows
        _, status = os.waitpid(child, 0)
        errors.seek(0)
        code = os.waitstatus_to_exitcode(status)
        found.append((code, errors.read().decode(errors="replace")))
json.dump(found, sys.stdout)
"""


def one_device(**more):
    """The environment of a command that starts fast, and finds no images."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
        "PYTHONPATH": str(ROOT),
        "JAXCIFAR_DATA": "",
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed") / "here"
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str) and (not content or content.startswith("config.")):
            content = f"{GOOD}    {content}\n    return config\n"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    Image.new("RGB", (32, 32), "white").save(folder / "white.png")
    (folder / "results").symlink_to(ROOT / "experiments" / "results" / "table4")
    return folder


def tree(folder):
    return sorted(str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.fixture(scope="module")
def answers(folder):
    """(exit code, stderr) of each row, and what appeared in the folder."""
    before, rows = tree(folder), [(row[0], row[1].split()) for row in TABLE]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER],
        **{"input": json.dumps(rows), "capture_output": True, "text": True, "cwd": folder},
        env=one_device(HOME=str(folder.parent / "home")),
        check=True,
    )
    made = [path for path in tree(folder) if path not in before]
    return json.loads(done.stdout), made


@pytest.mark.parametrize(
    "number", range(len(TABLE)), ids=lambda i: f"{TABLE[i][0].split('.')[1]} {TABLE[i][1]}"
)
def test_one_message(answers, number):
    code, error = answers[0][number]
    assert code == 2, error
    assert "Traceback" not in error
    for words in TABLE[number][2:]:
        assert words in error
    ours = [line for line in error.splitlines() if line.startswith("jaxcifar: ")]
    argparse = [line for line in error.splitlines() if ": error: " in line]
    assert len(ours) + len(argparse) == 1, error


def test_nothing_was_made(answers):
    assert answers[1] == []


def test_the_table_is_long_and_each_row_asks_for_more_than_its_own_words():
    assert len({row[:2] for row in TABLE}) == len(TABLE) >= 150
    for _, command, *words in TABLE:
        assert not all(word in command for word in words), command
