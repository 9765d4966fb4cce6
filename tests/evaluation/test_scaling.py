"""A growing memory: gone on from wherever it was stopped, and never asked as what it is not."""

import json
import re
import shutil
from dataclasses import replace
from statistics import median

import pytest
from tiny import tiny_model

from msa.errors import EvaluationError
from msa.evaluation.environment import version_stamp
from msa.evaluation.growth import GROWTH_NAME, read_growth
from msa.evaluation.records import RecordLog
from msa.evaluation.ruler import GrowingMemory
from msa.evaluation.scaling import run_scaling
from msa.evaluation.scaling_rates import curve, depth_rates
from msa.memory import Memory

SMALL, MIDDLE, LARGE = 700, 1000, 1400


def count(text):
    return len(re.findall(r"\w+", text))


def growing(*sizes, seed=0):
    return GrowingMemory("niah_single_1", sizes, count, num_questions=11, document_tokens=40, seed=seed)


@pytest.fixture(scope="module")
def model():
    return tiny_model(max_position_embeddings=4096)


@pytest.fixture
def run(model, tmp_path):
    """Run a memory of some sizes in the test's folder; after each question call ``on_question``."""

    def run_sizes(*sizes, seed=0, on_question=None):
        options = {"max_new_tokens": 1, "max_rounds": 1}
        with RecordLog(tmp_path / "records.jsonl", {}) as log:
            memory = growing(*sizes, seed=seed)
            return run_scaling(model, memory, tmp_path, log, ask_options=options, on_question=on_question)

    return run_sizes


def held(model, folder):
    with Memory.open(folder / "memory", model) as memory:
        return {document.id: document.text for document in memory.list()}


def texts(*sizes):
    memory = growing(*sizes)
    return {name: text for size in sizes for name, text in memory.documents(size)}


def test_a_stopped_run_goes_on_and_encodes_nothing_twice(run, model, tmp_path):
    def stop(size, number, total):
        if (size, number) == (LARGE, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SMALL, LARGE, on_question=stop)
    asked = []
    records = run(SMALL, LARGE, on_question=lambda *done: asked.append(done))
    more = len(growing(SMALL, LARGE).questions(LARGE))
    assert asked == [(LARGE, number, more) for number in range(4, more + 1)]
    assert len(records) == 11 + more
    first, second = read_growth(tmp_path)
    assert (first["size"], second["size"]) == (SMALL, LARGE)
    assert first["date"] == version_stamp()["date"]
    assert "commit" in first
    assert first["encoded_tokens"] == first["tokens"]
    assert first["encoded_tokens"] + second["encoded_tokens"] == second["tokens"]
    assert held(model, tmp_path) == texts(SMALL, LARGE)
    assert run(SMALL, LARGE) == records


def test_what_an_answers_seconds_are_made_of_is_kept(model, tmp_path):
    """Each pass for one token is timed by itself."""
    with RecordLog(tmp_path / "records.jsonl", {}) as log:
        options = {"max_new_tokens": 4, "max_rounds": 0}
        records = run_scaling(model, growing(SMALL), tmp_path, log, ask_options=options)
    for record in records:
        kept = record.metadata
        assert 0 < kept["decode_passes"] <= 3  # the first token comes from the prefill
        assert 0 < kept["pass_seconds"] <= kept["decode_seconds"] < record.seconds - record.first_token_s
        assert kept["route_seconds"] <= record.first_token_s
    (point,) = curve(records, [record.question_id for record in records])
    assert point["decode_seconds"] == median(record.metadata["decode_seconds"] for record in records)
    assert 0 < point["token_seconds"] < point["decode_seconds"]
    earlier = [replace(record, metadata={"search_seconds": 1.0, "route_seconds": 0.0}) for record in records]
    (point,) = curve(earlier, [record.question_id for record in records])
    assert point["decode_seconds"] == median(record.seconds - record.first_token_s for record in records)
    assert point["prefill_seconds"] == median(record.first_token_s for record in records)
    assert "token_seconds" not in point
    without = [replace(record, metadata={"search_seconds": 1.0}) for record in records]
    assert "decode_seconds" not in curve(without, [record.question_id for record in records])[0]


