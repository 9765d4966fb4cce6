"""From the bytes of one file to its text: plain text of any kind, HTML and PDF.

Every function here works on bytes already read and raises :class:`NotTextError` with the reason, as half a sentence;
:mod:`msa.documents.readers` decides whether that skips the file or stops the user.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import logging
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

# bs4 and pypdf are imported where they are used: together they take 0.3 s, and most runs meet neither HTML nor PDF

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd"})
RST_SUFFIXES = frozenset({".rst", ".rest"})
HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
PDF_SUFFIXES = frozenset({".pdf"})
# text whatever its first bytes look like; a file of any other name must look like text (see require_text)
_TEXT_SUFFIXES = MARKDOWN_SUFFIXES | RST_SUFFIXES | frozenset({".txt", ".text", ".log", ".csv", ".tsv", ".tex", ".org"})

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
REPLACED = " with replacements"  # after the name of an encoding, where bytes that are no character became U+FFFD
SNIFFED_BYTES = 65_536  # enough of a file to tell whether it is text
_FEW = 16  # this many odd characters are forgiven in a text of any length
_BINARY = "is a binary file. Convert it to PDF, HTML or plain text first"
_NOT_UTF8 = "is not UTF-8 text. Convert it first, for example: iconv -f ENCODING -t UTF-8 IN > OUT"
_MAX_TITLE_CHARS = 200

# pypdf's warnings quote the document; where nobody set up logging they would go to standard error
_pypdf_logger = logging.getLogger("pypdf")
_pypdf_logger.addHandler(logging.NullHandler())
_pypdf_logger.propagate = False


class NotTextError(Exception):
    """Bytes that hold no readable text; the message is half a sentence such as ``is encrypted. Decrypt it first``."""


@dataclass
class FileText:
    """The text of one file, its title where the file states one, and what else the format knows about it."""

    text: str
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def extract(data: bytes, name: str) -> FileText:
    """Read the bytes of a file as its suffix and first bytes say.

    Args:
        data: the whole file.
        name: its name; only the suffix is looked at.

    Raises:
        NotTextError: a binary file, a damaged or encrypted PDF, a PDF without a text layer.
    """
    suffix = PurePath(name).suffix.lower()
    if _is_pdf(data, name):
        return _extract_pdf(data)
    if suffix in HTML_SUFFIXES:
        return _extract_html(data)
    require_text(data[:SNIFFED_BYTES], name)
    text, metadata = decode(data)
    title = None
    if suffix in MARKDOWN_SUFFIXES:
        title = markdown_title(text)
    elif suffix in RST_SUFFIXES:
        title = rst_title(text)
    return FileText(text, title, metadata)


def needs_limits(data: bytes, name: str) -> bool:
    """Whether a file of this name that begins with ``data`` can be made to take any time and memory to read.

    So can a PDF and an HTML page; other files are read in a time that is proportional to their size.
    """
    return _is_pdf(data, name) or PurePath(name).suffix.lower() in HTML_SUFFIXES


def clean_text(text: str) -> str:
    r"""Make any Python string storable: no lone surrogates, no NUL characters, line ends as LF.

    >>> clean_text("a\r\nb\ud800\x00")
    'a\nb\ufffd'
    """
    text = text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")
    return clean_surrogates(text)


def clean_surrogates(text: str) -> str:
    """Join surrogate pairs into the character they encode and replace each lone surrogate by U+FFFD."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    joined = _SURROGATE_PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)
    return _SURROGATE.sub("\ufffd", joined)


