"""Imports go one way, from what knows nothing to what knows everything; what is distributed."""

import ast
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

import jaxcifar
from jaxcifar import options
from jaxcifar.interop import export

PACKAGE = pathlib.Path(jaxcifar.__file__).parent

# Each may import those before it; a folder is one of them, and orders its own files.
ORDER = (
    "version",
    "errors",
    "signals",
    "files",
    "config",
    "options",
    "losses",
    "augment",
    "data",
    "launch",
    "team",
    "processes",
    "sharding",
    "kernels",
    "models",
    "optim",
    "state",
    "step",
    "task",
    "checks",
    "programs",
    "run",
    "runs",
    "hooks",
    "restore",
    "start",
    "train",
    "replay",
    "predict",
    "main",
    "interop",
    "cli",
    "__main__",
)
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"
)


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """The modules and packages of jaxcifar that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {tuple(name.split(".")[1:]) for name in found if name.split(".")[0] == "jaxcifar"}


def test_every_room_has_its_place():
    assert {room(path) for path in FILES} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    here = ORDER.index(room(path))
    for name in imported(path):
        if name and name[0] in ORDER and name[0] != room(path):
            assert ORDER.index(name[0]) < here, f"{path.name} imports {'.'.join(name)}"


def test_kernels_know_no_model_and_no_experiment():
    for path in FILES:
        others = {name[0] for name in imported(path) if name}
        if room(path) == "kernels":
            assert others <= {"kernels", "errors"}
        if room(path) in ("augment", "losses", "config"):
            assert others <= {"errors"}
        text = path.read_text()
        assert "import experiments" not in text
        assert "from experiments" not in text


def test_nobody_uses_what_is_private_elsewhere():
    """No module of the package reaches for a leading underscore of another."""
    for path in FILES:
        tree, modules = ast.parse(path.read_text()), set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxcifar"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not [name for name in private if not name.endswith("__")], path
                modules |= {a.asname or a.name for a in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                private = node.attr.startswith("_") and not node.attr.endswith("__")
                assert not (private and node.value.id in modules), f"{path}: {node.attr}"


def test_all_packages_are_installed():
    """Listed by hand, because the configs come from elsewhere."""
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    here = {
        ".".join(path.parent.relative_to(PACKAGE.parent).parts)
        for path in PACKAGE.rglob("__init__.py")
    }
    assert set(listed["packages"]) == here | {"jaxcifar.configs"}


ROOT = PACKAGE.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DESCRIBED = {"pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
COPIED = DESCRIBED | {"configs", "jaxcifar", "experiments"}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, source), built from what an image has, and from what else setuptools might take."""
    tmp_path = tmp_path_factory.mktemp("built")
    pytest.importorskip("setuptools", "77", reason="setuptools 77 builds the distributions")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*COPIED, "MANIFEST.in", "tests"):
        path, copy = ROOT / name, tmp_path / "copy" / name
        copy.parent.mkdir(exist_ok=True)
        shutil.copytree(path, copy, ignore=ignored) if path.is_dir() else shutil.copy(path, copy)
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    copy = tmp_path / "copy"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (wheel,), (source,) = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    return wheel, source


