"""What one question costs from end to end, counted while it is answered, against the formulas: a guard on counts.

Seconds depend on the machine. These numbers do not: a change that reads the memory's keys once more, or makes a pass
that it need not, fails here.
"""

from dataclasses import dataclass, field

import pytest
from tiny import tiny_model

from msa import AskOptions, Engine, Memory
from msa.engine import Batcher, answer_together
from msa.evaluation.cost import Shape, counted_flops, decode_cost, fetch_cost, prefill_cost, route_cost
from msa.generation.decoding import Decoding
from msa.ops.route.blocks import ExactKeys
from msa.routing import BankView

NUM_DOCUMENTS = 9  # their numbers have one digit, so that all have as many chunks
NEW_TOKENS = 7


@dataclass
class Counts:
    """What was seen while questions were answered."""

    key_bytes: int = 0
    content_bytes: int = 0
    decodings: list = field(default_factory=list)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    memory = Memory.open(tmp_path_factory.mktemp("counts") / "memory", tiny_model())
    memory.add([{"id": f"d{i}", "text": f"document {i} speaks of moons"} for i in range(1, NUM_DOCUMENTS + 1)])
    assert memory.model.prefix.num_tokens  # encoded once, with the first question
    return Engine(memory.model, BankView(memory.bank))


@pytest.fixture
def counts(engine, monkeypatch):
    """Instruments on the memory's keys, on what it fetches, and on what is decoded."""
    seen = Counts()
    rows, fetch, init = ExactKeys.rows, engine.library.fetch, Decoding.__init__

    def reading(self, start, stop, *given, **named):
        seen.key_bytes += self.keys[start:stop].nbytes
        return rows(self, start, stop, *given, **named)

    def fetching(*given):
        selected = fetch(*given)
        seen.content_bytes += selected.keys.nbytes + selected.values.nbytes
        return selected

    def opening(self, *given, **named):
        init(self, *given, **named)
        (row,) = self.rows
        # the transcript grows on
        seen.decodings.append((row, len(row.prompt.ids), sum(row.prompt.routes)))

    monkeypatch.setattr(ExactKeys, "rows", reading)
    monkeypatch.setattr(engine.library, "fetch", fetching)
    monkeypatch.setattr(Decoding, "__init__", opening)
    return seen


@pytest.fixture
def sizes(engine):
    """Of the model and the memory."""
    config, offsets = engine.model.lm.config, engine.library.chunk_offsets
    per_document = int(offsets[1])
    assert offsets.tolist() == [per_document * i for i in range(NUM_DOCUMENTS + 1)]
    return Shape.of(config, engine.model.lm.dtype), int(offsets[-1]), config.top_k_docs * per_document


def passes(shape, row, begun, selected):
    """Operations of the passes between a row's tokens after ``begun`` columns; none follows the last token."""
    return sum(decode_cost(shape, begun + i, selected).flops for i in range(1, len(row.generated)))


def test_a_routed_question(engine, counts, sizes):
    shape, num_chunks, _ = sizes
    options = AskOptions(retrieval="routed", max_new_tokens=NEW_TOKENS)
    flops = counted_flops(lambda: engine.ask(["Which?"], options))
    turn = engine.model.protocol.question_turn("Which?")
    asked, prefix = sum(turn.marked), engine.model.prefix.num_tokens
    routing = route_cost(shape, len(turn.ids), num_chunks, prefix=prefix, routing_tokens=asked)
    assert asked < len(turn.ids)  # those of the template do not route
    ((row, tokens, _),) = counts.decodings
    assert len(row.generated) == NEW_TOKENS
    assert flops == routing.flops + prefill_cost(shape, tokens, 0).flops + passes(shape, row, tokens, 0)
    assert counts.key_bytes == len(shape.router_layers) * num_chunks * shape.kv_size * shape.value_bytes
    assert counts.content_bytes == 0  # it reads texts, not latents


@pytest.mark.parametrize("max_rounds", [1, 2])
def test_a_generative_question(engine, counts, sizes, monkeypatch, max_rounds):
    shape, num_chunks, selected = sizes
    draw, wanted = Decoding._draw, iter(range(1, NUM_DOCUMENTS))
    written = []

    def writes_one_id(row, logits):
        """A document a round, so that each round reads one more text."""
        if row.prompt.allowed is None:
            return draw(row, logits)
        if not row.generated:
            written[:] = engine.model.protocol.template_ids(f"[{next(wanted)}]<|object_ref_end|>")
        return written[len(row.generated)]

    monkeypatch.setattr(Decoding, "_draw", staticmethod(writes_one_id))
    options = AskOptions(retrieval="generative", max_new_tokens=NEW_TOKENS, max_rounds=max_rounds)
    flops = counted_flops(lambda: engine.ask(["Which?"], options))
    assert len(counts.decodings) == max_rounds + 1
    prefix, routers = engine.model.prefix.num_tokens, len(shape.router_layers)
    expected, before = 0, 0
    for row, tokens, routed in counts.decodings:
        queries = 2 * tokens * routers * shape.hidden * shape.q_size
        scores = 2 * routed * routers * num_chunks * shape.kv_size
        expected += prefill_cost(shape, tokens, selected, prefix=prefix).flops + queries + scores
        expected += passes(shape, row, prefix + tokens, selected)
        # below the first router nothing of the transcript so far is computed again
        repeated = 2 * before * shape.layer_weights + 4 * before * (prefix + tokens) * shape.q_size
        expected -= shape.router_layers[0] * repeated
        before = tokens
    assert flops == expected
    prefills = len(counts.decodings)
    assert counts.key_bytes == prefills * routers * num_chunks * shape.kv_size * shape.value_bytes
    assert counts.content_bytes == prefills * fetch_cost(shape, selected).bytes


def test_questions_together_cost_what_they_cost_alone(engine, counts, sizes):
    """Attention apart, which has the columns of the longest row for all."""
    options = AskOptions(retrieval="routed", max_new_tokens=NEW_TOKENS)
    questions = ["Which?", "Who saw it?"]
    alone = counted_flops(lambda: [engine.ask([question], options) for question in questions])
    key_bytes, counts.key_bytes = counts.key_bytes, 0

    def together():
        steps = (engine.steps(question, options) for question in questions)
        for _ in answer_together(steps, Batcher(engine.model.lm, 2)):
            pass

    flops = counted_flops(together)
    assert counts.key_bytes == key_bytes
    assert alone <= flops < 1.02 * alone
