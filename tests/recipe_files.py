"""The scripts of recipes/ as modules."""

import importlib.util
import sys
from pathlib import Path

RECIPES = Path(__file__).parents[1] / "recipes"


def recipe(name):
    """``recipes/<name>.py``, run as a module."""
    spec = importlib.util.spec_from_file_location(f"recipe_{name}", RECIPES / f"{name}.py")  # tests have a tiny.py too
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
