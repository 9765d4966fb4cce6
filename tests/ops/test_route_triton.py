"""The routing scorer as a Triton kernel against the equation, in Triton's interpreter: no GPU needed."""

import itertools
import multiprocessing
import subprocess
import threading
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msa.ops import ExactKeys, RoutingSpec, halve_keys, quantize_keys
from msa.ops.route import route, route_naive, select, tiled, triton_dispatch
from msa.ops.route.scoring import prepare_query
from msa.ops.route.types import HEAD_REDUCTIONS, QUERY_REDUCTIONS, SIMILARITIES

from .test_route import assert_same, random_inputs

pytest.importorskip("triton", reason="the kernel is written in triton, which is not installed (pip install triton)")
from msa.ops.route import triton_scorer as scorer
from msa.ops.route.triton_scorer import Tiling

SPECS = [
    RoutingSpec(similarity=similarity, scale=0.3, head_reduce=head, query_reduce=query)
    for similarity, head, query in itertools.product(SIMILARITIES, HEAD_REDUCTIONS, QUERY_REDUCTIONS)
]
SPEC_NAMES = [f"{spec.similarity}-{spec.head_reduce}-{spec.query_reduce}" for spec in SPECS]
FORMS = {
    "bfloat16": lambda keys, similarity: ExactKeys(keys.bfloat16()),
    "float16": lambda keys, similarity: ExactKeys(keys.half()),
    "float8": lambda keys, similarity: ExactKeys(keys.to(torch.float8_e4m3fn)),
    "halved": halve_keys,
    "int8": quantize_keys,
}
SMALL = Tiling(chunks=16, tokens=16, programs=9)
COUNTS = [3, 1, 7, 0, 2, 25, 1, 0, 9]  # chunks per document; 48 in all
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
# questions of more than 32 tokens are multiplied as two parts of 8 bits each
CLOSE_ENOUGH = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def interpreted():
    """Calls functions in a process of its own: triton decides when it is imported whether it will interpret."""
    with pytest.MonkeyPatch.context() as patch, multiprocessing_pool(patch) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()


def multiprocessing_pool(patch):
    patch.setenv("TRITON_INTERPRET", "1")
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, context, initializer=torch.set_num_threads, initargs=(1,))


@pytest.fixture
def as_on_a_gpu(interpreted, monkeypatch):
    """``route`` and ``select`` score by the kernel, as they do where there is a GPU for it."""

    def scored(function):
        return lambda *args: interpreted(function, *args, SMALL)

    kernel = SimpleNamespace(
        score_chunks=scored(scorer.score_chunks), select=scored(scorer.select), MOST_SELECTED=scorer.MOST_SELECTED
    )
    monkeypatch.setattr(tiled, "triton_scorer", lambda query, blocks: kernel if scorer.fits(query, blocks) else None)


def few_rows(inputs):
    """One row of some tokens, one that does not route, one of all tokens."""
    query, mask, keys, offsets = inputs
    return query[:3], mask[:3], keys, offsets


def blocks_of(keys, sizes, form="bfloat16", similarity="cosine"):
    return [FORMS[form](part, similarity) for part in keys.split(sizes)]


def check(inputs, blocks, spec, top_k, doc_mask=None, tolerance=CLOSE):
    """Both results of the kernel, beside the reference."""
    query, mask, _, offsets = inputs
    exact = route_naive(query, mask, blocks, offsets, spec, top_k, doc_mask)
    ours = route(query, mask, blocks, offsets, spec, top_k, doc_mask)
    assert_same(ours, exact, **tolerance)
    best = select(query, mask, blocks, offsets, spec, top_k, doc_mask)
    assert best.doc_indices.tolist() == exact.doc_indices.tolist()
    assert best.doc_indices.dtype == torch.int64
    torch.testing.assert_close(best.scores, exact.scores, **tolerance)
    return best


@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
def test_equals_the_reference(as_on_a_gpu, spec):
    inputs = few_rows(random_inputs(COUNTS, tokens=7))
    doc_mask = torch.tensor([True, False, True, True, True, True, True, True, False])
    # what keys are kept in has nothing to do with what is done to tokens
    others = ["int8"] if spec.query_reduce == "mean" else ["bfloat16"]
    forms = FORMS if spec.query_reduce == "max" and spec.head_reduce == "mean" else others
    for form in forms:
        check(inputs, blocks_of(inputs[2], [20, 0, 28], form, spec.similarity), spec, 3, doc_mask)


