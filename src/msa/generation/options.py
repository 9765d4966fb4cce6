"""How a question is to be answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msa.documents.formats import clean_text
from msa.documents.protocol import ANSWERS, CONSTRAINTS, RETRIEVALS
from msa.generation.sampling import Sampling, check_whole


@dataclass(frozen=True, kw_only=True)
class AskOptions:
    """How a question is answered.

    Attributes:
        retrieval: ``generative`` or ``routed``; None: the checkpoint's own.
        max_rounds: rounds of Memory Interleave, at most.
        max_new_tokens: tokens of the answer, at most.
        max_documents: documents the model is given to read in routed mode; None: the checkpoint's own.
        reread_documents: routed mode: how many of the best documents the model reorders by reading them, 0: none;
            None: the checkpoint's own.
        sampling: how the answer's tokens are drawn; ids are always written greedily.
        stop: strings that end the answer.
        constrain_ids: which ids the model can write: ``existing`` ones, those the router layers ``selected``, these
            ``weighed`` by their routing scores, or any (``none``: invalid ones are ignored afterwards); see
            :class:`msa.documents.ProtocolStrings`; None: the checkpoint's own.
        constrain_answers: how an answer that begins with a quotation is held to what was read: ``quoted`` or ``none``,
            see :class:`msa.documents.ProtocolStrings`; None: the checkpoint's own. Others are not constrained.
        where: metadata a document must have to be selected; see :meth:`msa.Memory.search`.
        answer_lead: how the answer begins: given to the model in place of the checkpoint's own opening, and not shown
            (RULER prescribes one). A checkpoint that quotes before it answers opens its answers itself.
        context: what stands before the question, a conversation so far for instance. It is plain text, in which
            nothing can become a control token. The answer is written with all of it in sight; of retrieval it takes
            part only so far as ``routed_context_tokens`` says.
        routed_context_tokens: tokens at the end of ``context`` that choose documents together with the question, so
            that "when did she die?" finds something; 0: documents are those of the question alone.
        hybrid: rank documents by the routers and by exact words together (reciprocal rank fusion); retrieval is routed.

    Raises:
        ValueError: an unknown word, a negative number, or ``hybrid`` with generative retrieval.
        TypeError: a context that is no text, a number that is no whole one, or a ``sampling`` that is none.
    """

    retrieval: str | None = None
    max_rounds: int = 4
    max_new_tokens: int = 256
    max_documents: int | None = None
    reread_documents: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    constrain_ids: str | None = None
    constrain_answers: str | None = None
    where: Mapping[str, Any] | None = None
    hybrid: bool = False
    answer_lead: str = ""
    context: str = ""
    routed_context_tokens: int = 64

    def __post_init__(self) -> None:
        if not isinstance(self.context, str):
            raise TypeError(f"context must be a text, got {type(self.context).__name__}")
        object.__setattr__(self, "context", clean_text(self.context))  # frozen, and what is read of it must be sound
        words = {"constrain_ids": CONSTRAINTS, "constrain_answers": ANSWERS, "retrieval": RETRIEVALS}
        for name, known in words.items():
            if getattr(self, name) not in (None, *known):
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.hybrid and self.retrieval == "generative":
            raise ValueError("hybrid ranking needs retrieval='routed': in generative retrieval the model alone chooses")
        if isinstance(self.stop, str) or not isinstance(self.stop, Sequence):
            raise TypeError(f"stop must be several texts, as in stop=['\\n'], got {self.stop!r}")
        for name, texts in (("stop", self.stop), ("answer_lead", [self.answer_lead])):
            wrong = [text for text in texts if not isinstance(text, str)]
            if wrong:
                raise TypeError(f"{name} must be text, got {wrong[0]!r}")
        if not isinstance(self.sampling, Sampling):
            raise TypeError(f"sampling must be a Sampling, got {self.sampling!r}")
        for name in ("max_rounds", "max_new_tokens"):  # how many are allowed: Limits, once a question is asked
            check_whole(name, getattr(self, name))
        for name in ("max_documents", "reread_documents", "routed_context_tokens"):
            value = getattr(self, name)
            if value is None and name != "routed_context_tokens":
                continue
            check_whole(name, value)
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
