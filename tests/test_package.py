"""Imports go one way, from what knows nothing to what knows everything; what is distributed."""

import ast
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

import jaxcifar

PACKAGE = pathlib.Path(jaxcifar.__file__).parent

# Each may import those before it; a folder is one of them, and orders its own files.
ORDER = (
    "errors",
    "config",
    "options",
    "losses",
    "augment",
    "data",
    "launch",
    "processes",
    "sharding",
    "kernels",
    "models",
    "optim",
    "state",
    "step",
    "task",
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
            assert others <= {"kernels"}
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


def test_configs_and_types_are_in_both_distributions(tmp_path):
    pytest.importorskip("setuptools", "77", reason="setuptools 77 builds the distributions")
    root, copy = PACKAGE.parent, tmp_path / "copy"
    copy.mkdir()
    for name in ("jaxcifar", "configs"):
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, copy)
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=copy, check=True, capture_output=True)
    (wheel,), (source,) = (copy / "dist").glob("*.whl"), (copy / "dist").glob("*.tar.gz")
    installed = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(source) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    for path in (root / "configs").glob("*.py"):
        assert f"jaxcifar/configs/{path.name}" in installed
        assert f"configs/{path.name}" in packed
    for path in [*FILES, PACKAGE / "py.typed"]:
        assert str(path.relative_to(root)) in installed & packed
