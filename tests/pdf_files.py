"""PDFs for tests."""

import io

import pypdf
from pypdf.generic import DictionaryObject, NameObject, StreamObject


def pdf(*pages, title=None, password=None):
    """A small PDF with one line of text on each page."""
    contents = [f"BT /F1 12 Tf 10 100 Td ({text}) Tj ET".encode() if text else b"" for text in pages]
    return _written(contents, title, password)


def slow_pdf():
    """A few kilobytes that take long to read."""
    return _written([b"BT /F1 9 Tf (a) Tj ET " * 20_000] * 50)


def _written(contents, title=None, password=None):
    writer = pypdf.PdfWriter()
    streams = {}
    for data in contents:
        page = writer.add_blank_page(200, 200)
        font = DictionaryObject(
            {NameObject("/Type"): NameObject("/Font"), NameObject("/Subtype"): NameObject("/Type1")}
            | {NameObject("/BaseFont"): NameObject("/Helvetica")}
        )
        page[NameObject("/Resources")] = DictionaryObject(
            {NameObject("/Font"): DictionaryObject({NameObject("/F1"): font})}
        )
        if data not in streams:
            content = StreamObject()
            content.set_data(data)
            streams[data] = writer._add_object(content.flate_encode())
        page[NameObject("/Contents")] = streams[data]
    if title:
        writer.add_metadata({"/Title": title})
    if password:
        writer.encrypt(password, algorithm="RC4-128")
    stream = io.BytesIO()
    writer.write(stream)
    return stream.getvalue()
