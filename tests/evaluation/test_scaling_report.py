"""What a growing memory's report says of size, depth and the needles a document holds; and writing it again."""

import json
import shutil

import pytest

from msa.cli.main import main
from msa.errors import EvaluationError
from msa.evaluation.records import RECORDS_NAME, Record, RecordLog
from msa.evaluation.results import read_results
from msa.evaluation.rewriting import rewrite_report
from msa.evaluation.ruler import Placement
from msa.evaluation.scaling_rates import scaling_rates
from msa.evaluation.scaling_report import encoding_rate, measured_steps, report_scaling

TASK, SIZES = "niah_single_1", (16_000, 64_000, 256_000)
SETTINGS = {"task": "scaling", "ruler_task": TASK, "sizes": SIZES, "document_tokens": 512}


def placement_of(num_questions):
    return Placement(TASK, SIZES, num_questions=num_questions)


def records_of(placement):
    """Right where the needle is alone in its document, wrong where it is not."""
    return [
        Record(
            answerer="msa",
            set=TASK,
            size_tokens=size,
            question_id=name,
            task=TASK,
            question="q",
            answers=("a",),
            positives=("d",),
            text="a",
            scores={"routed": 1.0, "read": 1.0, "answered": float(placement.density(name) == 1)},
            metadata={"search_seconds": 0.5, "depth": placement.depth(name, size)[0]},
        )
        for size in SIZES
        for name in placement.ids(size)
    ]


