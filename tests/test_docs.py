"""The documents: their commands, Python and links are right, and docs/config.md is up to date.

Each command is checked as far as it can be without training: its module exists, and its
flags, config fields, rows, extras and files are known. What takes seconds is run. What needs a
cluster is started by one of `LAUNCHERS`, and checked for what it launches.
"""

import argparse
import fnmatch
import importlib
import json
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from experiments.runs.configs import named, parse_rows, varied
from experiments.runs.rows import ROWS
from experiments.sweep import shards, workers
from experiments.sweep.__main__ import main as sweep_main
from experiments.sweep.jobs import checked, parse_seeds
from jaxcifar import cli, data, options, train
from jaxcifar.config import base_config, flatten
from jaxcifar.errors import UserError
from jaxcifar.files import read_lines
from jaxcifar.hooks import Hook
from jaxcifar.interop.torch import to_torch
from tests import tiny
from tests.test_interop import shapes_only

ROOT = pathlib.Path(__file__).parent.parent
BUILD = runpy.run_path(str(ROOT / "docs" / "build.py"))
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
}
LAUNCHERS = {"srun", "mpirun", "gcloud"}
FORMULAS = ("2 (n − 1)/n · B / w",)  # indented as code is


# --- what the pages contain -------------------------------------------------------------------


def blocks(text):
    """(language, code) of each block: fenced, or indented by four spaces after an empty line."""
    found, fence, indented, before = [], False, False, ""
    for line in text.splitlines():
        indented = not fence and line.startswith("    ") and (indented or not before)
        if line.startswith("```"):
            fence = not fence
            if fence:
                found.append((line[3:], []))
        elif fence or indented:
            if indented and not before:
                found.append(("", []))
            found[-1][1].append(line.removeprefix("    ") if indented else line)
        before = line
    return [(language, "\n".join(lines)) for language, lines in found]


def fenced(text, language):
    return [code for its, code in blocks(text) if its == language and code not in FORMULAS]


def without_blocks(text):
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def commands_in(text):
    """The commands of a block, each as its words."""
    variables, found = {}, []
    for line in text.replace("\\\n", " ").splitlines():
        if array := re.fullmatch(r"(\w+)=\((.*)\)", line):
            variables[array[1]] = array[2]
            continue
        for name, value in variables.items():
            line = line.replace(f'"${{{name}[@]}}"', value)
        assert " #" not in line, f"not a comment in zsh as macOS has it: {line}"
        words = shlex.split(line)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            command, words = words[:end], words[end + 1 :]
            while re.match(r"[A-Z_]+=", command[0]):  # the environment
                command = command[1:]
            found.append(command)
    return found


def spans(text):
    """Commands and fields of configs among the words; what is in [ ] is taken too."""
    for span in re.findall(r"`([^`\n]+)`", without_blocks(text)):
        if re.search(r"…|\b(COMMAND|FIELD|NAME|RUN|DIR|PICTURES|WORKDIR)\b", span):
            continue
        if re.match(r"(jaxcifar|make|python -m|pip install|pytest|git log) ", span):
            yield shlex.split(re.sub(r"[\[\]]", "", span) if "'" not in span else span)
        elif re.match(r"--(config\.)?\w+\.\w+=", span):
            yield ["jaxcifar", "train", "quickstart", *shlex.split(span)]
        elif span.startswith("--config."):
            assert span.removeprefix("--config.") in flatten(base_config()), span


COMMANDS = [
    pytest.param(command, id=f"{page}: {' '.join(command)}")
    for page, text in PAGES.items()
    for command in [
        *(command for block in fenced(text, "") for command in commands_in(block)),
        *spans(text),
    ]
]


# --- checks of a command ----------------------------------------------------------------------


class Parsed(Exception):
    """A command's arguments are parsed; it goes no further."""


def parsed(command, arguments):
    """Returns what argparse makes of a command's arguments, and the rest that it does not know."""
    parse_known_args, depth = argparse.ArgumentParser.parse_known_args, []

    def known(self, *args, **kwargs):
        depth.append(self)
        found = parse_known_args(self, *args, **kwargs)
        depth.pop()
        if depth:  # of a subcommand, or within parse_args
            return found
        raise Parsed(*found)

    def all_known(self, *args, **kwargs):
        found, rest = parse_known_args(self, *args, **kwargs)
        assert not rest, f"unknown: {rest}"
        raise Parsed(found, [])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", known)
        patch.setattr(argparse.ArgumentParser, "parse_args", all_known)
        try:
            command(arguments)
        except Parsed as found:
            return found.args
    raise AssertionError("the command does not parse its arguments")


