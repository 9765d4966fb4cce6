"""Sources read small files of the real formats, say what is missing or broken, and ask what their documents answer."""

import gzip
import random
import re

import pytest

from msa.errors import TrainingDataError
from msa.training.data.sources import Biographies, DebianPackages, Foldoc, PythonDocs, WordNet
from msa.training.data.sources.entry import Question, SourceEntry
from msa.training.data.sources.text import anonymous_sentences, cut, find_files, first_sentence, sentences, without
from msa.training.data.sources.unanswerable import unanswerable

LONG = (
    "Turtle shows pictures of ponds that were taken by the users. It was written for slow computers and needs very "
    "little memory even then."
)
AVAILABLE = (
    "Package: turtle\nSource: reptiles (1.0)\nVersion: 1\n\nPackage: libturtle1\nSource: reptiles\n\nPackage: heron\n"
)
TRANSLATION = f"""Package: turtle
Description-md5: 1
Description-en: Turtle viewer for pictures of small ponds (graphical)
 {LONG}
 .
 Second paragraph here.

Package: libturtle1
Description-md5: 2
Description-en: library that shows pictures of ponds
 This package has the parts of turtle that other programs share, so that they can show pictures of ponds to anybody
 who wants to see them.

Package: heron
Description-md5: 3
Description-en: too short
 Nothing.

Package: egret
Description-md5: 4
Description-en: transitional package for heron and nothing else at all
 {LONG}
"""


def read(source, seed=0):
    return {entry.name: entry for entry in source.read(random.Random(seed))}


def kinds(entry):
    return {question.kind for question in entry.questions}


def queries(entry, kind):
    return [question.query for question in entry.questions if question.kind == kind]


@pytest.fixture
def debian(tmp_path):
    (tmp_path / "avail.txt").write_text(AVAILABLE)
    (tmp_path / "translation-en.txt").write_text(TRANSLATION)
    return tmp_path


def test_debian_takes_packages_with_a_description_of_their_own(debian):
    entries = read(DebianPackages(debian))
    assert set(entries) == {"turtle", "libturtle1"}
    turtle = entries["turtle"]
    assert turtle.id == "debian/turtle"
    assert turtle.text == f"turtle: {LONG} Second paragraph here."
    assert turtle.group == entries["libturtle1"].group != ""
    assert kinds(turtle) == {"short", "request", "sentence", "name"}
    assert queries(turtle, "short") == ["viewer for pictures of small ponds"]
    assert all("turtle" in query for query in queries(turtle, "name"))
    assert all("turtle" not in query.lower() for query in queries(turtle, "sentence"))
    assert "it shows pictures of ponds that were taken by the users." in queries(turtle, "sentence")


def test_debian_skips_sentences_that_any_package_could_have(debian):
    assert "sentence" not in kinds(read(DebianPackages(debian))["libturtle1"])


def test_debian_says_how_to_make_its_files(tmp_path):
    with pytest.raises(TrainingDataError, match=r"avail\.txt.*apt-cache dumpavail"):
        DebianPackages(tmp_path).files()


@pytest.mark.parametrize("name", ["avail.txt", "translation-en.txt"])
def test_debian_refuses_other_files(debian, name):
    (debian / name).write_text("<html>not found</html>")
    with pytest.raises(TrainingDataError, match=name):
        read(DebianPackages(debian))


LICENCE = "  1 This software and database is being provided to you  \n"
SYNSETS = {
    "data.noun": LICENCE
    + "00000001 03 n 02 pond 0 small_lake 0 001 @ 1 n 0 | a body of water that is smaller than a lake; "
    + '"the pond froze"; "they swam in the pond all day"\n'
    + "00000002 03 n 01 small_lake 0 000 | a picture of a body of water with little on it\n"
    + "00000003 03 n 01 thing 0 000 | short\n",
    "data.verb": LICENCE + "00000001 29 v 01 wade 0 000 | walk through water that is not very deep at all\n",
    "data.adj": LICENCE + "00000001 00 a 01 galore(ip) 0 000 | in great numbers and more than anybody would want\n",
    "data.adv": LICENCE,
}


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "usr" / "share" / "wordnet"
    folder.mkdir(parents=True)
    for name, text in SYNSETS.items():
        (folder / name).write_text(text)
    return tmp_path


