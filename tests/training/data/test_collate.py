"""Batches: every document and row once, numbers that are distinct, and positives that survive the sorting."""

import dataclasses
import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_training import CORPUS, NO_ANSWER, ONE_HOP, SHORT, TWO_HOPS, UNANSWERABLE, all_steps_batch, all_steps_set

from msa.documents import Protocol
from msa.training.data.collate import choose_steps, collate, draw_numbers, draw_repeating_numbers
from msa.training.data.samples import Sample, TrainingSet
from msa.training.data.steps import IGNORED, retrieval_steps, tokenize_step

NUMBERS = [7, 30, 123, 4, 99, 10]


@pytest.fixture(scope="module")
def protocol(tokenizer):
    return Protocol(SHORT, tokenizer)


def collated(protocol, training_set, steps, bucket_tokens=120, max_document_tokens=500):
    return collate(
        training_set,
        protocol,
        steps=steps,
        numbers=NUMBERS[: len(training_set.corpus)],
        max_document_tokens=max_document_tokens,
        bucket_tokens=bucket_tokens,
    )


def documents_of(batch):
    """Token ids of every document, counted through all buckets."""
    return [
        ids[:length].tolist()
        for bucket in batch.documents
        for ids, length in zip(bucket.input_ids, bucket.lengths, strict=True)
    ]


def rows_of(batch):
    """(real token ids, bucket, place in it) of every row."""
    return [
        (bucket.input_ids[row][bucket.attention_mask[row].bool()].tolist(), bucket, row)
        for bucket in batch.rows
        for row in range(len(bucket.sources))
    ]


@pytest.mark.parametrize("bucket_tokens", [1, 60, 120, 100_000])
def test_buckets_hold_every_document_and_row_once(protocol, bucket_tokens):
    training_set, steps = all_steps_set()
    batch = collated(protocol, training_set, steps, bucket_tokens)
    number_of = dict(zip(CORPUS, NUMBERS, strict=True))
    expected = [protocol.document_ids(number_of[name], text) for name, text in CORPUS.items()]
    assert sorted(documents_of(batch)) == sorted(expected)
    assert batch.numbers == [
        number_of[next(n for n in CORPUS if protocol.document_ids(number_of[n], CORPUS[n]) == ids)]
        for ids in documents_of(batch)
    ]
    rows = [tokenize_step(step, protocol, CORPUS, number_of) for step in steps]
    assert sorted(ids for ids, *_ in rows_of(batch)) == sorted(row.ids for row in rows)
    assert Counter(source for bucket in batch.rows for source in bucket.sources) == Counter(
        sample.source for sample in training_set.samples
    )
    for buckets in (batch.documents, batch.rows):
        widths = [bucket.input_ids.shape[1] for bucket in buckets]
        assert widths == sorted(widths)
        assert all(bucket.input_ids.numel() <= bucket_tokens or len(bucket.input_ids) == 1 for bucket in buckets)
    assert (len(batch.documents) == 1) == (bucket_tokens == 100_000)
    assert batch.num_tokens == sum(map(len, expected)) + sum(len(row.ids) for row in rows) <= batch.padded_tokens


def test_rows_keep_their_marks_labels_and_sources(protocol):
    training_set, steps = all_steps_set()
    number_of = dict(zip(CORPUS, NUMBERS, strict=True))
    expected = {
        tuple(row.ids): (row, sample.source)
        for row, sample in (
            (tokenize_step(step, protocol, CORPUS, number_of), sample)
            for step, sample in zip(steps, training_set.samples, strict=True)
        )
    }
    for ids, bucket, row in rows_of(collated(protocol, training_set, steps)):
        alone, source = expected[tuple(ids)]
        length = len(ids)
        assert bucket.routing_mask[row, :length].bool().tolist() == alone.routes
        assert bucket.id_labels[row, :length].tolist() == alone.id_labels
        assert bucket.answer_labels[row, :length].tolist() == alone.answer_labels
        assert bucket.sources[row] == source
        assert not bucket.routing_mask[row, length:].any()
        assert not bucket.attention_mask[row, length:].any()
        assert (bucket.id_labels[row, length:] == IGNORED).all()
        assert (bucket.answer_labels[row, length:] == IGNORED).all()