def check_sweep(arguments):
    """Its flags, rows, files, seeds and fields, as the command reads them before the data."""
    found, rest = parsed(sweep_main, arguments)
    sources = varied(named(found.rows, found.configs), found.grid)
    assert checked(sources, parse_seeds(found.seeds), found.out, rest)
    if found.workers:
        workers.places(found.workers)
    if found.shard:
        shards.parse_shard(found.shard)


def check_module(module, arguments):
    if module == "venv":
        return
    package = importlib.util.find_spec(module)
    assert package, f"there is no module {module}"
    if package.submodule_search_locations:
        module = f"{module}.__main__"
    if module == "experiments.sweep.__main__":
        check_sweep(arguments)
        return
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        pytest.skip("PyTorch is not installed: pip install -e '.[torch]'")
    found, rest = parsed(command.main, arguments)
    files = getattr(found, "config", None)  # of `jaxcifar.main`, in a list
    of_a_run = files and files[0].startswith("runs/")  # which is resumed, and is not there
    options.with_options(options.load(*files) if files and not of_a_run else base_config(), rest)
    if getattr(found, "rows", None):
        parse_rows(found.rows)


def check_jaxcifar(arguments):
    if not arguments or arguments == ["--help"]:
        return
    name, *rest = arguments
    command = cli.COMMANDS[name]
    if rest and "--help" not in rest:  # a command alone is only named
        check_module(command.module.removesuffix(".__main__"), command.translate(rest))


def check_pip(arguments):
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert arguments[0] == "install"
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "-c":
            assert (ROOT / value).is_file()
        elif named := re.fullmatch(r"(?:\.|jaxcifar)\[(.*)\]", option):
            assert set(named[1].split(",")) <= set(extras["optional-dependencies"])
        else:
            assert (
                option in ("install", "-e", ".") or arguments[arguments.index(option) - 1] == "-c"
            )


