"""The README's Python runs, and what it links to is there."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_python_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for code in blocks:
        exec(compile(code, "README.md", "exec"), {})


def test_links_and_paths_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    configs = [c for c in re.findall(r"configs/\w+\.py", README)]
    assert len(links) >= 3
    for path in {*links, *configs}:
        assert (ROOT / path).exists(), path
    for module in re.findall(r"`(\w+\.py|\w+/\w+\.py)`", README.split("| module |")[1]):
        assert list((ROOT / "jaxcifar").rglob(module)), module
