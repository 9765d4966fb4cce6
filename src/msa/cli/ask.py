"""``msa ask``: one question, or one after another."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from msa.cli.console import (
    console,
    count,
    is_terminal,
    place_of,
    shown,
    shown_id,
    write,
    write_json,
    write_line,
    write_note,
    write_table,
)
from msa.cli.opening import is_shared, open_for_questions
from msa.cli.options import (
    MODEL_THAT_MADE_IT,
    ArgumentParser,
    Subparsers,
    UsageError,
    add_command,
    add_hybrid_option,
    add_json_option,
    add_memory_argument,
    add_tier_options,
    add_where_option,
    conditions,
    non_negative,
    positive,
    probability,
    temperature,
    words,
)

if TYPE_CHECKING:
    from msa.generation.types import Answer, Event, Hit
    from msa.memory import Memory
    from msa.serving.conversation import Turn

_LEAVE = ("exit", "quit")
_AFRESH = "new"


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "ask",
        run,
        summary="answer a question from a memory",
        details="The answer is streamed; the documents it was given and the rounds of retrieval follow. Without a\n"
        "question it asks for one after another, until 'exit' or Ctrl-D; Ctrl-C ends the running answer. On a\n"
        "terminal that is a conversation: what was said stands before the next question, until 'new' begins another.",
        examples=[
            "msa ask mem/ 'When was the bridge opened?'",
            "msa ask mem/ 'Who wrote it?' --where lang=en --where year=2024 --json",
        ],
        model=MODEL_THAT_MADE_IT,
    )
    add_memory_argument(parser)
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="the question; none: an interactive prompt")
    add_json_option(parser)
    add_where_option(parser)
    group = parser.add_argument_group("retrieval")
    group.add_argument(
        "--retrieval", choices=("generative", "routed"), help="how documents are chosen (default: as the model prefers)"
    )
    group.add_argument(
        "--documents", type=positive, metavar="N", help="documents given to the model, at most, in routed retrieval"
    )
    add_hybrid_option(group)
    add_tier_options(group)
    group.add_argument(
        "--max-rounds", type=non_negative, default=4, metavar="N", help="rounds of generative retrieval (default: 4)"
    )
    group = parser.add_argument_group("conversation, without a QUESTION")
    group.add_argument(
        "--history",
        type=non_negative,
        metavar="N",
        help="tokens of the conversation so far given with a question (default: 512 on a terminal, else 0)",
    )
    group.add_argument(
        "--routed-history",
        type=non_negative,
        metavar="N",
        help="of these, the last ones that choose documents with the question (default: 64)",
    )
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-new-tokens", type=positive, default=256, metavar="N", help="tokens of the answer (default: 256)"
    )
    group.add_argument(
        "--temperature", type=temperature, default=0.0, metavar="T", help="randomness (default: 0, none at all)"
    )
    group.add_argument(
        "--top-p", type=probability, default=1.0, metavar="P", help="draw from the likeliest tokens (default: 1, all)"
    )
    group.add_argument("--seed", type=non_negative, metavar="N", help="repeatable randomness")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be given several times"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    options = _options(args)
    if args.question is not None:
        words(args.question, "question")
        if args.history is not None or args.routed_history is not None:
            raise UsageError("--history and --routed-history are for a conversation; leave the QUESTION out")
    elif is_shared():
        raise UsageError("several ranks cannot share one prompt: give the QUESTION on the command line")
    with open_for_questions(args) as memory:
        if args.question is not None:
            _answer(memory, args.question, options, as_json=args.json)
            return 0
        return _converse(_Conversation(memory, options, args), as_json=args.json)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of ``Memory.stream``."""
    return {
        "retrieval": args.retrieval,
        "hybrid": args.hybrid,
        "max_documents": args.documents,
        "max_rounds": args.max_rounds,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
        "stop": tuple(args.stop),
        "where": conditions(args),
    }


def _answer(
    memory: Memory,
    question: str,
    options: dict[str, Any],
    *,
    as_json: bool,
    cancelled: Callable[[], bool] | None = None,
    notes: Sequence[str] = (),
) -> Answer:
    """Answer one question on standard output; ``notes`` go before the answer's own."""
    events = memory.stream(question, cancelled=cancelled, **options)
    answer = _last(events if as_json else _streamed(events))
    answer = replace(answer, notes=[*notes, *answer.notes])
    if as_json:
        write_json(answer_to_json(question, answer))
        return answer
    _write_sources(answer.sources)
    write_line()
    write_line(_summary(answer), style="dim")
    for note in answer.notes:
        write_line(shown(f"note: {note}"), style="dim")
    return answer


def _last(events: Iterator[Event]) -> Answer:
    from msa.generation.types import Done

    *_, done = events
    assert isinstance(done, Done)
    return done.answer


def _streamed(events: Iterator[Event]) -> Iterator[Event]:
    """The same events; writes the text as it comes, and what happens before on a terminal's standard error."""
    from msa.generation.types import DocumentRetrieved, RoundStarted, TextPiece

    status = console(error=True).status("looking through the memory") if is_terminal(sys.stderr) else None
    begun = False
    with status or contextlib.nullcontext():
        for event in events:
            if isinstance(event, RoundStarted) and status:
                status.update(f"round {event.round}: looking through the memory")
            elif isinstance(event, DocumentRetrieved) and status:
                status.update(f"reading {shown(event.hit.title)[:60]}")
            elif isinstance(event, TextPiece):
                text = event.text if begun else event.text.lstrip()
                if text:
                    if status:
                        status.stop()
                    begun = True
                    write(shown(text))
            yield event
    write("\n")