def check_pytest(arguments):
    """Its own flags, by pytest itself; the paths and markers, by what there is."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "-m":
            settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
            markers = {marker.split(":")[0] for marker in settings["ini_options"]["markers"]}
            assert set(re.findall(r"\w+", value)) - {"not", "and", "or"} <= markers
        elif option.startswith("-"):
            assert option in ("-n", "-q", "-x")
        elif "/" in option:
            assert (ROOT / option).exists()


def check_make(arguments):
    targets = [argument for argument in arguments if "=" not in argument]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)


def check_git(arguments):
    if arguments[0] == "log":
        if not (ROOT / ".git").exists():
            pytest.skip("not a checkout: there is no history")
        how = {"cwd": ROOT, "capture_output": True, "text": True}
        shallow = subprocess.run(["git", "rev-parse", "--is-shallow-repository"], **how)
        if shallow.stdout.strip() != "false":
            pytest.skip("a shallow clone, or one of another user: its history cannot be read")
        done = subprocess.run(["git", *arguments], **how)
        assert done.stdout, "no commit is found"


def check(command):
    first, *rest = command
    name = pathlib.Path(first).name
    if name in LAUNCHERS:
        shell = [word.removeprefix("--command=") for word in rest if word.startswith("--command=")]
        launched = commands_in(shell[0]) if shell else [rest[rest.index("python") :]]
        for one in launched:
            check(one)
    elif re.match(r"python[\d.]*$", name):
        if rest[0] == "-m":
            check_module(rest[1], rest[2:])
        else:  # tests/test_examples.py runs them
            assert [ROOT / rest[0]] == list((ROOT / "examples").glob(pathlib.Path(rest[0]).name))
    else:
        {
            "jaxcifar": check_jaxcifar,
            "pip": check_pip,
            "pytest": check_pytest,
            "make": check_make,
            "git": check_git,
            "cd": lambda folder: None,
            "source": lambda script: None,
        }[name](rest)


@pytest.fixture
def users_folder(tmp_path, monkeypatch):
    """The current folder: configs of the repository's, and of the user's own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine").mkdir()
    for name in ("wide.py", "slower.py", "mine/wide.py", "mine/deep_one.py"):
        shutil.copy(ROOT / "configs" / "row1.py", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("users_folder", "one_device")
@pytest.mark.parametrize("command", COMMANDS)
def test_command(command):
    check(command)


@pytest.mark.usefixtures("users_folder", "one_device")
@pytest.mark.parametrize(
    "text",
    [
        "jaxcifar trian row9",
        "jaxcifar train row99",
        "jaxcifar train row9 --train.epoch=3",
        "jaxcifar train row9 --workdirs=runs/x",
        "jaxcifar train row9 --distributed=maybe",
        "jaxcifar eval runs/row9 --checkpoint=first",
        "jaxcifar predict runs/row9 cat.png --topp=5",
        "jaxcifar export runs/row9 --to=tflite",
        "python -m jaxcifar.main --config=configs/row99.py",
        "python -m jaxcifar.mian --config=configs/row9.py",
        "python -m experiments.sweep --rows=13 --out=x",
        "python -m experiments.sweep --rows=9 --outt=x",
        "python -m experiments.sweep --rows=9 --out=x --config.train.epoch=3",
        "python -m experiments.report figure results/",
        "python -m experiments.landscape slice results/x --dimensoins=2",
        "python -m experiments.torture --out=x --kils=1",
        "srun --nodes=2 python -m jaxcifar.main --config=configs/row9.py --workdirs=x",
        "pip install '.[cuda14]'",
        "pip install -c constraint.txt -e .",
        "pytest tests/parities",
        "make tests",
        "git log --grep='no such change was ever made' -p -1 --author=nobody",
        "jaxcifarr train row9",
    ],
)
def test_a_wrong_command_is_noticed(text, capsys):
    (command,) = commands_in(text)
    wrong = (UserError, SystemExit, AssertionError, LookupError, ValueError, OSError)
    with pytest.raises((*wrong, subprocess.CalledProcessError)):
        check(command)
    capsys.readouterr()


def test_blocks_are_found():
    assert commands_in("A=1 b c \\\n  d\n\nx=(y 'z z')\nq \"${x[@]}\" && r") == [
        ["b", "c", "d"],
        ["q", "y", "z z"],
        ["r"],
    ]
    text = "\n\n    a b\n      c\n\n    d\nx\n    y\n\n```\ne\n\n    f\n```\nz\n```python\n```\n"
    assert blocks(text) == [("", "a b\n  c"), ("", "d"), ("", "e\n\n    f"), ("python", "")]
    for page, least in (
        ("README.md", 15),
        ("CONTRIBUTING.md", 8),
        ("docs/cluster.md", 8),
        ("docs/tpu.md", 1),
    ):
        assert sum(param.id.startswith(page) for param in COMMANDS) >= least
    for page, text in PAGES.items():
        assert {language for language, _ in blocks(text)} <= {"", "python", "yaml"}, page


def test_the_size_of_the_whole_report():
    """The rows with three seeds, and two rows along the gradient, up to the last measurement."""
    configs = {name: options.load(name) for name in ROWS}
    epochs = {name: 3 * config.train.epochs for name, config in configs.items()}
    along = [configs[name].train.epochs - 1 for name in ("vgg2", "vgg6")]  # one of 50 parts less
    large = ("densenet201", "densenet264")
    of_large = sum(epochs[name] for name in ROWS if configs[name].model.name in large)
    runs, all_epochs = 3 * len(ROWS) + len(along), sum(epochs.values()) + sum(along)
    said = f"{runs} runs and {all_epochs:,} epochs, {of_large:,} of them of DenseNet-201 and -264"
    assert said in " ".join(PAGES["docs/experiments.md"].split())


@pytest.mark.usefixtures("users_folder")
def test_the_job_of_kubernetes():
    (block,) = fenced(PAGES["docs/cluster.md"], "yaml")
    (container,) = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["command"]]
    check(words)
    (mount,) = container["volumeMounts"]
    values = {variable["name"]: variable["value"] for variable in container["env"]}
    for name in ("JAXCIFAR_DATA", "JAX_COMPILATION_CACHE_DIR"):  # each pod would fill its own
        assert values[name].startswith(mount["mountPath"] + "/")


@pytest.mark.usefixtures("users_folder", "one_device")
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, id=f"{page} {number}")
        for page, text in PAGES.items()
        for number, block in enumerate(fenced(text, "python"))
    ],
)
def test_python(block):
    names = {}
    exec(compile(block, "a page", "exec"), names)
    if "get_config" in names:
        main_config = names["get_config"]()
        assert main_config.to_dict() != base_config().to_dict()
        options.with_options(main_config, [])


def names_of(page, name):
    """What the block of Python that defines `name` defines."""
    (block,) = (block for block in fenced(PAGES[page], "python") if f" {name}(" in block)
    names = {}
    exec(compile(block, page, "exec"), names)
    return names


