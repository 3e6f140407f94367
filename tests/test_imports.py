"""Imports go one way: through the rooms of experiments/, and down the floors of jaxcifar/."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# What each room of experiments/ may import from the others.
EXPERIMENTS = {
    "cost": set(),
    "golden": set(),
    "compare_devices": {"golden", "runs"},
    "torch_models": set(),
    "torch_training": set(),
    "torch_recipe": {"torch_models", "torch_training"},
    "torch_rows": {"torch_models", "torch_training"},
    "runs": set(),
    "sweep": {"cost", "runs"},
    "torture": {"runs"},
    "soak": {"runs", "torture"},
    "compare_images": {"runs"},
    "compare_training": {"compare_images", "runs"},
    "scaling": {"cost", "runs"},
    "compile_for": {"runs", "scaling"},
    "plain_flax": {"compile_for", "runs"},
    "benchmark": {"cost", "runs", "torch_models"},
    "landscape": {"runs"},
    "report": {"runs", "landscape"},
}


def modules(package):
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        yield name, path


MODULES = {name: path for package in ("jaxcifar", "experiments") for name, path in modules(package)}


def imported(name):
    """Returns the modules of the repository that a module imports, inside functions too."""
    ours = ("jaxcifar", "experiments", "configs", "tests")
    found = names(name, ast.walk(syntax(name)))
    return {name for name in found if name.split(".")[0] in ours} - {name}


def syntax(name):
    return ast.parse(MODULES[name].read_text())


def names(name, nodes):
    """Returns what the import statements among `nodes` of a module import."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
            base = ".".join(filter(None, [base, node.module])) if node.level else node.module
            inside = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in inside}
    return found


def room(name):
    """Returns "runs" for experiments.runs.read, "data" for jaxcifar.data.digits."""
    return name.split(".")[1] if "." in name else ""


def test_experiments_go_from_runs_to_landscape_to_report():
    for name in MODULES:
        if not name.startswith("experiments.") or not room(name):
            continue
        assert room(name) in EXPERIMENTS, f"give {name} a place in {__name__}"
        for other in imported(name):
            assert not other.startswith(("tests", "configs")), f"{name} imports {other}"
            if other.startswith("experiments.") and room(other) != room(name):
                assert room(other) in EXPERIMENTS[room(name)], f"{name} imports {other}"


def test_the_package_needs_nothing_around_it():
    for name in MODULES:
        if name.startswith("jaxcifar"):
            around = [n for n in imported(name) if not n.startswith("jaxcifar")]
            assert not around, f"{name} imports {around}"


def test_a_run_starts_before_pictures_and_tensorboard_are_imported():
    """They take longer than all else together, and most commands end before they are needed."""
    loaded, new = (
        set(),
        {"jaxcifar.main", "jaxcifar.replay", "jaxcifar.runs", "experiments.sweep.__main__"},
    )
    while new:
        loaded |= new
        ours = [name for name in new if name in MODULES]
        new = set().union(*(names(name, syntax(name).body) for name in ours)) - loaded
    libraries = {name.split(".")[0] for name in loaded}
    assert libraries >= {"jax", "orbax", "jaxcifar"}
    assert not libraries & {"matplotlib", "tensorboardX", "PIL", "sklearn", "tensorflow_datasets"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_imported_module_is_there(name):
    for other in imported(name):
        assert other in MODULES, f"{name} imports {other}"
