"""The README's Python example runs, and its commands and links exist."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from tiny import tiny_model

import msa
from msa.cli.main import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_python_example(tmp_path, monkeypatch, capsys):
    model = tiny_model(protocol={"retrieval": "routed"}, max_position_embeddings=4096)
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(msa, "load", lambda *_: model)
    exec(compile(code, "README.md", "exec"), {})
    assert "['a']" in capsys.readouterr().out


def test_links_and_make_targets_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= targets
    assert all(f"\n{target}:" in makefile for target in targets)


def test_the_method_has_as_many_lines_as_is_said():
    tour = (ROOT / "docs" / "architecture.md").read_text()
    named, said = re.search(r"The method itself \((.*?)\) is about\s+([\d,]+)\s+lines", tour, re.DOTALL).groups()
    paths = [ROOT / "src" / "msa" / name for name in re.findall(r"`([^`]+)`", named)]
    files = [file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path])]
    assert len(files) > 11
    count = sum(len(file.read_text().splitlines()) for file in files)
    assert abs(count - int(said.replace(",", ""))) <= 50, count
    assert re.search(rf"The method itself \([^)]*\) is about\s+{said}\s+lines", README)


def test_the_extras_named_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = set(re.findall(r"'\.\[([\w,-]+)\]'", README))
    assert {"serve", "mcp", "train", "eval", "bench"} <= named <= set(extras)
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for command, extra in (("msa serve", "serve"), ("msa eval", "eval"), ("msa train", "train")):
            assert command not in block or f"'.[{extra}]'" in block, command


def test_commands_named_are_commands(capsys):
    for command in sorted(set(re.findall(r"\bmsa (\w+) ", README))):
        assert main([command, "--help"]) == 0, command
    assert "usage" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
@pytest.mark.parametrize("target", ["demo", "test", "test-extra"])
def test_torch_comes_from_the_index_that_is_named(target, tmp_path):
    def commands(*variables):
        dry_run = ["make", "--dry-run", target, f"VENV={tmp_path / 'venv'}", *variables]
        shown = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [line.partition(" -m pip ")[2] for line in shown.splitlines() if " -m pip " in line]

    (alone,) = commands()
    assert "index" not in alone
    torch, rest = commands("TORCH_INDEX=https://builds.example/cpu")
    assert torch.endswith("-c constraints.txt --index-url 'https://builds.example/cpu' torch")
    assert rest == alone
