"""What the templates draw from: names, places, days, and some of several sentences.

Nobody in the texts exists, and what they say of real places is made up.
"""

from __future__ import annotations

import random

Written = tuple[list[str], list[str]]  # sentences, and questions that they answer


def _listed(words: str) -> list[str]:
    return words.split()


FIRST = _listed(
    "Amara Bruno Chiara Dmitri Elif Farid Greta Hiroshi Ingrid Joaquín Katarzyna Liam Mei Nadia Olusegun Priya Quentin "
    "Rosa Sanjay Tamsin Ulrike Viktor Wanjiru Ximena Yusuf Zofia Björn Noor Aroha Tomás"
)
LAST = _listed(
    "Abernathy Bauer Castellanos Dubois Eriksen Fontaine Grigoryan Haddad Ibáñez Jansen Kowalczyk Lindqvist Mbeki "
    "Nakamura Okafor Petrov Quispe Rahman Silva Takahashi Umarov Vasquez Whitlock Yamamoto Zielinski O'Connell Thapa "
    "Kimathi Moreau Achterberg"
)
CITIES = _listed(
    "Lisbon Nairobi Kyoto Gdańsk Valparaíso Halifax Tbilisi Marseille Chennai Bergen Ljubljana Accra Montevideo "
    "Brisbane Leipzig Aleppo Cork Tashkent Rotterdam Oaxaca Hanoi Turku Dunedin Palermo Winnipeg Samarkand Porto "
    "Kraków Busan Tampico"
)
MONTHS = _listed("January February March April May June July August September October November December")
WEEKDAYS = _listed("Monday Tuesday Wednesday Thursday Friday")


def drawn_name(rng: random.Random) -> str:
    """First and last name."""
    return f"{rng.choice(FIRST)} {rng.choice(LAST)}"


def drawn_day(rng: random.Random) -> str:
    """Day and month."""
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def some_of(rng: random.Random, count: int, *sentences: str) -> list[str]:
    """``count`` of the sentences, in their order."""
    return [sentences[at] for at in sorted(rng.sample(range(len(sentences)), count))]
