"""kill -9 at whatever a run over a growing memory writes: it goes on, and nothing is lost, encoded or asked twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("task", "seed"), [("compare", 0), ("scale", 1)])
def test_a_run_that_is_killed_again_and_again_ends_as_if_it_never_was(task, seed, tmp_path):
    if task == "compare":
        pytest.importorskip("bm25s")
    script = Path(__file__).with_name("killed_runs.py")
    path = os.pathsep.join([str(script.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(script), task, str(tmp_path), str(seed)]
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kills"] >= 2
    assert found["killed"] == found["whole"]
    assert found["whole"]["lines"] == 1 + len(found["whole"]["answers"])
    memories = found["whole"]["memories"]
    assert set(memories) == ({"memory", "memory-dot"} if task == "compare" else {"memory"})
    assert all(len(documents) == 35 for documents in memories.values())
