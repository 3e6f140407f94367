"""The version, in a module of its own.

In the folder that holds a clone, Python takes the clone for the package `jaxcifar`, and finds the
modules of the installed one in it, but not what its __init__.py defines.
"""

__version__ = "0.1.0"
