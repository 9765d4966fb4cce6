"""Encoding on several ranks: who waits for whom, Ctrl-C, and models that differ."""

import json
import re
from pathlib import Path

import pytest
from rank_checks import run_script

SCRIPT = Path(__file__).with_name("encoding_ranks.py")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the two ranks wrote: scenario → rank → what it saw."""
    folder = tmp_path_factory.mktemp("encoding")
    process = run_script(SCRIPT, folder)
    assert process.returncode == 0, process.stderr
    return {
        group.name: [json.loads((group / f"{rank}.json").read_text()) for rank in (0, 1)] for group in folder.iterdir()
    }


def test_the_ranks_wait_while_a_model_is_loaded_and_documents_are_read(results):
    assert results["rank_0_is_slow"] == [{"raised": "", "logged": ""}] * 2


def test_an_interruption_is_no_error_of_the_ranks(results):
    assert results["interrupted"] == [{"raised": "KeyboardInterrupt: ", "logged": ""}] * 2
    first, other = results["one_is_interrupted_early"]
    assert first == {"raised": "KeyboardInterrupt: ", "logged": ""}
    assert other == {"raised": "", "logged": ""}


@pytest.mark.parametrize(
    ("scenario", "difference"),
    [("another_model", r"rank 0 with (\w{16}) in float32, rank 1 with (?!\1)\w{16} in float32"),
     ("another_dtype", r"rank 0 with (\w{16}) in float32, rank 1 with \w{16} in bfloat16")],
)  # fmt: skip
def test_another_model_is_refused_on_every_rank(results, scenario, difference):
    for found in results[scenario]:
        assert re.match(f"BankMismatchError: the ranks would encode .*: {difference}", found["raised"])
