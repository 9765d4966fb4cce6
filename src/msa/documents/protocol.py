"""The transcript: every string the model and the engine exchange, and their token ids. The only file that knows them.

A template is plain text with control tokens and ``{fields}``. Control tokens are recognised in the template alone:
what fills a field is encoded as plain text, so a document or a question cannot forge a part of the transcript.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import zip_longest
from typing import Any

from tokenizers import Tokenizer

from msa.errors import CheckpointError

RETRIEVALS = ("generative", "routed")
CONSTRAINTS = ("existing", "selected", "weighed", "none")
ANSWERS = ("quoted", "none")
_GAP = "\n\n"  # between a conversation and the question
_LIKE_CONTROL = re.compile(r"<\|[^|<>{}\s]+\|>")


@dataclass(frozen=True, kw_only=True)
class ProtocolStrings:
    """Strings of one checkpoint's transcript; the defaults are the published checkpoint's.

    Attributes:
        document: a document as it is encoded; its id stands at both ends, so in its first and last chunk.
        prefix: what precedes every question; its keys and values are kept and reused.
        question: the user's turn after the prefix.
        question_end: ends the user's turn and opens the model's.
        reference_end: token that ends a list of ids, and the engine's insertions.
        end_of_retrieve: what the model writes when it has enough.
        expanded_document: a document's original text as the engine inserts it.
        answer_request: inserted before the answer.
        answer_lead: opening of the answer that is not shown to the user.
        answer_end: token that ends the answer.
        quotation_end: generative mode: token that ends what the model quotes of the texts before it answers, which is
            not shown as part of the answer; empty: it does not quote.
        quotation_refusal: the token that makes a quotation a refusal: what stands before it is in no text.
        constrain_answers: how an answer that begins with a quotation is held to the texts read. ``quoted``: a refusal
            must be true, and the answer is what follows the quotation in a text; ``none``: in no way.
        route_whole_turn: True: the whole user turn routes (as published); False: only the user's own words.
        retrieval: ``generative``: the model writes ids; ``routed``: the best documents by the mean of the router
            layers' scores, for models not trained to write ids.
        reader_prompt: routed mode: all that the model is given to answer from, the prefix included; ``{documents}``
            holds the documents. Empty: the transcript, with the documents as though the model had written their ids,
            which is what a checkpoint that was trained to write them knows how to answer from.
        reader_document: routed mode: one document inside ``reader_prompt``.
        reader_lead: routed mode: how the answer opens, shown to the user; ``{title}`` is the best document's. Empty:
            the model opens it.
        reader_documents: routed mode: how many documents the model is given to read, best first.
        reread_documents: routed mode: how many of the best documents are put in a new order by how likely the model
            finds the question after reading them; 0: the routers' order stays.
        reread_prompt: what the model reads then; ends where the question begins.
        source_documents: routed mode: how many documents are reported as sources, best first.
        exclude_read: documents whose text the model has been given are not routed to again; the published code routes
            to them, and their own text in the transcript then outscores the next document.
        constrain_ids: which ids can be written unless a question says otherwise: ``existing`` ones, those of documents
            that some router layer ``selected``, these ``weighed`` (the model's probability of an id times the
            routers': a softmax of mean scores over layers at the temperature they were trained with), or any
            (``none``: invalid ones are ignored afterwards).
        max_document_tokens: longer texts are encoded as several documents of at most this many tokens of text.
    """

    document: str = "<|im_start|>[{id}]. {text}[{id}]<|im_end|>"
    prefix: str = "<|im_start|>user\n"
    question: str = (
        "\nPlease answer the question based on the above historical document information\n\n{question}\n"
        "Please return all documents related to the question\n"
    )
    question_end: str = "<|im_end|>\n<|im_start|>"
    reference_end: str = "<|object_ref_end|>"
    end_of_retrieve: str = "<End-of-Retrieve>"
    expanded_document: str = "[{id}]. {text}\n"
    answer_request: str = "<|im_start|>The user's question is: {question}\n<|object_ref_end|>"
    answer_lead: str = "The answer to the question is:"
    answer_end: str = "<|im_end|>"
    quotation_end: str = ""
    quotation_refusal: str = ""
    constrain_answers: str = "none"
    route_whole_turn: bool = True
    retrieval: str = "generative"
    reader_prompt: str = ""
    reader_document: str = "{text}\n\n"
    reader_lead: str = ""
    reader_documents: int = 3
    source_documents: int = 3
    reread_documents: int = 0
    reread_prompt: str = "{text}\nQuestion: "
    exclude_read: bool = False
    constrain_ids: str = "existing"
    max_document_tokens: int = 2048

    def __post_init__(self) -> None:
        words = {"retrieval": RETRIEVALS, "constrain_ids": CONSTRAINTS, "constrain_answers": ANSWERS}
        for name, known in words.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name, needed in (("document", ("{id}", "{text}")), ("question", ("{question}",))):
            missing = [part for part in needed if part not in getattr(self, name)]
            if missing:
                raise ValueError(f"the protocol's {name!r} must contain {' and '.join(missing)}")
        if self.constrain_answers == "quoted" and not (self.quotation_end and self.quotation_refusal):
            raise ValueError("constrain_answers='quoted' needs a protocol with quotation_end and quotation_refusal")

    @classmethod
    def from_config(cls, settings: dict[str, Any] | None) -> ProtocolStrings:
        """Strings from a checkpoint's ``protocol`` field; what it leaves out is as published.

        Raises:
            CheckpointError: a key that is not one of these.
        """
        unknown = sorted(set(settings or {}) - {field.name for field in fields(cls)})
        if unknown:
            raise CheckpointError(f"unknown key(s) in the config's protocol: {', '.join(unknown)}")
        return cls(**(settings or {}))

    def to_config(self) -> dict[str, Any]:
        """What :meth:`from_config` reads."""
        return asdict(self)


@dataclass(frozen=True)
class EncodedText:
    """Token ids, and for each whether it belongs to the marked field."""

    ids: list[int]
    marked: list[bool]


class Protocol:
    """A transcript's strings compiled with a tokenizer.

    Args:
        strings: the checkpoint's strings.
        tokenizer: a transformers tokenizer with a ``tokenizers`` backend.

    Raises:
        CheckpointError: the tokenizer has no backend, or a control string of one token is not in its vocabulary.
    """

    def __init__(self, strings: ProtocolStrings, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise CheckpointError(
                f"{type(tokenizer).__name__} has no fast backend; "
                f"save the tokenizer as tokenizer.json and load it again"
            )
        self.strings = strings
        self.tokenizer = tokenizer
        self._control = {token: index for token, index in tokenizer.get_added_vocab().items() if token.strip()}
        self._control_ids = frozenset(self._control.values())
        parts = sorted(map(re.escape, self._control), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(parts)})") if parts else None
        # a copy that knows no control tokens, special or not: what looks like one in a text stays text
        settings = json.loads(backend.to_str())
        settings["added_tokens"] = [
            token for token in settings["added_tokens"] if token["content"] not in self._control
        ]
        self._plain = Tokenizer.from_str(json.dumps(settings))
        self._plain.no_padding()
        self._plain.no_truncation()
        self.prefix_ids = self.template_ids(strings.prefix)
        self.question_end_ids = self.template_ids(strings.question_end)
        self.answer_end_id = self._single(strings.answer_end)
        self.reference_end_id = self._single(strings.reference_end)
        self.quotation_end_id = self._single(strings.quotation_end) if strings.quotation_end else None
        self._pieces: dict[int, str] = {}
        self.quotation_refusal_id = self._single(strings.quotation_refusal) if strings.quotation_refusal else None

    @cached_property
    def punctuation_ids(self) -> frozenset[int]:
        """Tokens that are nothing but ASCII punctuation."""
        marks = set(string.punctuation)
        return frozenset(index for token, index in self.tokenizer.get_vocab().items() if token and set(token) <= marks)

    @cached_property
    def num_ids(self) -> int:
        """One more than the largest token id."""
        return 1 + max(self.tokenizer.get_vocab().values())

    def piece(self, index: int) -> str:
        """Text of one token, with the space before it."""
        if index not in self._pieces:
            self._pieces[index] = self.tokenizer.decode([index], clean_up_tokenization_spaces=False)
        return self._pieces[index]

    def _single(self, text: str) -> int:
        ids = self.template_ids(text)
        if len(ids) != 1:
            raise CheckpointError(
                f"the protocol's control string {text!r} is {len(ids)} tokens in this vocabulary; name one that is a "
                f"single token, for instance one of {', '.join(sorted(self._control)[:8])}"
            )
        return ids[0]

    def check_reader(self) -> None:
        """Refuse a reader of routed mode with control tokens of another vocabulary: the model would read them as text.

        Raises:
            CheckpointError: that names one.
        """
        for name in ("reader_prompt", "reader_document", "reread_prompt"):
            for piece in _LIKE_CONTROL.findall(getattr(self.strings, name)):
                if (count := len(self.template_ids(piece))) != 1:
                    raise CheckpointError(
                        f"routed retrieval needs a {name} of this vocabulary's control tokens, and in it {piece!r} is "
                        f"{count} tokens of text; name others in the config's protocol, for instance of "
                        f"{', '.join(sorted(self._control)[:8])}, or leave reader_prompt empty"
                    )

    def plain_ids(self, text: str) -> list[int]:
        """Token ids of a text that is nothing but text, whatever it contains."""
        return self._encode_plain(text)[0]

    def plain_starts(self, text: str) -> list[int]:
        """Start offset in characters of each token of a plain text."""
        return [start for start, _ in self._encode_plain(text)[1]]

    def plain_starts_many(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`plain_starts` of many texts; the tokenizer works on several at a time."""
        found: list[list[int]] = [[] for _ in texts]
        rows = [row for row, text in enumerate(texts) if text]
        encodings = self._plain.encode_batch([texts[row] for row in rows], add_special_tokens=False)
        for row, encoding in zip(rows, encodings, strict=True):
            found[row] = [start for start, _ in encoding.offsets]
        return found

    def template_ids(self, template: str, **values: str) -> list[int]:
        """Token ids of a template whose fields are filled with plain text."""
        return self.encode_template(template, None, **values).ids

    def encode_template(self, template: str, mark: str | None, /, **values: str) -> EncodedText:
        """Token ids of a template whose fields are filled with plain text; tokens of field ``mark`` are marked.

        Text between two control tokens is encoded in one piece, template and fields together, as a model that was
        trained on whole transcripts has seen it.
        """
        ids: list[int] = []
        marked: list[bool] = []
        for piece in self._split.split(template) if self._split else [template]:
            if piece in self._control:
                ids.append(self._control[piece])
                marked.append(False)
                continue
            text, span = _fill(piece, mark, values)
            piece_ids, offsets = self._encode_plain(text)
            ids += piece_ids
            marked += [start < span[1] and end > span[0] for start, end in offsets]
        return EncodedText(ids, marked)

    def document_ids(self, number: int, text: str) -> list[int]:
        """A document as it is encoded into memory."""
        return self.template_ids(self.strings.document, id=str(number), text=text)

    def document_ids_many(self, numbers: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        """:meth:`document_ids` of many documents; the tokenizer works on several at a time."""
        found: list[list[int]] = [[] for _ in texts]
        template = self.strings.document
        for piece in self._split.split(template) if self._split else [template]:
            if piece in self._control:
                for ids in found:
                    ids.append(self._control[piece])
                continue
            filled = [
                _fill(piece, None, {"id": str(number), "text": text})[0]
                for number, text in zip(numbers, texts, strict=True)
            ]
            rows = [row for row, text in enumerate(filled) if text]
            encodings = self._plain.encode_batch_fast([filled[row] for row in rows], add_special_tokens=False)
            for row, encoding in zip(rows, encodings, strict=True):
                found[row] += encoding.ids
        return found

    def closing_ids(self, number: int) -> list[int]:
        """The end of a document as it is encoded: what follows its text, the closing id included."""
        return self.template_ids(self.strings.document.split("{text}", 1)[1], id=str(number))

    def question_turn(self, question: str, context: str = "", routed_context_tokens: int = 0) -> EncodedText:
        """The user's turn after the prefix up to the opening of the model's; routing tokens are marked.

        Args:
            question: the user's words.
            context: what stands before them in the turn; empty: nothing.
            routed_context_tokens: of the context only so many tokens at its end route.
        """
        window = self.end_of(context, routed_context_tokens)
        silent = context[: len(context) - len(window)]
        template, asked = self.strings.question, self.after(window, question)
        if silent:
            template = template.replace("{question}", "{context}{question}")
            silent += "" if window else _GAP
        turn = self.encode_template(template, "question", context=silent, question=asked)
        marked = turn.marked
        if self.strings.route_whole_turn:
            kept = self.encode_template(template, "context", context=silent, question=asked).marked if silent else []
            marked = [own or not before for own, before in zip_longest(marked, kept, fillvalue=False)]
        end = self.question_end_ids
        return EncodedText(turn.ids + end, marked + [False] * len(end))

    @staticmethod
    def after(context: str, question: str) -> str:
        """A question with what stands before it, as one text."""
        return f"{context}{_GAP}{question}" if context else question

    def end_of(self, text: str, num_tokens: int) -> str:
        """The last tokens of a plain text, as text."""
        if num_tokens < 1 or not text:
            return ""
        starts = self.plain_starts(text)
        first = max(0, len(starts) - num_tokens)
        while 0 < first < len(starts) and starts[first] == starts[first - 1]:  # not from inside a character
            first += 1
        return text[starts[first] :] if first < len(starts) else ""

    def expansion(self, documents: Sequence[tuple[int, str]]) -> EncodedText:
        """Original texts of ``(number, text)`` as inserted into the transcript; all but the closing token routes."""
        ids: list[int] = []
        for number, text in documents:
            ids += self.template_ids(self.strings.expanded_document, id=str(number), text=text)
        return EncodedText([*ids, self.reference_end_id], [True] * len(ids) + [False])

    def reader_text(self, documents: Sequence[tuple[int, str]]) -> str:
        """What ``{documents}`` of the ``reader_prompt`` holds for ``(number, text)``, in the order they are read."""
        template = self.strings.reader_document
        return "".join(template.replace("{id}", str(number)).replace("{text}", text) for number, text in documents)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, control tokens left out."""
        kept = [index for index in ids if index not in self._control_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of generated tokens, control tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _encode_plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        if not text:
            return [], []
        encoding = self._plain.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets


def _fill(piece: str, mark: str | None, values: dict[str, str]) -> tuple[str, tuple[int, int]]:
    """Fill ``{fields}`` of one piece of a template; also the character span the field ``mark`` takes."""
    text, span = "", (0, 0)
    for part in re.split(r"(\{\w+\})", piece):
        name = part[1:-1]
        if part.startswith("{") and part.endswith("}") and name in values:
            if name == mark:
                span = (len(text), len(text) + len(values[name]))
            part = values[name]
        text += part
    return text, span
