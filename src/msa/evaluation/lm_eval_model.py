"""lm-evaluation-harness with the model in this process: ``python -m msa.evaluation.lm_eval_model --model msa …``.

lm-eval finds models in a table of its own, to which an installed package cannot add; so the command above takes every
argument of ``lm_eval`` and puts ``msa`` into the table first. From Python: :func:`register`.

Log-likelihoods are the backbone's without documents, as transformers computes them. Generated answers come from a
memory (``memory=FOLDER``), from one made of the prompt's own context (``cut=true``), or from the backbone alone.

Axes: B prompts, T tokens.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from msa.errors import EvaluationError, MSAError
from msa.evaluation.lm_eval_answers import MemoryAnswers, sampled
from msa.generation.decoding import Decoding, Prompt
from msa.generation.options import AskOptions
from msa.generation.sampling import Sampling
from msa.memory import Memory
from msa.model.bundle import MSAModel
from msa.zoo import MODELS, SHIPPED, load

NAME = "msa"
# what lm-eval's own model class is given, where it means something for a model that is loaded already
_BACKBONE_ARGUMENTS = (
    "add_bos_token",
    "logits_cache",
    "max_batch_size",
    "max_length",
    "prefix_token_id",
    "softmax_dtype",
    "truncation",
)
# the request says the rest of how a question is answered
_MEMORY_ARGUMENTS = tuple(
    field.name for field in fields(AskOptions) if field.name not in ("max_new_tokens", "sampling", "stop", "where")
)
# decoded beyond what a stop string can take: the first token decoded may lose its space
_MARGIN_TOKENS = 8


def register() -> Any:
    """Make the model known to lm-eval under the name ``msa``; again and again does nothing.

    The class takes, as ``--model_args`` or keywords:

    * ``pretrained``: a name, folder or hub id for :func:`msa.load`, or an :class:`msa.MSAModel`; none: the memory's
      own, or the default model. ``device``, ``dtype`` and ``batch_size`` as everywhere.
    * ``memory``: folder of a memory that is asked each prompt as it is.
    * ``cut``: ``true``: prompts are RULER's (needles, variable tracking); the context is cut into documents as
      :mod:`msa.evaluation.ruler` does, and the question after it asked. A text, such as ``Question:``: what stands
      before its last place in the prompt is the context, what follows the question. ``document_tokens``: about how long
      a document is.
    * fields of :class:`msa.AskOptions` for ``memory`` and ``cut``, such as ``max_rounds`` and ``retrieval``.
    * of lm-eval's own ``hf`` model: ``max_length``, ``truncation``, ``add_bos_token``, ``prefix_token_id``,
      ``softmax_dtype``, ``logits_cache``, ``max_batch_size``.

    Of a request, ``until``, ``max_gen_toks``, ``do_sample``, ``temperature``, ``top_p``, ``top_k`` and ``seed`` are
    honoured and others refused; without a seed, draws follow torch's generator, which lm-eval seeds.

    Returns:
        The class, a subclass of ``lm_eval.models.huggingface.HFLM``.

    Raises:
        EvaluationError: lm-eval is not installed.
    """
    try:
        table, models = import_module("lm_eval.api.registry"), import_module("lm_eval.models.huggingface")
    except ModuleNotFoundError as error:
        raise EvaluationError(
            f"lm-evaluation-harness needs the package {error.name}: pip install 'memory-sparse-attention[lm-eval]'"
        ) from error
    if NAME not in table.model_registry:
        table.register_model(NAME)(_model_class(models.HFLM))
    return table.get_model(NAME)


def _model_class(HFLM: Any) -> Any:
    """The model class over lm-eval's own, which is there only where lm-eval is installed."""

    class MSALM(HFLM):
        """See :func:`register`."""

        def __init__(
            self,
            pretrained: str | MSAModel | None = None,
            *,
            device: str | None = None,
            dtype: str = "auto",
            batch_size: int | str = 1,
            **arguments: Any,
        ) -> None:
            backbone = {name: arguments.pop(name) for name in _BACKBONE_ARGUMENTS if name in arguments}
            self.msa, self.answers = _opened(pretrained, device or "auto", dtype, batch_size, arguments)
            super().__init__(
                self.msa.lm, backend="causal", tokenizer=self.msa.tokenizer, batch_size=batch_size, **backbone
            )

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            _check_plain(self.answers, "log-likelihoods are computed by the backbone, without a memory")
            return super().loglikelihood(requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            _check_plain(self.answers, "log-likelihoods are computed by the backbone, without a memory")
            return super().loglikelihood_rolling(requests, disable_tqdm)

        def apply_chat_template(self, *given: Any, **named: Any) -> Any:
            _check_plain(self.answers, "a memory is asked in its own transcript, without --apply_chat_template")
            return super().apply_chat_template(*given, **named)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            if self.answers is None:
                return super().generate_until(requests, disable_tqdm)
            normalised = import_module("lm_eval.models.utils").normalize_gen_kwargs
            asked = [(prompt, normalised(given, self.max_gen_toks)) for prompt, given in (r.args for r in requests)]
            texts = [""] * len(asked)
            bar = import_module("tqdm").tqdm(total=len(asked), disable=disable_tqdm, desc="Asking")
            with bar:
                for index, texts[index] in self.answers.answer(asked):
                    self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    bar.update()
            return texts

        def _model_call(self, inps: Tensor, attn_mask: None = None, labels: None = None) -> Tensor:
            with torch.inference_mode():
                return self.msa.lm(inps, use_cache=False).logits

        def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **settings: Any) -> Tensor:
            return _continued(self.msa, context, settings.pop("attention_mask"), max_length, stop, settings)

        def get_model_info(self) -> dict[str, Any]:
            return _information(self.msa, self.answers)

    return MSALM


