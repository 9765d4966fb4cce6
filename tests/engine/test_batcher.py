"""Questions that are decoded together, each joining and leaving at its own time, get the answers they get alone."""

import dataclasses

import pytest
import torch
from tiny import tiny_model

import msa
from msa import AskOptions, Done, Engine, Sampling, TextPiece
from msa.engine import Batcher, answer_together
from msa.generation.decoding import Decoding, Prompt
from msa.model import RunningCache
from msa.routing import BankView

QUESTIONS = [
    "What is the special magic number for wandering-age mentioned in the provided text?",
    "hello",
    "Which numbers?",
    "ü",
    "What are all the special magic numbers for quiet-harbour mentioned in the provided text?",
]
TEXTS = [
    {"id": "ages", "text": "One of the special magic numbers for wandering-age is: 4216093."},
    {"id": "harbour", "text": "One of the special magic numbers for quiet-harbour is: 7711002. The sky is blue."},
    *({"id": f"d{i}", "text": f"document {i} speaks of numbers and moons " * (1 + i % 5)} for i in range(10)),
]


def open_engine(model, folder):
    memory = msa.Memory.open(folder, model)
    memory.add(TEXTS)
    return Engine(model, BankView(memory.bank))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """In float32, where sums in another order do not decide between tokens."""
    return open_engine(msa.load("msa-tiny", dtype="float32"), tmp_path_factory.mktemp("batcher") / "trained")


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """Its context columns have biases of their own, and its documents many different lengths."""
    return open_engine(tiny_model(routing_bias=True), tmp_path_factory.mktemp("batcher") / "random")


