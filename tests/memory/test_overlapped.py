"""Windows tokenised, encoded and committed side by side, as on a GPU: the same memory as one after the other."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny import tiny_lm, tiny_tokenizer

import msa.memory.adding
from msa import Memory
from msa.documents import Protocol
from msa.errors import BankFullError, DocumentError
from msa.memory.adding import WindowWriter
from msa.model.bundle import MSAModel
from msa.ops import quantize_keys

LIMIT = 40


@pytest.fixture(scope="module")
def model():
    return MSAModel(tiny_lm(protocol={"max_document_tokens": LIMIT}), tiny_tokenizer(), name="tiny")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(msa.memory.adding, "_COMMIT_TOKENS", 60)
    monkeypatch.setattr(msa.memory.adding, "_GPU_COMMIT_TOKENS", 60)


@pytest.fixture
def late_commits(monkeypatch):
    """Commits that wait for the next window's plan, if there is one."""
    planned, plan, commit = threading.Semaphore(0), WindowWriter._plan, WindowWriter._commit
    sequential = []

    def counted(self, *args):
        try:
            return plan(self, *args)
        finally:
            planned.release()

    def late(self, done, *args):
        if self._overlapped:
            if not sequential:
                planned.acquire()  # its own
                sequential.append(True)
            planned.acquire(timeout=1)
        commit(self, done, *args)

    monkeypatch.setattr(WindowWriter, "_plan", counted)
    monkeypatch.setattr(WindowWriter, "_commit", late)


def opened(path, model, overlapped=True, **options):
    memory = Memory.open(path, model, **options)
    memory._writer._overlapped = overlapped
    return memory


def given():
    """Documents of which some come again in the next window: as they were, with other metadata, with another text."""
    documents = [{"id": str(i), "text": f"text {i} " * (i % 9)} for i in range(24)]
    documents[9:9] = [{"id": "long", "text": "A sentence of some words. " * 40}]
    found = []
    for i, document in enumerate(documents):
        changes = ({}, {"metadata": {"i": i}}, {"text": f"another {i}"}, {"metadata": {"i": -i}})[i % 4]
        found += [document] if i < 2 else [document, {**documents[i - 2], **changes}]
    return found


def contents(memory):
    """All there is in a memory, to the byte."""
    tensors = [
        {(kind, layer): segment.tensor(kind, layer) for kind, layer, _, _ in memory.bank.spec.layout(0)}
        | {"numbers": segment.numbers, "offsets": segment.chunk_offsets}
        for segment in memory.bank.segments()
    ]
    return memory.bank.list(), tensors