def costs():
    per_size = {"documents": 9, "bytes_on_disk": 1, "route_flops": 1, "route_bytes": 1, "fetch_bytes": 1}
    return [
        {"size": size, "tokens": size, "chunks": size // 64, "encoded_tokens": size, "encode_seconds": size / 1e3}
        | per_size
        for size in SIZES
    ]


def test_questions_alone_in_their_documents_have_a_curve_of_their_own():
    found = scaling_rates(records_of(placement_of(110)), placement_of(110))
    assert [entry["needles"] for entry in found["needles"]] == [1, 2, 3, 4, 5]
    assert [point["answered"]["rate"] for point in found["curve"]] == [0.0, 0.0, 0.0]
    assert [(point["size"], point["answered"]["rate"]) for point in found["alone"]["curve"]] == [
        (64_000, 1.0),
        (256_000, 1.0),
    ]
    (number,) = {point["questions"] for point in found["alone"]["curve"]}
    one = found["needles"][0]["answered"]
    assert one[0] is None
    assert one[1]["questions"] == number
    assert {cell["rate"] for part in found["alone"]["parts"].values() for cell in part if cell} == {1.0}
    assert {rate for row in found["alone"]["maps"]["answered"] for rate in row} == {1.0, None}
    asked = [sum(cell["questions"] for cell in column if cell) for column in zip(*found["parts"].values(), strict=True)]
    assert asked == [len(placement_of(110).ids(size)) for size in SIZES]


def test_a_curve_waits_for_enough_questions():
    placement = placement_of(55)
    alone = [name for name in placement.ids(SIZES[0]) if placement.density(name) == 1]
    assert 0 < len(alone) < 30
    assert scaling_rates(records_of(placement), placement)["alone"]["size"] == SIZES[1]


def test_where_every_document_holds_one_needle_nothing_is_said_twice():
    found = scaling_rates(records_of(placement_of(22)), placement_of(22))
    assert found["alone"] is None
    assert len(found["needles"]) == 1


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    placement = placement_of(110)
    settings = SETTINGS | {"questions": 110}
    with RecordLog(tmp_path / RECORDS_NAME, settings) as log:
        for record in records_of(placement):
            log.append(record)
    attention = {"top_k_docs": 8, "router_layers": [1]}
    report_scaling(
        tmp_path, settings, records_of(placement), placement, costs(), ["a note", "a note"], attention=attention
    )
    return tmp_path


def test_the_page_says_what_several_needles_in_a_document_do(run):
    page = (run / "report.md").read_text(encoding="utf-8")
    found = read_results(run)
    assert found["notes"][0] == "a note"
    assert len(found["notes"]) == 2
    assert all(f"* {note}" in page for note in found["notes"])
    assert "of the 110 questions of 16,000 tokens, none has a document of its own" in page
    assert "by needles in the document: 1: 1.000 (n 154), 2: 0.000 (n 6), 3: 0.000 (n 54)" in page
    assert "Alone in their documents: the same 74 questions as the memory grows from 64,000 tokens on" in page
    assert "Those whose document holds no other needle:" in page
    assert "Seconds to encode what each size adds against its tokens: " in page
    assert found["results"]["encoding_fit"]["slope"] == pytest.approx(1e-3)
    for name in ("curve.png", "depth.png", "depth-alone.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_a_stored_run_is_written_again_without_a_model(run):
    before = read_results(run)
    assert main(["eval", "report", str(run), "--note", "a further note"]) == 0
    after = read_results(run)
    assert after["results"] == before["results"]
    assert after["environment"] == before["environment"]
    assert after["notes"] == [*before["notes"], "a further note"]
    assert set(after["written_again"]) == {"date", "commit"}


def test_notes_of_earlier_versions_are_taken_from_the_page(run):
    before = read_results(run)
    earlier = {name: part for name, part in before.items() if name != "notes"}
    (run / "results.json").write_text(json.dumps(earlier))
    rewrite_report(run)
    assert read_results(run)["notes"] == before["notes"]


def test_what_cannot_be_written_again_is_said(run):
    good = (run / "results.json").read_text()
    content = json.loads(good)
    lines = (run / RECORDS_NAME).read_text().splitlines(keepends=True)
    for text, message in (
        (good[:-20], r"results.json, line \d+, is not JSON"),
        ("[]", "is no results file of schema 1"),
        (json.dumps(content | {"results": 3}), "has no 'results' as dict"),
        (json.dumps(content | {"settings": {}}), "does not name its task"),
        (json.dumps(content | {"settings": SETTINGS | {"judge": {}, "x": 1}}), "is not as an evaluation writes it"),
        (json.dumps(content | {"settings": content["settings"] | {"judge": {"model": "m"}}}), "points of a judge"),
    ):
        (run / "results.json").write_text(text)
        with pytest.raises(EvaluationError, match=message):
            rewrite_report(run)
    (run / "results.json").write_text(good)
    (run / RECORDS_NAME).write_text("".join(lines[:-1]))
    with pytest.raises(EvaluationError, match="hold 269 answers of msa at 256,000 tokens, the results 270"):
        rewrite_report(run)
    shutil.rmtree(run)
    with pytest.raises(EvaluationError, match=r"results\.json cannot be read"):
        rewrite_report(run)


def test_the_seconds_of_an_answer_are_shown_step_by_step():
    point = {"size": 16_000, "search_seconds": 0.5, "retrieval_seconds": 0.25, "prefill_seconds": 0.125}
    point |= {"decode_seconds": 0.0625, "token_seconds": 0.002}
    earlier = {name: value for name, value in point.items() if name != "token_seconds"}
    said, table = measured_steps([point, earlier])
    assert "not measured alone" in said
    assert table.splitlines()[0] == "| tokens | search | retrieval | prefill | decode | ms a token |"
    assert table.splitlines()[2:] == [
        "| 16K | 0.5000 | 0.2500 | 0.1250 | 0.0625 | 2.00 |",
        "| 16K | 0.5000 | 0.2500 | 0.1250 | 0.0625 | – |",
    ]
    assert measured_steps([{"size": 16_000, "search_seconds": 0.5}]) == []


def test_a_growth_that_was_killed_has_no_speed():
    cost = costs()[0]
    assert encoding_rate(cost) == "1,000"
    assert encoding_rate(cost | {"encoded_tokens": 0}) == "–"


def test_sizes_without_records_do_not_fail():
    placement = placement_of(110)
    first = [record for record in records_of(placement) if record.size_tokens == SIZES[0]]
    assert scaling_rates(first, placement)["alone"] is None