class Watched(Batcher):
    """Remembers how many rows each pass had."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.rows, self.usages, self.bytes = [], [], []

    def advance(self, waiting):
        served = super().advance(waiting)
        self.rows.append(len(self))
        self.usages.append(self.usage)
        self.bytes.append(self._cache.num_bytes)
        return served


def together(engine, options, batcher, questions=QUESTIONS):
    """The answers, in the order asked."""
    answers = {}
    steps = (engine.steps(question, chosen) for question, chosen in zip(questions, options, strict=True))
    for index, event in answer_together(steps, batcher):
        if isinstance(event, Done):
            answers[index] = event.answer
    assert len(batcher) == 0
    return [answers[index] for index in range(len(questions))]


def without_measures(answer):
    """Of scores the order is left: their last digits depend on what is computed beside them."""
    return dataclasses.replace(answer, timings={}, sources=[(source.id, source.read) for source in answer.sources])


def assert_as_alone(engine, options, answers):
    for question, chosen, answer in zip(QUESTIONS, options, answers, strict=True):
        (alone,) = engine.ask([question], chosen)
        assert without_measures(answer) == without_measures(alone)
    assert len({answer.text for answer in answers}) > 2


def staggered(least=4, **given):
    """Options of other lengths, so that rows leave at other times than they came."""
    given = {"constrain_ids": "selected", **given}
    return [AskOptions(max_new_tokens=least + 9 * i % 20, max_rounds=1 + i % 3, **given) for i in range(len(QUESTIONS))]


SEEDED = Sampling(temperature=0.9, top_p=0.9, seed=7)


@pytest.mark.parametrize(
    ("retrieval", "sampling", "max_rows"),
    [
        ("generative", Sampling(), 8),
        ("generative", SEEDED, 2),
        ("routed", Sampling(), 2),
        ("routed", SEEDED, 8),
        ("routed", Sampling(), 1),
    ],
)
def test_each_gets_what_it_gets_alone(random, retrieval, sampling, max_rows):
    options, batcher = staggered(retrieval=retrieval, sampling=sampling), Watched(random.model.lm, max_rows)
    assert_as_alone(random, options, together(random, options, batcher))
    assert max(batcher.rows) == {1: 0, 2: 2}.get(max_rows, max(3, *batcher.rows))


@pytest.mark.parametrize("retrieval", ["generative", "routed"])
def test_so_it_is_with_a_trained_model(trained, retrieval):
    # it quotes before it answers
    options, batcher = staggered(24, retrieval=retrieval), Watched(trained.model.lm, 3)
    answers = together(trained, options, batcher)
    assert_as_alone(trained, options, answers)
    assert max(batcher.rows) == 3
    if retrieval == "generative":
        assert answers[0].sources[0].id == "ages"


def test_modes_seeds_and_stop_strings_mix(random):
    chosen = [("generative", 0.0, ()), ("routed", 0.7, ("a",)), ("routed", 0.0, ()), ("generative", 1.0, ("e", "0"))]
    options = [
        AskOptions(retrieval=how, sampling=Sampling(temperature=heat, seed=i), stop=stop, max_new_tokens=20)
        for i, (how, heat, stop) in enumerate([*chosen, ("routed", 0.3, ("n",))])
    ]
    batcher = Watched(random.model.lm, 8)
    assert_as_alone(random, options, together(random, options, batcher))
    assert max(batcher.rows) > 2


def test_a_row_is_taken_back_where_the_answer_goes_on_from_its_cache(random, monkeypatch):
    tail = random.model.protocol.template_ids("<End-of-Retrieve>")
    draw, extend, extended = Decoding._draw, Decoding.extend, []

    def closes_first(row, logits):
        return draw(row, logits) if row.prompt.allowed is None else tail[len(row.generated)]

    monkeypatch.setattr(Decoding, "_draw", staticmethod(closes_first))
    monkeypatch.setattr(Decoding, "extend", lambda self, *a: extended.append(self._cache is None) or extend(self, *a))
    options, batcher = staggered(retrieval="generative"), Watched(random.model.lm, 8)
    answers = together(random, options, batcher)
    assert sum(extended) >= len(QUESTIONS) - 1  # all but the first, which was alone, came back from among others
    assert_as_alone(random, options, answers)


def test_each_consumer_gets_its_own_events_in_order(random):
    options = staggered(retrieval="routed")
    streams = {i: [] for i in range(len(QUESTIONS))}
    steps = [random.steps(question, chosen) for question, chosen in zip(QUESTIONS, options, strict=True)]
    for index, event in answer_together(steps, Batcher(random.model.lm, 3)):
        streams[index].append(event)
    for index, events in streams.items():
        alone = [*random.stream(QUESTIONS[index], options[index])]
        assert [type(event) for event in events] == [type(event) for event in alone]
        pieces = [[event.text for event in each if isinstance(event, TextPiece)] for each in (events, alone)]
        assert pieces[0] == pieces[1]


def test_one_is_cancelled_and_the_others_go_on(random):
    options = [AskOptions(retrieval="routed", max_new_tokens=12)] * 3
    pieces = []
    steps = [
        random.steps(question, chosen, (lambda: len(pieces) > 4) if i == 1 else None)
        for i, (question, chosen) in enumerate(zip(QUESTIONS, options, strict=False))
    ]
    answers = {}
    for index, event in answer_together(steps, Batcher(random.model.lm)):
        if isinstance(event, TextPiece) and index == 1:
            pieces.append(event)
        if isinstance(event, Done):
            answers[index] = event.answer
    assert answers[1].finish_reason == "cancelled"
    assert answers[1].usage.completion_tokens < 12
    for index in (0, 2):
        assert without_measures(answers[index]) == without_measures(random.ask([QUESTIONS[index]], options[0])[0])


@pytest.mark.parametrize("max_bytes", [0, 600_000])
def test_rows_that_do_not_fit_into_memory_wait(random, max_bytes):
    options, batcher = staggered(retrieval="generative"), Watched(random.model.lm, 8, max_bytes)
    assert_as_alone(random, options, together(random, options, batcher))
    assert max(batcher.rows) == (2 if max_bytes else 1)
    if max_bytes:
        assert 0.5 < max(batcher.usages) <= 1
        assert max(batcher.bytes) <= max_bytes


def test_all_that_are_there_at_once_are_decoded_together(random):
    options, batcher = [AskOptions(max_new_tokens=4, retrieval="routed")] * len(QUESTIONS), Watched(random.model.lm, 8)
    together(random, options, batcher)
    assert batcher.rows[0] == len(QUESTIONS)


def started(engine, tokens):
    """A prompt of so many tokens, read."""
    return Decoding(engine.model.lm, [Prompt(ids=[5 + i % 40 for i in range(tokens)], max_new_tokens=50)])


def decoded(lm, cache, lengths, passes=3):
    """What rows of these lengths get in so many passes."""
    return [cache.decode(lm, [7 + row for row in range(len(lengths))]) for _ in range(passes)]


def test_columns_of_rows_that_have_left_are_not_held(random):
    lm, lengths = random.model.lm, (9, 30, 12)
    cache, long = RunningCache(), started(random, 3000)
    cache.join(long.cache)
    for length in lengths:
        cache.join(started(random, length).cache)
    held = cache.num_bytes
    cache.leave(0)  # the last row takes its number
    assert cache.num_bytes < held / 5
    expected = RunningCache()
    for length in (12, 9, 30):
        expected.join(started(random, length).cache)
    for theirs, ours in zip(decoded(lm, expected, lengths), decoded(lm, cache, lengths), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_no_room_is_made_ahead_of_need_beyond_the_limit(random):
    lm = random.model.lm
    first = started(random, 300).cache
    limit = RunningCache.bytes_of(first, 5, 520)
    free, bounded = RunningCache(), RunningCache(limit)
    for cache in (free, bounded):
        for row in range(5):
            cache.join(started(random, 300 - row).cache)
    assert bounded.num_bytes <= limit < free.num_bytes
    lengths = range(5)
    for theirs, ours in zip(decoded(lm, free, lengths, 215), decoded(lm, bounded, lengths, 215), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert bounded.num_bytes <= limit


def test_a_wide_row_that_left_makes_no_later_ones_wide(random):
    """Short rows beside a long one had its columns; those that join once it has left do not, so the limit holds."""
    limit = RunningCache.bytes_of(started(random, 3000).cache, 2, 3300)
    cache = RunningCache(limit)
    cache.join(started(random, 3000).cache)
    cache.join(started(random, 10).cache)
    cache.leave(0)
    for _ in range(14):
        cache.join(started(random, 10).cache)
    assert cache.num_bytes <= limit


def test_a_pass_that_fails_can_be_made_again_with_fewer(random):
    options = [AskOptions(retrieval="routed", max_new_tokens=10)] * 3
    steps = [random.steps(question, chosen) for question, chosen in zip(QUESTIONS, options, strict=False)]
    batcher, waiting, answers = Batcher(random.model.lm), {}, {}
    layer = random.model.lm.model.layers[-1]

    def fails(module, given):
        if len(batcher) == 3:
            raise MemoryError("no room for three")

    hook = layer.register_forward_pre_hook(fails)
    try:
        while steps:
            for question in [question for question in steps if question not in waiting]:
                for item in question:
                    if isinstance(item, Decoding):
                        waiting[question] = item
                        break
                    if isinstance(item, Done):
                        answers[question] = item.answer
                else:
                    steps.remove(question)
            try:
                served = batcher.advance([*waiting.values()])
            except MemoryError:
                waiting.popitem()
                steps.pop().close()
            else:
                waiting = {question: item for question, item in waiting.items() if item not in served}
    finally:
        hook.remove()
    assert len(answers) == 2
    for question, answer in zip(QUESTIONS, answers.values(), strict=False):
        assert without_measures(answer) == without_measures(random.ask([question], options[0])[0])


def test_closing_frees_all_rows(random):
    batcher = Batcher(random.model.lm)
    events = answer_together((random.steps(question) for question in QUESTIONS), batcher)
    while len(batcher) < 2:
        next(events)
    events.close()
    assert (len(batcher), batcher.usage) == (0, 0.0)
    assert batcher.advance([]) == []


def test_what_one_question_raises_reaches_the_caller(random):
    batcher = Batcher(random.model.lm)
    with pytest.raises(ValueError, match="the question is empty"):
        [*answer_together((random.steps(question) for question in [*QUESTIONS[:2], " "]), batcher)]
    assert len(batcher) == 0


def test_a_row_that_is_not_a_number_harms_no_other(random):
    """Its place is taken by a shorter one later, whose hidden columns must not be what it left."""
    batcher, lm = Batcher(random.model.lm), random.model.lm
    prompts = [Prompt(ids=[5 + i] * length, max_new_tokens=9) for i, length in enumerate((40, 30, 3))]
    alone = [token for _, token in Decoding(lm, prompts[2:]).run()]
    broken, other, late = (Decoding(lm, [prompt]) for prompt in prompts)
    with torch.inference_mode():
        for layer in broken.cache.layers:
            layer.keys.fill_(float("nan"))
            layer.values.fill_(float("nan"))
    steps = {decoding: decoding.steps() for decoding in (broken, other, late)}
    for rows in ([other, broken], [other, late]):
        for _ in range(3):
            assert all(None in steps[decoding] for decoding in rows)  # each draws, and waits
            batcher.advance(rows)
    assert late.rows[0].generated == alone[:3]


def test_a_decoding_of_several_rows_is_refused(random):
    decoding = Decoding(random.model.lm, [Prompt(ids=[5, 6, 7]), Prompt(ids=[9])])
    with pytest.raises(ValueError, match="only decodings of a single row can be batched"):
        Batcher(random.model.lm).advance([decoding])


def test_a_row_with_padding_cannot_join(random):
    decoding = Decoding(random.model.lm, [Prompt(ids=[5, 6, 7]), Prompt(ids=[9])])
    with pytest.raises(ValueError, match="a single row without padding"):
        RunningCache().join(decoding.cache)


def test_at_least_one_row(random):
    with pytest.raises(ValueError, match="max_rows must be at least 1, got 0"):
        Batcher(random.model.lm, 0)