def assert_same(memory, expected):
    (documents, tensors), (documents_expected, tensors_expected) = contents(memory), contents(expected)
    assert documents == documents_expected
    assert len(tensors) == len(tensors_expected)
    for ours, theirs in zip(tensors, tensors_expected, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def check_overlapped_equals_sequential(tmp_path, model):
    told, told_expected = [], []
    with opened(tmp_path / "one", model) as memory, opened(tmp_path / "two", model, overlapped=False) as expected:
        for _ in range(2):
            ids = memory.add(given(), progress=told.append)
            assert ids == expected.add(given(), progress=told_expected.append)
        assert_same(memory, expected)
        assert memory.verify() == []
        assert memory.bank.version == expected.bank.version
    assert told[-1] == told_expected[-1]
    assert len(told) == len(told_expected)


def test_overlapped_equals_sequential(tmp_path, model):
    check_overlapped_equals_sequential(tmp_path, model)


def test_what_is_given_again_while_it_is_committed_is_known(tmp_path, model, late_commits):
    check_overlapped_equals_sequential(tmp_path, model)


def test_each_text_is_tokenised_once_and_all_but_the_first_window_ahead(tmp_path, model, monkeypatch):
    asked, threads = [], []
    tokenise = Protocol.document_ids_many

    def watched(self, numbers, texts):
        asked.extend(zip(numbers, texts, strict=True))
        threads.append(threading.current_thread().name)
        return tokenise(self, numbers, texts)

    monkeypatch.setattr(Protocol, "document_ids_many", watched)
    with opened(tmp_path / "memory", model) as memory:
        memory.add({"id": str(i), "text": f"text {i} " * (i % 4)} for i in range(24))
        assert memory.bank.version > 3
    assert len(asked) == len(set(asked)) == 24
    assert not threads[0].startswith("msa-add")
    assert all(name.startswith("msa-add") for name in threads[1:])


def test_an_interrupted_add_goes_on_where_it_was(tmp_path, model):
    def interrupt(progress):
        if progress.encoded:
            raise KeyboardInterrupt

    with opened(tmp_path / "one", model) as memory, opened(tmp_path / "two", model, overlapped=False) as expected:
        with pytest.raises(KeyboardInterrupt):
            memory.add(given(), progress=interrupt)
        assert 0 < len(memory) < 24
        assert memory.verify() == []
        memory.add(given())
        expected.add(given())
        assert [each.id for each in memory.list()] == [each.id for each in expected.list()]
        assert sorted(memory.bank.live_numbers()) == [*memory.bank.live_numbers()]
        assert memory.verify() == []


def test_what_came_before_an_item_that_is_no_document_stays(tmp_path, model):
    documents = [{"id": str(i), "text": "x" * 60} for i in range(4)]
    with opened(tmp_path / "memory", model) as memory:
        with pytest.raises(DocumentError, match="item 4"):
            memory.add([*documents, {"id": "4"}])
        assert [document.id for document in memory.list()] == ["0", "1", "2", "3"]


def test_a_commit_that_fails_ends_the_add_and_keeps_what_was_before(tmp_path, model):
    documents = [{"id": str(i), "text": "x" * 60} for i in range(60)]
    with opened(tmp_path / "memory", model, max_bytes=400_000) as memory:
        with pytest.raises(BankFullError):
            memory.add(documents)
        kept = [document.id for document in memory.list()]
        assert 0 < len(kept) < 60
        assert kept == [str(i) for i in range(len(kept))]
        assert memory.verify() == []
        assert memory.delete([kept[0]]) == [kept[0]]
        memory._bank.max_bytes = None
        memory.add(documents)
        assert len(memory) == 60


def test_what_is_deleted_before_it_is_given_again_comes_back(tmp_path, model):
    with opened(tmp_path / "memory", model) as memory:

        def documents():
            for i in (0, 1, 0, 2):
                yield {"id": str(i), "text": "x" * 90}
            while "0" not in memory:  # of the first window; the second is read and not planned
                pass
            assert memory.delete(["0"]) == ["0"]
            yield {"id": "3", "text": "x" * 90}

        memory.add(documents())
        assert sorted(document.id for document in memory.list()) == ["0", "1", "2", "3"]


def test_what_documents_are_read_from_may_add_to_the_memory_itself(tmp_path, model):
    with opened(tmp_path / "memory", model) as memory, ThreadPoolExecutor() as threads:

        def documents():
            for i in range(12):
                memory.add([f"inner text {i}"])
                yield {"id": str(i), "text": "x" * 50}

        threads.submit(lambda: memory.add(documents())).result(timeout=60)
        assert len(memory) == 24


def test_several_threads_add(tmp_path, model):
    with opened(tmp_path / "memory", model) as memory, ThreadPoolExecutor() as threads:
        work = [[{"id": f"{t} {i}", "text": f"{t} text {i} " * (i % 5)} for i in range(30)] for t in range(3)]
        for done in [threads.submit(memory.add, documents) for documents in work]:
            assert len(done.result(timeout=120)) == 30
        stored = memory.bank.list()
        assert len(stored) == 90
        numbers = [part.number for document in stored for part in document.parts]
        assert sorted(numbers) == [*range(1, len(numbers) + 1)]
        assert memory.verify() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_overlapped_equals_sequential_on_a_gpu(tmp_path):
    lm = tiny_lm(protocol={"max_document_tokens": LIMIT}).to("cuda", torch.bfloat16)
    model = MSAModel(lm, tiny_tokenizer(), name="tiny")
    check_overlapped_equals_sequential(tmp_path, model)
    with opened(tmp_path / "one", model, overlapped=None) as memory:
        memory.add([{"id": "more", "text": "more"}])
        assert memory._writer.commit_tokens() == 60
        for segment in memory.bank.segments():
            for layer in memory.bank.spec.layers:
                ours = segment.tensor("int8_routing_keys", layer).int()
                similarity = memory.bank.spec.settings["routing_similarity"]
                theirs = quantize_keys(segment.tensor("routing_keys", layer).clone(), similarity).keys.int()
                # the GPU adds up a key's length in another order: a value between two steps can fall to the other
                assert (ours - theirs).abs().max() <= 1
                assert (ours != theirs).float().mean() < 0.01
