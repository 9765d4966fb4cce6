"""Memory Parallel: 1 to 4 ranks do what one process does, and a lost rank is an error."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from rank_checks import run_script

from msa.errors import MSAError, ParallelError
from msa.ops.route import best_documents
from msa.parallel import init_from_environment, shard_of

SCRIPT = Path(__file__).with_name("in_ranks.py")
CHECKS = (
    "routing", "routing_with_ties", "few_documents", "fetch", "rank_0_decides", "forward", "engine",
    "engine_over_folders", "one_folder", "encoding", "bad_positions",
    "part_of_the_ranks", "traffic",
)  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the ranks wrote: group → rank → what went wrong."""
    folder = tmp_path_factory.mktemp("ranks")
    process = run_script(SCRIPT, folder)
    assert process.returncode == 0, process.stderr
    return {
        group.name: {int(file.stem): json.loads(file.read_text()) for file in group.iterdir()}
        for group in folder.iterdir()
    }


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("check", CHECKS)
def test_ranks_do_what_one_process_does(results, check, world):
    assert sorted(results[str(world)]) == list(range(world))
    for rank, found in results[str(world)].items():
        assert set(found) == set(CHECKS)
        assert found[check] == "", f"rank {rank}: {found[check]}"


@pytest.mark.parametrize(
    ("how", "message", "at_least_s", "at_most_s"),
    [("killed", "could not", 0, 20), ("stopped", "could not", 2, 20), ("absent", "did not meet", 2, 20)],
)
def test_a_lost_rank_is_an_error_in_time(results, how, message, at_least_s, at_most_s):
    """The ranks' timeout is 3 s; the rest is for machines that are busy with other things."""
    found = results[how][0]
    assert f"rank 0 of 2 {message}" in found["error"]
    assert at_least_s < float(found["seconds"]) < at_most_s


def test_ranks_are_started_by_torchrun(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ParallelError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set; start .* torchrun"):
        init_from_environment()
    with pytest.raises(ValueError, match="timeout_s"):
        init_from_environment(0)
    assert issubclass(ParallelError, MSAError)
    assert not dist.is_initialized()


@given(st.integers(0, 40), st.integers(1, 9))
def test_shards_are_contiguous_and_even(count, world):
    shards = [shard_of(range(count), rank, world) for rank in range(world)]
    assert [i for shard in shards for i in shard] == list(range(count))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("rank", [-1, 3])
def test_there_is_no_such_rank(rank):
    with pytest.raises(ValueError, match="rank must be in 0..2"):
        shard_of([1, 2], rank, 3)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, float("-inf")]), min_size=5, max_size=5)), st.integers(0, 7))
def test_ties_go_to_the_lower_index(rows, top_k):
    scores = torch.tensor(rows).view(len(rows), 5)
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    assert torch.equal(best_documents(scores, top_k), expected)


def test_no_documents_to_choose_from():
    assert best_documents(torch.zeros(2, 0), 3).shape == (2, 0)