def test_half_a_line_of_growth_is_noted_again(run, tmp_path):
    run(SMALL, LARGE)
    path = tmp_path / GROWTH_NAME
    whole = path.read_bytes()
    for left in (whole[:-5], whole[: whole.index(b"\n") + 1]):  # killed while it was written, and before
        path.write_bytes(left)
        run(SMALL, LARGE)
        before, after = [json.loads(line) for line in whole.splitlines()], read_growth(tmp_path)
        assert after[0] == before[0]
        assert after[1] == {**before[1], "encoded_tokens": 0, "encode_seconds": after[1]["encode_seconds"]}
    for broken in (b"{\n", b"7\n"):
        path.write_bytes(broken + whole)
        with pytest.raises(EvaluationError, match="is damaged"):
            run(SMALL, LARGE)


def test_documents_made_for_other_sizes_are_replaced(run, model, tmp_path):
    """The needles of a size are put where that size begins, so the documents there depend on it."""
    run(SMALL, MIDDLE)
    assert held(model, tmp_path) != texts(SMALL, LARGE)
    run(SMALL, LARGE)
    assert held(model, tmp_path) == texts(SMALL, LARGE)


def test_a_memory_that_was_removed_is_made_again_for_a_larger_size(run, model, tmp_path):
    """Stored results come without their memories."""
    records = run(SMALL)
    shutil.rmtree(tmp_path / "memory")
    more = run(SMALL, LARGE)
    assert more[: len(records)] == records
    assert held(model, tmp_path) == texts(SMALL, LARGE)
    first, again, large = read_growth(tmp_path)
    assert again["encoded_tokens"] == first["encoded_tokens"] == first["tokens"]
    assert again["encoded_tokens"] + large["encoded_tokens"] == large["tokens"]


def test_a_memory_that_has_grown_beyond_a_size_is_not_asked_as_that_size(run, model, tmp_path):
    records = run(SMALL, LARGE)
    before = held(model, tmp_path)
    with pytest.raises(EvaluationError, match=r"holds 35 documents, more than the 25 of 1,000 tokens.*another --out"):
        run(SMALL, MIDDLE, LARGE)
    (tmp_path / "records.jsonl").unlink()
    with pytest.raises(EvaluationError, match="more than the 18 of 700 tokens"):
        run(SMALL, LARGE)
    assert held(model, tmp_path) == before
    assert len(records) > 22


def test_a_memory_of_another_seed_is_encoded_anew(run, model, tmp_path):
    run(SMALL)
    (tmp_path / "records.jsonl").unlink()
    run(SMALL, seed=1)
    memory = growing(SMALL, seed=1)
    assert held(model, tmp_path) == dict(memory.documents(SMALL))


def test_a_memory_with_other_documents_is_refused(run, model, tmp_path):
    with Memory.open(tmp_path / "memory", model) as memory:
        memory.add([{"id": "mine", "text": "My own text."}])
    with pytest.raises(EvaluationError, match="holds 19 documents where 18 belong; it was made for something else"):
        run(SMALL)


def test_the_curve_has_an_interval_that_fits_its_values(run):
    records = run(SMALL, LARGE)
    base = [question.id for question in growing(SMALL, LARGE).base_questions()]
    assert [point["questions"] for point in curve(records, base)] == [11, 11]
    halves = [
        replace(record, scores=dict.fromkeys(record.scores, 0.5), seconds=float(number))
        for number, record in enumerate(records[:10])
    ]
    (point,) = curve(halves, base)
    # five of ten right would be 0.24 to 0.76
    assert point["answered"] == {"rate": 0.5, "low": 0.5, "high": 0.5, "questions": 10}
    assert point["seconds"] == 4.5
    mapped = depth_rates(halves, growing(SMALL, LARGE).placement, "answered")
    assert {rate for row in mapped for rate in row} == {0.5, None}