def _opened(
    pretrained: str | MSAModel | None, device: str, dtype: str, batch_size: int | str, arguments: Mapping[str, Any]
) -> tuple[MSAModel, MemoryAnswers | None]:
    """The model, and what answers prompts with a memory: None where the backbone does."""
    given = dict(arguments)
    memory, context = given.pop("memory", None), given.pop("cut", False)
    known = ("document_tokens", *_MEMORY_ARGUMENTS)
    for name in given:
        if name not in known:
            hint = "; give RULER's tasks theirs with --metadata" if name == "tokenizer" else ""
            names = ", ".join(("pretrained", "memory", "cut", *known, *_BACKBONE_ARGUMENTS))
            raise EvaluationError(f"the model argument {name!r} is not known{hint}. Known: {names}")
    if memory is None and context is False:
        if given:
            raise EvaluationError(f"the model argument {next(iter(given))!r} needs memory= or cut=")
        return _model(pretrained, device, dtype), None
    if memory is not None:
        with Memory.open(str(memory), read_only=True) as opened:
            if pretrained is None:
                pretrained = opened.bank.spec.model_name
    model = _model(pretrained, device, dtype)
    if not str(batch_size).isdecimal():
        raise EvaluationError(
            f"a memory is asked in batches of a fixed size; expected --batch_size N, got {batch_size}"
        )
    return model, MemoryAnswers(model, memory, context, batch_size=int(batch_size), **given)


def _model(pretrained: str | MSAModel | None, device: str, dtype: str) -> MSAModel:
    return pretrained if isinstance(pretrained, MSAModel) else _loaded(pretrained, device, dtype)


@lru_cache(maxsize=1)
def _loaded(name: str | None, device: str, dtype: str) -> MSAModel:
    """The command needs the tokenizer before lm-eval makes the model."""
    return load(name, device, dtype)


def _check_plain(answers: MemoryAnswers | None, reason: str) -> None:
    if answers is not None:
        raise EvaluationError(f"{reason}. Leave out either these tasks and options, or memory= and cut=")


def _continued(
    model: MSAModel, ids: Tensor, mask: Tensor, max_length: int, stop: Sequence[str], settings: Mapping[str, Any]
) -> Tensor:
    """Prompts ``[B, T]``, left padded, continued by the backbone to ``[B, up to max_length]``, right padded."""
    tokenizer, config = model.tokenizer, model.lm.config
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    stop_ids = frozenset({tokenizer.eos_token_id, *ends} - {None})
    stop = [text for text in stop if text]
    # a token that shows at all shows at least a byte
    tail = max((len(text.encode()) for text in stop), default=0) + _MARGIN_TOKENS

    def is_met(generated: Sequence[int]) -> bool:
        shown = tokenizer.decode(generated[-tail:], skip_special_tokens=False)
        return any(text in shown for text in stop)

    prompts = [
        Prompt(
            ids=row[real.bool()].tolist(),
            stop_ids=stop_ids,
            stop_when=is_met,
            max_new_tokens=max_length - ids.shape[1],
            sampling=Sampling(**sampled(settings)),
        )
        for row, real in zip(ids, mask, strict=True)
    ]
    decoding = Decoding(model.lm, prompts)
    for _ in decoding.run():
        pass
    longest = max(len(row.generated) for row in decoding.rows)
    new = torch.full((len(prompts), longest), tokenizer.pad_token_id, device=ids.device)
    for row, decoded in zip(new, decoding.rows, strict=True):
        row[: len(decoded.generated)] = torch.tensor(decoded.generated, device=ids.device)
    return torch.cat([ids, new], dim=1)


def _information(model: MSAModel, answers: MemoryAnswers | None) -> dict[str, Any]:
    """What lm-eval writes into its results of the model."""
    return {
        "model_num_parameters": sum(parameter.numel() for parameter in model.lm.parameters()),
        "model_dtype": model.lm.dtype,
        "msa_model": model.name,
        "msa_fingerprint": model.fingerprint,
        "msa_answers_from": "the backbone alone" if answers is None else str(answers),
    }


def _complete(args: Namespace) -> None:
    """Fill in what lm-eval would get wrong: the device, by default the first GPU, and where the tokenizer is.

    RULER's tasks size their prompts with the tokenizer of ``pretrained``, where transformers knows no name of ours.
    """
    if getattr(args, "model", None) != NAME:
        return
    if args.config is None:
        args.device = args.device or "auto"
    given = args.model_args or {}
    name = given.get("pretrained")
    if name in MODELS or name in SHIPPED:
        model = _loaded(name, args.device or "auto", given.get("dtype", "auto"))
        args.metadata = {"tokenizer": model.tokenizer.name_or_path, **(args.metadata or {})}


def main() -> None:
    """The command ``lm_eval`` with the model ``msa``."""
    try:
        register()
        import_module("lm_eval.utils").setup_logging()
        command = import_module("lm_eval._cli").HarnessCLI()
        args = command.parse_args()
        _complete(args)
        command.execute(args)
    except MSAError as error:
        sys.exit(f"msa: {error}")


if __name__ == "__main__":
    main()
