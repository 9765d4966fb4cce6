"""``msa search``: routing only."""

from __future__ import annotations

import argparse

from msa.cli.ask import hit_to_json
from msa.cli.console import place_of, shown_id, snippet, working, write_json, write_line, write_note
from msa.cli.opening import open_for_questions
from msa.cli.options import (
    MODEL_THAT_MADE_IT,
    ArgumentParser,
    Subparsers,
    add_command,
    add_hybrid_option,
    add_json_option,
    add_memory_argument,
    add_tier_options,
    add_where_option,
    conditions,
    positive,
    words,
)


def register(commands: Subparsers[ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "search",
        run,
        summary="find the best documents for a query; nothing is generated",
        examples=["msa search mem/ 'suspension bridges' --top-k 5", "msa search mem/ 'bridges' --where lang=en --json"],
        model=MODEL_THAT_MADE_IT,
    )
    add_memory_argument(parser)
    parser.add_argument("query", metavar="QUERY", help="what to look for")
    parser.add_argument("--top-k", type=positive, default=16, metavar="N", help="documents, at most (default: 16)")
    add_where_option(parser)
    add_hybrid_option(parser)
    add_tier_options(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    where = conditions(args)
    words(args.query, "query")
    with open_for_questions(args) as memory, working("looking through the memory"):
        hits = memory.search(args.query, top_k=args.top_k, where=where, hybrid=args.hybrid)
        places = [] if args.json else [place_of(hit) for hit in hits]
    if args.json:
        ranking = "hybrid" if args.hybrid else "memory"
        write_json({"query": args.query, "ranking": ranking, "data": [hit_to_json(hit) for hit in hits]})
        return 0
    if not hits:
        write_note("no documents found" + (" with this metadata" if where else ""))
    if hits and args.hybrid:
        write_note("ranked by the memory's routers and by exact words together (--hybrid)")
    for number, (hit, place) in enumerate(zip(hits, places, strict=True), start=1):
        named = shown_id(hit.id) + (f"  {snippet(place)}" if place else "")
        write_line(f"{number:>3}. {hit.score:.3f}  {named}", "bold")
        write_line(f"     {snippet(hit.text)}")
    return 0