def decode(data: bytes) -> tuple[str, dict[str, Any]]:
    """Decode bytes as UTF-8, or as UTF-16 or UTF-32 where a byte order mark says so.

    What is not UTF-8 is taken as Western text of one byte a character, windows-1252 or else latin-1, unless as much
    of it is UTF-8 as is not: then it is UTF-8 with some damage.

    Returns:
        The cleaned text (see :func:`clean_text`), and ``{"decoding": ...}``, how it was decoded, if some byte is not
        what its encoding has: ``windows-1252``, ``latin-1`` or, where such bytes became U+FFFD,
        ``utf-8 with replacements``, as with ``utf-16`` and ``utf-32``.

    >>> decode("café".encode("cp1252"))
    ('café', {'decoding': 'windows-1252'})
    """
    encoding = wide_encoding(data) or "utf-8-sig"
    try:
        return clean_text(data.decode(encoding)), {}
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
    if encoding == "utf-8-sig" and not _is_mostly_utf8(data, text):
        for western in ("windows-1252", "latin-1"):
            with contextlib.suppress(UnicodeDecodeError):
                return clean_text(data.decode(western)), {"decoding": western}
    return clean_text(text), {"decoding": encoding.removesuffix("-sig") + REPLACED}


def _is_mostly_utf8(data: bytes, text: str) -> bool:
    """Whether no more bytes were replaced in ``text`` than there are characters beyond ASCII."""
    num_replaced = text.count("\ufffd") - data.count("\ufffd".encode())
    num_ascii = len(data) - len(data.translate(None, bytes(range(128))))
    return num_replaced <= len(text) - num_ascii - num_replaced


