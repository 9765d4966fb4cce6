"""LongBench v1 and v2 (THUDM/LongBench): each question's context cut into documents.

The wording asked is the benchmark's own prompt without its context, which is what stands in memory here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msa.documents.splitting import split_text
from msa.evaluation.metrics.longbench import TASKS
from msa.evaluation.sets.questions import CONTEXT, QuestionCollector, answer_texts, strings
from msa.evaluation.types import Question
from msa.training.data.collector import Fault, Place, read_records, shorten
from msa.training.data.fields import as_object, identifier, missing, optional_string, string

_BRIEFLY = "Only give me the answer and do not output any other words.\n\nQuestion: {input}\nAnswer:"
_PASSAGES = f"Answer the question based on the given passages. {_BRIEFLY}"

INSTRUCTIONS: Mapping[str, str] = {
    "narrativeqa": "Now, answer the question based on the story as concisely as you can, using a single phrase if "
    "possible. Do not provide any explanation.\n\nQuestion: {input}\n\nAnswer:",
    "qasper": "Answer the question based on the above article as concisely as you can, using a single phrase or "
    "sentence if possible. If the question cannot be answered based on the information in the article, write "
    '"unanswerable". If the question is a yes/no question, answer "yes", "no", or "unanswerable". Do not provide any '
    "explanation.\n\nQuestion: {input}\n\nAnswer:",
    "multifieldqa_en": "Now, answer the following question based on the above text, only give me the answer and do not "
    "output any other words.\n\nQuestion: {input}\nAnswer:",
    "multifieldqa_zh": "现在请基于上面的文章回答下面的问题，只告诉我答案，不要输出任何其他字词。\n\n"
    "问题：{input}\n回答：",
    "hotpotqa": _PASSAGES,
    "2wikimqa": _PASSAGES,
    "musique": _PASSAGES,
    "dureader": "请基于上述文章回答下面的问题。\n\n问题：{input}\n回答：",
    "gov_report": "Now, write a one-page summary of the report.\n\nSummary:",
    "qmsum": "Now, answer the query based on the above meeting transcript in one or more sentences.\n\nQuery: {input}\n"
    "Answer:",
    "multi_news": "Now, write a one-page summary of all the news.\n\nSummary:",
    "vcsum": "会议总结：",
    "trec": "Please determine the type of the question below. Here are some examples of questions.\n\n{input}",
    "triviaqa": "Answer the question based on the given passage. Only give me the answer and do not output any other "
    "words. The following are some examples.\n\n{input}",
    "samsum": "Summarize the dialogue into a few short sentences. The following are some examples.\n\n{input}",
    "lsht": "请判断给定新闻的类别，下面是一些例子。\n\n{input}",
    "passage_count": "Please enter the final count of unique paragraphs after removing duplicates. The output format "
    "should only contain the number, such as 1, 2, 3, and so on.\n\nThe final answer is: ",
    "passage_retrieval_en": "The following is an abstract.\n\n{input}\n\nPlease enter the number of the paragraph that "
    'the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", etc.\n\nThe answer is: ',
    "passage_retrieval_zh": "下面是一个摘要\n\n{input}\n\n请输入摘要所属段落的编号。"
    '答案格式必须是"段落1"，"段落2"等格式\n\n答案是：',
    "lcc": "Please complete the code given below. \nNext line of code:\n",
    "repobench-p": "Please complete the code given below. \n{input}Next line of code:\n",
}

_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_CHOICES = ("A", "B", "C", "D")
_V2_TOKENS = 128
_V2_TASK = "longbench-v2"


def read_longbench(path: Path, max_document_chars: int, collector: QuestionCollector) -> None:
    """Read version 1: ``input, context, answers, length, dataset, language, all_classes, _id`` a line.

    The ``_e`` files are the same data sets, spread over lengths. Metadata: ``length``, ``language``, ``all_classes``,
    and :data:`CONTEXT`, the documents the question's context was cut into; which of them hold the answer is not known.
    """
    for place, record in read_records(path, collector):
        with collector.faults(place):
            record = as_object(record, '{"input": "...", "context": "...", "answers": ["..."], "dataset": "..."}')
            task = string(record, "dataset")
            task = task.removesuffix("_e") if task not in TASKS else task
            if task not in TASKS:
                raise Fault("unknown data set", f"LongBench has no {shorten(task)}. It has {', '.join(TASKS)}")
            metadata = {key: record[key] for key in ("length", "language") if record.get(key) is not None}
            if record.get("all_classes") is not None:
                metadata["all_classes"] = list(strings(record["all_classes"], "all_classes"))
            if "answers" not in record:
                raise missing(record, "answers")
            if TASKS[task].metric == "classification" and not metadata.get("all_classes"):
                raise Fault("missing key", f'"all_classes" is empty, and {task} is scored by it')
            name = identifier(record, "_id")
            question = Question(
                id=f"{task}/{name}",
                question=INSTRUCTIONS[task].replace("{input}", string(record, "input")),
                answers=answer_texts(record["answers"], "answers"),
                task=task,
                max_new_tokens=TASKS[task].max_new_tokens,
                metadata={**metadata, CONTEXT: _cut(record, f"{task}/{name}", max_document_chars, place, collector)},
            )
            collector.add_question(place, question)
    _note(collector, max_document_chars)


def read_longbench_v2(path: Path, max_document_chars: int, collector: QuestionCollector) -> None:
    """Read version 2: multiple choice; the one answer is a letter.

    Metadata: ``domain``, ``sub_domain``, ``difficulty``, ``length``, and :data:`CONTEXT`.
    """
    for place, record in read_records(path, collector):
        with collector.faults(place):
            record = as_object(record, '{"question": "...", "choice_A": "...", "answer": "A", "context": "..."}')
            answer = string(record, "answer").strip()
            if answer not in _CHOICES:
                raise Fault("missing answer", f'"answer" is {shorten(answer)}. Give one of {", ".join(_CHOICES)}')
            choices = "\n".join(f"({letter}) {string(record, f'choice_{letter}')}" for letter in _CHOICES)
            name = identifier(record, "_id")
            keys = ("domain", "sub_domain", "difficulty", "length")
            question = Question(
                id=name,
                question=f"What is the correct answer to this question: {string(record, 'question')}\n"
                f"Choices:\n{choices}\n\n"
                'Format your response as follows: "The correct answer is (insert answer here)".',
                answers=(answer,),
                task=_V2_TASK,
                max_new_tokens=_V2_TOKENS,
                metadata={
                    **{key: optional_string(record, key) for key in keys if record.get(key) is not None},
                    CONTEXT: _cut(record, name, max_document_chars, place, collector),
                },
            )
            collector.add_question(place, question)
    _note(collector, max_document_chars)


def _cut(record: dict[str, Any], name: str, max_chars: int, place: Place, collector: QuestionCollector) -> list[str]:
    """Cut a context into documents named ``<question>#<n>``, and return their ids in order."""
    text = string(record, "context")
    if not text.strip():
        raise Fault("empty document", "the context has no text")
    pieces = [piece.rstrip() for piece in cut_paragraphs(text, max_chars) if piece.strip()]
    names = [f"{name}#{number}" for number in range(1, len(pieces) + 1)]
    for piece_name, piece in zip(names, pieces, strict=True):
        collector.add_document(piece_name, piece, place)
    return names


