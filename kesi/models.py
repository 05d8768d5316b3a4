"""The networks: kesi.models and the folder models/ beside kesi/ are one and the same.

This file is read in a checkout alone. What is installed from a wheel has models/ as the folder
kesi/models/, which Python prefers to this file, and no package `models` that could stand in the
way of somebody else's.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

_HOME = Path(__file__).resolve().parent.parent / "models" / "__init__.py"


def _networks():
    """The module `models` where that is ours, so that there is no second copy; else one of our own.
    """
    try:
        found = importlib.util.find_spec("models")
    except ValueError:  # a module of that name was made in memory
        found = None
    if found and found.origin and Path(found.origin).resolve() == _HOME:
        return importlib.import_module("models")
    spec = importlib.util.spec_from_file_location(__name__, _HOME,
                                                  submodule_search_locations=[str(_HOME.parent)])
    module = sys.modules[__name__] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_module = _networks()
for _name, _part in list(sys.modules.items()):
    if _name.startswith(_module.__name__ + "."):
        sys.modules[__name__ + _name.removeprefix(_module.__name__)] = _part
sys.modules[__name__] = _module
