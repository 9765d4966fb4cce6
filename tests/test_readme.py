"""The README's Python example runs, and its commands and links exist."""

import re
from pathlib import Path

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


def test_commands_named_are_commands(capsys):
    for command in sorted(set(re.findall(r"\bmsa (\w+) ", README))):
        assert main([command, "--help"]) == 0, command
    assert "usage" in capsys.readouterr().out