def test_the_distributions_have_what_belongs_there_and_no_more(distributions):
    wheel, source = distributions
    installed = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        packed = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}

    package = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    package.add("jaxcifar/py.typed")
    configs = {f"configs/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    facts = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
    assert installed == {
        *package,
        *(f"jaxcifar/{config}" for config in configs),
        *(f"jaxcifar-{jaxcifar.__version__}.dist-info/{name}" for name in facts),
    }
    written = {name for name in packed if name.startswith("jaxcifar.egg-info/")}
    assert packed - written == {
        *(*package, *configs, "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md"),
        *("pyproject.toml", "setup.cfg"),
    }


def test_an_index_takes_the_metadata_of_the_distributions(distributions):
    """By packaging's checks, which those of `twine check` are too."""
    wheel, source = distributions
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        texts = [archive.read(name)]
    with tarfile.open(source) as archive:
        (name,) = [name for name in archive.getnames() if re.match(r"[^/]+/PKG-INFO$", name)]
        texts.append(archive.extractfile(name).read())
    for text in texts:
        found = Metadata.from_email(text, validate=True)
        assert (found.license_expression, str(found.requires_python)) == ("Apache-2.0", ">=3.11")
        assert found.description_content_type == "text/markdown"
        assert found.description == (ROOT / "README.md").read_text()
        assert set(found.provides_extra) == set(PROJECT["optional-dependencies"])


INSTALLED = """
import importlib.metadata, sys
sys.path.insert(0, sys.argv[1])
from jaxcifar import options
assert options.__file__.startswith(sys.argv[1])
print(options.load("row9").model.name, options.config_file("row9"))
(distribution,) = importlib.metadata.distributions(name="jaxcifar", path=[sys.argv[1]])
(script,) = distribution.entry_points.select(group="console_scripts")
assert script.name == "jaxcifar"
sys.argv = ["jaxcifar", "sweep", "--help"]
script.load()()
"""


def test_an_installed_package_has_its_configs_and_says_what_needs_a_checkout(
    distributions, tmp_path
):
    with zipfile.ZipFile(distributions[0]) as archive:
        archive.extractall(tmp_path)
    command = [sys.executable, "-c", INSTALLED, tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    first, *rest = done.stdout.splitlines()
    row9 = options.load("row9").model.name
    assert first == f"{row9} {tmp_path / 'jaxcifar' / 'configs' / 'row9.py'}"
    assert "  jaxcifar sweep --rows=1-12 --seeds=0-2 --out=results/table3" in rest
    assert done.stderr.startswith("jaxcifar: sweep needs a checkout"), done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_an_image_is_pinned_and_has_all_that_it_copies(name):
    text = (ROOT / name).read_text()
    assert re.search(r"^FROM python:3\.\d+\.\d+-slim-\w+$", text, re.MULTILINE)
    assert "pip install --no-cache-dir -c /src/constraints.txt" in text
    copied = {
        source
        for line in re.findall("^COPY (.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    passed = set(re.findall("^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    assert passed == copied == COPIED


@pytest.mark.parametrize(
    ("python", "message"),
    [
        ("case $1 in -m) mkdir -p .venv/bin; touch .venv/bin/python; exit 1; esac", "Error"),
        (f'exec {sys.executable} -c "import sys; sys.version_info = (3, 10); $2"', "Python 3.10"),
    ],
    ids=["without ensurepip", "too old"],
)
def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path, python, message):
    """Half of one would be taken for whole the next time."""
    (tmp_path / "python").write_text(f"#!/bin/sh\n{python}\n")
    (tmp_path / "python").chmod(0o755)
    make = ["make", f"--file={ROOT / 'Makefile'}", "PYTHON=./python", ".venv/bin/python"]
    environ = os.environ | {"LC_ALL": "C", "LANGUAGE": ""}
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert done.returncode != 0
    assert message in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_extras_that_messages_name_exist():
    folders = (PACKAGE, ROOT / "experiments", ROOT / "tests" / "parity")
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    named = {
        extra
        for path in sources
        for names in re.findall(r"pip install [^\n]*\[([a-z0-9,]+)\]", path.read_text())
        for extra in names.split(",")
    }
    assert {"parquet", "torch"} <= named
    named |= {extra for _, extra in export.NEEDS.values()}
    assert named <= set(PROJECT["optional-dependencies"])


def test_the_pinned_versions_are_allowed():
    """constraints.txt has a version of each dependency, and one that pyproject.toml allows.

    But for ONNX's, which needs an older orbax-checkpoint than the one there.
    """
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if line[0] != "#")
    extras = [texts for name, texts in PROJECT["optional-dependencies"].items() if name != "onnx"]
    for text in {*PROJECT["dependencies"], *(text for extra in extras for text in extra)}:
        requirement = Requirement(text)
        version = pinned[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version), text
