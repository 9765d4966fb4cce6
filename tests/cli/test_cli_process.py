"""The installed command, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import msa

COMMAND = str(Path(sysconfig.get_path("scripts")) / "msa")


def test_add_from_a_pipe_then_ask(tmp_path, model_folder):
    add = [COMMAND, "add", str(tmp_path / "m"), "-", "--model", str(model_folder)]
    text = "Die Brücke wurde 1932 eröffnet."
    added = subprocess.run(add, input=text.encode(), capture_output=True, timeout=120, check=False)
    assert (added.returncode, added.stderr.decode()) == (0, "")
    assert added.stdout.decode().startswith("1 added, ")
    ask = [COMMAND, "ask", str(tmp_path / "m"), "Wann?", "--max-new-tokens", "4", "--retrieval", "routed", "--json"]
    asked = subprocess.run(ask, capture_output=True, timeout=120, check=False)
    assert (asked.returncode, asked.stderr.decode()) == (0, "")
    assert json.loads(asked.stdout)["sources"][0]["text"] == text


def test_a_reader_that_goes_away_is_met_with_silence(made_once):
    reading, writing = os.pipe()
    os.close(reading)
    listed = subprocess.run(
        [COMMAND, "list", str(made_once)], stdout=writing, stderr=subprocess.PIPE, timeout=120, check=False
    )
    os.close(writing)
    assert (listed.returncode, listed.stderr) == (1, b"")


def test_interrupting_while_documents_are_read(tmp_path, model_folder):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    add = [COMMAND, "add", str(tmp_path / "m"), str(pipe), "--model", str(model_folder)]
    process = subprocess.Popen(add, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with open(pipe, "wb"):  # waits until the command reads from it
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
    assert (process.returncode, output, errors) == (130, b"", b"msa: interrupted\n")
    assert not (tmp_path / "m").exists()


_HELP_WITHOUT_THE_PACKAGE_S_OWN_IMPORTS = """
import sys, types
package = types.ModuleType("msa")
package.__path__ = [sys.argv[1]]
sys.modules["msa"] = package
from msa.cli.main import main
assert main(["ask", "--help"]) == 0
assert main(["ask", "m", "q", "--device", "gpu"]) == 2
heavy = {"torch", "transformers", "numpy", "rich", "msa.memory"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_commands_load_nothing_heavy_by_themselves():
    command = [sys.executable, "-c", _HELP_WITHOUT_THE_PACKAGE_S_OWN_IMPORTS, str(Path(msa.__file__).parent)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
