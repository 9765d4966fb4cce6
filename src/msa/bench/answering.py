"""Prefill and decoding beside transformers' ``generate``, and questions answered side by side beside one at a time."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from msa.bench.figures import Figure
from msa.bench.floors import reading, seconds_per_operation
from msa.bench.timing import Times, alternated, scaled, seconds_of, timer_of, times_of
from msa.bench.twin import transformers_twin
from msa.engine import Batcher, Engine, answer_together
from msa.generation.decoding import Decoding, Prompt
from msa.generation.options import AskOptions
from msa.generation.types import Answer, Done
from msa.memory import Memory
from msa.model import MSAForCausalLM
from msa.model.bundle import MSAModel
from msa.routing import BankView

PROMPT_TOKENS = 128
_FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. "
_TOKEN_IDS = (100, 40000)


def needle_documents(count: int) -> list[dict[str, str]]:
    """Texts with one needle each, of different lengths."""
    needle = "One of the special magic numbers for place-{i} is: {number}. "
    return [
        {"id": f"d{i}", "text": _FILLER * (i % 4) + needle.format(i=i, number=1000003 * (i + 1) % 9999991) + _FILLER}
        for i in range(count)
    ]


def needle_questions(count: int, num_documents: int) -> list[str]:
    """One question for each needle, again from the first when there are no more."""
    return [
        f"What is the special magic number for place-{i % num_documents} mentioned in the provided text?"
        for i in range(count)
    ]


@torch.inference_mode()
def decoding_rounds(model: MSAModel, twin: Any | None, repeats: int, num_tokens: int = 64) -> dict[str, list[float]]:
    """Seconds of each round: ``prefill`` of a prompt up to its first token, and ``decode`` of each later one, greedily.

    Where there is a twin, the same of its ``generate`` as ``transformers prefill`` and ``transformers decode``.
    """
    vocabulary = model.lm.config.vocab_size
    low, high = _TOKEN_IDS if vocabulary >= _TOKEN_IDS[1] else (0, vocabulary)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(low, high, (1, PROMPT_TOKENS), generator=generator).to(model.device)

    def ours() -> tuple[float, float]:
        started: list[Iterator[object]] = []

        def first() -> None:
            rows = Decoding(model.lm, [Prompt(ids=prompt[0].tolist(), max_new_tokens=num_tokens)]).run()
            next(rows)
            started.append(rows)

        prefill = seconds_of(first)
        return prefill, seconds_of(lambda: list(started[0])) / (num_tokens - 1)

    def theirs() -> tuple[float, float]:
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        first = seconds_of(lambda: twin.generate(prompt, max_new_tokens=1, **options))  # type: ignore[union-attr]
        every = seconds_of(lambda: twin.generate(prompt, max_new_tokens=num_tokens, **options))  # type: ignore[union-attr]
        return first, (every - first) / (num_tokens - 1)

    works = {"": ours} if twin is None else {"": ours, "transformers ": theirs}
    found: dict[str, list[float]] = {f"{name}{part}": [] for name in works for part in ("prefill", "decode")}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            for part, seconds in zip(("prefill", "decode"), work(), strict=True):
                found[f"{name}{part}"].append(seconds)
    return found


def alone(engine: Engine, asked: Sequence[str], options: AskOptions) -> list[Answer]:
    """One question after the other, without a batcher."""
    return [engine.ask([question], options)[0] for question in asked]


class CountingBatcher(Batcher):
    """Notes in ``served`` of how many questions each pass was."""

    def __init__(self, lm: MSAForCausalLM, max_rows: int) -> None:
        super().__init__(lm, max_rows)
        self.served: list[int] = []

    def advance(self, waiting: Sequence[Decoding]) -> list[Decoding]:
        """As :meth:`msa.engine.Batcher.advance`."""
        served = super().advance(waiting)
        if served:
            self.served.append(len(served))
        return served


def side_by_side(
    engine: Engine, asked: Sequence[str], options: AskOptions, rows: int
) -> tuple[list[Answer], list[int]]:
    """As many questions at a time as there are rows; also of how many questions each pass was."""
    answers: dict[int, Answer] = {}
    batcher = CountingBatcher(engine.model.lm, rows)
    for index, event in answer_together((engine.steps(question, options) for question in asked), batcher):
        if isinstance(event, Done):
            answers[index] = event.answer
    return [answers[index] for index in range(len(asked))], batcher.served


def question_rounds(
    engine: Engine, asked: Sequence[str], options: AskOptions, concurrent: Sequence[int], repeats: int
) -> tuple[dict[str, list[float]], dict[str, tuple[list[Answer], list[int]]]]:
    """``one at a time``, and each ``n concurrent``: seconds of all questions in each round, and of the last round the
    answers and of how many questions each pass was.
    """
    found: dict[str, tuple[list[Answer], list[int]]] = {}

    def keeping(name: str, work: Callable[[], tuple[list[Answer], list[int]]]) -> Callable[[], None]:
        return lambda: found.update({name: work()})

    works = {"one at a time": keeping("one at a time", lambda: (alone(engine, asked, options), [1]))}
    for rows in concurrent:
        name = f"{rows} concurrent"
        works[name] = keeping(name, lambda rows=rows: side_by_side(engine, asked, options, rows))  # type: ignore[misc]
    alone(engine, asked[:2], options)
    return alternated(works, repeats), found


def weight_stream(model: MSAModel, repeats: int) -> Times:
    """Seconds of reading once what one token needs: every weight but the routers', and embeddings only where they are
    the output's too.
    """
    left_out = ("rout", "temperature", *(() if model.lm.config.tie_word_embeddings else ("embed_tokens",)))
    weights = [weight for name, weight in model.lm.named_parameters() if not any(part in name for part in left_out)]
    num_bytes = sum(weight.nbytes for weight in weights)
    weights_at_once = torch.ones(num_bytes, dtype=torch.uint8, device=model.device)
    return timer_of(model.device)(reading(weights_at_once), repeats)


def bench_answering(model: MSAModel, concurrent: Sequence[int], questions: int, repeats: int) -> list[Figure]:
    """Prefill, decoding of one row, and questions together.

    Args:
        model: answers.
        concurrent: so many questions at a time.
        questions: asked of a memory of needles in each round.
        repeats: rounds.
    """
    stream = weight_stream(model, 5 * repeats)
    return [*_one_row(model, stream, repeats), *_questions(model, stream, concurrent, questions, repeats)]


def _one_row(model: MSAModel, stream: Times, repeats: int) -> list[Figure]:
    times = {name: times_of(r) for name, r in decoding_rounds(model, transformers_twin(model), repeats).items()}
    layers = sum(weight.numel() for weight in model.lm.model.layers.parameters())
    peak = scaled(seconds_per_operation(model.lm.dtype, model.device), 2 * layers * PROMPT_TOKENS)
    floors = {"prefill": {"weights once": stream, "peak": peak}, "decode": {"weights once": stream}}
    figures = []
    for part, amount in (("prefill", PROMPT_TOKENS), ("decode", 1)):
        name = f"transformers {part}"
        baselines = {"generate": times[name]} if name in times else {}
        figures.append(
            Figure(
                what=f"answering, {part}",
                times=times[part],
                baselines=baselines,
                floors=floors[part],
                amount=amount,
                unit="tokens",
                details={"prompt tokens": PROMPT_TOKENS},
            )
        )
    return figures


def _questions(model: MSAModel, stream: Times, concurrent: Sequence[int], questions: int, repeats: int) -> list[Figure]:
    """Each number of questions together beside one at a time; the floor is of the tokens of the answers alone."""
    num_documents, options = 4 * questions, AskOptions(max_new_tokens=32)
    with tempfile.TemporaryDirectory() as folder, Memory.open(Path(folder) / "memory", model) as memory:
        memory.add(needle_documents(num_documents))
        engine = Engine(model, BankView(memory.bank, model.device))
        asked = needle_questions(questions, num_documents)
        rounds, found = question_rounds(engine, asked, options, concurrent, repeats)
    first = times_of(rounds["one at a time"])
    figures = []
    for rows in concurrent:
        name = f"{rows} concurrent"
        answers, served = found[name]
        tokens = sum(answer.usage.completion_tokens for answer in answers)
        same = sum(a.text == b.text for a, b in zip(answers, found["one at a time"][0], strict=True))
        figures.append(
            Figure(
                what=f"answering, {rows} together",
                times=times_of(rounds[name]),
                baselines={"one at a time": first},
                floors={"weights once": scaled(stream, tokens / min(rows, questions))},
                amount=questions,
                unit="questions",
                details={
                    "answer tokens": tokens,
                    "documents": num_documents,
                    "questions a pass, mean": round(statistics.fmean(served), 1),
                    "questions a pass, most": max(served),
                    "texts as one at a time": same,
                },
            )
        )
    return figures
