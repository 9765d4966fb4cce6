"""benchmarks/scaling_formulas.py as a module."""

import importlib.util
import sys
from pathlib import Path

_PATH = Path(__file__).parents[2] / "benchmarks" / "scaling_formulas.py"
_SPEC = importlib.util.spec_from_file_location("scaling_formulas", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
formulas = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = formulas  # dataclasses look their module up
_SPEC.loader.exec_module(formulas)
