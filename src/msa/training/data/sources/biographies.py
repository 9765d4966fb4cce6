"""Made-up people: short biographies, and questions over one or two of them.

People come in threes that form a group: somebody, their spouse and their employer. Nothing is taken from real people:
towns and last names are made of syllables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from msa.training.data.sources.entry import Question, SourceEntry


def _listed(words: str) -> tuple[str, ...]:
    return tuple(words.split())


FIRST_NAMES = {
    "he": _listed(
        "Adam Albert Anton Arthur Bernard Boris Bruno Carl Cedric Conrad Daniel David Edgar Emil Felix Frank George "
        "Gustav Harold Henry Hugo Isaac Ivan Jacob James Jonas Julian Karim Leo Louis Marcus Martin Nathan Oscar Otto "
        "Patrick Paul Peter Quentin Ralph Robert Samuel Simon Stefan Theodore Thomas Victor Walter William Yusuf"
    ),
    "she": _listed(
        "Ada Agnes Alice Amelia Anna Beatrice Bella Carla Cecilia Clara Daria Diana Edith Elena Ella Emma Esther Eva "
        "Fatima Flora Frida Grace Greta Hannah Helen Ida Ingrid Irene Jane Judith Julia Laura Lena Lucy Maria Martha "
        "Maya Nadia Nina Nora Olga Paula Rosa Ruth Sarah Selma Sofia Tessa Vera Yara"
    ),
}
ONSETS = _listed("b br c ch d dr f g gr h j k l m n p qu r s st t th tr v w z")
VOWELS = _listed("a e i o u ai ea ou")
CODAS = _listed("l ld m n nd r rk rn s st th x")
TOWN_ENDINGS = _listed("ville ford ton burgh field haven mouth bridge stead wick")
JOBS = _listed(
    "novelist wrestler chemist architect violinist sprinter botanist lawyer painter journalist carpenter economist "
    "surgeon poet engineer sculptor photographer historian chef politician pilot mathematician cyclist actor baker "
    "geologist swimmer composer translator gardener"
)
HOBBIES = _listed("gardening sailing hiking chess fishing cooking astronomy pottery fencing skating")
MONTHS = _listed("January February March April May June July August September October November December")
FACTS = {
    "birthplace": ("Where was {} born?", "In which town was {} born?"),
    "birth date": ("When was {} born?", "What is the date of birth of {}?"),
    "job": ("What is the occupation of {}?", "What does {} do for a living?"),
    "hobby": ("What does {} enjoy?", "What is the hobby of {}?"),
}
RELATIONS = {
    "spouse": ("Who is {} married to?", "Who is the spouse of {}?"),
    "employer": ("Who is the employer of {}?", "Who does {} work for?"),
}


@dataclass
class _Person:
    name: str
    pronoun: str
    town: str
    date: str
    job: str
    hobby: str
    # spouse, employer
    others: dict[str, _Person] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"biographies/{self.name}"

    @property
    def facts(self) -> dict[str, str]:
        return {"birthplace": self.town, "birth date": self.date, "job": self.job, "hobby": self.hobby}


class Biographies:
    """Biographies as documents; facts, facts of a related person, and the person behind a description as questions.

    Args:
        people: how many there are, at most.
    """

    name = "biographies"
    licence = "made up by this program; no rights claimed"

    def __init__(self, people: int = 30_000) -> None:
        self._people = people
        self.settings = {"people": people}

    def files(self) -> Mapping[str, Path]:
        """None."""
        return {}

    def read(self, rng: random.Random) -> Iterator[SourceEntry]:
        """The people, each three that know each other in a row."""
        names: set[str] = set()
        # a job and a town, or a job and a date, describe one person only
        descriptions: set[str] = set()
        for number in range(self._people // 3):
            worker, spouse, employer = (_person(names, descriptions, rng) for _ in range(3))
            worker.others = {"spouse": spouse, "employer": employer}
            spouse.others = {"spouse": worker}
            for person in (worker, spouse, employer):
                questions = (*_one_hop(person, rng), *_two_hops(person, rng), *_reversed(person, rng))
                yield SourceEntry(
                    id=person.id,
                    name=person.name,
                    text=_document(person, rng),
                    questions=questions,
                    group=f"biographies/{number}",
                )


def _person(names: set[str], descriptions: set[str], rng: random.Random) -> _Person:
    """Somebody with a name and descriptions that nobody else has."""
    while True:
        pronoun = rng.choice(("he", "she"))
        last = _syllable(rng) + rng.choice(VOWELS) + rng.choice(CODAS)
        name = f"{rng.choice(FIRST_NAMES[pronoun])} {last.capitalize()}"
        town = (_syllable(rng) + rng.choice(TOWN_ENDINGS)).capitalize()
        job = rng.choice(JOBS)
        date = f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(1905, 1985)}"
        new = {f"{job} {town}", f"{job} {date}"}
        if name not in names and not new & descriptions:
            names.add(name)
            descriptions |= new
            return _Person(name, pronoun, town, date, job, rng.choice(HOBBIES))


def _syllable(rng: random.Random) -> str:
    return rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS)


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _document(person: _Person, rng: random.Random) -> str:
    name, he, job = person.name, person.pronoun.capitalize(), _a(person.job)
    opening = rng.choice(
        (
            f"{name} was born on {person.date} in {person.town}. {he} is {job}.",
            f"{name} (born {person.date}) is {job} from {person.town}.",
            f"Born in {person.town} on {person.date}, {name} is {job}.",
        )
    )
    others = {relation: other.name for relation, other in person.others.items()}
    more = [
        rng.choice(
            (
                f"{he} enjoys {person.hobby}.",
                f"In {person.date[-4:]} nobody knew that {name} would love {person.hobby}.",
            )
        )
    ]
    if "spouse" in others:
        more.append(rng.choice((f"{he} is married to {others['spouse']}.", f"{name} married {others['spouse']}.")))
    if "employer" in others:
        more.append(
            rng.choice((f"{he} works for {others['employer']}.", f"{name}'s employer is {others['employer']}."))
        )
    rng.shuffle(more)
    return " ".join((opening, *more))


def _one_hop(person: _Person, rng: random.Random) -> Iterator[Question]:
    for fact, templates in FACTS.items():
        yield Question(kind="1-hop", query=rng.choice(templates).format(person.name), answer=person.facts[fact])
    for relation, other in person.others.items():
        query = rng.choice(RELATIONS[relation]).format(person.name)
        yield Question(kind="1-hop", query=query, answer=other.name)


def _two_hops(person: _Person, rng: random.Random) -> Iterator[Question]:
    for relation, other in person.others.items():
        for fact in rng.sample(sorted(FACTS), 2):
            query = rng.choice(FACTS[fact]).format(f"the {relation} of {person.name}")
            yield Question(kind="2-hop", query=query, answer=other.facts[fact], hops=(person.id, other.id))


def _reversed(person: _Person, rng: random.Random) -> Iterator[Question]:
    query = rng.choice(("Which {job} was born in {town}?", "Who is the {job} from {town}?"))
    yield Question(kind="reversed", query=query.format(job=person.job, town=person.town), answer=person.name)
    query = rng.choice(("Which {job} was born on {date}?", "Who is the {job} with the birth date {date}?"))
    yield Question(kind="reversed", query=query.format(job=person.job, date=person.date), answer=person.name)
