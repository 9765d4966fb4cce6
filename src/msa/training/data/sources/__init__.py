"""Sources of training questions: real texts that Debian packages bring along, and made-up people.

Each source is one file with one class that is a :class:`msa.training.data.sources.entry.Source`.
"""

from msa.training.data.sources.biographies import Biographies
from msa.training.data.sources.debian import DebianPackages
from msa.training.data.sources.entry import Question, Source, SourceEntry
from msa.training.data.sources.foldoc import Foldoc
from msa.training.data.sources.python_docs import PythonDocs
from msa.training.data.sources.wordnet import WordNet

__all__ = [
    "Biographies",
    "DebianPackages",
    "Foldoc",
    "PythonDocs",
    "Question",
    "Source",
    "SourceEntry",
    "WordNet",
]
