"""The names of commands, arguments and options are a promise: change this list only to add to it."""

import argparse

import pytest

from msa.cli.main import build_parser

MODEL = {"--model", "--device", "--dtype"}
EVERY = {"-h", "--help", "--debug", "-v", "--verbose"}
TIERS = {"--hybrid", "--routing-keys", "--key-share", "--content"}
FROZEN = {
    "add": (["memory", "paths"], MODEL | {"--max-size"}),
    "ask": (
        ["memory", "question"],
        MODEL | {"--json", "--where", "--retrieval", "--documents", "--max-rounds", "--max-new-tokens"}
        | {"--temperature", "--top-p", "--seed", "--stop", "--history", "--routed-history"} | TIERS,
    ),
    "search": (["memory", "query"], MODEL | {"--top-k", "--where", "--json"} | TIERS),
    "list": (["memory"], {"--limit", "--after", "--json"}),
    "show": (["memory", "id"], {"--json"}),
    "delete": (["memory", "ids"], {"--json"}),
    "stats": (["memory"], {"--json"}),
    "verify": (["memory"], {"--json"}),
    "compact": (["memory"], {"--json", "--drop-damaged"}),
    "backup": (["memory", "destination"], {"--json"}),
    "convert": (
        ["source", "dest"],
        {"--calibrate", "--init", "--router-layers", "--chunk-size", "--top-k-docs"}
        | {"--device", "--dtype", "--overwrite"},
    ),
    "train": (["config"], {"--out", "--stop-after", "--device"}),
    "serve": (
        ["root"],
        MODEL | {"--host", "--port", "--read-only", "--keys", "--cors-origin", "--max-waiting", "--timeout", "--drain"}
        | {"--max-upload", "--max-size", "--rank-timeout", "--routing-keys", "--key-share", "--content"}
        | {"--max-concurrent", "--history", "--routed-history", "--upload-timeout", "--public-url"}
        | {"--log-format", "--allowed-host"},
    ),
    "mcp": (
        ["memory"],
        MODEL | TIERS | {"--read-only", "--http", "--host", "--port", "--keys", "--top-k", "--max-new-tokens"}
        | {"--timeout", "--max-waiting"},
    ),
    "bench": (["what"], {"--model", "--device", "--tokens", "--published", "--quick", "--out"}),
}  # fmt: skip
WAYS = {"--ways", "--encoder", "--out"}
NEEDLES = {"--sizes", "--haystack", "--seed", "--held-out-words"}
FROZEN_TASKS = {
    "ruler": ([], MODEL | WAYS | NEEDLES | {"--tasks", "--samples", "--read", "--write"}),
    "scaling": (
        [],
        MODEL | NEEDLES | {"--task", "--questions", "--max-rounds", "--routing-keys", "--key-share", "--content"}
        | {"--document-tokens", "--out"},
    ),
    "compare": ([], MODEL | WAYS | NEEDLES | {"--task", "--questions", "--document-tokens", "--limits"}),
    "qa": (
        ["set"],
        MODEL | WAYS | {"--format", "--skip-bad", "--limit", "--separate", "--metric", "--max-new-tokens"}
        | {"--judge", "--rubric", "--documents", "--limits", "--note", "--split", "--corpus"},
    ),
    "report": (["folders"], {"--note"}),
    "ways": ([], set()),
}  # fmt: skip
DEFAULTS = {
    "ask": {
        "max_rounds": 4,
        "max_new_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "device": "auto",
        "dtype": "auto",
    },
    "search": {"top_k": 16, "model": None, "hybrid": False, "routing_keys": "exact", "content": "mapped"},
    "convert": {"init": "whitened", "chunk_size": 64, "top_k_docs": 16, "overwrite": False},
}


def commands(parser=None):
    parser = parser or build_parser()
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return subparsers.choices


@pytest.mark.parametrize("tasks", [False, True])
def test_commands_arguments_and_options(tasks):
    found = {}
    frozen, parsers = (FROZEN_TASKS, commands(commands()["eval"])) if tasks else (FROZEN, commands())
    for name, parser in parsers.items():
        positionals = [action.dest for action in parser._actions if not action.option_strings]
        options = {option for action in parser._actions for option in action.option_strings}
        assert options >= EVERY
        found[name] = (positionals, options - EVERY)
    for name, (positionals, options) in frozen.items():
        assert found[name] == (positionals, options | MODEL)


def test_defaults():
    for name, expected in DEFAULTS.items():
        parser = commands()[name]
        assert {key: parser.get_default(key) for key in expected} == expected


def test_the_help_says_which_model_is_the_default():
    """A command that is given no memory must not speak of the one that made it."""
    made_by, shipped = "the one that made the memor", "$MSA_MODEL or the shipped one"
    wanted = {"ask": {made_by}, "search": {made_by}} | {name: {made_by, shipped} for name in ("add", "mcp", "serve")}
    wanted |= {name: {shipped} for name in ("ruler", "scaling", "compare", "qa")}
    found = {}
    for name, parser in {**commands(), **commands(commands()["eval"])}.items():
        (text,) = [action.help for action in parser._actions if "--model" in action.option_strings] or [""]
        found[name] = {words for words in (made_by, shipped) if words in text}
    assert {name: words for name, words in found.items() if words} == wanted
