"""One rank leads: it answers what one process answers, whoever fails or is lost."""

import json
from pathlib import Path

import pytest
from rank_checks import run_script

SCRIPT = Path(__file__).with_name("led_ranks.py")
SCENARIOS = {"as_alone-3": 3, "copies-2": 2, "side_by_side-2": 2, "troubles-2": 2}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the ranks wrote: scenario → rank → what it saw."""
    folder = tmp_path_factory.mktemp("led")
    process = run_script(SCRIPT, folder)
    found = {
        group.name: {int(file.stem): json.loads(file.read_text()) for file in group.glob("*.json")}
        for group in folder.iterdir()
    }
    wrong = [said["wrong"] for ranks in found.values() for said in ranks.values() if "wrong" in said]
    assert process.returncode == 0, "\n".join([*wrong, process.stderr])
    return found


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_led_memory_answers_as_one_process_does(results, scenario):
    assert results[scenario] == {rank: {} for rank in range(SCENARIOS[scenario])}


@pytest.mark.parametrize("lost", ["0-killed", "0-stopped", "1-killed", "1-stopped"])
def test_a_lost_rank_is_an_error_in_time(results, lost):
    """The ranks' timeout is 3 s; the rest is for machines that are busy with other things."""
    ((rank, found),) = results[lost].items()
    assert rank == 1 - int(lost[0])
    assert f"rank {rank} of 2 could not" in found["error"]
    if rank == 0:
        assert found["error"].startswith("a rank was lost: ")
        assert float(found["seconds"]) < 20
        if lost == "1-stopped":
            assert float(found["seconds"]) > 2
