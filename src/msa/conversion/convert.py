"""Turn a plain backbone into an MSA checkpoint with fresh routers that already route far better than chance."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch

from msa.conversion.backbone import Backbone, config_from_backbone, load_backbone
from msa.conversion.protocols import protocol_for
from msa.conversion.routers import SecondMoments, collect_moments, tied_routers, whitened_routers
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
    """Convert a Llama, Mistral, Qwen2, Qwen3 or SmolLM3 checkpoint into an MSA checkpoint folder.

    Args:
        source: a Hugging Face folder, a hub id or a ``.gguf`` file.
        dest: the folder to write; appears only when complete.
        init: ``whitened`` (second moments of a calibration text) or ``tied`` (W_Q = W_K, needs no text).
        calibrate: files or folders of the user's own corpus to whiten by; None: the shipped calibration text.
        router_layers: layers that route; None: the upper half.
        chunk_size, top_k_docs: tokens per chunk, and documents each router layer selects.
        protocol: the transcript's strings; None: chosen for the tokenizer.
        dtype: dtype of the weights written.
        device: where the calibration text is read.
        overwrite: replace ``dest`` where it holds a model; a folder without ``config.json`` is never replaced.
        progress: called with tokens read and tokens in all while calibrating.

    Returns:
        ``dest``.

    Raises:
        ModelNotFoundError, UnsupportedModelError: see :func:`load_backbone`.
        DocumentError: a calibration file that cannot be read, or none with text.
        FileExistsError: ``dest`` holds a model and ``overwrite`` is False, or it holds something else.
        NotADirectoryError, PermissionError: ``dest`` cannot be written.
        ValueError: ``source`` lies in ``dest``, or a size is beyond the backbone's context.
    """
    dest = Path(dest)
    if init not in INITS:
        raise ValueError(f"init must be one of {', '.join(INITS)}, got {init!r}")
    _check_destination(source, dest, overwrite)
    texts, questions = _calibration(calibrate) if init == "whitened" else ([], [])
    backbone = load_backbone(source)
    assemble = partial(_assemble, backbone, router_layers, chunk_size, top_k_docs, protocol)
    model = assemble()
    where = resolve_device(device)
    if init == "tied":
        tied_routers(model.lm)
    else:
        moments = _moments(model, where, texts, questions, progress)
        model = assemble()  # again: reading the texts has moved the first one and rounded its weights
        whitened_routers(model.lm, moments)
    model.lm.to("cpu", dtype)
    _check_destination(source, dest, overwrite)  # again: it took its time
    _publish(model, dest.resolve())
    log.info("wrote %s: router layers %s", dest, model.lm.config.router_layers)
    return dest


def _check_destination(source: str | Path, dest: Path, overwrite: bool) -> None:
    """Refuse what cannot be written, or must not be written over."""
    folder = dest.resolve()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    if not nearest.is_dir():
        raise NotADirectoryError(f"{nearest} is a file; choose a folder")
    for place in (nearest, folder.parent):  # it is written beside the folder first
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(f"{place} cannot be written; check its permissions or choose another folder")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / "config.json").is_file():
        raise FileExistsError(f"{dest} is not empty and holds no model; choose another folder")
    if not overwrite:
        raise FileExistsError(f"{dest} already exists; choose another folder or pass overwrite (--overwrite)")
    origin = Path(source).expanduser()
    if origin.exists() and origin.resolve().is_relative_to(folder):
        raise ValueError(f"{source} lies in {dest}, which would be replaced; choose another folder")


def _assemble(
    backbone: Backbone,
    router_layers: list[int] | str | None,
    chunk_size: int,
    top_k_docs: int,
    protocol: ProtocolStrings | None,
) -> MSAModel:
    """The backbone's weights in our network, routers still random."""
    outputs = backbone.weights.get("lm_head.weight", backbone.weights["model.embed_tokens.weight"])
    strings = protocol or protocol_for(backbone.tokenizer, outputs)
    config = config_from_backbone(
        backbone.config,
        router_layers=router_layers,
        chunk_size=chunk_size,
        top_k_docs=top_k_docs,
        protocol=strings.to_config(),
    )
    for name in ("chunk_size", "top_k_docs"):
        if getattr(config, name) >= config.max_position_embeddings:
            raise ValueError(
                f"{name} must lie below the model's context of {config.max_position_embeddings} tokens, "
                f"got {getattr(config, name)}"
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


def _moments(
    model: MSAModel,
    device: torch.device,
    texts: list[str],
    questions: list[str],
    progress: Callable[[int, int], None] | None,
) -> dict[int, SecondMoments]:
    """What :func:`collect_moments` finds, on the CPU; the model is left on ``device`` and in its dtype."""
    model.lm.to(device, resolve_dtype("auto", device))
    total, done = _count_tokens(model, texts, questions), 0

    def report(tokens: int) -> None:
        nonlocal done
        done += tokens
        if progress:
            progress(done, total)

    moments = collect_moments(model.lm, model.protocol, texts, questions, report)
    return {layer: moment.to("cpu") for layer, moment in moments.items()}


def _count_tokens(model: MSAModel, texts: list[str], questions: list[str]) -> int:
    documents = sum(len(model.protocol.document_ids(i, text)) for i, text in enumerate(texts, start=1))
    prefix = len(model.protocol.prefix_ids)  # read with each question
    turns = sum(prefix + len(model.protocol.question_turn(question).ids) for question in questions)
    return documents + turns


def _publish(model: MSAModel, folder: Path) -> None:
    """Write the checkpoint beside ``folder``; only when it is complete, put it there, and remove what was there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        new.mkdir()
        old.mkdir()
        with quiet_loading():
            model.save_pretrained(new)
        if folder.exists():
            _exchange(folder, new, old)
        else:
            new.replace(folder)


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """Move what ``folder`` holds to ``old``, and what ``new`` holds into it; on an error everything goes back.

    The folder itself stays, as it may be the current one. Without its ``config.json`` it is no model meanwhile.
    """
    leaving = sorted(folder.iterdir(), key=lambda file: file.name != "config.json")
    coming = sorted(new.iterdir(), key=lambda file: file.name == "config.json")
    moves = [(file, old / file.name) for file in leaving] + [(file, folder / file.name) for file in coming]
    try:
        for source, target in moves:
            source.rename(target)
    except BaseException:
        for source, target in reversed(moves):
            if not os.path.lexists(source):
                target.rename(source)
        raise