@pytest.mark.parametrize("spec", SPECS[::6], ids=SPEC_NAMES[::6])
@pytest.mark.parametrize(("heads", "head_dim"), [((1, 1), 3), ((4, 4), 16), ((6, 1), 33), ((2, 1), 256)], ids=str)
def test_odd_shapes(as_on_a_gpu, spec, heads, head_dim):
    inputs = few_rows(random_inputs([5, 1, 12], heads, 5, head_dim))
    check(inputs, blocks_of(inputs[2], [18]), spec, 2)


@pytest.mark.parametrize("spec", SPECS[1::6], ids=SPEC_NAMES[1::6])
@pytest.mark.parametrize("tokens", [1, 16, 41])
def test_questions_of_several_groups_of_tokens(as_on_a_gpu, spec, tokens):
    inputs = few_rows(random_inputs([5, 1, 12], tokens=tokens))
    check(inputs, blocks_of(inputs[2], [18], "int8", spec.similarity), spec, 2)


def test_forms_may_be_mixed(as_on_a_gpu):
    inputs = few_rows(random_inputs(COUNTS))
    parts = zip(FORMS.values(), inputs[2].split([10, 10, 8, 10, 10]), strict=True)
    check(inputs, [form(part, "cosine") for form, part in parts], RoutingSpec(), 4)


@settings(max_examples=25, database=None)
@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any),
    seed=st.integers(0, 2**31),
    top_k=st.integers(1, 9),
    programs=st.integers(1, 9),
    cut=st.floats(0, 1),
    masked=st.booleans(),
)
def test_ties_and_documents_of_several_programs(interpreted, counts, seed, top_k, programs, cut, masked):
    """Whole numbers, few different ones: both sums are exact, many scores equal, and the lowest index wins."""
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *itertools.accumulate(counts)])
    num_chunks, spec = int(offsets[-1]), RoutingSpec(similarity="dot")
    query = torch.randint(-2, 3, (2, 3, 2, 4), generator=draw).float()
    keys = torch.randint(-1, 2, (num_chunks, 1, 4), generator=draw).float()
    mask = torch.tensor([[True, False, True], [False, True, False]])
    doc_mask = torch.rand(2, len(counts), generator=draw) < 0.7 if masked else None
    blocks = blocks_of(keys, [int(cut * num_chunks), num_chunks - int(cut * num_chunks)])
    exact = route_naive(query, mask, blocks, offsets, spec, top_k, doc_mask)
    q, routing = prepare_query(query, mask, 1, spec)
    tiling = Tiling(chunks=16, programs=programs)
    indices, scores = interpreted(scorer.select, q, routing, blocks, offsets, spec, top_k, doc_mask, tiling)
    assert indices.tolist() == exact.doc_indices.tolist()
    assert scores.tolist() == exact.scores.tolist()


def test_more_than_there_are_documents(as_on_a_gpu):
    inputs = random_inputs([2, 3])
    best = check(inputs, blocks_of(inputs[2], [1, 4]), RoutingSpec(), 100)
    assert best.doc_indices[0].tolist()[2:] == [-1] * 98
    assert best.doc_indices[1].tolist() == [-1] * 100  # a row that does not route
    check(inputs, blocks_of(inputs[2], [1, 4]), RoutingSpec(), scorer.MOST_SELECTED + 1)
    check(inputs, blocks_of(inputs[2], [1, 4]), RoutingSpec(), 0)


def test_nothing_may_be_selected(as_on_a_gpu):
    query, mask, keys, offsets = inputs = few_rows(random_inputs(COUNTS))
    blocks = blocks_of(keys, [48])
    assert (check(inputs, blocks, RoutingSpec(), 3, torch.zeros(9, dtype=torch.bool)).doc_indices == -1).all()
    assert (check((query, mask & False, keys, offsets), blocks, RoutingSpec(), 3).doc_indices == -1).all()
    check(random_inputs([]), [], RoutingSpec(), 3)
    check(random_inputs([0, 0]), blocks_of(keys[:0], [0]), RoutingSpec(), 3)


@pytest.mark.parametrize("chunk_reduce", ["max", "mean"])
@pytest.mark.parametrize("stored", [False, True])
def test_means_of_chunks_and_a_second_look_at_stored_keys(as_on_a_gpu, chunk_reduce, stored):
    query, mask, keys, offsets = inputs = few_rows(random_inputs(COUNTS))
    spec = RoutingSpec(chunk_reduce=chunk_reduce)
    blocks = [replace(quantize_keys(keys, "cosine"), stored=keys if stored else None)]
    if not stored:
        check(inputs, blocks, spec, 3)
        return
    exact = route_naive(query, mask, keys, offsets, spec, 3)
    for ours in (route(query, mask, blocks, offsets, spec, 3), select(query, mask, blocks, offsets, spec, 3)):
        assert ours.doc_indices.tolist() == exact.doc_indices.tolist()
        torch.testing.assert_close(ours.scores, exact.scores, **CLOSE)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_queries_of_any_size(as_on_a_gpu, size):
    """Parts of float16 would be lost or infinite as they are."""
    query, mask, keys, offsets = random_inputs(COUNTS)
    blocks, spec = blocks_of(keys, [48], "int8", "dot"), RoutingSpec(similarity="dot")
    ours = route(query * size, mask, blocks, offsets, spec, 3)
    exact = route_naive(query, mask, blocks, offsets, spec, 3)
    assert ours.doc_indices.tolist() == exact.doc_indices.tolist()
    torch.testing.assert_close(ours.doc_scores / size, exact.doc_scores, rtol=1e-4, atol=1e-5)