def test_labels_are_counted_as_the_loss_counts_them(protocol):
    batch = collated(protocol, *all_steps_set())
    for bucket in batch.rows:
        assert bucket.count(bucket.id_labels) == int((bucket.id_labels[:, 1:] != IGNORED).sum())


def test_positives_point_to_the_right_documents_after_sorting(protocol):
    training_set, steps = all_steps_set()
    number_of = dict(zip(CORPUS, NUMBERS, strict=True))
    batch = collated(protocol, training_set, steps)
    documents = documents_of(batch)
    ids_of = {name: protocol.document_ids(number_of[name], text) for name, text in CORPUS.items()}
    step_of = {tuple(tokenize_step(step, protocol, CORPUS, number_of).ids): step for step in steps}
    assert documents != [ids_of[name] for name in CORPUS]
    for ids, bucket, row in rows_of(batch):
        step = step_of[tuple(ids)]
        assert [documents[i] for i in bucket.positives[row]] == [ids_of[name] for name in step.target]
        # and the ids to write are those of the positives
        written = "".join(f"[{batch.numbers[i]}]" for i in bucket.positives[row])
        learnt = [label for label in bucket.id_labels[row].tolist() if label != IGNORED]
        assert protocol.decode_all(learnt).startswith(written if written else protocol.strings.end_of_retrieve)


@pytest.mark.parametrize("exclude_read", [True, False])
def test_documents_already_read_are_selectable_where_the_engine_selects_them(tokenizer, exclude_read):
    protocol = Protocol(dataclasses.replace(SHORT, exclude_read=exclude_read), tokenizer)
    training_set, steps = all_steps_set()
    number_of = dict(zip(CORPUS, NUMBERS, strict=True))
    step_of = {tuple(tokenize_step(step, protocol, CORPUS, number_of).ids): step for step in steps}
    batch = collated(protocol, training_set, steps)
    hidden = []
    for ids, bucket, row in rows_of(batch):
        read = {number_of[name] for found in step_of[tuple(ids)].found for name in found}
        left_out = {batch.numbers[i] for i, may in enumerate(bucket.selectable[row].tolist()) if not may}
        assert left_out == (read if exclude_read else set())
        hidden.append(len(left_out))
        assert bucket.selectable[row, bucket.positives[row]].all()
    assert sorted(hidden) == ([0, 0, 0, 1, 1, 1, 2] if exclude_read else [0] * 7)


def test_closing_lengths_cover_the_id_at_the_end(protocol):
    batch = all_steps_batch(protocol)
    documents, place = documents_of(batch), 0
    for bucket in batch.documents:
        for length in bucket.closing_lengths.tolist():
            end = protocol.decode_all(documents[place][-length:])
            assert end == f"[{batch.numbers[place]}]{protocol.strings.answer_end}"
            place += 1


def test_a_too_long_document_is_refused_by_name(protocol):
    training_set, steps = all_steps_set()
    longest = max(len(ids) for ids in documents_of(collated(protocol, training_set, steps)))
    collated(protocol, training_set, steps, max_document_tokens=longest)
    with pytest.raises(ValueError, match=rf"document 'rain' has {longest} tokens .* {longest - 1} are allowed"):
        collated(protocol, training_set, steps, max_document_tokens=longest - 1)


def test_a_batch_moves_as_a_whole(protocol):
    batch = all_steps_batch(protocol).to(torch.device("meta"))
    tensors = [value for bucket in (*batch.documents, *batch.rows) for value in vars(bucket).values()]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}
    assert batch.numbers == all_steps_batch(protocol).numbers


# document numbers


@given(st.integers(1, 5), st.floats(0, 1), st.integers())
def test_drawn_numbers_are_distinct_and_in_range(digits, share, seed):
    count = int(share * min(10**digits - 1, 300))
    numbers = draw_numbers(count, digits, random.Random(seed))
    assert len(numbers) == len(set(numbers)) == count
    assert all(1 <= number < 10**digits for number in numbers)
    assert numbers == draw_numbers(count, digits, random.Random(seed))


def test_all_numbers_of_a_length_can_be_drawn_and_no_more():
    assert sorted(draw_numbers(99, 2, random.Random(0))) == list(range(1, 100))
    with pytest.raises(ValueError, match="100 documents need longer ids than 2 digits"):
        draw_numbers(100, 2, random.Random(0))


