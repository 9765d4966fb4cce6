"""The web page in headless Chromium, where there is one, against a real server."""

import functools
import re
import shutil

import pytest
from serving_helpers import ANSWER, DOCUMENTS, ENDLESS, NEEDLE, QUESTION, until

from msa.serving.keys import ApiKey, key_digest

KEY = "sk-correct-horse"
HOSTILE = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script>'
UNDO_MS = 9000  # longer than a deletion waits


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"Chromium is not installed or cannot be started: {str(error).splitlines()[0]}")
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open the page in a window of its own; fails on any script error or breach of the content-security-policy."""
    contexts, problems = [], []

    def heard(message):
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            problems.append(message.text)

    def opened(url, path="", **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", heard)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{url}/{path}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture
def documents(server, http, memory, visit):
    """The view of documents, on a fresh memory with one document in it; and the memory's address."""
    name = memory.rpartition("/")[2]
    added = http.post(f"{memory}/documents", json={"id": "a/b ?#.md", "text": NEEDLE, "metadata": {"title": "Ages"}})
    assert added.status_code == 200
    page = visit(server.url, "#documents")
    page.select_option("#memory-select", name)
    page.wait_for_selector(".documents li")
    return page, memory


def ask(page, question=QUESTION):
    page.wait_for_selector("#memory-select:enabled")
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector("#ask-button:visible")


def ids(http, memory):
    return [entry["id"] for entry in http.get(f"{memory}/documents").json()["data"]]


def test_an_answer_with_its_sources(server, visit):
    page = visit(server.url)
    ask(page)
    turn = page.locator(".turn")
    assert turn.locator(".answer").inner_text().startswith(ANSWER)
    rounds = turn.locator(".rounds li").all_inner_texts()
    assert [re.sub(r"\s+", " ", text) for text in rounds] == ["Round 1 Ages", "Round 2 nothing more needed, answered"]
    assert turn.locator(".sources mark").all_inner_texts() == [NEEDLE]
    assert turn.locator(".sources mark strong").inner_text() == ANSWER
    assert re.search(
        r"complete.*2 rounds.*\d+ \+ \d+ tokens.*in all [\d.]+ m?s", turn.locator(".meta").inner_text(), re.S
    )
    assert turn.locator(".votes tbody th").all_text_contents() == ["Ages", "other"]
    turn.locator(".cite").click()
    assert page.evaluate("document.activeElement.textContent") == "Ages"
    page.keyboard.press("Enter")
    page.wait_for_selector("#document-text mark")
    assert page.inner_text("#document-text mark") == NEEDLE
    assert page.inner_text("#document-id") == "notes/ages.md"
    page.keyboard.press("Escape")
    page.reload()
    assert page.locator(".turn .answer").inner_text().startswith(ANSWER)  # kept in the tab


def test_a_stream_is_shown_while_it_comes_and_can_be_stopped(server, visit):
    page = visit(server.url)
    page.wait_for_selector("#memory-select:enabled")
    page.click("#options summary")
    page.fill("#option-tokens", str(ENDLESS["max_tokens"]))
    page.fill("#question", "hello")
    page.click("#ask-button")
    until(lambda: len(page.inner_text(".answer")) > 10)
    length = len(page.locator(".answer").inner_text())
    until(lambda: len(page.inner_text(".answer")) > length + 10)
    assert page.get_attribute(".answer", "aria-live") == "polite"
    page.keyboard.press("Escape")
    page.wait_for_selector(".meta li")
    assert "stopped by you" in page.inner_text(".meta")
    assert page.is_visible("#ask-button")


def test_files_are_added_by_choosing_and_by_dropping(documents, http):
    page, memory = documents
    page.set_input_files(
        "#file-input",
        [
            {"name": "new.md", "mimeType": "text/markdown", "buffer": b"# Fresh\n\nsome words"},
            {"name": "broken.bin", "mimeType": "text/plain", "buffer": bytes(range(256)) * 9},
        ],
    )
    page.wait_for_selector(".uploads .failed")
    assert "broken.bin is a binary file" in page.inner_text(".uploads .failed")
    assert "1 document" in page.inner_text(".uploads .done")
    dropped = page.evaluate_handle("""() => {
        const transfer = new DataTransfer();
        transfer.items.add(new File(['{"id": "one", "text": "1"}\\n{"id": "two", "text": "2"}\\n'], 'lines.jsonl'));
        return transfer;
    }""")
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.wait_for_selector(".uploads .done:has-text('2 documents')")
    until(lambda: page.locator(".documents li").count() == 4)
    assert ids(http, memory) == ["a/b ?#.md", "new.md", "one", "two"]
    page.click("#write-button")
    page.fill("#write-text", "written by hand")
    page.fill("#write-name", HOSTILE)
    page.click("#write-submit")
    page.wait_for_selector(".documents li:nth-child(5)")
    assert page.locator(".documents .title").last.inner_text() == HOSTILE
    assert page.evaluate("[window.hacked, document.querySelectorAll('main img').length]") == [None, 0]


