"""Round trips, updates, deletions, compaction and filters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bank_helpers import FINGERPRINT, SPEC, add, assert_latents_complete, contents, document, latents, new_bank
from safetensors.torch import load_file

import msa.bank.documents
from msa.bank import BankSpec, MemoryBank, StoredDocument
from msa.bank.documents import BATCH
from msa.errors import BankError, NotFiniteError

TEXT = "naïve café 日本 😀\x00 after a NUL"


def test_round_trip(tmp_path: Path) -> None:
    first = document("a", TEXT, 1, 3, {"lang": "fr", "tags": ["x", "y"], "n": 1.5, "none": None})
    second = document("b", "", 4)
    with new_bank(tmp_path / "deep" / "mem") as bank:
        assert (len(bank), bank.version, bank.next_number, bank.segments(), bank.verify()) == (0, 0, 1, [], [])
        assert bank.live_numbers().tolist() == []
        assert add(bank, first, second) == 1
    with MemoryBank.open(tmp_path / "deep" / "mem", fingerprint=FINGERPRINT) as bank:
        assert bank.spec == SPEC
        assert bank.get("a") == first
        assert bank.list() == [first, second]
        assert list(bank.ids()) == ["a", "b"]
        assert bank.content_hash("b") == "hash of "
        assert ("a" in bank, "z" in bank, "\ud800" in bank, 3 in bank) == (True, False, False, False)
        assert bank.get("z") is None
        for call in (lambda: bank.get(3), lambda: bank.commit(delete=[None])):  # type: ignore[arg-type,list-item]
            with pytest.raises(TypeError, match="document ids are strings"):
                call()
        assert (bank.version, bank.next_number, len(bank)) == (1, 5, 2)
        assert_latents_complete(bank)
        assert bank.verify() == []
    assert sorted(file.name for file in (tmp_path / "deep" / "mem").iterdir()) == [
        "manifest-000000000000.json",
        "manifest-000000000001.json",
        "memory.lock",
        "segments",
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_dtypes_and_plain_safetensors(tmp_path: Path, dtype: str) -> None:
    spec = replace(SPEC, dtype=dtype)
    given = document("a", "text", 1, 2)
    with MemoryBank.create(tmp_path / "m", fingerprint="f", spec=spec) as bank:
        bank.commit(put=[given], latents=latents([given], spec))
        assert_latents_complete(bank)
    (file,) = (tmp_path / "m" / "segments").glob("*.safetensors")
    loaded = load_file(file)
    assert loaded["numbers"].tolist() == [1, 2]
    assert loaded["chunk_offsets"].tolist() == [0, 1, 3]
    assert torch.equal(loaded["layers.3.values"], latents([given], spec).values[3])


def test_parts_come_in_the_order_asked(bank: MemoryBank) -> None:
    first, second = document("a", TEXT, 1, 4, {"k": 1}), document("b", "other", 5)
    add(bank, first, second)
    found = bank.parts(np.array([5, 3, 1, 3]))  # type: ignore[arg-type]
    assert [each.part.number for each in found] == [5, 3, 1, 3]
    assert [(each.document_id, each.index, each.num_parts) for each in found] == [
        ("b", 0, 1),
        ("a", 2, 4),
        ("a", 0, 4),
        ("a", 2, 4),
    ]
    assert "".join(each.text for each in bank.parts([1, 2, 3, 4])) == TEXT
    assert found[1].metadata == {"k": 1}
    with pytest.raises(KeyError):
        bank.parts([1, 99])
    assert bank.state().ids_of([5, 3, 3, 99, 0]) == {3: "a", 5: "b"}
    assert bank.state().ids_of([]) == {}


def test_update_delete_compact_never_reuse_numbers(bank: MemoryBank) -> None:
    add(bank, document("a", "one", 1, 2), document("b", "two", 3))
    add(bank, document("a", "changed", 4))
    assert bank.live_numbers().tolist() == [3, 4]
    assert list(bank.ids()) == ["a", "b"]
    with pytest.raises(ValueError, match="never reused"):
        add(bank, document("c", "three", 2))
    assert bank.commit(delete=["a", "unknown"]) == 3
    assert bank.commit(delete=["unknown"]) == 3
    assert bank.stats()["deleted_parts"] == 3
    report = bank.compact()
    assert (report["compacted"], report["removed_parts"], report["segments_after"]) == (True, 3, 1)
    assert report["bytes_after"] < report["bytes_before"]
    assert len(list((bank.path / "segments").iterdir())) == 2  # documents and latents
    assert bank.live_numbers().tolist() == [3]
    assert bank.next_number == 5
    assert_latents_complete(bank)
    assert bank.verify() == []
    again = bank.compact()
    assert (again["compacted"], "nothing to do" in again["message"]) == (False, True)
    with pytest.raises(ValueError, match="never reused"):
        add(bank, document("c", "three", 4))
    add(bank, document("a", "back", 5))
    assert contents(bank) == {"b": "two", "a": "back"}


def test_compact_keeps_runs_of_chunks(bank: MemoryBank) -> None:
    number = 1
    for i in range(6):
        add(bank, document(f"d{i}", "some text", number, 3))
        number += 3
    held = bank.segments()[0]
    bank.commit(delete=["d0", "d3"])
    kept = next(each for each in bank.list() if each.id == "d4")
    bank.commit(put=[replace(kept, parts=kept.parts[::2])])
    bank.compact()
    (segment,) = bank.segments()
    assert segment.numbers.tolist() == bank.live_numbers().tolist() == [4, 5, 6, 7, 8, 9, 13, 15, 16, 17, 18]
    assert_latents_complete(bank)
    assert held.tensor("keys", 1)[0, 0, 0] == 1.375  # a segment that was open stays readable
    bank.commit(delete=list(bank.ids()))
    assert bank.compact()["segments_after"] == 0
    assert bank.segments() == []
    assert bank.next_number == 19


def test_deleted_text_leaves_the_disk(bank: MemoryBank) -> None:
    add(bank, document("a", "a very secret sentence", 1), document("b", "x" * 100_000, 2))
    bank.commit(delete=["a", "b"])
    bank.compact()
    assert not any(b"secret" in file.read_bytes() for file in bank.path.rglob("*") if file.is_file())
    assert bank.stats()["bytes_on_disk"] < 100_000


def test_metadata_update_keeps_parts(bank: MemoryBank) -> None:
    given = document("a", "text", 1, 2, {"lang": "en"})
    add(bank, given)
    bank.commit(put=[replace(given, metadata={"lang": "de"})])
    assert bank.live_numbers().tolist() == [1, 2]
    assert bank.matching_numbers({"lang": "de"}).tolist() == [1, 2]
    assert bank.matching_numbers({"lang": "en"}).tolist() == []
    assert (len(bank.segments()), bank.next_number, bank.verify()) == (2, 3, [])
    bank.compact()
    assert (len(bank.segments()), bank.next_number, bank.verify()) == (1, 3, [])
    assert_latents_complete(bank)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"lang": "en"}, [1, 3, 4]),
        ({"lang": ["en", "de"]}, [1, 2, 3, 4]),
        ({"lang": []}, []),
        ({"lang": "en", "year": 2020}, [1]),
        ({"year": 2020.0}, [1, 2]),
        ({"year": "2020"}, []),
        ({"flag": True}, [3, 4]),
        ({"flag": 1}, [1]),
        ({"none": None}, [2]),
        ({"tags": [["x", "y"]]}, [2]),
        ({"tags": ["x", "y"]}, [2]),
        ({"tags": "y"}, [2]),
        ({"tags": ["z", "x"]}, [2]),
        ({"tags": "z"}, []),
        ({"tags": [1.0]}, [3, 4]),
        ({"tags": True}, []),
        ({"tags": [["x"]]}, [3, 4]),
        ({"tags": "x", "lang": "en"}, []),
        ({'od"d.key': {"b": 1, "a": [2]}}, [1]),
        ({"absent": 1}, []),
    ],
)
def test_where(bank: MemoryBank, where: Mapping[str, Any], expected: list[int]) -> None:
    add(
        bank,
        document("a", "t", 1, metadata={"lang": "en", "year": 2020, "flag": 1, 'od"d.key': {"a": [2], "b": 1}}),
        document("b", "t", 2, metadata={"lang": "de", "year": 2020.0, "none": None, "tags": ["x", "y"]}),
        document("c", "t", 3, 2, metadata={"lang": "en", "flag": True, "tags": [["x"], 1]}),
    )
    assert bank.matching_numbers(where).tolist() == expected


@pytest.mark.parametrize("where", [{"": 1}, {1: 1}, {"a": object()}, {"a": float("nan")}])
def test_where_refuses(bank: MemoryBank, where: Any) -> None:
    with pytest.raises(ValueError):
        bank.matching_numbers(where)


def test_listing_pages(bank: MemoryBank) -> None:
    add(bank, *(document(f"d{i}", "t", i + 1) for i in range(1203)))
    assert [each.id for each in bank.list(limit=2)] == ["d0", "d1"]
    assert [each.id for each in bank.list(limit=2, after="d1")] == ["d2", "d3"]
    assert [each.id for each in bank.list(after="d1201")] == ["d1202"]
    assert list(bank.ids()) == [f"d{i}" for i in range(1203)]
    assert len(bank.parts(bank.live_numbers())) == 1203  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        bank.list(after="gone")
    bank.commit(delete=[f"d{i}" for i in range(1100)])
    assert len(bank) == 103


def test_stats(bank: MemoryBank) -> None:
    add(bank, document("a", "t", 1, 3))
    stats = bank.stats()
    assert {key: stats[key] for key in ("documents", "parts", "chunks", "tokens", "segments", "deleted_parts")} == {
        "documents": 1,
        "parts": 3,
        "chunks": 6,
        "tokens": 48,
        "segments": 1,
        "deleted_parts": 0,
    }
    assert stats["bytes_on_disk"] > 1000
    assert (stats["version"], stats["fingerprint"], stats["model_name"]) == (1, FINGERPRINT, "tiny")
    assert (stats["chunk_size"], stats["layers"], stats["dtype"]) == (8, [1, 3], "bfloat16")


BAD_TEXT = document("a", "lone \ud800 surrogate", 1)


@pytest.mark.parametrize(
    ("put", "message"),
    [
        ([BAD_TEXT], "not valid Unicode"),
        ([document("", "t", 1)], "not empty"),
        ([document("a", "t", 1), document("a", "t", 2)], "distinct"),
        ([document("a", "t", 1), document("b", "t", 1)], "distinct"),
        ([document("a", "t", 0)], "at least 1"),
        ([document("a", "t", 1, metadata={"x": {1, 2}})], "JSON"),
        ([document("a", "t", 1, metadata={"x": float("inf")})], "JSON"),
        ([document("a", "t", 1, metadata={"x": {2: 1, 10: 1}})], "strings"),
        ([replace(document("a", "text", 1), text="t")], "spans"),
        ([document("old", "t", 1)], "old"),
    ],
)
def test_commit_refuses_bad_documents(bank: MemoryBank, put: list[StoredDocument], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bank.commit(put=put, latents=latents(put) if len({d.id for d in put}) == 1 and put[0].id == "a" else None)
    assert (bank.version, len(bank)) == (0, 0)


def test_commit_refuses_latents_that_do_not_fit(bank: MemoryBank) -> None:
    given = document("a", "t", 1, 2)
    good = latents([given])
    bad = [
        replace(good, keys={1: good.keys[1]}),
        replace(good, values={layer: t.float() for layer, t in good.values.items()}),
        replace(good, routing_keys={layer: t[1:] for layer, t in good.routing_keys.items()}),
        replace(good, numbers=torch.tensor([2, 1])),
        replace(good, numbers=torch.tensor([1, 7])),
        replace(good, chunk_offsets=torch.tensor([0, 2, 3])),
        replace(good, chunk_offsets=torch.tensor([0, 0, 3])),
    ]
    for each in bad:
        with pytest.raises(ValueError):
            bank.commit(put=[given], latents=each)
    with pytest.raises(ValueError, match="no latents"):
        bank.commit(put=[given])
    with pytest.raises(ValueError, match="both"):
        bank.commit(put=[given], latents=good, delete=["a"])
    with pytest.raises(TypeError):
        bank.commit(delete="a")
    add(bank, given)
    with pytest.raises(ValueError, match="stored with"):
        bank.commit(put=[replace(given, id="thief")])
    assert (bank.version, bank.verify()) == (1, [])


def test_reader_sees_commits_whole(bank: MemoryBank) -> None:
    add(bank, document("a", "old", 1), document("b", "old", 2))
    with MemoryBank.open(bank.path, read_only=True) as reader:
        before = reader.state()
        add(bank, document("a", "new", 3), delete=["b"])
        assert (before.manifest.version, reader.version) == (1, 2)
        assert contents(reader) == {"a": "new"}
        assert reader.live_numbers().tolist() == [3]
        bank.compact()
        assert before.segments[0].tensor("keys", 1).shape == (2, 2, 4)
        assert [segment.numbers.tolist() for segment in reader.segments()] == [[3]]
        assert_latents_complete(reader)
        with pytest.raises(BankError, match="read-only"):
            reader.commit(delete=["a"])
        with pytest.raises(BankError, match="read-only"):
            reader.compact()


def test_closed_bank(tmp_path: Path) -> None:
    bank = new_bank(tmp_path / "m")
    bank.close()
    bank.close()
    with pytest.raises(BankError, match="closed"):
        bank.list()


def test_spec_checks() -> None:
    assert BankSpec.from_json(json.dumps(asdict(SPEC))) == SPEC
    for change in ({"layers": ()}, {"layers": (3, 1)}, {"dtype": "int8"}, {"head_dim": 0}):
        with pytest.raises(ValueError):
            replace(SPEC, **change)  # type: ignore[arg-type]


def test_a_commit_goes_through_its_own_segment_alone(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it takes does not grow with the documents that are there already."""
    for number in range(1, 6):
        add(bank, document(f"d{number}", "text", number))
    for segment in bank.segments():
        for name in ("places", "part_numbers", "part_places", "part_tokens", "part_chunks"):
            monkeypatch.delattr(segment.documents, name)
    hashed: list[str] = []
    digest = msa.bank.documents._digest
    monkeypatch.setattr(msa.bank.documents, "_digest", lambda id_: hashed.append(id_) or digest(id_))
    add(bank, document("d2", "changed", 6), document("new", "text", 7), delete=["d4"])
    assert sorted(hashed) == ["d2", "d2", "d4", "new", "new"]  # looked up once, written once
    assert list(contents(bank)) == ["d1", "d2", "d3", "d5", "new"]
    assert bank.live_numbers().tolist() == [1, 3, 5, 6, 7]