def test_lengths_of_numbers_are_evenly_spread():
    drawn = [draw_numbers(40, 3, random.Random(seed)) for seed in range(300)]
    short = [sum(number < 10 for numbers in drawn for number in numbers[half]) for half in (slice(20), slice(20, 40))]
    assert abs(short[0] - short[1]) < 0.08 * sum(short), "short ones run out, but not for the last documents alone"
    lengths = Counter(len(str(number)) for seed in range(600) for number in draw_numbers(1, 3, random.Random(seed)))
    assert set(lengths) == {1, 2, 3}
    assert all(150 < count < 250 for count in lengths.values())


def test_repeating_numbers_all_have_the_same_length():
    numbers = draw_repeating_numbers(200, 2, random.Random(0))
    assert {len(str(number)) for number in numbers} == {2}
    assert len(numbers) == 200 > len(set(numbers))


# steps


def test_final_share_chooses_between_retrieval_and_the_last_step():
    samples = [ONE_HOP, TWO_HOPS] * 200
    chosen = choose_steps(samples, list(CORPUS), 0.25, random.Random(0))
    assert 70 < sum(not step.target for step in chosen) < 130
    assert all(step in retrieval_steps(sample) for step, sample in zip(chosen, samples, strict=True))
    assert {len(step.found) for step in chosen if step.target} == {0, 1}
    for share, last in ((0.0, False), (1.0, True)):
        steps = choose_steps(samples, list(CORPUS), share, random.Random(0))
        assert {not step.target for step in steps} == {last}


def test_a_sample_without_an_answer_always_retrieves():
    assert all(choose_steps([NO_ANSWER], list(CORPUS), 1.0, random.Random(seed))[0].target for seed in range(20))


def test_what_cannot_be_answered_is_refused_whatever_was_read():
    steps = choose_steps([UNANSWERABLE] * 100, list(CORPUS), 0.0, random.Random(0))
    assert {step.found for step in steps} == {((name,),) for name in CORPUS}
    assert {(step.target, step.answer) for step in steps} == {((), UNANSWERABLE.answer)}


def test_a_question_is_given_up_after_as_many_documents_as_asked_for():
    near = dataclasses.replace(UNANSWERABLE, documents=("rain",))
    steps = choose_steps([near] * 50, list(CORPUS), 0.0, random.Random(0), misses=2)
    assert {len(step.found) for step in steps} == {2}
    assert {step.found[0] for step in steps} == {("rain",)}  # what the sample names comes first
    assert {step.found[1] for step in steps} == {(name,) for name in CORPUS if name != "rain"}
    assert {(step.target, step.answer) for step in steps} == {((), UNANSWERABLE.answer)}


def test_a_corpus_without_enough_other_documents_gives_fewer():
    steps = choose_steps([UNANSWERABLE], ["ada", "rain"], 0.0, random.Random(0), misses=5)
    assert {name for (name,) in steps[0].found} == {"ada", "rain"}


def test_second_tries_read_another_document_and_then_retrieve_the_first_hop():
    steps = choose_steps([ONE_HOP, TWO_HOPS] * 100, list(CORPUS), 0.0, random.Random(0), second_tries=0.5)
    tries = [step for step in steps if step not in retrieval_steps(ONE_HOP) + retrieval_steps(TWO_HOPS)]
    assert 60 < len(tries) < 140
    for step in tries:
        sample = ONE_HOP if step.query == ONE_HOP.query else TWO_HOPS
        assert step.target == sample.steps[0]
        assert step.answer is None
        ((read,),) = step.found
        assert read not in sample.positives


def test_without_another_document_there_is_no_second_try():
    sample = Sample(query="?", positives=("a",), answer="A")
    for corpus in (["a"], ["a", "b"]):
        steps = choose_steps([sample], corpus, 0.0, random.Random(0), second_tries=1.0)
        assert [len(step.found) for step in steps] == [len(corpus) - 1]
        assert steps[0].target == ("a",)


def test_hops_must_name_the_positives():
    with pytest.raises(ValueError, match="hops must name each positive"):
        Sample(query="q", positives=("a", "b"), hops=(("a",),))
    with pytest.raises(ValueError, match="query is empty"):
        Sample(query="  ")


def test_ids_that_are_in_no_corpus_are_found():
    wrong = TrainingSet(corpus={"a": "A"}, samples=[Sample(query="q", positives=("a",), documents=("b",))])
    assert list(wrong.unknown_ids()) == [(0, "b")]
