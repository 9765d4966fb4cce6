"""Routing over lists of like keys: against a plain reference, and against routing over all keys."""

import pytest
import torch

from msa import Memory
from msa.ops import RoutingSpec, route
from msa.ops.route import ExactKeys, halve_keys, quantize_keys, route_naive
from msa.routing import BankView, Tiers, cluster_index
from msa.routing.cluster_index import ClusterIndex, lists_of
from msa.routing.key_lists import cluster_keys

SPEC, TOP_K = RoutingSpec(), 4
HEADS, GROUP, DIM = 2, 3, 16


@pytest.fixture(autouse=True)
def _small_segments_have_lists(monkeypatch):
    monkeypatch.setattr(cluster_index, "FEWEST_CHUNKS", 200)
    monkeypatch.setattr(cluster_index, "_LEAST_PER_SELECTED", 1)


def drawn_keys(num_chunks, seed=0):
    """Keys around topics, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    topics = torch.randn(30, HEADS, DIM, generator=generator)
    near = topics[torch.randint(30, (num_chunks,), generator=generator)]
    return (near + 0.6 * torch.randn(num_chunks, HEADS, DIM, generator=generator)).bfloat16()


def drawn_offsets(num_chunks, seed=0):
    """Documents of 0 to 5 chunks."""
    counts = torch.randint(6, (num_chunks,), generator=torch.Generator().manual_seed(seed)).cumsum(0)
    return torch.cat([torch.tensor([0]), counts[counts < num_chunks], torch.tensor([num_chunks])])


def drawn_question(keys, rows=1, tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    chunk = keys[torch.randint(len(keys), (rows, tokens), generator=generator)].float()
    query = chunk.repeat_interleave(GROUP, dim=2) + torch.randn(rows, tokens, HEADS * GROUP, DIM, generator=generator)
    return query, torch.ones(rows, tokens, dtype=torch.bool)


@pytest.fixture(scope="module")
def memory_of_keys():
    """Three blocks: two with lists, a small one without."""
    keys = drawn_keys(2100)
    blocks = [ExactKeys(part) for part in keys.split([1200, 100, 800])]
    lists = [cluster_keys(blocks[0], "cosine"), None, cluster_keys(blocks[2], "cosine")]
    offsets = drawn_offsets(2100)
    return keys, blocks, lists, offsets, ClusterIndex(blocks, lists, offsets)


def folded(query):
    """``[T, Hq, D]`` → one vector of length Hkv·D per token whose product with a unit key is the mean over heads."""
    unit = torch.nn.functional.normalize(query, dim=-1).unflatten(1, (HEADS, GROUP))
    return (unit.sum(2) / (HEADS * GROUP)).flatten(1)


def walked(memory_of_keys, query, share, doc_mask):
    """The chunks that are looked at, one membership after the other: the definition in plain loops."""
    keys, blocks, lists, offsets, _ = memory_of_keys
    q = folded(query[0])
    scored, num_lists, start, looked = [], 0, 0, set()
    for block, one in zip(blocks, lists, strict=True):
        if one is None:
            looked |= {start + row for row in range(len(block.keys))}
        else:
            num_lists += one.num_lists
            for i in range(one.num_lists):
                hoped = q @ one.centroids[i] + cluster_index._HOPE * q.norm(dim=1) * one.spread[i]
                members = one.chunks[one.offsets[i] : one.offsets[i + 1]].tolist()
                scored.append((float(hoped.max()), [start + member for member in members]))
        start += len(block.keys)
    room = max(int(share * len(keys)) - num_lists - len(looked), TOP_K)
    owner = [document for document, count in enumerate(offsets.diff().tolist()) for _ in range(count)]
    chosen = {}
    for _, members in sorted(scored, key=lambda item: -item[0]):
        for chunk in members:
            if len(chosen) < room and (doc_mask is None or doc_mask[owner[chunk]]):
                chosen[chunk] = None
    return sorted(looked | set(chosen)), num_lists


@pytest.mark.parametrize("share", [0.001, 0.1, 0.3, 0.8, 0.999])
@pytest.mark.parametrize("masked", [False, True])
def test_as_the_plain_reference(memory_of_keys, share, masked):
    keys, _, _, offsets, index = memory_of_keys
    num_documents = len(offsets) - 1
    doc_mask = torch.rand(num_documents, generator=torch.Generator().manual_seed(3)) < 0.5 if masked else None
    for seed in range(4):
        query, mask = drawn_question(keys, seed=seed)
        found = index.route(query, mask, SPEC, TOP_K, doc_mask, share=share)
        looked, num_lists = walked(memory_of_keys, query, share, doc_mask)
        assert found.touched.tolist() == [len(looked) + num_lists]
        assert found.num_keys == len(keys)
        every = route_naive(query, mask, keys, offsets, SPEC, TOP_K, doc_mask)
        chunk_scores = torch.full_like(every.chunk_scores, float("-inf"))
        chunk_scores[:, looked] = every.chunk_scores[:, looked]
        best = [
            chunk_scores[0, a:b].max() if b > a else torch.tensor(float("-inf")) for a, b in offsets.unfold(0, 2, 1)
        ]
        scores = torch.stack(best) if doc_mask is None else torch.stack(best).masked_fill(~doc_mask, float("-inf"))
        expected = scores.topk(TOP_K)
        kept = expected.values > float("-inf")
        assert found.doc_indices[0].tolist() == expected.indices.masked_fill(~kept, -1).tolist()
        assert torch.allclose(found.scores[0], expected.values, atol=1e-5)
        assert torch.allclose(found.chunk_scores[0, looked], every.chunk_scores[0, looked], atol=1e-5)
        # what was not looked at has an estimate, what may not be selected has none
        assert torch.equal(found.doc_scores == float("-inf"), every.doc_scores == float("-inf"))
        assert bool(found.chunk_scores.isfinite().all())


def test_all_keys_give_the_very_result_of_exact_routing(memory_of_keys):
    keys, blocks, _, offsets, index = memory_of_keys
    query, mask = drawn_question(keys, rows=3)
    expected, found = (
        route(query, mask, blocks, offsets, SPEC, TOP_K),
        index.route(query, mask, SPEC, TOP_K, share=1.0),
    )
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value)
    assert found.touched.tolist() == [len(keys)] * 3


def test_a_share_finds_nearly_all_and_more_finds_no_less(memory_of_keys):
    keys, blocks, _, offsets, index = memory_of_keys
    recalls = dict.fromkeys((0.15, 0.3, 0.6), 0.0)
    for seed in range(40):
        query, mask = drawn_question(keys, seed=seed)
        best = set(route(query, mask, blocks, offsets, SPEC, TOP_K).doc_indices[0].tolist())
        for share in recalls:
            found = index.route(query, mask, SPEC, TOP_K, share=share)
            assert int(found.touched) <= share * len(keys)
            recalls[share] += len(best & set(found.doc_indices[0].tolist())) / TOP_K / 40
    assert recalls[0.15] <= recalls[0.3] <= recalls[0.6]
    assert recalls[0.3] > 0.9  # chance: below 0.3
    assert recalls[0.6] > 0.97


def test_a_filter_that_leaves_little_is_answered_exactly(memory_of_keys):
    keys, blocks, _, offsets, index = memory_of_keys
    doc_mask = torch.zeros(len(offsets) - 1, dtype=torch.bool)
    doc_mask[5::40] = True
    query, mask = drawn_question(keys)
    expected = route(query, mask, blocks, offsets, SPEC, TOP_K, doc_mask)
    found = index.route(query, mask, SPEC, TOP_K, doc_mask, share=0.2)
    assert torch.equal(found.doc_indices, expected.doc_indices)
    assert torch.allclose(found.doc_scores, expected.doc_scores, atol=1e-6)


def test_each_row_is_answered_as_alone(memory_of_keys):
    keys, _, _, offsets, index = memory_of_keys
    query, mask = drawn_question(keys, rows=3)
    mask[1, 2:] = False
    mask[2] = False  # no token routes: nothing is selected
    doc_mask = torch.rand(3, len(offsets) - 1, generator=torch.Generator().manual_seed(1)) < 0.7
    together = index.route(query, mask, SPEC, TOP_K, doc_mask, share=0.2)
    for row in range(3):
        tokens = max(int(mask[row].sum()), 1)
        one = slice(row, row + 1)
        alone = index.route(query[one, :tokens], mask[one, :tokens], SPEC, TOP_K, doc_mask[row], share=0.2)
        assert torch.equal(together.doc_indices[row], alone.doc_indices[0])
        assert torch.allclose(together.scores[row], alone.scores[0], atol=1e-6)
    assert together.doc_indices[2].tolist() == [-1] * TOP_K
    assert bool((together.doc_scores[2] == float("-inf")).all())


@pytest.mark.parametrize("reduction", [{"head_reduce": "max"}, {"chunk_reduce": "mean"}])
def test_scores_that_lists_cannot_bound_look_at_everything(memory_of_keys, reduction):
    keys, blocks, _, offsets, index = memory_of_keys
    query, mask = drawn_question(keys)
    spec = RoutingSpec(**reduction)
    found = index.route(query, mask, spec, TOP_K, share=0.1)
    assert torch.equal(found.doc_indices, route(query, mask, blocks, offsets, spec, TOP_K).doc_indices)
    assert found.touched.tolist() == [len(keys)]


class Reader:
    """Stored keys that count what is read of them."""

    def __init__(self, keys):
        self.keys, self.shape, self.read = keys, tuple(keys.shape), 0

    def __getitem__(self, rows):
        self.read += len(rows)
        return self.keys[rows]


@pytest.mark.parametrize("prepare", [halve_keys, quantize_keys])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_compact_keys_are_decided_by_the_stored_ones(prepare, similarity):
    keys = drawn_keys(1500)
    offsets = drawn_offsets(1500)
    reader = Reader(keys)
    compact = prepare(keys, similarity)
    block = type(compact)(**{**vars(compact), "stored": reader})
    spec = RoutingSpec(similarity=similarity)
    index = ClusterIndex([block], [lists_of(block, similarity)], offsets)
    query, mask = drawn_question(keys)
    every = route_naive(query, mask, keys, offsets, spec, TOP_K)
    found = index.route(query, mask, spec, TOP_K, share=0.3)
    assert torch.allclose(found.scores[0], every.doc_scores[0, found.doc_indices[0]], rtol=1e-5, atol=1e-5)
    assert 0 < reader.read < 0.3 * 1500


def test_lists_hold_every_chunk_where_it_is_nearest():
    block = ExactKeys(drawn_keys(1500))
    lists = cluster_keys(block, "cosine")
    owner = torch.repeat_interleave(torch.arange(lists.num_lists), lists.offsets.diff())
    members = set(zip(lists.chunks.tolist(), owner.tolist(), strict=True))
    assert len(members) == len(owner)  # in no list twice
    assert {(chunk, int(one)) for chunk, one in enumerate(lists.nearest)} <= members
    counts = lists.chunks.long().bincount(minlength=1500)
    assert int(counts.min()) >= 1
    assert int(counts.max()) == 2
    unit = torch.nn.functional.normalize(block.keys.float(), dim=-1).flatten(1)
    off = (unit - lists.centroids[lists.nearest]).square().sum(1).mean()
    shuffled = (unit - lists.centroids[lists.nearest[torch.randperm(1500)]]).square().sum(1).mean()
    assert off < 0.4 * shuffled
    again = cluster_keys(block, "cosine")
    assert torch.equal(again.chunks, lists.chunks)


@pytest.mark.parametrize("num_chunks", [1, 2, 41, 400])
def test_equal_keys_and_few_keys_have_lists(num_chunks):
    keys = torch.ones(num_chunks, HEADS, DIM)
    index = ClusterIndex([ExactKeys(keys)], [cluster_keys(ExactKeys(keys), "cosine")], torch.arange(num_chunks + 1))
    query, mask = drawn_question(keys)
    found = index.route(query, mask, SPEC, 1, share=0.5)
    assert int(found.doc_indices) >= 0
    assert float(found.scores) == pytest.approx(float(found.doc_scores.max()), abs=1e-5)


def test_no_rows_and_no_routing_tokens_select_nothing():
    keys = drawn_keys(400)
    index = ClusterIndex([ExactKeys(keys)], [cluster_keys(ExactKeys(keys), "cosine")], torch.arange(401))
    query, mask = drawn_question(keys)
    nothing = index.route(query, torch.zeros_like(mask), SPEC, TOP_K, share=0.2)
    assert nothing.doc_indices.tolist() == [[-1] * TOP_K]
    assert nothing.touched.tolist() == [0]
    assert index.route(query[:0], mask[:0], SPEC, TOP_K, share=0.2).doc_indices.shape == (0, TOP_K)


def test_what_cannot_be_is_refused(memory_of_keys):
    keys, blocks, lists, offsets, index = memory_of_keys
    query, mask = drawn_question(keys)
    for share in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="share"):
            index.route(query, mask, SPEC, TOP_K, share=share)
        with pytest.raises(ValueError, match="share"):
            Tiers(key_share=share)
    for wrong in ([lists[2], None, lists[0]], lists[:2]):
        with pytest.raises(ValueError, match="lists"):
            ClusterIndex(blocks, wrong, offsets)
    with pytest.raises(ValueError, match="at least one chunk"):
        cluster_keys(ExactKeys(keys[:0]), "cosine")


@pytest.fixture
def memory(tmp_path, model):
    with Memory.open(tmp_path / "memory", model) as opened:
        opened.add([{"id": f"d{i}", "text": f"Entry {i}: {i * 7919 % 1000} of {i * 104729 % 997}."} for i in range(60)])
        yield opened


@pytest.mark.parametrize("routing_keys", ["exact", "half", "int8", "mapped"])
def test_a_memory_that_grows_and_shrinks(memory, routing_keys):
    tiers = Tiers(routing_keys=routing_keys, key_share=0.3)
    before = BankView(memory.bank, tiers=tiers)
    memory.delete(["d3"])
    memory.add([{"id": "late", "text": "Added later."}])  # a small segment: no lists
    view, exact = BankView(memory.bank, tiers=tiers, previous=before), BankView(memory.bank)
    for layer in view.spec.layers:
        assert view.indexes[layer].lists[0] is before.indexes[layer].lists[0] is not None
        assert view.indexes[layer].lists[1] is None
        generator = torch.Generator().manual_seed(layer)
        query = torch.randn(2, 5, 6, view.spec.head_dim, generator=generator)
        mask = torch.ones(2, 5, dtype=torch.bool)
        found = view.route(layer, query, mask, SPEC, 3)
        every = exact.route(layer, query, mask, SPEC, 3)
        assert bool((found.touched <= 0.3 * found.num_keys).all())
        chosen = every.doc_scores.gather(1, found.doc_indices)
        assert torch.allclose(found.scores, chosen, atol={"half": 2**-8, "int8": 2**-6}.get(routing_keys, 1e-6))
        assert torch.equal(found.doc_scores == float("-inf"), every.doc_scores == float("-inf"))
        late = int(view.numbers.searchsorted(view.numbers.max()))
        assert float(found.doc_scores[0, late]) == pytest.approx(float(every.doc_scores[0, late]), abs=0.02)


def test_a_memory_is_searched_and_asked_over_lists(memory):
    with Memory.open(memory.bank.path, memory.model, read_only=True, tiers=Tiers(key_share=0.5)) as other:
        assert len(other.search("Entry 5", top_k=5)) == 5
        votes = other.ask("What is entry 5?", max_new_tokens=4).rounds[0].votes
        assert [len(set(numbers)) for numbers in votes.values()] == [3, 3]


def test_all_keys_are_the_default(memory):
    assert BankView(memory.bank).indexes == {}