def wide_encoding(data: bytes) -> str | None:
    """``utf-32`` or ``utf-16`` for bytes that begin with its byte order mark."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):  # first: one begins with the mark of UTF-16
        return "utf-32"
    return "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else None


def require_text(head: bytes, name: str) -> None:
    """Refuse a file that is plainly not text by its first bytes, before the rest of it is read.

    Args:
        head: its first ``SNIFFED_BYTES``.
        name: its name; only the suffix is looked at. PDF and HTML are left to their parsers.

    Raises:
        NotTextError: it is a binary file, or text in an encoding that cannot be told.
    """
    suffix = PurePath(name).suffix.lower()
    if _is_pdf(head, name) or suffix in HTML_SUFFIXES:
        return
    strict = suffix not in _TEXT_SUFFIXES
    if encoding := wide_encoding(head):
        _require_wide_text(head[: len(head) & ~3].decode(encoding, "replace"), strict=strict)
        return
    # tab, LF, form feed, CR, backspace (man pages) and escape (terminal colours) do occur in text
    num_controls = len(head) - len(head.translate(None, bytes(set(range(32)) - {8, 9, 10, 12, 13, 27})))
    if strict and (b"\0" in head or num_controls > max(4, 0.02 * len(head))):
        raise NotTextError(_BINARY)
    if num_controls > max(_FEW, 0.3 * len(head)):
        raise NotTextError(_BINARY)
    # few bytes of Western text in an old encoding are invalid as UTF-8, most of Cyrillic or Asian text is
    if len(head) - len(head.decode("utf-8", "ignore").encode()) > max(_FEW, 0.3 * len(head)):
        raise NotTextError(_NOT_UTF8)


def _require_wide_text(head: str, *, strict: bool) -> None:
    """As :func:`require_text`, of what was decoded: any two bytes may begin with a byte order mark by chance."""
    allowed = head.translate(dict.fromkeys(map(ord, "\b\t\n\f\r\x1b")))
    num_odd = sum(char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cn", "Co") for char in allowed)
    if (strict and "\0" in head) or num_odd > max(4 if strict else _FEW, (0.02 if strict else 0.05) * len(head)):
        raise NotTextError(_BINARY)


def markdown_title(text: str) -> str | None:
    """The ``title:`` of a front matter, else the first heading (``# …`` or underlined) outside code fences."""
    lines = text[:SNIFFED_BYTES].split("\n")
    start = 0
    if lines[0].strip() == "---" and "---" in [line.strip() for line in lines[1:]]:
        start = next(i for i, line in enumerate(lines) if i and line.strip() == "---") + 1
        for line in lines[1:start]:
            if line.startswith("title:") and (title := _one_line(_unquoted(line.removeprefix("title:").strip()))):
                return title
    fence = ""
    previous = ""
    for line in lines[start:]:
        if fence:
            if line.strip().startswith(fence):
                fence = ""
        elif match := re.match(r" {0,3}(```|~~~)", line):
            fence = match[1]
        elif match := re.match(r" {0,3}#{1,6}[ \t]", line):
            if title := _plain_markdown(line[match.end() :].rstrip(" \t").rstrip("#")):
                return title
        elif re.match(r"(=+|-+)\s*$", line) and re.match(r"[^\s>*+|`-]", previous):
            return _plain_markdown(previous)
        previous = line
    return None


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 2 and value[0] == value[-1] and value[0] in "'\"" else value


def _plain_markdown(heading: str) -> str | None:
    heading = heading[: 10 * _MAX_TITLE_CHARS]  # looking for pairs takes the square of a heading's length
    heading = re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", heading)
    return _one_line(re.sub(r"[*`]+|<[^>]*>", "", heading))


def rst_title(text: str) -> str | None:
    """The first line underlined by at least as many punctuation marks."""
    lines = [line.rstrip() for line in text[:SNIFFED_BYTES].split("\n")]
    for line, underline in itertools.pairwise(lines):
        if line.strip() and re.fullmatch(r"([^\w\s])\1*", underline) and len(underline) >= len(line.strip()) > 1:
            if re.fullmatch(r"([^\w\s])\1*", line):
                continue  # two lines of marks: an overline
            return _one_line(line)
    return None


def _one_line(title: str | None) -> str | None:
    title = " ".join(clean_text(title or "").split())
    return title[:_MAX_TITLE_CHARS] or None


# HTML

# not "head": the parser leaves an unclosed one open, and then the whole page is inside it
_HIDDEN_TAGS = frozenset(
    {"title", "script", "style", "template", "noscript", "svg", "math", "iframe", "object", "canvas", "audio", "video"}
)
_PARAGRAPH_TAGS = frozenset(
    {"h1", "h2", "h3", "h4", "h5", "h6", "p", "pre", "blockquote", "ul", "ol", "dl", "table", "figure", "hr"}
    | {"address", "article", "aside", "body", "details", "dialog", "fieldset", "footer", "form", "header", "main"}
    | {"nav", "section"}
)
_LINE_TAGS = frozenset({"caption", "dd", "div", "dt", "figcaption", "legend", "option", "summary", "tr"})
_CELL_TAGS = frozenset({"td", "th"})


def _extract_html(data: bytes) -> FileText:
    import bs4

    declared = None if wide_encoding(data) else bs4.dammit.EncodingDetector.find_declared_encoding(data, is_html=True)
    text, metadata = decode(data)
    if metadata and declared:
        # UTF-8 came first, since pages that are UTF-8 but claim latin-1 outnumber the reverse
        with contextlib.suppress(LookupError, UnicodeDecodeError):
            text, metadata = clean_text(data.decode(declared)), {}
    soup = bs4.BeautifulSoup(text, "html.parser")
    return FileText(_visible_text(soup), _html_title(soup), metadata)


def _html_title(soup: Any) -> str | None:
    """The first ``<title>`` that is not a drawing's, else the first ``<h1>``, that says something."""
    import bs4

    heading = None
    # each element once: looking upwards from every title takes the square of a page that nests deeply
    stack: list[tuple[Any, bool, bool]] = [(soup, False, False)]
    while stack:
        tag, in_drawing, in_heading = stack.pop()
        if tag.name == "title" and not in_drawing:
            if title := _one_line(tag.get_text()):
                return title
            continue  # what it holds says no more
        if tag.name == "h1" and not in_heading:
            heading = heading or _one_line(tag.get_text())
            in_heading = True  # as there
        in_drawing = in_drawing or tag.name == "svg"
        tags = [child for child in tag.contents if isinstance(child, bs4.Tag)]
        stack.extend((child, in_drawing, in_heading) for child in reversed(tags))
    return heading


def _visible_text(soup: Any) -> str:
    """Text as a browser would show it: white space folded, paragraphs apart, ``<pre>`` kept as it is."""
    import bs4

    pieces: list[str] = []
    # an explicit stack, since pages may nest deeper than Python recurses; a string on the stack closes its element
    stack: list[tuple[Any, bool]] = [(soup, False)]
    while stack:
        node, in_pre = stack.pop()
        if type(node) is str:
            pieces.append(node)
        elif isinstance(node, bs4.Tag):
            if _is_hidden(node):
                continue
            opening, closing = _breaks(node.name)
            pieces.append(opening)
            stack.append((closing, False))
            in_pre = in_pre or node.name in ("pre", "textarea")
            stack.extend((child, in_pre) for child in reversed(node.contents))
        elif type(node) in (bs4.NavigableString, bs4.CData):  # comments, doctypes and scripts are subclasses
            text = re.sub("[\x01-\x05]", "", node)
            pieces.append(
                text.replace(" ", _PRE_SPACE).replace("\n", _PRE_NEWLINE) if in_pre else re.sub(r"\s+", " ", text)
            )
    text = re.sub("[ \t\n\x03\x04]+", lambda run: _fold(run[0]), "".join(pieces))
    text = re.sub(f"{_ITEM}[ \t\n]*", "- ", text)  # also an item of a list that begins with a paragraph
    lines = text.replace(_PRE_SPACE, " ").replace(_PRE_NEWLINE, "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


# In a text being put together, spaces and line ends inside <pre>, the borders of lines and of paragraphs, and the
# beginning of an item of a list.
_PRE_SPACE, _PRE_NEWLINE, _LINE, _PARAGRAPH, _ITEM = "\x01", "\x02", "\x03", "\x04", "\x05"


def _fold(run: str) -> str:
    """What to show for a run of white space and borders."""
    if _PARAGRAPH in run or run.count("\n") > 1:
        return "\n\n"
    if _LINE in run or "\n" in run:
        return "\n"
    return "\t" if "\t" in run else " "


def _breaks(tag: str) -> tuple[str, str]:
    if tag in _PARAGRAPH_TAGS:
        return _PARAGRAPH, _PARAGRAPH
    if tag == "li":
        return f"{_LINE}{_ITEM} ", _LINE
    if tag in _LINE_TAGS:
        return _LINE, _LINE
    if tag == "br":
        return "\n", ""
    return ("", "\t") if tag in _CELL_TAGS else ("", "")


def _is_hidden(tag: Any) -> bool:
    if tag.name in _HIDDEN_TAGS or tag.has_attr("hidden"):
        return True
    return re.search(r"display\s*:\s*none", str(tag.get("style") or ""), re.IGNORECASE) is not None


# PDF


def _is_pdf(data: bytes, name: str) -> bool:
    return PurePath(name).suffix.lower() in PDF_SUFFIXES or data.startswith(b"%PDF-")


def _extract_pdf(data: bytes) -> FileText:
    import pypdf

    if not data.strip(b"\0 \r\n\t"):
        raise NotTextError("is empty")
    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise NotTextError("is encrypted. Remove its password first: qpdf --decrypt --password=... IN.pdf OUT.pdf")
        pages = [clean_text(page.extract_text()).strip() for page in reader.pages]
        title = reader.metadata.title if reader.metadata else None
    except NotTextError:
        raise
    except pypdf.errors.DependencyError as error:
        raise NotTextError("is encrypted with AES. Decrypt it first: qpdf --decrypt IN.pdf OUT.pdf") from error
    # a damaged PDF surfaces in pypdf as almost any exception (KeyError, TypeError, RecursionError, ...)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NotTextError(
            f"is not a PDF that can be read ({reason}). Try to repair it: qpdf IN.pdf OUT.pdf"
        ) from error
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise NotTextError(
            f"holds no text on its {len(pages)} page{'s' * (len(pages) != 1)}, so it is probably scanned. "
            "Add a text layer first: ocrmypdf IN.pdf OUT.pdf"
        )
    return FileText(text, _one_line(str(title)) if title else None, {"pages": len(pages)})
