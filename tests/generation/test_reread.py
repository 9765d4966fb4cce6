import pytest
import torch

from msa.generation.reread import question_likelihoods


def test_equals_reading_one_text_at_a_time(model):
    texts = ["The moon is made of rock.", "x", "", "A long text. " * 60]
    question = "What is the moon?"
    scores = question_likelihoods(model.lm, model.protocol, texts, question)
    asked = model.protocol.plain_ids(question)
    for text, score in zip(texts, scores.tolist(), strict=True):
        ids = model.protocol.template_ids(model.protocol.strings.reread_prompt, text=text[:128]) + asked
        with torch.inference_mode():
            logits = model.lm(torch.tensor([ids])).logits[0, -len(asked) - 1 : -1].log_softmax(-1)
        expected = logits[range(len(asked)), asked].mean().item()
        assert score == pytest.approx(expected, abs=1e-4)


def test_the_engine_takes_the_most_likely_first(model, tmp_path):
    import msa

    with msa.Memory.open(tmp_path / "mem", model=model) as memory:
        memory.add([{"id": str(i), "text": f"text {i} " * (i + 1)} for i in range(6)])
        plain = memory.ask("text 3", retrieval="routed", max_new_tokens=1, reread_documents=0)
        reread = memory.ask("text 3", retrieval="routed", max_new_tokens=1, reread_documents=6)
        hits = memory.search("text 3", top_k=6)
        scores = question_likelihoods(model.lm, model.protocol, [hit.text for hit in hits], "text 3")
        order = [hits[i].id for i in scores.argsort(descending=True).tolist()]
    assert [hit.id for hit in reread.sources] == order[: len(reread.sources)]
    assert [hit.id for hit in plain.sources] == [hit.id for hit in hits[: len(plain.sources)]]
    assert reread.sources[0].read


def test_a_negative_number_is_refused():
    from msa import AskOptions

    with pytest.raises(ValueError, match="reread_documents must be 0 or more, got -1"):
        AskOptions(reread_documents=-1)
