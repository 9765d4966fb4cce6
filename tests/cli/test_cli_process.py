"""The installed command, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

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


# runs in every Python process at its start, and interrupts it where it imports the module named
INTERRUPT_AT = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""


@pytest.mark.parametrize("module", ["msa.memory", "torch"])
def test_interrupting_while_the_command_starts(tmp_path, made_once, module):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPT_AT)
    paths = [str(tmp_path), *filter(None, [os.getenv("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "INTERRUPT_AT": module}
    run = subprocess.run([COMMAND, "list", str(made_once)], env=env, capture_output=True, timeout=120, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (130, b"", b"msa: interrupted\n")


# stands for the installed script, which has no ending that says what it is in
RUN_COMMAND = """
import sys
sys.argv = ["/usr/bin/msa", *sys.argv[1:]]
from msa.cli.main import main
code = main()
heavy = {"torch", "transformers", "numpy", "rich", "msa.memory"} & sys.modules.keys()
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--version"], 0), (["--help"], 0), (["add", "--help"], 0), (["ask", "m", "q", "--device", "gpu"], 2)],
)
def test_commands_load_nothing_heavy_before_they_need_it(arguments, code):
    run = subprocess.run([sys.executable, "-c", RUN_COMMAND, *arguments], timeout=120, capture_output=True, check=False)
    assert run.returncode == code, run.stderr
    assert b"Traceback" not in run.stderr


NAMES_OF_THE_COMMAND = """
import pickle, sys
sys.argv = ["msa"]
import msa
assert "torch" not in sys.modules
assert set(msa.__all__) <= set(dir(msa))
found = {name: getattr(msa, name) for name in msa.__all__}
assert found["MSAConfig"] is sys.modules["msa.model.configuration_msa"].MSAConfig
assert pickle.loads(pickle.dumps(msa.Sampling())) == msa.Sampling()
assert not hasattr(msa, "Memories")
"""


def test_the_package_has_its_names_inside_the_command_too():
    subprocess.run([sys.executable, "-c", NAMES_OF_THE_COMMAND], check=True, timeout=120, capture_output=True)
