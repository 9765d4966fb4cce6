"""``msa eval`` as a user calls it, about three needles; for its tests."""

from msa.cli.main import main

NEEDLE = "One of the special magic numbers for {key} is: {value}."
QUESTION = "What is the special magic number for {key} mentioned in the provided text?"
KEYS = {"wandering-age": "1234567", "brave-river": "7654321", "quiet-lamp": "2468135"}


def run(capsys, *arguments):
    """Exit code, standard output and standard error."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
