"""Rank 0 leads and the others follow, in processes of their own; test_leading.py starts this, because it forks.

    python led_ranks.py FOLDER

Each scenario writes FOLDER/SCENARIO/R.json for every rank R that was not killed: what it saw, "wrong" if that was wrong.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_checks import QUESTIONS, RECORDS, assert_same_answers, assert_same_hits, writes_ids
from in_ranks import LOST_AFTER_S, ended, start

from msa import Done, Memory
from msa.engine import Batcher
from msa.errors import BankCorruptError, ParallelError
from msa.generation.decoding import Decoding
from msa.parallel import Leader, LedMemories, follow_memories, init_from_environment
from msa.routing import BankView, Tiers

MODEL = writes_ids()
MORE = [
    {"id": f"m{i}", "text": f"{i} more of them, " * (i % 4 + 1), "metadata": {"half": i % 2}} for i in range(40, 47)
]
ASKED: tuple[dict[str, Any], ...] = (
    {"retrieval": "generative", "max_rounds": 2, "max_new_tokens": 4},
    {"retrieval": "routed", "max_new_tokens": 4, "where": {"half": 1}, "temperature": 0.8, "seed": 5},
    {"retrieval": "routed", "max_new_tokens": 2, "hybrid": True, "where": {"half": 0}},
)


def made(root: Path) -> Path:
    """A folder with a memory ``notes`` of two segments."""
    with Memory.open(root / "notes", MODEL) as memory:
        memory.add(RECORDS[:15])
        memory.add(RECORDS[15:])
    return root


def led_memory(leader: Leader, root: Path, tiers: Tiers | None = None) -> Memory:
    """The memory ``root/notes``, of which every rank holds a share."""
    memory = Memory.open(root / "notes", MODEL, read_only=True, tiers=tiers)
    memory.open_view = LedMemories(leader, root).view
    return memory


def assert_answers_as_alone(led: Memory, tiers: Tiers | None = None, asked: Any = ASKED[1:2]) -> None:
    """A led memory answers and finds what this process alone does."""
    with Memory.open(led.bank.path, MODEL, read_only=True, tiers=tiers) as alone:
        for options in asked:
            assert_same_answers(led.ask_many(QUESTIONS, **options), alone.ask_many(QUESTIONS, **options))
        for where in (None, {"half": 7}):
            assert_same_hits(led.search("seventeen", 6, where), alone.search("seventeen", 6, where))


def as_alone(leader: Leader, root: Path) -> None:
    """Whatever is asked, while the memory changes in every way."""
    with led_memory(leader, root) as led, Memory.open(root / "notes", MODEL) as writer:
        assert_answers_as_alone(led, asked=ASKED)
        view: Any = led._current_engine().library
        assert 0 < view.local.num_documents < view.num_documents == len(RECORDS)
        before = writer.ask(QUESTIONS[0], **ASKED[0])
        begun = led.stream(QUESTIONS[0], **ASKED[0])
        next(begun)
        writer.add(MORE)
        assert_answers_as_alone(led)
        later: Any = led._current_engine().library
        assert later.local._segments[0] is view.local._segments[0], "what has not changed is not loaded again"
        writer.delete(["d3", "d4", "m41"])
        writer.add([{"id": "d5", "text": "Another text, and a longer one than before."}])
        assert_answers_as_alone(led)
        writer.compact()
        assert_answers_as_alone(led)
        writer.add([{"id": "one", "text": "A segment with fewer documents than ranks."}])
        assert_answers_as_alone(led)
        *_, done = begun  # a stream goes on over the version it began with
        assert_same_answers([done.answer], [before])  # type: ignore[union-attr]
        threads_ask(led)
    tiers = Tiers(routing_keys="mapped", content="ram")
    with led_memory(leader, root, tiers) as led:
        assert_answers_as_alone(led, tiers)
    eight = Tiers(routing_keys="int8")  # scores of documents far from the best are rounded, and more so in one process
    with led_memory(leader, root, eight) as led, Memory.open(root / "notes", MODEL, read_only=True) as alone:
        assert [hit.id for hit in led.search("seventeen", 3)] == [hit.id for hit in alone.search("seventeen", 3)]


def threads_ask(led: Memory) -> None:
    """Several threads at a time get what each gets alone."""
    expected = led.ask_many(QUESTIONS, **ASKED[0])
    found: dict[int, list[Any]] = {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: led.ask_many(QUESTIONS, **ASKED[0])}))  # type: ignore[misc]
        for n in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert_same_answers(found[number], expected)


def copies(leader: Leader, root: Path) -> None:
    """Rank 1 has a copy, which serves until one of them changes; that is an error, and not the end."""
    other = root.with_name("other")
    with led_memory(leader, root) as led:
        assert_answers_as_alone(led, asked=ASKED)
        with Memory.open(root / "notes", MODEL) as writer:
            writer.add(MORE[:1])
        with pytest.raises(ParallelError, match=r"different states of .*notes: .*manifest.* is missing.*on rank 1"):
            led.search("seventeen")
        shutil.rmtree(other / "notes")
        with pytest.raises(ParallelError, match=r"no memory at .*on rank 1"):
            led.search("seventeen")
        shutil.copytree(root / "notes", other / "notes")
        assert_answers_as_alone(led)
        shutil.rmtree(other / "notes")
        with Memory.open(made(other) / "notes", MODEL) as writer:
            writer.add([{"id": "x", "text": "Not what rank 0 has at this version."}])
    with (
        led_memory(leader, root) as led,
        pytest.raises(ParallelError, match=r"version 3 of .* is not that of rank 0"),
    ):
        led.search("seventeen")


def troubles(leader: Leader, root: Path) -> None:
    """What goes wrong on a rank alone is an error of that question, on rank 0; then all go on."""
    with led_memory(leader, root) as led:
        with pytest.raises(BankCorruptError, match=r"^the disk forgot \(on rank 1\)$"):
            led.search("seventeen")
        with pytest.raises(ParallelError, match=r"^ZeroDivisionError: a bug \(on rank 1\)$"):
            led.search("seventeen")
        with pytest.raises(MemoryError, match=r"^full \(on rank 1\)$"):
            led.ask(QUESTIONS[0], **ASKED[0])
        route, fetch = BankView.route, BankView.fetch
        try:
            BankView.route = failing(BankView.route, BankCorruptError("mine"))  # type: ignore[method-assign]
            BankView.fetch = failing(BankView.fetch, OSError("mine too"))  # type: ignore[method-assign]
            with pytest.raises(BankCorruptError, match="^mine$"):
                led.search("seventeen")
            with pytest.raises(OSError, match="^mine too$"):
                led.ask(QUESTIONS[0], **ASKED[0])
        finally:
            BankView.route, BankView.fetch = route, fetch  # type: ignore[method-assign]
        assert_answers_as_alone(led)
        for length in (4000, 4088, 4089, 20_000):  # around and beyond what travels at once
            leader.command("ping", lambda *_: None, filling="x" * length)
        for _ in range(3):  # neither silence nor signals end it
            os.kill(int((root / "pid").read_text()), signal.SIGTERM)
            os.kill(int((root / "pid").read_text()), signal.SIGINT)
            time.sleep(0.5 * LOST_AFTER_S)
        assert_answers_as_alone(led)


def side_by_side(leader: Leader, root: Path) -> None:
    """Questions that are decoded together; one fails on the other rank, one is called off, the memory changes."""
    options = [{**asked, "max_new_tokens": 7 + 3 * number} for number, asked in enumerate(ASKED)]
    with led_memory(leader, root) as led, Memory.open(root / "notes", MODEL) as alone:
        asked = [(question, each) for each in options for question in QUESTIONS]
        expected = [alone.ask(question, **each) for question, each in asked]
        assert_same_answers([led.ask(question, **each) for question, each in asked], expected)
        assert led.bank.fetched.total == alone.bank.fetched.total > 0, "all ranks together read what one reads"
        steps: dict[Any, Any] = {number: led.steps(question, **each) for number, (question, each) in enumerate(asked)}
        steps["called off"] = led.steps(QUESTIONS[0], **{**options[0], "max_new_tokens": 500})
        steps["broken"] = led.steps(QUESTIONS[1], **options[0])
        found = decoded_together(steps, root / "fail", alone)
        assert str(found["broken"]) == "full (on rank 1)"
        assert "called off" not in found
        assert_same_answers([found[number] for number in range(len(asked))], expected)
        assert_answers_as_alone(led)


def decoded_together(questions: dict[Any, Any], fail: Path, writer: Memory) -> dict[Any, Any]:
    """Each question's answer, or what it raised; while ``fail`` is there the other rank fails."""
    batcher, results, rows = Batcher(MODEL.lm, 8), {}, [0]
    waiting: dict[Any, Decoding] = {}
    while questions:
        for name in [name for name in questions if name not in waiting]:
            if name == "broken":
                fail.touch()
            try:
                while not isinstance(step := next(questions[name]), Decoding):
                    if isinstance(step, Done):
                        results[name] = step.answer
                waiting[name] = step
            except (StopIteration, MemoryError) as end:
                results.setdefault(name, end)
                del questions[name]
            fail.unlink(missing_ok=True)
        served = batcher.advance([*waiting.values()])
        waiting = {name: decoding for name, decoding in waiting.items() if decoding not in served}
        rows.append(len(batcher))
        if len(rows) == 4:
            questions.pop("called off").close()
            waiting.pop("called off", None)
            writer.add(MORE[:1])  # those that run stay with the version they began with
    assert max(rows) > 3, "they were decoded together"
    return results


