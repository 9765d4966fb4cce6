"""A module imports only from its own layer or earlier ones; and a few things no module may do."""

import ast
from pathlib import Path

import pytest

import msa

ROOT = Path(msa.__file__).parent
LAYERS = (
    "errors",
    "ops",
    "documents",
    "bank",
    "model",
    "encoding",
    "routing",
    "parallel",
    "generation",
    "conversion",
    "training",
    "engine",
    "zoo",
    "memory",
    "evaluation",
    "serving",
    "bench",
    "cli",
)
MODULES = sorted(ROOT.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in MODULES}


def layer_of(path):
    """The layer a module lies in; None: the package's own front door, which may import everything."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return None if first == "__init__" else first


def imported_layers(path, tree):
    """Layers that a module imports from, each with its line; also inside functions and for type checking."""
    package = ("msa", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += node.module.split(".") if node.module else []
            names = [[*base, alias.name] for alias in node.names] if base == ["msa"] else [base]
        else:
            continue
        for name in names:
            if name[0] == "msa":
                yield (name[1] if len(name) > 1 else ""), node.lineno


def test_modules_were_found():
    assert len(MODULES) > 40
    assert {layer_of(path) for path in MODULES} - {None} == set(LAYERS), "give a new layer its place in LAYERS"
    found = [layer for path, tree in TREES.items() for layer, _ in imported_layers(path, tree)]
    assert len(found) > 100


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_go_backwards(path):
    layer = layer_of(path)
    if layer is None:
        return
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    if layer == LAYERS[-1]:
        allowed.add("")  # the whole package
    late = [f"line {line}: msa.{other}" for other, line in imported_layers(path, TREES[path]) if other not in allowed]
    assert not late, f"{path.relative_to(ROOT)} imports from a later layer: {', '.join(late)}"


def test_the_check_sees_every_form_of_import():
    source = (
        "import msa.zoo\nfrom msa import memory\nfrom msa.cli.main import main\nfrom ..engine import Engine\nimport msa"
    )
    found = list(imported_layers(ROOT / "bank" / "bank.py", ast.parse(source)))
    assert found == [("zoo", 1), ("memory", 2), ("cli", 3), ("engine", 4), ("", 5)]


def violations(tree):
    """Prints, pickles and exception handlers that take anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "eval", "exec"):
            yield f"line {node.lineno}: {node.func.id}()"
        elif isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: bare except"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            if any("pickle" in module for module in modules):
                yield f"line {node.lineno}: pickle"
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"):
            yield f"line {node.lineno}: {ast.unparse(node)} pickles"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_print_no_pickle_no_bare_except(path):
    assert list(violations(TREES[path])) == []


def test_the_check_sees_violations():
    source = "print(1)\nimport pickle\nfrom pickle import dumps\ntorch.load(x)\ntry:\n    pass\nexcept:\n    pass"
    assert sorted(violation.split(":")[0] for violation in violations(ast.parse(source))) == [
        f"line {line}" for line in (1, 2, 3, 4, 7)
    ]