def test_a_query_and_chunks_of_zeros(as_on_a_gpu):
    query, mask, keys, offsets = few_rows(random_inputs(COUNTS))
    keys[::2] = 0
    for form in ("bfloat16", "int8"):
        blocks = blocks_of(keys, [48], form)
        check((query, mask, keys, offsets), blocks, RoutingSpec(), 5)
        best = check((query * 0, mask, keys, offsets), blocks, RoutingSpec(), 5)
        assert best.doc_indices[0].tolist() == [0, 1, 2, 4, 5]  # 3 has no chunks


def test_bad_input_is_refused(as_on_a_gpu):
    query, mask, keys, offsets = random_inputs(COUNTS)
    for call in (route, select):
        with pytest.raises(ValueError, match="chunk_offsets end at 47, but there are 48 chunks"):
            call(query, mask, blocks_of(keys, [48]), offsets.clamp(max=47), RoutingSpec(), 3)
        with pytest.raises(ValueError, match="prepared for cosine, the spec asks for dot"):
            call(query, mask, blocks_of(keys, [48], "int8"), offsets, RoutingSpec(similarity="dot"), 3)


def test_what_the_kernel_was_not_written_for():
    query, _, keys, _ = random_inputs(COUNTS)
    assert scorer.fits(query, blocks_of(keys, [48]))
    assert not scorer.fits(query, [ExactKeys(keys)])
    assert not scorer.fits(query, [ExactKeys(keys.double())])
    assert not scorer.fits(query, [ExactKeys(keys.bfloat16().transpose(1, 2).contiguous().transpose(1, 2))])
    assert not scorer.fits(query, [ExactKeys(torch.zeros(2, 1, 257, dtype=torch.bfloat16))])
    assert not scorer.fits(query[:0], blocks_of(keys, [48]))
    assert not scorer.fits(query, blocks_of(keys[:0], [0]))


def test_owners_are_found_again_and_not_once_offsets_changed():
    offsets = torch.tensor([0, 2, 2, 5])
    first = scorer._owners(offsets, 5)
    assert first.documents.tolist() == [0, 0, 2, 2, 2, -1]
    assert scorer._owners(offsets, 5) is first
    offsets[1] = 1
    assert scorer._owners(offsets, 5).documents.tolist() == [0, 1, 2, 2, 2, -1]
    with torch.inference_mode():
        untracked = torch.tensor([0, 1, 5])
        assert scorer._owners(untracked, 5).documents.tolist() == [0, 1, 1, 1, 1, -1]
        untracked[1] = 2
        assert scorer._owners(untracked, 5).documents.tolist() == [0, 0, 1, 1, 1, -1]


def test_a_cpu_asks_for_nothing(monkeypatch):
    """Without a GPU the kernel is not even imported, and ``select`` says what ``route`` does, gradients included."""
    monkeypatch.setattr(triton_dispatch, "_scorer", lambda: pytest.fail("asked for the kernel"))
    query, mask, keys, offsets = random_inputs(COUNTS)
    query.requires_grad_()
    ours, best = (call(query, mask, keys, offsets, RoutingSpec(), 3) for call in (route, select))
    assert best.doc_indices.tolist() == ours.doc_indices.tolist()
    assert torch.equal(best.scores, ours.scores)
    assert best.scores.requires_grad


def test_without_triton_there_is_no_kernel(monkeypatch):
    monkeypatch.setattr(triton_dispatch.importlib, "import_module", missing)
    assert triton_dispatch._scorer.__wrapped__() is None


def missing(name):
    raise ModuleNotFoundError("No module named 'triton'", name="triton")


class Unbuilt:
    """A kernel that does the same at each launch: raise."""

    def __init__(self, error):
        self.error, self.launches = error, 0

    def __getitem__(self, grid):
        return self._launch

    def _launch(self, *args, **constants):
        self.launches += 1
        raise self.error


