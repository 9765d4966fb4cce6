"""Exact words beside the routers: asked for explicitly, always named, and never the default."""

import numpy as np
import pytest
import torch

import msa.engine.library_documents
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
        return [part.document_id for part in view.parts(view.matches(question, 10, view.numbers))]

    assert ids("quokka") == ["plain3"]
    assert ids("zyzzyva") == []
    memory.compact()
    view = BankView(memory.bank)
    assert ids("Quokka!") == ["plain3"]
    assert (ids("weevil"), ids("—"), ids('"')) == (["rare"], [], [])


def test_words_rank_the_documents_that_pass_the_filter(memory, monkeypatch):
    monkeypatch.setattr(msa.engine.library_documents, "WORD_RANKS", 3)
    crowd = [{"id": f"en{i}", "text": "copper violin harbor", "metadata": {"kind": "en"}} for i in range(5)]
    words = ("copper", "violin", "harbor")
    wanted = [
        {"id": word, "text": f"A long page, where {word} is named once.", "metadata": {"kind": "de"}} for word in words
    ]
    memory.add(crowd[:2])
    memory.add([*crowd[2:], *wanted[:2]])
    memory.add([*wanted[2:], {"id": "en0", "text": "copper copper", "metadata": {"kind": "en"}}])
    memory.delete(["en1"])
    for word in words:
        plain = [hit.id for hit in memory.search(word, where={"kind": "de"})]
        expected = {name: 1 / (60 + rank) for rank, name in enumerate(plain, start=1)}
        expected[word] += 1 / 61
        hits = memory.search(word, where={"kind": "de"}, hybrid=True)
        assert {hit.id: pytest.approx(hit.score, abs=1e-6) for hit in hits} == expected


def test_only_documents_that_may_be_found_take_places(memory):
    view = BankView(memory.bank)
    every = view.matches("A", 100, view.numbers)
    assert len(every) > 3
    assert view.matches("A", 2, view.numbers) == every[:2]
    for among in ([], every[-1:], every[1::2]):
        assert view.matches("A", 2, np.array(among, dtype=np.int64)) == [n for n in every if n in among][:2]


def test_as_many_are_found_as_without_words():
    scores = torch.arange(451.0)
    scores[7] = float("-inf")
    fused = fused_scores(scores, [3])
    assert int((fused > float("-inf")).sum()) == 450
    assert fused.argsort(descending=True)[:450].tolist() == [3, *(i for i in range(450, -1, -1) if i not in (3, 7))]


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
    fused = fused_scores(scores, [3, 0])
    assert fused.tolist() == pytest.approx([1 / 62 + 1 / 62, float("-inf"), 1 / 61, 1 / 63 + 1 / 61])
    assert fused_scores(torch.zeros(0), []).shape == (0,)


def test_a_question_is_no_query_language():
    assert words_query('NOT "a" OR b*') == '"NOT" OR "a" OR "OR" OR "b"'
    assert words_query("?!") == ""
