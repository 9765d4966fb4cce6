"""The bytes of content that a memory's questions have read: exactly those of the chunks that were selected."""

import threading

import pytest
import torch
from tiny import tiny_model

import msa
from msa.bank import MemoryBank
from msa.routing import BankView, Tiers

DOCUMENTS = [{"id": f"d{n}", "text": f"{n} and more of it. " * (n + 1)} for n in range(7)]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A memory of two segments."""
    folder = tmp_path_factory.mktemp("memories") / "m"
    with msa.Memory.open(folder, model) as memory:
        memory.add(DOCUMENTS[:4])
        memory.add(DOCUMENTS[4:])
    return folder


def bytes_of(view, *rows):
    """Keys and values of all chunks of the documents of each row."""
    counts = view.chunk_offsets.diff()
    chunks = sum(int(counts[doc]) for row in rows for doc in row if doc >= 0)
    return 2 * chunks * view.spec.num_key_value_heads * view.spec.head_dim * view.spec.torch_dtype.itemsize


@pytest.mark.parametrize("content", ["mapped", "ram"])
def test_what_is_read_is_counted_and_padding_is_not_read(folder, content):
    with MemoryBank.open(folder, read_only=True) as bank:
        view = BankView(bank, "cpu", Tiers(content=content))
        assert len(view._segments) == 2
        layer, rows = view.spec.layers[0], [[0, 6, -1], [3, -1, -1]]
        selected = view.fetch(layer, torch.tensor(rows))
        assert bank.fetched.total == bytes_of(view, *rows) > 0
        padding = selected.slot < 0
        assert padding.any()
        assert not selected.keys[padding].any()
        assert not selected.values[padding].any()
        assert selected.keys[~padding].any(dim=(1, 2)).all()
        view.fetch(layer, torch.tensor([[-1, -1]]))
        assert bank.fetched.total == bytes_of(view, *rows), "nothing selected, nothing read"


def test_threads_and_a_later_view_add_to_one_sum(folder):
    with MemoryBank.open(folder, read_only=True) as bank:
        first = BankView(bank)
        views = [first, BankView(bank, previous=first)]
        layer = first.spec.layers[-1]

        def fetch(view):
            for doc in [*range(7)] * 20:
                view.fetch(layer, torch.tensor([[doc]]))

        threads = [threading.Thread(target=fetch, args=(view,)) for view in views * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bank.fetched.total == 6 * 20 * bytes_of(first, range(7))


def test_a_question_reads_what_its_layers_selected(folder, model, monkeypatch):
    selected, fetch = [], BankView.fetch

    def noted(view, layer, doc_indices):
        selected.extend(doc_indices.tolist())
        return fetch(view, layer, doc_indices)

    monkeypatch.setattr(BankView, "fetch", noted)
    with msa.Memory.open(folder, model, read_only=True) as memory:
        memory.ask("seventeen", max_rounds=2, max_new_tokens=3)
        assert len(selected) >= 2 * len(memory.bank.spec.layers)
        assert memory.bank.fetched.total == bytes_of(memory._view, *selected)