@pytest.fixture
def launching(monkeypatch):
    """Has ``route`` and ``select`` launch what it is given, as on a GPU of the right kind, but on the CPU."""

    def found(query, blocks):
        here = None if triton_dispatch._unbuildable.is_set() else scorer
        return here if scorer.fits(query, blocks) else None

    def launch(kernel):
        monkeypatch.setattr(scorer, "score_kernel", kernel)
        return kernel

    monkeypatch.setattr(triton_dispatch, "_unbuildable", threading.Event())
    monkeypatch.setattr(scorer, "_multiprocessors", lambda device: 2)
    monkeypatch.setattr(tiled, "triton_scorer", found)
    return launch


@pytest.mark.parametrize("call", [route, select])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        PermissionError(13, "Permission denied", "/home/msa/.triton"),
        subprocess.CalledProcessError(1, ["gcc", "main.c"]),
        ImportError("main.so: failed to map segment from shared object"),
        AssertionError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_cannot_be_built_is_done_without(launching, caplog, call, error):
    query, mask, keys, offsets = inputs = few_rows(random_inputs(COUNTS))
    blocks = blocks_of(keys, [48])
    kernel = launching(Unbuilt(error))
    ours = call(query, mask, blocks, offsets, RoutingSpec(), 3)
    exact = route_naive(query, mask, blocks, offsets, RoutingSpec(), 3)
    assert ours.doc_indices.tolist() == exact.doc_indices.tolist()
    torch.testing.assert_close(ours.scores, exact.scores, **CLOSE)
    check(inputs, blocks, RoutingSpec(), 3)
    assert kernel.launches == 1, "it is tried once"
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"({type(error).__name__}: {error}" in warning
    assert "a C compiler (gcc)" in warning
    assert triton_dispatch.triton_scorer(SimpleNamespace(device=torch.device("cuda")), blocks) is None


@pytest.mark.parametrize("call", [route, select])
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        KeyboardInterrupt(),
    ],
    ids=["illegal access", "out of memory", "no memory for its code", "interrupt"],
)
def test_what_a_kernel_that_was_built_runs_into_is_raised(launching, caplog, call, error):
    query, mask, keys, offsets = few_rows(random_inputs(COUNTS))
    kernel = launching(Unbuilt(error))
    for launches in (1, 2):
        with pytest.raises(type(error)) as caught:
            call(query, mask, blocks_of(keys, [48]), offsets, RoutingSpec(), 3)
        assert caught.value is error
        assert kernel.launches == launches
    assert caplog.records == []


def test_compiles_for_hopper(monkeypatch):
    """Without a GPU: to instructions of its tensor cores, in so little memory that two programs share a processor."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    calls = []
    kernel = scorer.score_kernel
    record = type(
        "Record", (), {"__getitem__": lambda self, grid: lambda *args, **named: calls.append((args, named))}
    )()
    monkeypatch.setattr(scorer, "score_kernel", record)
    query, keys, spec = torch.randn(1, 32, 32, 128), torch.randn(256, 8, 128), RoutingSpec(similarity="dot")
    q, mask = prepare_query(query, torch.ones(1, 32, dtype=torch.bool), 8, spec)
    offsets = torch.arange(0, 257, 8)
    scorer.select(q, mask, blocks_of(keys, [256]), offsets, spec, 16, None, Tiling(programs=2))
    (args, named), warps = calls[0], calls[0][1].pop("num_warps")
    names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float8_e4m3fn: "fp8e4nv"}
    names |= {torch.int32: "i32", torch.int64: "i64"}
    signature = {
        name: f"*{names[arg.dtype]}" if isinstance(arg, torch.Tensor) else "i32"
        for name, arg in zip(kernel.arg_names, args, strict=False)
    }
    aligned = [index for index, arg in enumerate(args) if isinstance(arg, torch.Tensor) or arg % 16 == 0]
    source = ASTSource(
        kernel,
        signature | dict.fromkeys(named, "constexpr"),
        {(kernel.arg_names.index(name),): value for name, value in named.items()},
        {(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert "wgmma.mma_async" in compiled.asm["ptx"]
    assert "cp.async" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= 113 * 1024


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("spec", SPECS, ids=SPEC_NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_on_a_gpu(spec, form):
    counts = torch.randint(0, 60, (700,), generator=torch.Generator().manual_seed(1)).tolist()
    query, mask, keys, offsets = (each.cuda() for each in random_inputs(counts, (32, 8), 40, 128))
    blocks = blocks_of(keys, [5000, 0, len(keys) - 5000], form, spec.similarity)
    assert triton_dispatch.triton_scorer(query, blocks) is scorer
    doc_mask = torch.rand(4, 700, device="cuda") < 0.8
    check((query, mask, keys, offsets), blocks, spec, 16, doc_mask, CLOSE_ENOUGH)
    assert triton_dispatch.triton_scorer(query, blocks) is scorer, "it was the kernel"