def test_wordnet_reads_meanings_examples_and_synonyms(wordnet):
    runs = [read(WordNet(wordnet), seed) for seed in range(20)]
    pond = next(run["pond"] for run in runs if "pond" in run)
    assert pond.id == "wordnet/pond.noun"
    assert pond.text == (
        "pond (noun): a body of water that is smaller than a lake. Synonyms: small lake. Example: the pond froze."
    )
    assert kinds(pond) == {"word", "gloss", "synonym", "usage"}
    assert 'What does pond mean in "they swam in the pond all day"?' in queries(pond, "usage")
    assert all("pond" not in query for query in queries(pond, "gloss"))
    assert all(run["wade"].id == "wordnet/wade.verb" and "galore" in run for run in runs)


def test_wordnet_gives_each_meaning_to_one_document(wordnet):
    for seed in range(20):
        entries = read(WordNet(wordnet), seed)
        assert len({"pond", "small lake"} & set(entries)) == 1
        assert "thing" not in entries


@pytest.mark.parametrize("line", ["00000001 03 n xx pond | water", "no synset", "00000001 03 n 02 pond 0 | water"])
def test_wordnet_names_a_broken_line(wordnet, line):
    path = wordnet / "usr" / "share" / "wordnet" / "data.verb"
    path.write_text(LICENCE + line + "\n")
    with pytest.raises(TrainingDataError, match=r"data\.verb:2"):
        read(WordNet(wordnet))


ENTRIES = {
    "00-database-short": "00-database-short\n     The dictionary, which says more about itself than about any other thing "
    "in computing, and at great length, for all who read it.\n",
    "turtle": "Turtle%%%turtle graphics\n\n   <graphics, language> A {Turtle} is a small cursor with a pen that draws {lines "
    "(http://lines.example)} on the screen.  Every child has drawn a house with a Turtle at school.\n\n   [Where?]\n\n"
    "   (1999-01-02)\n",
    "heron": "heron\n\n   A bird.\n",
}


def dictd(number):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    digits = letters[number % 64]
    while number := number // 64:
        digits = letters[number % 64] + digits
    return digits


@pytest.fixture
def foldoc(tmp_path):
    data, lines = b"", []
    for name, text in ENTRIES.items():
        lines.append(f"{name}\t{dictd(len(data))}\t{dictd(len(text.encode()))}\n")
        data += text.encode()
    (tmp_path / "foldoc.dict.dz").write_bytes(gzip.compress(data))
    (tmp_path / "foldoc.index").write_text("".join(lines) + lines[1].replace("turtle", "turtle graphics"))
    return tmp_path


def test_foldoc_reads_entries_without_markup(foldoc):
    entries = read(Foldoc(foldoc))
    assert set(entries) == {"Turtle"}
    turtle = entries["Turtle"]
    assert turtle.text == (
        "Turtle. A Turtle is a small cursor with a pen that draws lines on the screen. "
        "Every child has drawn a house with a Turtle at school."
    )
    assert sorted(queries(turtle, "sentence")) == [
        "Every child has drawn a house with it at school.",
        "it is a small cursor with a pen that draws lines on the screen.",
    ]
    answers = {question.answer for question in turtle.questions if question.kind == "name"}
    assert answers <= {None, "A Turtle is a small cursor with a pen that draws lines on the screen."}


@pytest.mark.parametrize("line", ["turtle\tA", "turtle\tA\t*", "turtle\t////\tB"])
def test_foldoc_names_a_broken_line_of_the_index(foldoc, line):
    (foldoc / "foldoc.index").write_text(f"{line}\n")
    with pytest.raises(TrainingDataError, match=r"foldoc\.index:1"):
        read(Foldoc(foldoc))


