"""The files of the web page; test_page_in_browser.py has how it behaves."""

import re
from pathlib import Path

import msa.serving

PAGE = Path(msa.serving.__file__).parent / "page"
FILES = {path.name: path.read_text("utf-8") for path in PAGE.iterdir() if path.is_file()}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def test_the_page_and_its_files_are_served(http):
    page = http.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.text == FILES["index.html"]
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', FILES["index.html"])
    named += [f"page/{name}" for text in SCRIPTS.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {Path(name).name for name in named} | {"index.html"} == set(FILES)  # none is missing, none unused
    for name in set(named):
        response = http.get(f"/{name}")
        assert response.status_code == 200, name
        assert response.headers["content-type"].partition(";")[0] == TYPES[Path(name).suffix]
        assert "script-src 'self';" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
    assert sum(len(text.encode()) for text in FILES.values()) < 120_000


def test_nothing_comes_from_elsewhere():
    for name, text in FILES.items():
        text = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.findall(r"(?:\b(?:https?|wss?|data):|[\"'(])//[\w.]", text), name
        assert not re.findall(r"@import|url\(", text), name


def test_every_element_that_is_used_is_there():
    page = FILES["index.html"]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = {name for text in SCRIPTS.values() for name in re.findall(r'byId\("([^"]+)"\)', text)}
    used |= {f"{kind}-{view}" for kind in ("view", "tab") for view in ("ask", "documents")}  # made of two parts
    used |= set(re.findall(r'"(write-\w+|option-\w+|\w+-button)"', "".join(SCRIPTS.values())))
    for names in re.findall(r'(?:\bfor|aria-labelledby|aria-describedby)="([^"]+)"', page):
        used |= set(names.split())
    assert len(used) > 80
    assert used <= set(ids), used - set(ids)
    makers = [name for name, text in SCRIPTS.items() if "getElementById" in text]
    assert makers == ["dom.js"]


def test_a_strict_policy_is_possible_and_text_stays_text():
    page = FILES["index.html"]
    assert not re.findall(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", page)
    for name, text in SCRIPTS.items():
        dangers = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|cssText"
        assert not re.findall(dangers, text), name
