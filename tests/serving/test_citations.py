"""Which part of an answer rests on which document."""

from dataclasses import replace

import pytest

from msa.generation.types import Hit
from msa.serving.citations import citations_of, document_url, source_to_json


def hit(doc_id, title=None, read=True, text="t", **metadata):
    return Hit(id=doc_id, text=text, score=0.5, metadata={**({"title": title} if title else {}), **metadata}, read=read)


def spans(content, *hits):
    found = [entry["url_citation"] for entry in citations_of(content, hits, lambda found: f"u/{found.id}")]
    return [(entry["url"], content[entry["start_index"] : entry["end_index"]]) for entry in found]


def test_the_title_is_cited_where_it_stands():
    assert spans("According to steghide, it hides.", hit("a", "steghide")) == [("u/a", "steghide")]


def test_without_its_title_a_document_stands_for_the_whole_answer():
    assert spans("4216093", hit("a", "Ages"), hit("b", "Zoo")) == [("u/a", "4216093"), ("u/b", "4216093")]


def test_where_the_answer_stands_in_some_texts_the_others_are_not_cited():
    hits = [hit("a", "Ages"), hit("b", text="It is said to be 42."), hit("c", "Zoo"), hit("c", "Zoo", text="forty, 42")]
    assert spans("42.", *hits) == [("u/b", "42."), ("u/c", "42.")]
    assert spans("Ages: 43", *hits) == [("u/a", "Ages"), ("u/b", "Ages: 43"), ("u/c", "Ages: 43")]


def test_what_was_not_read_is_not_cited_and_an_empty_answer_cites_nothing():
    assert spans("Ages are numbers.", hit("a", "Ages", read=False)) == []
    assert spans("", hit("a", "Ages")) == []


def test_longer_titles_come_first_and_places_are_taken_once():
    found = dict(spans("The Moon Landing and the Moon.", hit("m", "Moon"), hit("l", "The Moon Landing")))
    assert found == {"u/m": "Moon", "u/l": "The Moon Landing"}
    assert spans("Only Moonlight here", hit("m", "Moon")) == [("u/m", "Only Moonlight here")]


@pytest.mark.parametrize("title", ["a+b (c) [d]", "naïve—Ünïcode", "日本語の題", "100% $^"])
def test_titles_are_text_not_patterns(title):
    assert spans(f"From {title} we know.", hit("a", title)) == [("u/a", title)]


def test_parts_of_one_document_are_cited_once():
    assert len(spans("x", hit("a", part=1), hit("a", part=2))) == 1


def test_addresses():
    assert document_url("http://h/", "m", hit("a/b c?#", None)) == "http://h/v1/memories/m/documents/a%2Fb%20c%3F%23"
    assert document_url("http://h/", "m", hit("a", url="https://e.org/x")) == "https://e.org/x"
    assert document_url("http://h", "m", hit("a", url="javascript:alert(1)")).startswith("http://h/v1/")


def test_a_source_says_which_part_it_is_beside_the_metadata():
    found = replace(hit("a", part="tail", offset=-1), part=2, parts=3, offset=40)
    source = source_to_json(found, "u/a")
    assert (source["part"], source["parts"], source["offset"]) == (2, 3, 40)
    assert source["metadata"] == {"part": "tail", "offset": -1}