@pytest.mark.parametrize("data", [b"text", gzip.compress(b"text" * 100)[:20]])
def test_foldoc_refuses_a_broken_dictionary(foldoc, data):
    (foldoc / "foldoc.dict.dz").write_bytes(data)
    with pytest.raises(TrainingDataError, match=r"foldoc\.dict\.dz is not"):
        read(Foldoc(foldoc))


PAGE = """<html><body><section id="ponds"><h1>4. ponds — Small waters<a class="headerlink" href="#">¶</a></h1>
<p>The ponds module has everything that is needed to dig a pond, to fill it with water and to put ducks onto it later,
when the winter is over.</p>
<dl class="py class"><dt id="ponds.Pond"><em>class </em>ponds.Pond(<em>depth</em>)<a class="headerlink" href="#">¶</a></dt>
<dd><p>Dig a pond of the given depth. The depth is in metres and must be positive, since a pond cannot be a hill.
Old ponds are filled up before new ones are dug at the same place, which takes the time that it
takes.</p>
<dl class="py method"><dt id="ponds.Pond.fill">fill(water)</dt>
<dd><p>Pour the water into the pond. Water that finds no place is given back to the caller, who has to put it
somewhere else before the night.</p>
<div class="versionadded">New in version 3.4</div></dd></dl>
<dl class="py method"><dt>nameless()</dt><dd><p>Nothing.</p></dd></dl>
</dd></dl>
<section><h2>4.1. Ducks</h2><p>Short.</p></section>
</section><section><h3></h3><p>Text without any heading.</p></section><section><p>No heading.</p></section></body></html>"""


@pytest.fixture
def python_docs(tmp_path):
    folder = tmp_path / "usr" / "share" / "doc" / "python3.11" / "html" / "library"
    folder.mkdir(parents=True)
    (folder / "index.html").write_text("<html></html>")
    (folder / "ponds.html").write_text(PAGE)
    return tmp_path


def test_python_docs_keeps_methods_out_of_their_class(python_docs):
    source = PythonDocs(python_docs)
    assert list(source.files()) == ["library/index.html", "library/ponds.html"]
    entries = read(source)
    assert set(entries) == {"ponds.Pond", "ponds.Pond.fill", "ponds — Small waters"}
    assert entries["ponds.Pond.fill"].id == "python/library/ponds#ponds.Pond.fill"
    assert entries["ponds.Pond.fill"].text.startswith("ponds.Pond.fill: fill(water). ")
    assert "Pour" not in entries["ponds.Pond"].text
    text = " ".join(entry.text for entry in entries.values())
    assert "¶" not in text
    assert "New in version" not in text


def test_python_docs_sometimes_ask_for_a_sentence_that_is_not_in_the_document(python_docs):
    runs = [read(PythonDocs(python_docs), seed)["ponds.Pond"] for seed in range(20)]
    dropped = [entry for entry in runs if "description" in kinds(entry)]
    assert 0 < len(dropped) < 20
    for entry in dropped:
        assert queries(entry, "description") == ["Dig a pond of the given depth."]
        assert "Dig a pond" not in entry.text
        assert all(question.answer is None for question in entry.questions if question.kind == "name")
    headings = [read(PythonDocs(python_docs), seed)["ponds — Small waters"].text for seed in range(20)]
    assert {text.startswith("ponds — Small waters. The ponds module") for text in headings} == {True, False}


@pytest.mark.parametrize(
    ("source", "package"), [(WordNet, "wordnet-base"), (Foldoc, "dict-foldoc"), (PythonDocs, r"python3\.x-doc")]
)
def test_missing_files_name_the_package(tmp_path, source, package):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(TrainingDataError, match=rf"apt-get download {package} && dpkg-deb -x"):
            list(source(folder).read(random.Random(0)))