def test_a_deletion_can_be_undone_until_it_is_sent(documents, http):
    page, memory = documents
    sent = []
    page.on("request", lambda request: request.method == "DELETE" and sent.append(request.url))
    page.clock.install()
    page.click(".documents .delete")
    assert page.locator(".documents li").count() == 0
    page.click(".toast button")
    assert page.locator(".documents li").count() == 1
    page.clock.run_for(UNDO_MS)
    page.click(".documents .delete")
    page.keyboard.press("z")
    page.clock.run_for(UNDO_MS)
    assert (page.locator(".documents li").count(), sent) == (1, [])
    page.click(".documents .delete")
    page.reload()  # nothing was sent: it stays
    page.wait_for_selector(".documents li")
    assert (ids(http, memory), sent) == (["a/b ?#.md"], [])
    page.clock.install()
    page.click(".documents .delete")
    page.mouse.move(0, 0)
    with page.expect_response(lambda response: response.request.method == "DELETE") as answer:
        page.clock.run_for(UNDO_MS)
    assert (answer.value.status, ids(http, memory)) == (200, [])
    page.wait_for_selector("#list-empty:has-text('No documents yet')")


def test_a_document_added_again_survives_its_deletion(documents, http):
    page, memory = documents
    page.click(".documents .delete")
    page.click("#write-button")
    page.fill("#write-id", "a/b ?#.md")
    page.fill("#write-text", "another text")
    page.click("#write-submit")
    page.wait_for_selector(".documents li")
    assert page.locator(".toast", has_text="will be deleted").count() == 0
    assert http.get(f"{memory}/documents").json()["data"][0]["text"] == "another text"


def test_pages_and_search(documents, http):
    page, memory = documents
    batch = [{"id": f"n{number:02}", "text": f"number {number}"} for number in range(30)]
    http.post(f"{memory}/documents", json={"documents": batch})
    page.reload()
    page.wait_for_selector("#page-next:enabled")
    assert page.inner_text("#list-range") == "1–25 of 31"
    page.click("#page-next")
    page.wait_for_selector("text=26–31 of 31")
    page.click("#page-previous")
    page.wait_for_selector("text=1–25 of 31")
    page.keyboard.press("/")
    page.keyboard.type(QUESTION)
    page.keyboard.press("Enter")
    page.wait_for_selector(".documents meter")
    assert page.locator(".documents .title").first.inner_text() == "Ages"
    assert page.locator(".documents mark").first.inner_text() == NEEDLE
    page.click("#list-all")
    page.wait_for_selector("text=1–25 of 31")


def test_keys(start, visit, tmp_path):
    keys = (ApiKey(digest=key_digest(KEY), name="all"),)
    with start(tmp_path, keys=keys) as server:
        page = visit(server.url)
        page.wait_for_selector("#key-error:has-text('wants an API key')")
        for wrong in ("nonsense", "schlüssel"):
            page.fill("#key-input", wrong)
            page.keyboard.press("Enter")
            page.wait_for_selector("#key-error:has-text('does not accept')")
        page.fill("#key-input", KEY)
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog", state="hidden")
        page.wait_for_selector("#ask-empty-title:has-text('No memory yet')")
        page.click("#new-memory")
        page.fill("#memory-input", "a..b")
        page.keyboard.press("Enter")
        page.wait_for_selector("#memory-error:has-text('name has 1 to 64')")
        page.fill("#memory-input", "fresh")
        page.keyboard.press("Enter")
        page.wait_for_selector("#list-empty:has-text('No documents yet')")
        page.reload()
        page.wait_for_selector("#memory-select:enabled")
        assert page.evaluate("[sessionStorage['msa-key'], localStorage['msa-key'] ?? null]") == [KEY, None]
        page.click("#key-button")
        page.click("#key-forget")
        page.wait_for_selector("#banner:has-text('Without a key')")
        assert page.locator("#memory-select option").count() == 0


def test_errors_are_told_and_the_question_can_be_asked_again(server, http, visit):
    http.put("/v1/memories/a-hollow", json={})
    try:
        page = visit(server.url)
        page.wait_for_selector("#memory-select:enabled")
        page.select_option("#memory-select", "a-hollow")
        page.wait_for_selector("#ask-empty-title:has-text('This memory is empty')")
        ask(page)
        assert "holds no documents" in page.inner_text(".answer .error")
        assert "HTTP 400 · memory_empty · req_" in page.inner_text(".answer .error")
        page.select_option("#memory-select", "known")
        page.click(".answer .error button")
        page.wait_for_selector(f".turn:nth-child(2) .answer:has-text('{ANSWER}')")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        ask(page)
        assert "cannot be reached" in page.locator(".answer .error").last.inner_text()
    finally:
        http.delete("/v1/memories/a-hollow")


