"""The demo: build a memory from 400 real documents and ask it five questions.

    python examples/demo.py [--memory demo-memory]

The first run fetches and prepares the default model; later runs reuse it and the encoded memory.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import msa
from msa.documents.readers import read_documents

DOCUMENTS = Path(__file__).parent / "packages.jsonl"
QUESTIONS = (
    "What is rsync for?",
    "Which program turns notes that I type as text into nicely printed sheet music?",
    "What is Wireshark used for?",
    "Which program hides a secret file inside a photo?",
    "What is special about borgbackup?",
)

console = Console(highlight=False, soft_wrap=True)


def build(memory: msa.Memory) -> None:
    """Encode the documents that are not in the memory yet."""
    characters = sum(len(document.text) for document in read_documents([DOCUMENTS]))
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    started = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("encoding", total=characters / 4, rate="")

        def show(progress: msa.AddProgress) -> None:
            rate = f"{progress.tokens / (time.perf_counter() - started):,.0f} tokens/s"
            bar.update(task, completed=progress.tokens, rate=rate)

        memory.add(read_documents([DOCUMENTS]), progress=show)
    stats = memory.stats()
    seconds = time.perf_counter() - started
    console.print(f"{stats['documents']} documents, {stats['tokens']:,} tokens in memory ({seconds:.1f} s)\n")


def ask(memory: msa.Memory, question: str) -> None:
    """Stream one answer, then its sources and timings."""
    console.print(f"[bold]{question}[/bold]")
    for event in memory.stream(question, max_new_tokens=64):
        match event:
            case msa.TextPiece(text=text):
                console.print(text, end="", markup=False)
            case msa.Done(answer=answer):
                console.print()
                for rank, hit in enumerate(answer.sources, start=1):
                    read = "read" if hit.read else "    "
                    console.print(f"  {rank}. {read}  {hit.score:.3f}  {hit.id}", style="dim")
                times, tokens = answer.timings, answer.usage.completion_tokens
                rate = tokens / max(times["total"] - times["first_token"], 1e-9)
                console.print(
                    f"  routed in {times['route']:.2f} s, first token after {times['first_token']:.2f} s, "
                    f"{times['total']:.2f} s in all ({rate:.0f} tokens/s)\n",
                    style="dim",
                )
            case _:
                pass


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--memory", default="demo-memory", help="folder of the memory (default: %(default)s)")
    folder = parser.parse_args().memory
    console.print("loading the model (the first time: 93 MB to fetch and half a minute to prepare it)\n")
    model = msa.load()
    with msa.Memory.open(folder, model=model) as memory:
        build(memory)
        for question in QUESTIONS:
            ask(memory, question)
    console.print(f'Ask on: [bold]msa ask {folder} "…"[/bold]')


if __name__ == "__main__":
    main()
