"""Search refuses what the model cannot read, before it costs anything."""

import pytest
from tiny import tiny_model

import msa


@pytest.mark.parametrize("retrieval", ["routed", "generative"])
def test_a_question_longer_than_the_context_is_refused(tmp_path, retrieval):
    model = tiny_model(protocol={"retrieval": retrieval}, max_position_embeddings=900)
    with msa.Memory.open(tmp_path / "memory", model=model) as memory:
        memory.add([{"id": "a", "text": "The moon is made of rock."}])
        with pytest.raises(ValueError, match=r"the question has \d+ tokens; this model's context leaves \d+"):
            memory.search("moon " * 400)
        assert [hit.id for hit in memory.search("moon " * 20)] == ["a"]