def test_which_layers_chose_what(server, visit):
    page = visit(server.url)
    shown = page.evaluate(f"""async () => {{
        const {{ heatmap }} = await import("/page/heatmap.js");
        const votes = {{ 10: ["b"], 4: ["a", "b", "b", {HOSTILE!r}], 7: [] }};
        const table = heatmap(votes, [{{ id: "a", metadata: {{ title: "Ages" }} }}]);
        return [[...table.querySelectorAll("tr")].map((row) => [...row.cells].map((cell) => cell.textContent)),
                heatmap(null, []), heatmap({{ 4: [] }}, [])];
    }}""")
    none = "not chosen"
    assert shown == [
        [
            ["Document", "4", "7", "10", "Layers"],
            ["b", "2", none, "1", "2/3"],
            ["Ages", "1", none, none, "1/3"],
            [HOSTILE, "3", none, none, "1/3"],
        ],
        None,
        None,
    ]


def test_hostile_documents(server, http, memory, visit):
    metadata = {"title": HOSTILE, "url": "javascript:window.hacked=1", HOSTILE: HOSTILE}
    http.post(f"{memory}/documents", json={"id": HOSTILE, "text": f"{HOSTILE} {NEEDLE}", "metadata": metadata})
    page = visit(server.url)
    page.wait_for_selector("#memory-select:enabled")
    page.select_option("#memory-select", memory.rpartition("/")[2])
    ask(page)
    page.click(".sources .title")
    page.wait_for_selector("#document-text mark")
    assert page.inner_text("#document-title") == HOSTILE
    assert page.is_hidden("#document-original")
    assert page.evaluate("[window.hacked, document.querySelectorAll('main img, main script').length]") == [None, 0]


def test_keys_of_the_keyboard_and_the_theme(server, visit):
    page = visit(server.url, color_scheme="dark")
    background = functools.partial(page.evaluate, "getComputedStyle(document.body).backgroundColor")
    dark = background()
    page.wait_for_selector("#memory-select:enabled")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    page.keyboard.press("t")
    light = background()
    assert light != dark
    page.reload()
    assert (background(), page.inner_text("#theme-name")) == (light, "light")
    page.keyboard.press("t")
    assert background() == dark
    page.keyboard.press("2")
    assert page.is_visible("#view-documents")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search-input"
    page.keyboard.type("1t?")  # in a field they are letters
    assert page.input_value("#search-input") == "1t?"
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    page.uncheck("#shortcuts-on")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    assert page.is_visible("#view-documents")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 380)])
def test_accessibility_and_width(server, http, memory, visit, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = visit(server.url, color_scheme=scheme, viewport={"width": width, "height": 800})

    def check():
        until(lambda: page.evaluate("document.getAnimations().every((moving) => moving.playState !== 'running')"))
        found = axe.Axe().run(page).response["violations"]
        assert [(entry["id"], [node["target"] for node in entry["nodes"]]) for entry in found] == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width

    http.post(f"{memory}/documents", json={"documents": DOCUMENTS})
    page.wait_for_selector("#memory-select:enabled")
    page.select_option("#memory-select", memory.rpartition("/")[2])
    check()
    page.click("#options summary")
    ask(page)
    page.evaluate("""async () => {
        const { heatmap } = await import("/page/heatmap.js");
        const ids = Array.from({ length: 12 }, (_, number) => `document ${number}`);
        const table = heatmap(Object.fromEntries([4, 5, 6, 7, 8, 9, 10, 11].map((layer) => [layer, ids])), []);
        table.open = true;
        document.querySelector(".said").append(table);
    }""")
    check()
    page.click(".sources .title")
    page.wait_for_selector("#document-text mark")
    check()
    page.keyboard.press("Escape")
    page.click("#tab-documents")
    page.wait_for_selector(".documents li")
    page.click(".documents .delete >> nth=0")
    page.set_input_files("#file-input", [{"name": "x.bin", "mimeType": "", "buffer": bytes(range(256)) * 9}])
    page.wait_for_selector(".uploads .failed")
    check()
    page.keyboard.press("z")
    for button, close in (
        ("#help-button", "#help-close"),
        ("#new-memory", "#memory-cancel"),
        ("#write-button", "#write-cancel"),
        ("#key-button", "#key-cancel"),
    ):
        page.click(button)
        check()
        page.click(close)