def _write_sources(sources: list[Hit]) -> None:
    if not sources:
        return
    write_line()
    write_line("Sources", style="bold")
    rows = [
        [f"{n}.", f"{hit.score:.3f}", shown_id(hit.id), place_of(hit), "read" if hit.read else "not read"]
        for n, hit in enumerate(sources, start=1)
    ]
    write_table(rows, right=(0, 1), whole=3)


def _summary(answer: Answer) -> str:
    timings = answer.timings
    text = f"{count(len(answer.rounds), 'round')}, {count(answer.usage.completion_tokens, 'token')} written in "
    text += f"{timings['total']:.1f} s (retrieval {timings['route']:.1f} s, first token {timings['first_token']:.1f} s)"
    reasons = {"length": "; cut off at --max-new-tokens", "cancelled": "; stopped"}
    return text + reasons.get(answer.finish_reason, "")


def answer_to_json(question: str, answer: Answer) -> dict[str, Any]:
    """What ``--json`` prints."""
    usage = answer.usage
    return {
        "question": question,
        "answer": answer.text,
        "quotation": answer.quotation,
        "sources": [{**hit_to_json(hit), "number": hit.number, "read": hit.read} for hit in answer.sources],
        "rounds": [vars(item) for item in answer.rounds],
        "finish_reason": answer.finish_reason,
        "usage": {**vars(usage), "total_tokens": usage.total_tokens},
        "timings": answer.timings,
        "notes": answer.notes,
    }


def hit_to_json(hit: Hit) -> dict[str, Any]:
    """One document of a JSON answer."""
    return {"id": hit.id, "text": hit.text, "score": hit.score, "metadata": hit.metadata, **hit.place}


class _Conversation:
    """Questions and answers so far, which stand before the next question as they do before one of the server's.

    Args:
        memory: to answer from.
        options: of ``Memory.stream``.
        args: ``--history`` and ``--routed-history``; where they are not given, the server's defaults on a terminal, and
            elsewhere no history: piped questions are answered each as if it were alone.
    """

    def __init__(self, memory: Memory, options: dict[str, Any], args: argparse.Namespace) -> None:
        from msa.serving import ServerSettings

        self.on_terminal = is_terminal(sys.stdin) and is_terminal(sys.stdout)
        history = ServerSettings.history_tokens if self.on_terminal else 0
        self._memory, self._options = memory, options
        self._history: int = history if args.history is None else args.history
        routed = args.routed_history
        self._routed: int = ServerSettings.routed_history_tokens if routed is None else routed
        self.remembers = self._history > 0
        self._turns: list[Turn] = []

    def ask(self, question: str, *, as_json: bool, cancelled: Callable[[], bool]) -> None:
        """Answer one on standard output; what was answered belongs to the conversation.

        Raises:
            MSAError, ValueError: it cannot be answered; the conversation is as it was.
        """
        from msa.errors import ContextLengthError
        from msa.serving.conversation import Composed, Turn, compose

        asked = Turn("user", question)
        composed = Composed(question)
        if self.remembers:
            composed = compose([*self._turns, asked], self._history, self._count, self._routed)
        options = {**self._options, **composed.options}
        try:
            answer = _answer(
                self._memory, question, options, as_json=as_json, cancelled=cancelled, notes=composed.notes
            )
        except ContextLengthError as error:
            if not composed.context:
                raise
            raise ContextLengthError(f"{error}, or type {_AFRESH!r} to begin a new conversation") from error
        self._turns += [asked, Turn("assistant", answer.text)]

    def begin_afresh(self) -> None:
        """Forget what was said."""
        self._turns.clear()
        if self.on_terminal:
            write_note("a new conversation")

    def _count(self, text: str) -> int:
        return len(self._memory.model.protocol.plain_ids(text))


def _converse(conversation: _Conversation, *, as_json: bool) -> int:
    """Ask for questions until there are no more."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and a history

    from msa.errors import MSAError

    prompt = "? " if conversation.on_terminal else ""
    failed = False
    while True:
        try:
            question = input(prompt).strip()
        except EOFError:
            if prompt:
                write("\n")
            break
        except KeyboardInterrupt:
            if not prompt:
                raise
            write("\n")
            continue
        if not question:
            continue
        if question.lower() in _LEAVE:
            break
        if conversation.remembers and question.lower() == _AFRESH:
            conversation.begin_afresh()
            continue
        try:
            with _interruptible() as interrupted:
                conversation.ask(question, as_json=as_json, cancelled=interrupted)
        except (MSAError, ValueError) as error:
            write_note(f"msa: {error}")
            failed = True
        if not as_json:
            write("\n")
    return 1 if failed and not prompt else 0


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C only sets what this yields, the second one interrupts as usual."""
    asked_to_stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked_to_stop.is_set
        return
    previous = signal.getsignal(signal.SIGINT)

    def on_interrupt(signum: int, frame: Any) -> None:
        if asked_to_stop.is_set():
            raise KeyboardInterrupt
        asked_to_stop.set()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield asked_to_stop.is_set
    finally:
        signal.signal(signal.SIGINT, previous)
