"""The names of commands, arguments and options are a promise: change this list only to add to it."""

import argparse

from msa.cli.main import build_parser

EVERY = {"-h", "--help", "--debug", "-v", "--verbose"}
MODEL = {"--model", "--device", "--dtype"}
TIERS = {"--hybrid", "--routing-keys", "--content"}
FROZEN = {
    "add": (["memory", "paths"], MODEL | {"--max-size"}),
    "ask": (
        ["memory", "question"],
        MODEL | {"--json", "--where", "--retrieval", "--documents", "--max-rounds", "--max-new-tokens"}
        | {"--temperature", "--top-p", "--seed", "--stop"} | TIERS,
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


def commands():
    parser = build_parser()
    (subparsers,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return subparsers.choices


def test_commands_arguments_and_options():
    found = {}
    for name, parser in commands().items():
        positionals = [action.dest for action in parser._actions if not action.option_strings]
        options = {option for action in parser._actions for option in action.option_strings}
        assert options >= EVERY
        found[name] = (positionals, options - EVERY)
    for name, (positionals, options) in FROZEN.items():
        assert found[name] == (positionals, options)


def test_defaults():
    for name, expected in DEFAULTS.items():
        parser = commands()[name]
        assert {key: parser.get_default(key) for key in expected} == expected