def test_sharpness_aware_minimization():
    """Its gradient is that of the loss at the top of the climb; it reports the loss here."""

    def loss(params, factor):
        return factor * jnp.sum(params["w"] ** 2) / 2 + params["b"] ** 3, params["b"]

    params = {"w": jnp.array([3.0, 0.0]), "b": jnp.array(1.0)}
    wrapped = names_of("CONTRIBUTING.md", "sharpness_aware")["sharpness_aware"](loss, rho=0.5)
    (value, aux), grads = jax.value_and_grad(wrapped, has_aux=True)(params, 4.0 / 3.0)
    # The gradient here is (4, 0) and 3, of norm 5: the climb is (0.4, 0) and 0.3.
    np.testing.assert_allclose(grads["w"], [4.0 / 3.0 * 3.4, 0], rtol=1e-6)
    assert float(grads["b"]) == pytest.approx(3 * 1.3**2, rel=1e-6)
    assert (float(value), float(aux)) == (pytest.approx(7.0), 1.0)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_hook_that_measures_something_else(tmp_path, finished):
    hook = names_of("docs/getting-started.md", "TopFive")["TopFive"]()
    tiny.run(tiny.tiny(), tmp_path, hook)
    found = read_lines(tmp_path / "top5.jsonl")
    assert [each["epoch"] for each in found] == [1, 2]
    records = read_lines(tmp_path / "metrics.jsonl")
    assert all(top["top5"] > each["val_accuracy"] for top, each in zip(found, records, strict=True))
    # The accuracy on other images, by another page.
    test = data.load("synthetic", "test")
    accuracy = names_of("docs/data.md", "accuracy")["accuracy"](tmp_path, test.images, test.labels)
    assert accuracy == max(record["val_accuracy"] for record in records)


