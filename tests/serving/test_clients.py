"""Other people's clients against a running server, as ``docs/clients.md`` shows them; each where it is installed."""

import json
import re
from pathlib import Path

import pytest
from serving_helpers import ANSWER, NEEDLE, QUESTION

PAGE = (Path(__file__).parents[2] / "docs" / "clients.md").read_text(encoding="utf-8")
MODEL = "msa-tiny@notes"


@pytest.fixture(scope="module")
def server(start, tmp_path_factory):
    """The memory of the page."""
    with start(tmp_path_factory.mktemp("clients")) as server, server.http() as http:
        assert http.put("/v1/memories/notes", json={}).status_code == 201
        document = {"id": "ages.md", "metadata": {"title": "Ages"}, "text": NEEDLE}
        assert http.post("/v1/memories/notes/documents", json=document).status_code == 200
        yield server


def run_of_page(server, package, capsys):
    """Run the page's Python that imports a package; returns what it prints."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (block,) = [block for block in blocks if f"from {package} import" in block]
    assert "http://127.0.0.1:8000" in block
    exec(compile(block.replace("http://127.0.0.1:8000", server.url), package, "exec"), {})
    return capsys.readouterr().out


def test_openai(server, capsys):
    assert run_of_page(server, "openai", capsys) == f"{ANSWER} ['ages.md']\n"


def test_langchain(server, capsys):
    langchain = pytest.importorskip("langchain_openai")
    assert run_of_page(server, "langchain_openai", capsys) == f"{ANSWER}\n{ANSWER}"
    llm = langchain.ChatOpenAI(
        model=MODEL, base_url=f"{server.url}/v1", api_key="none", max_retries=0, stream_usage=True
    )
    assert [answer.content for answer in llm.batch([QUESTION, QUESTION])] == [ANSWER, ANSWER]
    *_, last = [chunk for chunk in llm.stream(QUESTION) if chunk.usage_metadata]
    assert last.usage_metadata["total_tokens"] == llm.invoke(QUESTION).usage_metadata["total_tokens"]
    refused = langchain.chat_models.base.openai.BadRequestError
    with pytest.raises(refused, match="no documents found with this metadata"):
        llm.bind(extra_body={"where": {"lang": "none"}}).invoke(QUESTION)
    with pytest.raises(refused, match="does not fit"):
        llm.invoke("x " * 6000)


def test_llama_index(server, capsys):
    pytest.importorskip("llama_index.llms.openai_like")
    assert run_of_page(server, "llama_index.llms.openai_like", capsys) == f"{ANSWER} ['ages.md']\n{ANSWER}"


def test_lm_eval(server, tmp_path, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    pytest.importorskip("tenacity")
    from lm_eval.tasks import TaskManager

    (task,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert "--tasks needles" in PAGE
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "needles.yaml").write_text(task)
    lines = [json.dumps({"question": QUESTION, "answer": ANSWER})] * 3
    (tmp_path / "questions.jsonl").write_text("\n".join(lines))
    results = lm_eval.simple_evaluate(
        model="local-chat-completions",
        model_args=f"model={MODEL},base_url={server.url}/v1/chat/completions,num_concurrent=3,tokenizer_backend=None",
        tasks=["needles"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    assert results["results"]["needles"]["exact_match,none"] == 1