def failing_while(file: Path, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, which fails as long as there is the file."""

    def call(*arguments: Any) -> Any:
        if file.exists():
            raise MemoryError("full")
        return method(*arguments)

    return call


def failing(method: Callable[..., Any], *raised: Exception) -> Callable[..., Any]:
    """The method, which first fails once with each of these."""
    coming = list(raised)

    def call(*arguments: Any) -> Any:
        if coming:
            raise coming.pop(0)
        return method(*arguments)

    return call


def run(scenario: Callable[[Leader, Path], None], root: Path, timeout_s: float) -> dict[str, str]:
    """One rank of a scenario."""
    with init_from_environment(timeout_s, "cpu") as ranks:
        if ranks.rank:
            follow_memories(ranks, prepared(scenario, root), timeout_s)
            return {}
        try:
            with Leader(ranks, timeout_s) as leader:
                scenario(leader, root)
                leader.close()
        except (Exception, pytest.fail.Exception):
            return {"wrong": traceback.format_exc()}
    return {}


def prepared(scenario: Callable[..., None], root: Path) -> Path:
    """What is special about the followers of a scenario; returns their folder."""
    if scenario is troubles:
        (root / "pid").write_text(str(os.getpid()))
        failures = BankCorruptError("the disk forgot"), ZeroDivisionError("a bug")
        BankView.route = failing(BankView.route, *failures)  # type: ignore[method-assign]
        BankView.fetch = failing(BankView.fetch, MemoryError("full"))  # type: ignore[method-assign]
    if scenario is side_by_side:
        BankView.fetch = failing_while(root / "fail", BankView.fetch)  # type: ignore[method-assign]
    return root.with_name("other") if scenario is copies else root


def lose(who: int, how: str, root: Path) -> dict[str, str]:
    """One of two ranks goes after the first question; says what the other one saw of it, and after how long."""
    number = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how]
    started = time.monotonic()
    try:
        ranks = init_from_environment(LOST_AFTER_S, "cpu")
        if ranks.rank:
            (root / f"pid-{who}-{how}").write_text(str(os.getpid()))
            follow_memories(ranks, root, LOST_AFTER_S)
            return {"error": ""}
        with Leader(ranks, LOST_AFTER_S) as leader, led_memory(leader, root) as led:
            lost = threading.Event()
            leader.on_lost = lost.set
            led.search("seventeen")
            started = time.monotonic()
            os.kill(os.getpid() if who == 0 else int((root / f"pid-{who}-{how}").read_text()), number)
            assert lost.wait(20), "an idle leader notices too"
            led.search("seventeen")
    except ParallelError as error:
        return {"error": str(error), "seconds": str(time.monotonic() - started)}
    return {"error": ""}


def main(folder: Path) -> None:
    """Lose ranks, all at once, as that is mostly waiting; then the scenarios after one another."""
    root = made(folder / "lost" / "root")
    lost = {
        (who, how): start(folder / f"{who}-{how}", 2, 2, lambda who=who, how=how: lose(who, how, root))  # type: ignore[misc]
        for who in (0, 1)
        for how in ("killed", "stopped")
    }
    for (who, how), children in lost.items():
        assert ended(children[1 - who]) == 0, (who, how)
        if how == "stopped":
            os.kill(children[who], signal.SIGKILL)
        assert ended(children[who]) == -signal.SIGKILL, (who, how)
    scenarios = ((as_alone, 3, 30.0), (copies, 2, 30.0), (side_by_side, 2, 30.0), (troubles, 2, LOST_AFTER_S))
    for number, (scenario, world, timeout_s) in enumerate(scenarios):
        own = folder / "data" / str(number)
        root = made(own / "root")
        shutil.copytree(root, own / "other")
        results = folder / f"{scenario.__name__}-{world}"
        children = start(results, world, world, lambda s=scenario, r=root, t=timeout_s: run(s, r, t))  # type: ignore[misc]
        assert [ended(child) for child in children] == [0] * world, scenario.__name__


if __name__ == "__main__":
    main(Path(sys.argv[1]))
