"""python -m jaxcifar is the command jaxcifar; so is python DIR/jaxcifar, from any folder.

With -m, a folder named jaxcifar within the current one would be taken for the package.
"""

import pathlib
import sys

if not __package__:  # python DIR/jaxcifar, which puts DIR/jaxcifar where -m has the current folder
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])
    sys.path.append("")  # the current folder, where config files may import from

from jaxcifar.cli import command

command()
