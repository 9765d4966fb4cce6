"""Answering: the order of events, rounds of retrieval, batches, limits, and the order in which documents are found."""

import dataclasses

import pytest
import torch
from tiny import tiny_model

from msa import (
    AskOptions,
    DocumentRetrieved,
    Done,
    Engine,
    Memory,
    RoundStarted,
    Sampling,
    TextPiece,
)
from msa.generation.decoding import Decoding
from msa.routing import BankView

QUESTIONS = ["Why?", "Which of the documents speaks about the number seventeen, and what does it say?", "ü"]
TEXTS = {f"d{i}": f"document {i} " + "speaks of numbers and moons "[: 3 * i % 28] for i in range(1, 41)}


def writes_ids(bias=40.0, **settings):
    """A random model that would rather write brackets and digits than anything else."""
    model = tiny_model(**settings)
    vocabulary = model.tokenizer.get_vocab()
    favoured = torch.tensor([vocabulary[piece] for piece in "[]0123456789"])
    model.lm.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_add(
            -1, favoured, logits.new_full((*logits.shape[:-1], len(favoured)), bias)
        )
    )
    return model


def open_engine(model, folder, texts=TEXTS):
    memory = Memory.open(folder, model)
    memory.add(
        [{"id": name, "text": text, "metadata": {"half": i % 2}} for i, (name, text) in enumerate(texts.items())]
    )
    return memory, Engine(model, BankView(memory.bank))