def test_ids_whose_digests_begin_alike(bank: MemoryBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bytes of a digest are compared first, all sixteen decide."""
    monkeypatch.setattr(msa.bank.documents, "_digest", lambda id_: b"the same" + id_.encode().rjust(8, b"\0"))
    for number, id_ in enumerate("cab", 1):
        add(bank, document(id_, f"text of {id_}", number))
    add(bank, document("e", "text of e", 4), document("d", "text of d", 5))
    for id_ in "abcdefg":
        found = bank.get(id_)
        assert (None if found is None else found.text) == (f"text of {id_}" if id_ in "abcde" else None)
    add(bank, document("a", "changed", 6), delete=["d", "0"])
    assert list(contents(bank)) == ["c", "a", "b", "e"]
    assert [*bank.ids()] == ["c", "a", "b", "e"]


def test_matches_that_are_left_in_the_middle_hold_nobody_up(bank: MemoryBank) -> None:
    add(bank, *(document(f"d{number}", "word", number) for number in range(1, 2 * BATCH)))
    file = bank.segments()[0].documents
    found = file.matches("word")
    assert next(found)[0] == 1
    with ThreadPoolExecutor(1) as other:
        try:
            assert other.submit(file.ids, [1]).result(timeout=10) == {1: "d1"}
            other.submit(found.close).result(timeout=10)
        finally:
            found.close()
        assert [number for number, _ in file.matches("word")] == [*range(1, 2 * BATCH)]
        assert other.submit(file.ids, [2]).result(timeout=10) == {2: "d2"}


@pytest.mark.parametrize("kind", ["routing_keys", "keys", "values"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_latents_that_are_no_numbers_are_refused(bank: MemoryBank, kind: str, value: float) -> None:
    add(bank, document("a", "first", 1))
    new = [document("a", "changed", 2), document("b", "second", 3, 2), document("c", "third", 5)]
    broken = latents(new)
    getattr(broken, kind)[3][2, 1, 3] = value  # the second part of b
    with pytest.raises(NotFiniteError, match="of document 'b' are not finite"):
        bank.commit(put=new, latents=broken)
    assert (contents(bank), bank.version, bank.verify()) == ({"a": "first"}, 1, [])
    getattr(broken, kind)[1][:] = value
    with pytest.raises(NotFiniteError, match="of document 'a', 'b', 'c' are not finite"):
        bank.commit(put=new, latents=broken)
    bank.commit(put=new, latents=latents(new))
    assert [*contents(bank)] == ["a", "b", "c"]
