"""Retrieved documents within the model's context: best first, long ones cut down around their best chunk."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from msa.generation.budget import Candidate, fit_documents

TEMPLATE = "[{id}]. {text}\n"  # 6 bytes around a one-digit number


def fit(model, candidates, budget, chunk_size=4):
    return fit_documents(model.protocol, candidates, TEMPLATE, budget, chunk_size)


def cost(model, fitted):
    return sum(len(model.protocol.template_ids(TEMPLATE, id=str(n), text=text)) for n, text in fitted.documents)


def candidate(number, text, best_chunk=0):
    return Candidate(number=number, name=f"doc {number}", text=text, best_chunk=best_chunk)


def test_everything_fits_unchanged(model):
    fitted = fit(model, [candidate(4, "first"), candidate(2, "second"), candidate(7, "")], 1000)
    assert fitted.documents == ((4, "first"), (2, "second"), (7, ""))
    assert fitted.notes == ()


def test_a_long_document_is_cut_around_its_best_chunk(model):
    text = "".join(f"{i:03} " for i in range(200))  # chunk i of four bytes reads "i "
    fitted = fit(model, [candidate(4, text, best_chunk=100)], 68)
    ((number, kept),) = fitted.documents
    assert number == 4
    assert len(kept) == 60
    assert kept in text
    assert kept.index("100") == 28  # in the middle
    assert "doc 4 was shortened from 800 to 60 tokens" in fitted.notes[0]


@pytest.mark.parametrize(
    ("best_chunk", "expected"), [(0, slice(0, 60)), (199, slice(740, 800)), (999, slice(740, 800))]
)
def test_the_cut_stays_inside_the_document(model, best_chunk, expected):
    text = "".join(f"{i:03} " for i in range(200))
    fitted = fit(model, [candidate(4, text, best_chunk)], 68)
    assert fitted.documents == ((4, text[expected]),)


def test_what_does_not_fit_is_left_out_and_named_once(model):
    long = "x" * 90
    fitted = fit(model, [candidate(4, long), candidate(2, long), candidate(7, "tiny"), candidate(8, long)], 120)
    assert fitted.documents == ((4, long), (7, "tiny"))  # a short one still finds room
    assert fitted.notes == ("left out, because the model's context is full: doc 2, doc 8",)


@pytest.mark.parametrize("budget", [0, -50, 5])
def test_no_room_at_all(model, budget):
    fitted = fit(model, [candidate(4, "text"), candidate(2, "")], budget)
    assert fitted.documents == ()
    assert fitted.notes == ("left out, because the model's context is full: doc 4, doc 2",)


def test_nothing_wanted(model):
    fitted = fit(model, [], 100)
    assert (fitted.documents, fitted.notes) == ((), ())


texts = st.text(alphabet="ab 😀é\n", max_size=120)


@given(st.lists(st.tuples(texts, st.integers(0, 40)), max_size=5), st.integers(0, 400), st.integers(1, 9))
@example([("😀" * 50, 5)], 41, 5)  # the cut falls inside a character
def test_the_budget_is_kept_and_texts_are_parts_of_the_originals(model, wanted, budget, chunk_size):
    candidates = [candidate(number, text, chunk) for number, (text, chunk) in enumerate(wanted, start=1)]
    fitted = fit(model, candidates, budget, chunk_size)
    assert cost(model, fitted) <= budget
    order = [number for number, _ in fitted.documents]
    assert order == sorted(order)
    for number, text in fitted.documents:
        assert text in candidates[number - 1].text
    cut = [number for number, text in fitted.documents if text != candidates[number - 1].text]
    left_out = len(candidates) - len(order)
    assert len(fitted.notes) == len(cut) + (left_out > 0)
