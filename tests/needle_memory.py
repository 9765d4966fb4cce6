"""Needles that msa-tiny answers from, and a document without one."""

NEEDLES = {
    "brave-lamp": "One of the special magic numbers for brave-lamp is: 7710254.",
    "quiet-river": "One of the special magic numbers for quiet-river is: 4821937.",
    "green": "The grass is green. The sky is blue.",
}