def cut_paragraphs(text: str, max_chars: int) -> list[str]:
    """Cut a text at blank lines into pieces of whole paragraphs, as many in each as fit.

    A paragraph longer than that is cut by itself, at a line end, sentence end or white space in the last half of what
    a piece may hold. The pieces together are the text.

    >>> cut_paragraphs("One.\\n\\nTwo.\\n\\nA third one.", 13)
    ['One.\\n\\nTwo.\\n\\n', 'A third one.']
    """
    pieces = [""]
    start = 0
    for end in [*(match.end() for match in _BLANK_LINES.finditer(text)), len(text)]:
        paragraph, start = text[start:end], end
        if len(pieces[-1]) + len(paragraph.rstrip()) <= max_chars:
            pieces[-1] += paragraph
            continue
        # one "token" a character, so that the cut depends on no model's tokenizer
        spans = split_text(paragraph, max_tokens=max_chars, token_starts=lambda piece: range(len(piece)))
        pieces += [paragraph[first:last] for first, last in spans]
    return pieces if pieces[0] else pieces[1:]


def _note(collector: QuestionCollector, max_chars: int) -> None:
    collector.notes.append(
        f"each context is cut into documents of whole paragraphs, at most {max_chars:,} characters; a longer paragraph "
        "is cut at a line end, a sentence end or white space"
    )