@pytest.fixture(scope="module")
def engine(model, tmp_path_factory):
    """The plain random model; alone it ends every list of ids at once."""
    memory, opened = open_engine(model, tmp_path_factory.mktemp("engine") / "plain")
    yield opened
    memory.close()


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A model that writes as many ids as it may."""
    memory, opened = open_engine(writes_ids(), tmp_path_factory.mktemp("engine") / "writer")
    yield opened
    memory.close()


def scripted(monkeypatch, engine, *texts):
    """Let the model write these texts, one per decoding, and after them always the end of the answer."""
    protocol = engine.model.protocol
    queue = [protocol.template_ids(text) for text in texts]
    seen = []

    def draw(row, logits):
        if not row.generated:
            seen.append(queue.pop(0) if queue else [])
        script = seen[-1]
        return script[len(row.generated)] if len(row.generated) < len(script) else protocol.answer_end_id

    monkeypatch.setattr(Decoding, "_draw", staticmethod(draw))


def everything_but_times(answer):
    return dataclasses.replace(answer, timings={}, sources=[source.id for source in answer.sources])


def assert_same(answer, expected):
    assert everything_but_times(answer) == everything_but_times(expected)
    for source, other in zip(answer.sources, expected.sources, strict=True):
        assert source.score == pytest.approx(other.score, abs=1e-5)


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
def test_events_come_in_order(writer, retrieval):
    options = AskOptions(retrieval=retrieval, max_new_tokens=20, max_rounds=3)
    events = list(writer.stream("Which numbers?", options))
    kinds = [type(event) for event in events]
    assert kinds[0] is RoundStarted
    assert kinds[-1] is Done
    assert kinds.count(Done) == 1
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert len(pieces) > 3
    assert kinds[-1 - len(pieces) : -1] == [TextPiece] * len(pieces)  # all text after all retrieval
    answer = events[-1].answer
    assert "".join(pieces).strip() == answer.text
    retrieved, round_number = [], 0
    for event in events:
        if isinstance(event, RoundStarted):
            round_number += 1
            assert event.round == round_number
        elif isinstance(event, DocumentRetrieved):
            assert event.round == round_number
            retrieved.append(event.hit)
    assert retrieved == answer.sources
    assert len(retrieved) > 2
    assert round_number == len(answer.rounds) == (1 if retrieval == "routed" else 3)
    layers, top_k = writer.model.lm.config.router_layers, writer.model.lm.config.top_k_docs
    for found in answer.rounds:
        assert list(found.votes) == layers
        assert all(0 < len(set(numbers)) == len(numbers) <= top_k for numbers in found.votes.values())
    assert [doc_id for r in answer.rounds for doc_id in r.retrieved] == [hit.id for hit in retrieved]
    assert answer.finish_reason == "length"
    assert answer.usage.completion_tokens >= 20
    assert set(answer.timings) == {"route", "first_token", "total"}


def test_text_pieces_are_whole_characters(writer, monkeypatch):
    scripted(monkeypatch, writer, "<|object_ref_end|>", "The answer to the question is: ünï 👩‍👩‍👧 ok")
    *events, done = writer.stream("x")
    pieces = [event.text for event in events if isinstance(event, TextPiece)]
    assert "".join(pieces) == done.answer.text == "ünï 👩‍👩‍👧 ok"
    assert not any("\ufffd" in piece for piece in pieces)
    assert done.answer.finish_reason == "stop"


@pytest.mark.parametrize("constrain_ids", ["existing", "none"])
def test_a_batch_of_generative_questions_equals_each_alone(writer, constrain_ids):
    options = AskOptions(retrieval="generative", constrain_ids=constrain_ids, max_rounds=2, max_new_tokens=12)
    batch = writer.ask(QUESTIONS, options)
    for question, answer in zip(QUESTIONS, batch, strict=True):
        assert_same(answer, writer.ask([question], options)[0])
    assert len({answer.text for answer in batch}) > 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=5)])
def test_a_batch_of_routed_questions_equals_each_alone(engine, sampling):
    options = AskOptions(retrieval="routed", max_new_tokens=12, sampling=sampling)
    batch = engine.ask(QUESTIONS, options)
    for question, answer in zip(QUESTIONS, batch, strict=True):
        assert_same(answer, engine.ask([question], options)[0])
    assert len({answer.text for answer in batch}) == 3


def test_a_batch_whose_rows_take_different_numbers_of_rounds(engine, writer):
    mixed = writes_ids(bias=1.0, seed=3)
    memory_engine = Engine(mixed, engine.library)  # latents of another model are as good as any here
    options = AskOptions(retrieval="generative", max_new_tokens=6)
    questions = [*QUESTIONS, "number 7", "moons", "a b c d e f g"]
    batch = memory_engine.ask(questions, options)
    for question, answer in zip(questions, batch, strict=True):
        assert_same(answer, memory_engine.ask([question], options)[0])
    assert len({len(answer.rounds) for answer in batch}) > 1


def test_an_answer_that_goes_on_from_the_cache_equals_one_from_the_transcript(engine, monkeypatch):
    options = AskOptions(retrieval="generative", max_new_tokens=12)
    question = "Which numbers?"
    tail = engine.model.protocol.template_ids("<End-of-Retrieve>")
    draw = Decoding._draw

    def closes_first(row, logits):
        if row.prompt.allowed is not None:  # ids
            return tail[len(row.generated)]
        return draw(row, logits)

    monkeypatch.setattr(Decoding, "_draw", staticmethod(closes_first))
    extended = []
    extend = Decoding.extend
    monkeypatch.setattr(Decoding, "extend", lambda self, *a: extended.append(1) or extend(self, *a))
    alone = engine.ask([question], options)[0]
    assert extended == [1]
    assert alone.rounds[0].generated == "<End-of-Retrieve>"
    assert_same(engine.ask([question, question], options)[1], alone)  # a batch prefills anew
    assert extended == [1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bias", [0.0, 2.0, 40.0])
def test_only_existing_distinct_ids_are_written(engine, seed, bias):
    model = writes_ids(bias=bias, seed=seed)
    answer = Engine(model, engine.library).ask(["Which?"], AskOptions(retrieval="generative", max_new_tokens=1))[0]
    numbers = [number for r in answer.rounds for number in r.numbers]
    assert len(numbers) == len(set(numbers))
    assert set(numbers) <= set(engine.library.numbers.tolist())
    assert len(answer.rounds) <= 4
    for r in answer.rounds:
        ids = r.generated.removesuffix("<|object_ref_end|>").removesuffix("<End-of-Retrieve>")
        written = [int(item.removeprefix("[")) for item in ids.split("]")[:-1]]
        assert len(written) == len(set(written))
        assert set(written) <= set(range(1, len(TEXTS) + 1))
        assert written[: len(r.numbers)] == r.numbers


def test_writing_ids_ends_when_all_are_written(tmp_path):
    memory, engine = open_engine(writes_ids(), tmp_path / "memory", dict(list(TEXTS.items())[:12]))
    with memory:
        answer = engine.ask(["Which?"], AskOptions(retrieval="generative", max_new_tokens=1))[0]
        assert sorted(answer.rounds[0].numbers) == list(range(1, 13))
        assert answer.rounds[0].generated.endswith(("<|object_ref_end|>", "<End-of-Retrieve>"))
        assert [r.numbers for r in answer.rounds[1:]] in ([], [[]])


@pytest.mark.parametrize("max_rounds", [0, 1, 2])
def test_rounds_are_bounded(writer, max_rounds):
    answer = writer.ask(["Which?"], AskOptions(max_rounds=max_rounds, max_new_tokens=2, retrieval="generative"))[0]
    assert len(answer.rounds) == max_rounds
    assert len(answer.sources) == 16 * max_rounds
    assert answer.usage.completion_tokens >= 2


def test_later_rounds_read_the_texts_of_earlier_ones(writer, monkeypatch):
    prompts = []
    original = Decoding.__init__

    def noting(self, lm, given, **options):
        prompts.append([writer.model.protocol.decode_all(prompt.ids) for prompt in given])
        original(self, lm, given, **options)

    monkeypatch.setattr(Decoding, "__init__", noting)
    scripted(monkeypatch, writer, "[4][17]<|object_ref_end|>", "[9]<|object_ref_end|>", "<End-of-Retrieve>", "fine")
    answer = writer.ask(["Which?"], AskOptions(retrieval="generative"))[0]
    assert [r.retrieved for r in answer.rounds] == [["d4", "d17"], ["d9"], []]
    assert answer.text == "fine"
    assert [len(given) for given in prompts] == [1, 1, 1]  # the answer goes on from the cache
    assert TEXTS["d4"] not in prompts[0][0]
    assert all(TEXTS[name] in prompts[1][0] for name in ("d4", "d17"))
    assert all(TEXTS[name] in prompts[2][0] for name in ("d4", "d17", "d9"))


def test_unconstrained_ids_that_do_not_exist_are_ignored(writer, monkeypatch):
    scripted(monkeypatch, writer, "[99][4][x][4][0][17]<|object_ref_end|>", "[4]<|object_ref_end|>", "fine")
    answer = writer.ask(["Which?"], AskOptions(retrieval="generative", constrain_ids="none"))[0]
    assert [r.numbers for r in answer.rounds] == [[4, 17], []]
    assert answer.text == "fine"


@pytest.mark.parametrize("where", [None, {"half": 1}])
def test_unconstrained_ids_of_documents_that_may_not_be_selected_are_ignored(tmp_path, monkeypatch, where):
    memory, _ = open_engine(writes_ids(), tmp_path / "memory", dict(list(TEXTS.items())[:6]))
    with memory:
        memory.delete(["d3"])
        engine = Engine(memory.model, BankView(memory.bank))
        scripted(monkeypatch, engine, "[3][4]<|object_ref_end|>" if where is None else "[1][4]<|object_ref_end|>")
        options = AskOptions(retrieval="generative", constrain_ids="none", where=where)
        assert engine.ask(["Which?"], options)[0].rounds[0].numbers == [4]


def test_ids_can_be_constrained_to_the_selected_documents(writer):
    answer = writer.ask(["Which?"], AskOptions(retrieval="generative", constrain_ids="selected", max_rounds=1))[0]
    turn = writer.model.protocol.question_turn("Which?")
    with torch.inference_mode():
        routing = writer.model.lm(
            torch.tensor([turn.ids]),
            routing_mask=torch.tensor([turn.marked]),
            memory=writer.library,
            prefix=writer.model.prefix,
        ).routing
    indices = {int(index) for layer in routing.values() for index in layer.doc_indices[0]}
    assert set(answer.rounds[0].numbers) == {int(writer.library.numbers[index]) for index in indices}


def test_ids_can_be_weighed_by_their_routing_scores(tmp_path):
    """As sharply as the temperature says: nearly at 0 the routers alone decide, whatever the model would write."""
    model = writes_ids(protocol={"retrieval": "generative", "constrain_ids": "weighed"})
    model.lm.temperature.data.fill_(0.001)
    memory, engine = open_engine(model, tmp_path / "memory")
    with memory:
        answer = engine.ask(["Which?"], AskOptions(max_rounds=1, max_new_tokens=1))[0]
        plain = engine.ask(["Which?"], AskOptions(max_rounds=1, max_new_tokens=1, constrain_ids="selected"))[0]
    selected = {number for numbers in answer.rounds[0].votes.values() for number in numbers}
    assert set(answer.rounds[0].numbers) == selected
    assert answer.rounds[0].numbers == [hit.number for hit in sorted(answer.sources, key=lambda hit: -hit.score)]
    assert plain.rounds[0].numbers != answer.rounds[0].numbers


@pytest.mark.parametrize("constrain_ids", ["existing", "selected", "weighed", "none"])
def test_a_checkpoint_says_which_ids_can_be_written_where_a_question_does_not(tmp_path, constrain_ids):
    model = tiny_model(protocol={"retrieval": "generative", "constrain_ids": constrain_ids}, top_k_docs=2)
    memory, engine = open_engine(model, tmp_path / "memory")
    with memory:
        own, said = (
            engine.ask(["Which?"], AskOptions(max_new_tokens=3, max_rounds=1, constrain_ids=how))[0]
            for how in (None, constrain_ids)
        )
        assert own.rounds[0].generated == said.rounds[0].generated
    with pytest.raises(ValueError, match="constrain_ids must be one of existing, selected, weighed, none, got 'any'"):
        tiny_model(protocol={"constrain_ids": "any"})


def test_where_restricts_the_ids_that_are_written(writer):
    answer = writer.ask(["Which?"], AskOptions(retrieval="generative", where={"half": 1}, max_new_tokens=1))[0]
    assert len(answer.sources) >= 16
    assert {source.metadata["half"] for source in answer.sources} == {1}


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
@pytest.mark.parametrize("after", [0, 3])
def test_cancelling_stops_between_two_tokens(writer, retrieval, after):
    pieces = []
    options = AskOptions(retrieval=retrieval, max_rounds=0 if after else 4, max_new_tokens=200)
    *events, done = writer.stream("Which?", options, lambda: len(pieces) >= after or pieces.append(0) or False)
    assert done.answer.finish_reason == "cancelled"
    assert done.answer.usage.completion_tokens in ((after - 1, after) if after else (0,))
    assert sum(isinstance(event, TextPiece) for event in events) <= after + 1


def test_cancelling_while_ids_are_written(writer):
    asked = []
    options = AskOptions(retrieval="generative")
    *events, done = writer.stream("Which?", options, lambda: asked.append(0) or len(asked) > 5)
    assert done.answer.finish_reason == "cancelled"
    assert done.answer.text == ""
    assert done.answer.sources == []
    assert [type(event) for event in events] == [RoundStarted]


@pytest.mark.parametrize("until", [RoundStarted, DocumentRetrieved, TextPiece])
def test_a_stream_can_be_closed_anywhere(writer, monkeypatch, until):
    drawn = []
    draw = Decoding._draw
    monkeypatch.setattr(Decoding, "_draw", staticmethod(lambda *a: drawn.append(1) or draw(*a)))
    stream = writer.stream("Which?", AskOptions(max_new_tokens=300, max_rounds=1))
    for event in stream:
        if isinstance(event, until):
            break
    before = len(drawn)
    stream.close()
    assert list(stream) == []
    assert len(drawn) == before
    assert writer.ask(["Which?"], AskOptions(max_rounds=0, max_new_tokens=2))[0].usage.completion_tokens == 2


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
def test_seeds_make_random_answers_repeatable(engine, retrieval):
    def text(**sampling):
        options = AskOptions(retrieval=retrieval, max_new_tokens=16, sampling=Sampling(**sampling))
        return engine.ask(["Which?"], options)[0].text

    first = text(temperature=1.0, seed=1)
    assert text(temperature=1.0, seed=1) == first
    assert text(temperature=1.0, seed=2) != first
    assert text() == text(seed=4)
    assert text() != first


def test_stop_strings_end_the_answer(engine, monkeypatch):
    for stop in ((), ("END",), ("nothing", "D of")):
        scripted(monkeypatch, engine, "<|object_ref_end|>", "before END of it, after")
        *events, done = engine.stream("Which?", AskOptions(retrieval="generative", stop=stop))
        text = "before END of it, after"
        expected = text[: min((text.index(string) for string in stop if string in text), default=None)].rstrip()
        assert done.answer.text == expected
        assert "".join(event.text for event in events if isinstance(event, TextPiece)).rstrip() == expected
        assert done.answer.finish_reason == "stop"
        assert (done.answer.usage.completion_tokens < len(text)) == bool(stop)


def test_a_stop_string_that_ends_with_the_last_token_allowed(engine, monkeypatch):
    scripted(monkeypatch, engine, "<|object_ref_end|>", "before END of it, after")
    options = AskOptions(retrieval="generative", stop=("END",), max_new_tokens=len("before END"))
    *_, done = engine.stream("Which?", options)
    assert done.answer.usage.completion_tokens == len("before END") + 1  # the round wrote a token too
    assert done.answer.finish_reason == "stop"


def test_one_row_that_stops_does_not_stop_the_others(engine):
    options = AskOptions(retrieval="routed", max_new_tokens=16)
    whole = engine.ask(QUESTIONS, options)
    stop = whole[0].text[4]
    stopped = engine.ask(QUESTIONS, dataclasses.replace(options, stop=(stop,)))
    for before, after in zip(whole, stopped, strict=True):
        assert after.text == before.text.split(stop)[0].strip()
        assert after.finish_reason == ("stop" if stop in before.text else "length")
    assert stopped[0].usage.completion_tokens < 16


LONG = {"long": " ".join(f"word{i}" for i in range(100)), "tall": "Z" * 500, "short": "short text"}


def test_routed_documents_are_cut_to_the_context(tmp_path):
    memory, engine = open_engine(tiny_model(max_position_embeddings=600), tmp_path / "memory", LONG)
    with memory:
        options = AskOptions(retrieval="routed", max_new_tokens=20, max_documents=3)
        answer = engine.ask(["Which?"], options)[0]
        notes = " | ".join(answer.notes)
        assert "was shortened from" in notes or "left out, because the model's context is full" in notes
        assert answer.usage.prompt_tokens + 20 <= 600
        assert answer.usage.prompt_tokens > 400  # the room is used
        read = [source.id for source in answer.sources if source.read]
        assert 0 < len(read) <= 3
        assert {source.id for source in answer.sources} == set(LONG)
        for name in LONG:
            assert name in read or name in notes.partition("left out")[2]


def test_generative_documents_are_cut_to_the_context(tmp_path):
    model = writes_ids(max_position_embeddings=900)
    memory, engine = open_engine(model, tmp_path / "memory", LONG)
    with memory:
        answer = engine.ask(["Which?"], AskOptions(retrieval="generative", max_new_tokens=20))[0]
        notes = " | ".join(answer.notes)
        assert "was shortened from" in notes
        assert "left out, because the model's context is full" in notes
        prompt = answer.usage.prompt_tokens + len(model.protocol.prefix_ids) + model.lm.config.top_k_docs
        assert 600 < prompt + 20 <= 900


def test_a_document_that_did_not_fit_is_reported_once(tmp_path):
    memory, engine = open_engine(writes_ids(max_position_embeddings=900), tmp_path / "memory", LONG)
    with memory:
        answer = engine.ask(["Which?"], AskOptions(retrieval="generative", max_new_tokens=20))[0]
        assert len({source.id for source in answer.sources}) == len(answer.sources)


def test_a_routed_answer_opens_with_the_lead(tmp_path, monkeypatch):
    lead = "According to {title}: "
    model = tiny_model(protocol={"retrieval": "routed", "reader_lead": lead})
    memory, engine = open_engine(model, tmp_path / "memory", dict(list(TEXTS.items())[:5]))
    with memory:
        scripted(monkeypatch, engine, "seventeen and nine")
        *events, done = engine.stream("Which?")
        pieces = [event.text for event in events if isinstance(event, TextPiece)]
        assert done.answer.text == f"According to {done.answer.sources[0].title}: seventeen and nine"
        assert "".join(pieces) == done.answer.text


def test_nothing_is_noted_where_everything_fits(engine):
    assert engine.ask(["Which?"], AskOptions(retrieval="routed", max_new_tokens=2))[0].notes == []


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
def test_a_question_too_long_for_the_context_is_refused(tmp_path, retrieval):
    memory, engine = open_engine(tiny_model(max_position_embeddings=900), tmp_path / "memory", LONG)
    with memory:
        options = AskOptions(retrieval=retrieval, max_new_tokens=20)
        with pytest.raises(ValueError, match="does not fit this model's context of 900 tokens"):
            engine.ask(["too long " * 100], options)
        with pytest.raises(ValueError, match="does not fit"):
            engine.ask(["fine"], dataclasses.replace(options, max_new_tokens=900))
        assert engine.ask(["fine"], options)[0].text


def test_retrieval_is_the_checkpoints_own_unless_asked_otherwise(tmp_path):
    model = tiny_model(protocol={"retrieval": "routed", "reader_documents": 2, "source_documents": 3})
    memory, engine = open_engine(model, tmp_path / "memory")
    with memory:
        own = engine.ask(["Which?"], AskOptions(max_new_tokens=4))[0]
        assert [hit.read for hit in own.sources] == [True, True, False]
        assert [hit.id for hit in own.sources] == [hit.id for hit in engine.search(["Which?"], 3)[0]]
        assert own.rounds[0].generated == ""
        more = engine.ask(["Which?"], AskOptions(max_new_tokens=4, max_documents=5))[0]
        assert all(hit.read for hit in more.sources)
        assert [hit.id for hit in more.sources] == [hit.id for hit in engine.search(["Which?"], 5)[0]]
        other = engine.ask(["Which?"], AskOptions(max_new_tokens=4, retrieval="generative"))[0]
        assert other.rounds[0].generated != ""


@pytest.mark.parametrize(
    ("field", "value"),
    [("retrieval", "both"), ("constrain_ids", "some"), ("max_rounds", -1), ("max_new_tokens", 0)],
)
def test_bad_options_are_refused(engine, field, value):
    with pytest.raises(ValueError, match=field):
        engine.ask(["Which?"], AskOptions(**{field: value}))


def test_a_negative_number_of_documents_is_refused(engine):
    with pytest.raises(ValueError, match="max_documents"):
        engine.ask(["Which?"], AskOptions(max_documents=-1, retrieval="routed"))


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
def test_search_orders_by_the_mean_over_layers(tmp_path, retrieval):
    model = tiny_model(protocol={"retrieval": retrieval}, router_layers=[1, 2, 3])
    memory, engine = open_engine(model, tmp_path / "memory")
    with memory, torch.inference_mode():
        for question, hits in zip(QUESTIONS, engine.search(QUESTIONS, 7), strict=True):
            turn = model.protocol.question_turn(question)
            inputs = {"routing_mask": torch.tensor([turn.marked]), "memory": engine.library, "prefix": model.prefix}
            ids = torch.tensor([turn.ids])
            routing = model.lm.route(ids, **inputs) if retrieval == "routed" else model.lm(ids, **inputs).routing
            per_layer = [routing[layer].doc_scores[0].tolist() for layer in (1, 2, 3)]
            scores = [sum(column) / 3 for column in zip(*per_layer, strict=True)]
            best = sorted(range(len(TEXTS)), key=lambda index: -scores[index])[:7]
            assert [hit.number for hit in hits] == [index + 1 for index in best]
            assert [hit.score for hit in hits] == pytest.approx([scores[index] for index in best], abs=1e-5)
