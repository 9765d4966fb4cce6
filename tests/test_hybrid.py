"""Exact words beside the routers: asked for explicitly, always named, and never the default."""

import pytest
import torch

from msa import AskOptions, Memory
from msa.routing import BankView
from msa.routing.ranking import fused_scores, words_query

TEXTS = {f"plain{i}": f"A sentence about nothing in particular, number {i}." for i in range(12)}
TEXTS["rare"] = "The zyzzyva is a weevil."
TEXTS["both"] = "A zyzzyva and a quokka met."


@pytest.fixture
def memory(tmp_path, model):
    with Memory.open(tmp_path / "memory", model) as opened:
        opened.add([{"id": name, "text": text, "metadata": {"kind": name[:4]}} for name, text in TEXTS.items()])
        yield opened


def test_words_come_first_when_both_lists_have_them(memory):
    hits = memory.search("zyzzyva quokka", top_k=14, hybrid=True)
    assert {hit.id for hit in hits} == set(TEXTS)
    assert {hit.ranking for hit in hits} == {"hybrid"}
    plain = memory.search("zyzzyva quokka", top_k=14)
    assert {hit.ranking for hit in plain} == {"memory"}
    place = {hit.id: rank for rank, hit in enumerate(plain, start=1)}
    expected = {name: 1 / (60 + rank) for name, rank in place.items()}
    expected["both"] += 1 / 61  # has both words
    expected["rare"] += 1 / 62
    assert {hit.id: pytest.approx(hit.score, abs=1e-6) for hit in hits} == expected
    assert [hit.id for hit in hits] == sorted(expected, key=lambda name: -expected[name])


def test_words_keep_to_filters_updates_and_deletions(memory):
    assert {hit.id for hit in memory.search("zyzzyva", hybrid=True, where={"kind": "plai"})} == {
        name for name in TEXTS if name.startswith("plain")
    }
    memory.delete(["both"])
    memory.add([{"id": "plain3", "text": "Now with a quokka."}, {"id": "rare", "text": "No weevil any more."}])
    view = BankView(memory.bank)

    def ids(question):
        return [part.document_id for part in view.parts(view.matches(question, 10))]

    assert ids("quokka") == ["plain3"]
    assert ids("zyzzyva") == []
    memory.compact()
    view = BankView(memory.bank)
    assert ids("Quokka!") == ["plain3"]
    assert (ids("weevil"), ids("—"), ids('"')) == (["rare"], [], [])


def test_answers_name_the_ranking(memory):
    answer = memory.ask("Where is the zyzzyva?", hybrid=True, max_new_tokens=2)
    assert "hybrid" in answer.notes[-1]
    assert {hit.ranking for hit in answer.sources} == {"hybrid"}
    answer = memory.ask("Where is the zyzzyva?", retrieval="routed", max_new_tokens=2)
    assert not any("hybrid" in note for note in answer.notes)
    with pytest.raises(ValueError, match="routed"):
        AskOptions(hybrid=True, retrieval="generative")


def test_fusion_passes_over_what_must_not_be_selected():
    scores = torch.tensor([0.5, float("-inf"), 0.9, 0.1])
    fused = fused_scores(scores, [1, 3, 0])
    assert fused.tolist() == pytest.approx([1 / 62 + 1 / 62, float("-inf"), 1 / 61, 1 / 63 + 1 / 61])
    assert fused_scores(torch.zeros(0), []).shape == (0,)


def test_a_question_is_no_query_language():
    assert words_query('NOT "a" OR b*') == '"NOT" OR "a" OR "OR" OR "b"'
    assert words_query("?!") == ""