def test_a_sweep_by_a_script(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(
        train,
        "train_and_evaluate",
        lambda config, workdir, hooks: ran.append((config, workdir, hooks)),
    )
    hook = Hook()
    names = names_of("docs/experiments.md", "train")
    names["train"]("vgg6", range(2), tmp_path, hook)
    assert [(config.seed, workdir) for config, workdir, _ in ran] == [
        (seed, tmp_path / "vgg6" / f"seed{seed}") for seed in (0, 1)
    ]
    assert [hooks for *_, hooks in ran] == [(hook,)] * 2
    assert json.loads((tmp_path / "vgg6" / "origin.json").read_text())["file"] == "vgg6"
    (tmp_path / "mine.py").write_text(
        "from jaxcifar.options import load\n\n\ndef get_config():\n    return load('vgg6')\n"
    )
    names["train"](str(tmp_path / "mine.py"), range(1), tmp_path / "out", hook)
    assert ran[-1][1] == tmp_path / "out" / "mine" / "seed0"


# --- commands that are run ----------------------------------------------------------------------

# What is not run, and what it would take. Every other command of a block is.
NOT_RUN = {
    "jaxcifar train *": "minutes to days",
    "jaxcifar sweep *": "hours to days, or a cluster",
    "jaxcifar landscape smoothness *": "the training of two rows",
    "python examples/*": "run by tests/test_examples.py",
    "python -m jaxcifar.main *": "hours, or a cluster",
    "*python -m experiments.*": "minutes to days, or PyTorch, or libtpu",
    "srun *": "a cluster",
    "mpirun *": "a cluster",
    "gcloud *": "TPUs",
    "*pip install *": "an environment of its own",
    "python* -m venv *": "an environment of its own",
    "source *": "an environment of its own",
    "make *": "an environment of its own",
    "pytest *": "what is going on",
}
IN_BLOCKS = [
    command
    for text in PAGES.values()
    for block in fenced(text, "")
    for command in commands_in(block)
]


def test_what_is_not_run_is_there():
    for pattern in NOT_RUN:
        assert fnmatch.filter(map(" ".join, IN_BLOCKS), pattern), pattern


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_commands_that_are_run(finished, swept, users_folder, capsys):
    """What the pages do with trained networks and weights, done one after the other."""
    for name in ("quickstart", "row1"):
        shutil.copytree(finished[0], users_folder / "runs" / name)
    for name in ("table4", "rates", "bn"):
        shutil.copytree(swept, users_folder / "results" / name)
    rates = users_folder / "results" / "rates"
    (rates / "vgg2").rename(rates / "row9")
    (rates / "vgg6").rename(rates / "row9-learning_rate-0.001")
    shutil.copy(ROOT / "docs" / "history_quickstart.png", users_folder / "picture.png")
    weights = to_torch("resnet18", shapes_only("resnet18", width=0.125))
    with (users_folder / "weights.pt").open("wb") as file:  # a file is known by its content
        np.savez(file, **weights)
    commands = [
        command
        for command in dict.fromkeys(map(tuple, IN_BLOCKS))
        if not any(fnmatch.fnmatch(" ".join(command), pattern) for pattern in NOT_RUN)
    ]
    printed = {}
    for name, *arguments in commands:
        assert name == "jaxcifar"
        smaller = ["--points=3", "--images=96"] if arguments[0] == "landscape" else []
        if arguments[:2] == ["report", "figures"]:
            smaller = ["--only=history,fig2"]  # test_figures.py draws all
        assert cli.main([*arguments, *smaller]) == 0, capsys.readouterr().err
        printed[" ".join(arguments)] = capsys.readouterr().out
    assert len(commands) >= 10
    assert "quickstart" in printed["runs"]
    evaluated = printed["eval runs/quickstart"]
    assert re.search(r"best checkpoint \(step \d\): accuracy", evaluated)
    assert "picture.png" in printed["predict runs/quickstart picture.png --top=5"]
    for made in ("weights.npz", "row1.safetensors", "runs/imported/config.json"):
        assert (users_folder / made).is_file()
    assert "row9" in printed["report tables results/rates --against=row9"]
    assert (users_folder / "results" / "report.html").is_file()
    assert list((users_folder / "results" / "landscape").rglob("*.npz"))


def test_the_files_of_a_run_are_those_of_getting_started(finished):
    names = re.findall(r"^\| (`.*?) \|", PAGES["docs/getting-started.md"], re.MULTILINE)
    files = [file for name in names for file in re.findall(r"`([^`]+)`", name)]
    assert len(files) >= 6
    files.remove("origin.json")  # which only the command writes
    for file in files:
        assert (finished[0] / file).exists(), file


# --- links, names, and the page of the config -------------------------------------------------


def headings(text):
    """What links call the headings of a page, on GitHub and in the site."""
    titles = re.findall(r"^#+ (.*)$", without_blocks(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    folder = (ROOT / page).parent
    for path, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?", PAGES[page]):
        assert path == "" or (folder / path).exists(), path
        if heading:
            text = (folder / path).read_text() if path else PAGES[page]
            assert heading in headings(text), f"{path}#{heading}"


def test_files_that_are_named_exist():
    for page, text in PAGES.items():
        for path in re.findall(
            r"`((?:jaxcifar|experiments|configs|tests|examples|docs)/[\w/]+\.\w+)`", text
        ):
            assert (ROOT / path).exists() or "NAME" in path, f"{page}: {path}"
    table = PAGES["docs/how-it-works.md"].split("| module |")[1]
    for module in re.findall(r"`(\w+\.py|\w+/\w+\.py)`", table):
        assert list((ROOT / "jaxcifar").rglob(module)), module


def test_tests_that_are_named_exist():
    files = {str(f.relative_to(ROOT / "tests")): f.read_text() for f in ROOT.glob("tests/**/*.py")}
    tests = re.findall(r"^def (test_\w+)", "\n".join(files.values()), re.MULTILINE)
    for page, text in PAGES.items():
        for file, test in re.findall(r"`([\w/]+\.py)::(test_\w+)`", text):
            assert f"def {test}(" in files[file], f"{page}: {file}::{test}"
        for pattern in re.findall(r"`(test_[\w*]+)`", text):
            assert fnmatch.filter(tests, pattern), f"{page}: {pattern}"


def test_the_page_of_the_config_is_complete_and_up_to_date():
    comments = BUILD["meanings"]()
    assert [field for field in flatten(base_config()) if not comments.get(field)] == []
    assert (ROOT / "docs" / "config.md").read_text() == BUILD["config_page"](), (
        "run python docs/build.py"
    )


def test_the_site_is_built_and_loads_nothing_from_the_network(tmp_path):
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", f"--site-dir={site}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (site / "404.html").unlink()  # for servers, whose root it names
    pages = {path.name: path.read_text() for path in site.glob("*.html")}
    assert {f"{name}.html" for name in ("index", "extending", "config", "results")} <= set(pages)
    assert 'href="extending.html"' in pages["how-it-works.html"]
    for text in pages.values():
        assert re.findall(r'(?:src|<link[^>]*href)="?(?:https?:)?//', text) == []
        for path in re.findall(r'(?:src|href)="(?!https?:|#|data:|\.")([^"#?]+)', text):
            assert (site / path).exists(), path
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", style.read_text()) == []
