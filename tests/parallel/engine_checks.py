"""What every rank checks of the engine: over a sharded library it answers as over one process's.

Each function runs on all ranks at once and takes their :class:`msa.parallel.Ranks`.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from layouts import layouts
from tiny import tiny_model
from torch import Tensor

from msa import Answer, AskOptions, Engine, Hit, Memory, MemoryView, Sampling
from msa.bank import Part, StoredPart
from msa.encoding import encode_in_batches
from msa.model import DocumentMemory
from msa.parallel import Ranks, ShardedLibrary, end_encoding, follow_encoding
from msa.routing import BankView

QUESTIONS = ["Why?", "Which of the documents speaks about the number seventeen?"]
TEXTS = {f"d{i}": f"{i} is the number of a moon "[: 8 + 3 * i % 20] for i in range(1, 24)}

GONE = 9  # a number whose text is no longer there


class TextsInRam(DocumentMemory):
    """A :class:`msa.routing.Library` of encoded texts without a folder; document ``i`` has number ``numbers[i]``."""

    chunk_size = 4
    numbers: np.ndarray

    @classmethod
    def of(cls, memory: DocumentMemory, numbers: list[int]) -> TextsInRam:
        library = cls(memory.keys, memory.values, memory.routing_keys, memory.chunk_offsets)
        library.numbers = np.array(numbers, dtype=np.int64)
        return library

    def parts(self, numbers: Any) -> list[StoredPart | None]:
        names, texts = list(TEXTS), list(TEXTS.values())
        return [
            None
            if n == GONE
            else StoredPart(
                part=Part(number=n, start=0, end=len(texts[n - 1]), num_tokens=len(texts[n - 1]), num_chunks=1),
                document_id=names[n - 1],
                index=0,
                num_parts=1,
                text=texts[n - 1],
                metadata={"title": f"ünï {n}", "half": n % 2},
            )
            for n in numbers
        ]

    def live_mask(self, where: Any) -> Tensor:
        return torch.tensor([n != 7 and (not where or n % 2 == where["half"]) for n in self.numbers.tolist()]).bool()


def writes_ids() -> Any:
    """A random model that would rather write brackets and digits than anything else."""
    model = tiny_model()
    vocabulary = model.tokenizer.get_vocab()
    favoured = torch.tensor([vocabulary[piece] for piece in "[]0123456789"])
    model.lm.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits.index_add(
            -1, favoured, logits.new_full((*logits.shape[:-1], len(favoured)), 40.0)
        )
    )
    return model


OPTIONS = (
    AskOptions(retrieval="generative", max_rounds=2, max_new_tokens=4),
    AskOptions(retrieval="generative", max_rounds=1, max_new_tokens=4, constrain_ids="weighed"),
    AskOptions(retrieval="routed", max_new_tokens=4, where={"half": 1}, sampling=Sampling(temperature=0.8, seed=5)),
)
RECORDS = [{"id": name, "text": text, "metadata": {"half": i % 2}} for i, (name, text) in enumerate(TEXTS.items())]


@cache
def latents() -> tuple[Any, DocumentMemory]:
    """The model that answers, and the latents of all texts."""
    model = writes_ids()
    return model, encode_in_batches(
        model.lm, [model.protocol.document_ids(number, text) for number, text in enumerate(TEXTS.values(), 1)]
    )


def answers(engine: Engine) -> list[Answer]:
    return [answer for options in OPTIONS for answer in engine.ask(QUESTIONS, options)]


@cache
def answers_in_ram() -> tuple[list[Answer], list[list[Hit]]]:
    """What one process answers and finds, over texts in RAM."""
    model, memory = latents()
    engine = Engine(model, TextsInRam.of(memory, list(range(1, len(TEXTS) + 1))))
    return answers(engine), engine.search(QUESTIONS, 5)


@cache
def answers_over_a_folder() -> list[Answer]:
    """What one process answers over a folder of all texts."""
    model, _ = latents()
    with TemporaryDirectory() as folder, Memory.open(folder, model) as memory:
        memory.add(RECORDS)
        return answers(Engine(model, BankView(memory.bank)))


def assert_same_hits(found: list[Hit], expected: list[Hit]) -> None:
    for hit, other in zip(found, expected, strict=True):
        assert hit.score == pytest.approx(other.score, abs=1e-5)
        assert dataclasses.replace(hit, score=0.0) == dataclasses.replace(other, score=0.0)


def assert_same_answers(found: list[Answer], expected: list[Answer]) -> None:
    for answer, other in zip(found, expected, strict=True):
        assert_same_hits(answer.sources, other.sources)
        assert other.sources
        assert dataclasses.replace(answer, timings={}, sources=[]) == dataclasses.replace(other, timings={}, sources=[])


def check_engine(ranks: Ranks) -> None:
    """Answers and searches over texts in RAM, scattered over the ranks."""
    model, memory = latents()
    *_, layout = layouts(ranks.world, len(TEXTS))
    mine = layout[ranks.rank]
    local = TextsInRam.of(memory.select(torch.tensor(mine, dtype=torch.int64)), [i + 1 for i in mine])
    engine = Engine(model, ShardedLibrary(local, ranks, mine))
    assert isinstance(engine.library, MemoryView)
    assert engine.library.numbers.tolist() == list(range(1, len(TEXTS) + 1))
    assert engine.library.chunk_size == 4
    assert [None if part is None else part.document_id for part in engine.library.parts([8, GONE, 1])] == [
        "d8",
        None,
        "d1",
    ]
    backwards = TextsInRam.of(memory.select(torch.tensor(mine, dtype=torch.int64)), [len(TEXTS) - i for i in mine])
    parts = ShardedLibrary(backwards, ranks, mine).parts([8, 99, 23, 1])  # numbers need not ascend
    assert [None if part is None else part.document_id for part in parts] == ["d8", None, "d23", "d1"]
    expected, found = answers_in_ram()
    assert_same_answers(answers(engine), expected)
    for hits, others in zip(engine.search(QUESTIONS, 5), found, strict=True):
        assert_same_hits(hits, others)
        assert "d7" not in [hit.id for hit in hits]
    if ranks.world > 1:
        with pytest.raises(
            ValueError, match=r"must have different numbers, found 1 that several have, the first is 5\."
        ):
            ShardedLibrary(TextsInRam.of(memory.select(torch.tensor([4])), [5]), ranks)


def check_engine_over_folders(ranks: Ranks) -> None:
    """2 and 4 ranks: each has a copy of the folder without the documents of the others; one is left with none."""
    sizes = {2: [9, 14], 4: [0, 5, 8, 10]}.get(ranks.world)
    if sizes is None:
        return
    model, _ = latents()
    start = sum(sizes[: ranks.rank])
    mine = list(TEXTS)[start : start + sizes[ranks.rank]]
    with TemporaryDirectory() as folder, Memory.open(folder, model) as memory:
        memory.add(RECORDS)
        memory.delete([name for name in TEXTS if name not in mine])
        memory.compact()
        view = BankView(memory.bank)
        assert view.num_documents == len(mine)
        library = ShardedLibrary(view, ranks)
        assert_same_answers(answers(Engine(model, library)), answers_over_a_folder())
        parts = library.parts([23, 1, 12])
        assert [part.document_id for part in parts if part] == ["d23", "d1", "d12"]
        assert [part.part.number for part in parts if part] == [23, 1, 12]
        assert library.parts([]) == []
        deleted = [1 + sum(sizes[:rank]) for rank in range(ranks.world) if sizes[rank]]
        memory.delete(mine[:1])
        live = ShardedLibrary(BankView(memory.bank), ranks).live_mask()
        assert (~live).nonzero().flatten().tolist() == [number - 1 for number in deleted]


def check_one_folder(ranks: Ranks) -> None:
    """Rank 0 writes a folder and the others help it encode; then each loads its share of it and all answer."""
    model, _ = latents()
    with TemporaryDirectory() as temporary:
        name = torch.tensor(list(temporary.encode()), dtype=torch.uint8)
        folder = Path(bytes(ranks.gather(name)[0].tolist()).decode()) / "memory"
        if ranks.rank == 0:
            with Memory.open(folder, model, ranks=ranks) as memory:
                memory.add(RECORDS[:10])  # two segments
                memory.add(RECORDS[10:])
                end_encoding(ranks)
        else:
            follow_encoding(model.lm, ranks)
        assert_same_latents(ranks, folder)
        with Memory.open(folder, model, read_only=True, ranks=ranks) as memory:
            found = [answer for options in OPTIONS for answer in memory._current_engine().ask(QUESTIONS, options)]
            assert_same_answers(found, answers_over_a_folder())
            shares = ranks.gather(torch.tensor([memory._current_engine().library.local.num_documents]))
            assert sum(int(share) for share in shares) == len(TEXTS)
            assert max(shares) - min(shares) <= 2
            hybrid = memory.search(QUESTIONS[1], 5, {"half": 1}, hybrid=True)
            assert_same_hits(hybrid, hybrid_over_a_folder())
        ranks.gather(name[:1])  # the folder goes when all are done


def assert_same_latents(ranks: Ranks, folder: Path) -> None:
    """What the ranks encoded together is what one process encodes."""
    if ranks.rank:
        return
    model, _ = latents()
    with TemporaryDirectory() as other, Memory.open(other, model) as alone, Memory.open(folder, model) as together:
        alone.add(RECORDS[:10])
        alone.add(RECORDS[10:])
        for one, two in zip(alone.bank.segments(), together.bank.segments(), strict=True):
            assert torch.equal(one.numbers, two.numbers)
            for layer in together.bank.spec.layers:
                for kind in ("keys", "values", "routing_keys", "int8_routing_keys"):
                    assert torch.equal(one.tensor(kind, layer), two.tensor(kind, layer))


@cache
def hybrid_over_a_folder() -> list[Hit]:
    """What one process finds with exact words."""
    model, _ = latents()
    with TemporaryDirectory() as folder, Memory.open(folder, model) as memory:
        memory.add(RECORDS[:10])
        memory.add(RECORDS[10:])
        return memory.search(QUESTIONS[1], 5, {"half": 1}, hybrid=True)
