"""Turn a plain backbone into an MSA checkpoint with fresh routers that already route far better than chance."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path

import torch

from msa.conversion.backbone import Backbone, config_from_backbone, load_backbone
from msa.conversion.protocols import protocol_for
from msa.conversion.routers import collect_moments, tied_routers, whitened_routers
from msa.documents import ProtocolStrings
from msa.documents.readers import read_documents
from msa.errors import DocumentError
from msa.model.bundle import MSAModel, quiet_loading, resolve_device, resolve_dtype
from msa.model.modeling_msa import MSAForCausalLM

log = logging.getLogger(__name__)

_MAX_CALIBRATION_CHARACTERS = 2000  # of one document
_MAX_CALIBRATION_DOCUMENTS = 2000
INITS = ("whitened", "tied")


def convert(
    source: str | Path,
    dest: str | Path,
    *,
    init: str = "whitened",
    calibrate: Iterable[str | Path] | None = None,
    router_layers: list[int] | str | None = None,
    chunk_size: int = 64,
    top_k_docs: int = 16,
    protocol: ProtocolStrings | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "auto",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Convert a Llama, Mistral, Qwen2 or Qwen3 checkpoint into an MSA checkpoint folder.

    Args:
        source: a Hugging Face folder, a hub id or a ``.gguf`` file.
        dest: the folder to write; appears only when complete.
        init: ``whitened`` (second moments of a calibration text) or ``tied`` (W_Q = W_K, needs no text).
        calibrate: files or folders of the user's own corpus to whiten by; None: the shipped calibration text.
        router_layers: layers that route; None: the upper half.
        chunk_size: tokens per chunk.
        top_k_docs: documents each router layer selects.
        protocol: the transcript's strings; None: chosen for the tokenizer.
        dtype: dtype of the weights written.
        device: where the calibration text is read.
        overwrite: replace ``dest`` if it exists.
        progress: called with tokens read and tokens in all while calibrating.

    Returns:
        ``dest``.

    Raises:
        ModelNotFoundError, UnsupportedModelError: see :func:`load_backbone`.
        DocumentError: a calibration file that cannot be read, or none with text.
        FileExistsError: ``dest`` exists and ``overwrite`` is False.
    """
    dest = Path(dest)
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    if dest.exists() and not overwrite and (not dest.is_dir() or any(dest.iterdir())):
        raise FileExistsError(f"{dest} already exists; choose another folder or pass overwrite (--overwrite)")
    texts, questions = _calibration(calibrate) if init == "whitened" else ([], [])
    backbone = load_backbone(source)
    model = _assemble(backbone, router_layers, chunk_size, top_k_docs, protocol)
    where = resolve_device(device)
    if init == "tied":
        tied_routers(model.lm)
    else:
        model.lm.to(where, resolve_dtype("auto", where))
        total = _count_tokens(model, texts, questions)
        done = 0

        def report(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress:
                progress(done, total)

        moments = collect_moments(model.lm, model.protocol, texts, questions, report)
        model = _assemble(backbone, router_layers, chunk_size, top_k_docs, protocol)
        whitened_routers(model.lm, {layer: moment.to("cpu") for layer, moment in moments.items()})
    model.lm.to("cpu", dtype)
    _publish(model, dest)
    log.info("wrote %s: router layers %s", dest, model.lm.config.router_layers)
    return dest


def _assemble(
    backbone: Backbone,
    router_layers: list[int] | str | None,
    chunk_size: int,
    top_k_docs: int,
    protocol: ProtocolStrings | None,
) -> MSAModel:
    """The backbone's weights in our network, routers still random."""
    strings = protocol or protocol_for(backbone.tokenizer)
    config = config_from_backbone(
        backbone.config,
        router_layers=router_layers,
        chunk_size=chunk_size,
        top_k_docs=top_k_docs,
        protocol=strings.to_config(),
    )
    lm = MSAForCausalLM(config)
    missing, unexpected = lm.load_state_dict(backbone.weights, strict=False)
    lost = [name for name in missing if ".router_" not in name and name != "temperature"]
    assert not lost, f"backbone weights missing: {lost}"
    assert not unexpected, f"backbone weights without a place: {unexpected}"
    lm.tie_weights()
    return MSAModel(lm, backbone.tokenizer)


def _calibration(paths: Iterable[str | Path] | None) -> tuple[list[str], list[str]]:
    """Calibration documents, and for each a question: the shipped ones, or a document's opening words."""
    if paths is None:
        shipped = files("msa.conversion").joinpath("calibration.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in shipped.splitlines()]
        return [line["text"] for line in lines], [line["question"] for line in lines]
    texts = []
    for document in read_documents(paths):
        if document.text.strip():
            texts.append(document.text[:_MAX_CALIBRATION_CHARACTERS])
        if len(texts) == _MAX_CALIBRATION_DOCUMENTS:
            log.warning("calibrating by the first %d documents", len(texts))
            break
    if not texts:
        raise DocumentError("the calibration text holds no text; name files or folders with documents like your own")
    return texts, [_opening(text) for text in texts]


def _opening(text: str) -> str:
    """A document's first sentence or line, at most some twenty words: what a question about it may sound like."""
    first = text.strip().replace("\n", " ").split(". ")[0]
    return " ".join(first.split()[:20])


def _count_tokens(model: MSAModel, texts: list[str], questions: list[str]) -> int:
    documents = sum(len(model.protocol.document_ids(i, text)) for i, text in enumerate(texts, start=1))
    turns = sum(len(model.protocol.question_turn(question).ids) for question in questions)
    return documents + turns


def _publish(model: MSAModel, dest: Path) -> None:
    """Write the checkpoint beside ``dest`` and move it there in one step."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=dest.parent))
    try:
        with quiet_loading():
            model.save_pretrained(scratch)
        if dest.exists():
            shutil.rmtree(dest)
        scratch.chmod(0o755)
        scratch.replace(dest)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