@pytest.mark.parametrize(
    ("make", "files"),
    [(DebianPackages, "debian"), (WordNet, "wordnet"), (Foldoc, "foldoc"), (PythonDocs, "python_docs")],
)
def test_documents_are_cut_and_sentences_are_in_them(make, files, request):
    source = make(request.getfixturevalue(files), words=15, characters=90)
    for entry in source.read(random.Random(0)):
        assert len(entry.text.split()) <= 15
        assert len(entry.text) <= 90
        for query in queries(entry, "sentence"):
            assert query.removeprefix("it ") in entry.text


def test_biographies_answer_their_questions():
    entries = {entry.id: entry for entry in Biographies(people=300).read(random.Random(1))}
    assert len(entries) == 300
    texts = {identity: entry.text for identity, entry in entries.items()}
    for entry in entries.values():
        assert kinds(entry) >= {"1-hop", "reversed"}
        for question in entry.questions:
            where = question.hops or (entry.id,)
            assert question.answer in texts[where[-1]]
            if question.kind == "2-hop":
                assert where[0] == entry.id != where[1]
                assert entries[where[1]].name in entry.text
                assert entries[where[1]].name not in question.query
                assert entries[where[1]].group == entry.group
            else:
                assert not question.hops
            assert (entry.name in question.query) == (question.kind != "reversed")


def test_biographies_reversed_questions_have_one_answer():
    asked = [
        question.query
        for entry in Biographies(people=3000).read(random.Random(2))
        for question in entry.questions
        if question.kind == "reversed"
    ]
    facts = [re.sub(r"^(Which|Who is the) (\w+) .*?(\S+ \S+ \d+|\S+)\?$", r"\2 \3", query) for query in asked]
    assert len(set(facts)) == len(facts) == 6000


def entry(name, *questions):
    return SourceEntry(id=name, name=name, text="", questions=questions)


def test_unanswerable_asks_by_name_for_what_no_document_has():
    left_out = [
        entry(
            "Ann Pond", Question(kind="1-hop", query="Where was Ann Pond born?"), Question(kind="n", query="Ann Pond")
        ),
        entry("Bob Lake", Question(kind="1-hop", query="Where was Bob Lake born?")),
        entry("Cid Bay", Question(kind="reversed", query="Which cook was born in Rome?")),
    ]
    texts = ["Nothing here.", "Somebody met BOB LAKE."]
    found = list(unanswerable(left_out, texts, "Unknown.", "b/unanswerable", random.Random(0)))
    assert [entry.name for entry, _ in found] == ["Ann Pond"]
    sample = found[0][1]
    assert (sample.query, sample.positives, sample.answer) == ("Where was Ann Pond born?", (), "Unknown.")
    assert sample.source == "b/unanswerable"


def test_cut():
    assert cut("One  two\nthree.") == "One two three."
    assert cut("A first one. A second sentence here.", words=5) == "A first one."
    assert cut("First. This second sentence goes on and on.", words=7) == "First. This second sentence goes on and"
    assert cut("some words here", characters=10) == "some words"
    assert cut("x" * 20, characters=10) == "x" * 10
    assert cut("") == ""


def test_sentences():
    text = "It was made by P. Rovner of the old laboratory. See also the other one of these things. Short one. * a list"
    assert sentences(text) == ["It was made by P. Rovner of the old laboratory."]
    assert first_sentence(text) == "It was made by P. Rovner of the old laboratory."
    assert first_sentence("No end of a sentence here") is None
    assert first_sentence("word " * 100 + "end.") is None


def test_names_are_replaced_as_whole_words():
    assert without("The Pond and ponds of POND.", ("pond",), "it") == "it and ponds of it."
    assert without("C++ - a language", ("C++",)) == "a language"
    assert without("nothing", ("", "x")) == "nothing"
    many = "The pond is a place where many ducks live. A pond can be found in almost every village of it."
    assert len(anonymous_sentences(many, ("pond",), 1, random.Random(0))) == 1


def test_find_files_prefers_the_folder_itself(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("")
    assert find_files(tmp_path, ["file"], "")["file"] == tmp_path / "a" / "file"
    (tmp_path / "file").write_text("")
    assert find_files(tmp_path, ["file"], "")["file"] == tmp_path / "file"
