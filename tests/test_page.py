"""The page in a real browser, against the real service."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from adventures import demo
from browsing import ask, chromium, driving, greeting, opened, settled, sse
from serving import KEY, Server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Locator, Page, Playwright, Route

    import adventures as adv

QUESTION = "How do I get past a dragon that is sleeping on its gold?"
OTHER = "There is a werewolf in the family. What do I do at full moon?"
GREETING = "Welcome, traveller. What does your road ask of you?"
STORY = "Write a long story about a lighthouse keeper, with many chapters."


expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    with driving() as driver:
        yield driver


@pytest.fixture(scope="module")
def browser(driver: Playwright) -> Iterator[Browser]:
    with chromium(driver) as browser:
        yield browser


@pytest.fixture(scope="module")
def shop(stock: adv.Library) -> Iterator[Server]:
    """The demo's shop."""
    examples = [word for question in demo.ASK for word in ("--example", question)]
    flags = ["--title", "The Outfitter", "--greeting", GREETING, "--system", demo.SHOPKEEPER, *examples]
    with Server("--library", stock.path, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def narrow() -> Iterator[Server]:
    """A service without a library that writes one answer at a time and lets nobody wait."""
    with Server("--slots", "1", "--queue", "0") as server:
        yield server


@pytest.fixture
def page(browser: Browser, shop: Server) -> Iterator[Page]:
    with opened(browser, shop.url) as page:
        yield page


def sent(page: Page) -> dict[str, Any]:
    """What the page sends when the last question is asked again."""
    with page.expect_request("**/v1/chat/completions") as request:
        page.locator(".again").last.click()
    settled(page)
    return dict(request.value.post_data_json)


def answer(page: Page, at: int = -1) -> Locator:
    return page.locator(".turn").nth(at).locator(".prose")


def held(server: Server) -> Any:
    """Takes the one slot of a service until it is closed."""
    body = {"model": "default", "messages": [{"role": "user", "content": STORY}], "stream": True, "max_tokens": 500}
    return server.stream("/v1/chat/completions", body)


def free(server: Server) -> None:
    """Waits until a slot is free."""
    end = time.monotonic() + 30
    body = {"model": "default", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    while server.post("/v1/chat/completions", body).status == 429:
        assert time.monotonic() < end
        time.sleep(0.1)


class TestChat:
    def test_before_the_first_question(self, page: Page) -> None:
        expect(page).to_have_title("The Outfitter")
        expect(page.locator("h1")).to_have_text("The Outfitter")
        expect(page.locator("#greeting")).to_have_text(GREETING)
        expect(page.locator(".example")).to_have_text(list(demo.ASK))
        assert re.match(
            rf"{len(demo.rows())} passages from \S+, version \d+$", page.locator("#holdings").text_content() or ""
        )
        expect(page.locator("#question")).to_be_focused()

    def test_a_question_is_answered_with_its_source(self, page: Page, shop: Server) -> None:
        ask(page, QUESTION)
        best = shop.post("/v1/search", {"query": QUESTION, "k": 1}).json()["hits"][0]
        assert len(answer(page).text_content() or "") > 20
        page.locator(".prose .cite").first.click()
        panel = page.locator("#panel")
        expect(panel.locator(".passage")).to_have_text(best["text"])
        expect(panel.locator(".similarity b")).to_have_text(f"{best['similarity']:.2f}")
        told = {
            row.locator("dt").text_content(): row.locator("dd").text_content()
            for row in panel.locator("dl > div").all()
        }
        for column, value in {**best["metadata"], **best["source"]["row"]}.items():
            assert told[column] == str(value)
        assert told["table"] == best["source"]["table"]
        assert told["version"] == str(best["source"]["version"])
        page.keyboard.press("Escape")
        expect(panel).to_be_hidden()

    def test_the_answer_comes_in_pieces(self, page: Page) -> None:
        page.evaluate(
            """() => {
              window.lengths = new Set();
              const look = () => window.lengths.add(document.querySelector('.prose')?.textContent.length ?? 0);
              new MutationObserver(look).observe(document.body, { subtree: true, childList: true });
            }"""
        )
        ask(page, QUESTION)
        assert page.evaluate("window.lengths.size") >= 4

    def test_an_example_is_asked(self, page: Page) -> None:
        page.locator(".example").nth(1).click()
        settled(page)
        expect(page.locator(".said")).to_have_text(OTHER)
        expect(page.locator("#hero")).to_be_hidden()

    def test_what_the_library_does_not_hold(self, page: Page) -> None:
        ask(page, "What is the capital of France?")
        expect(answer(page)).to_have_text("The library holds nothing on that.")
        assert page.locator(".source").count() == page.locator(".cite").count() == 0

    def test_regenerate(self, page: Page) -> None:
        ask(page, QUESTION)
        before = answer(page).text_content()
        body = sent(page)
        assert body == {"model": "default", "messages": [{"role": "user", "content": QUESTION}], "stream": True}
        expect(page.locator(".turn")).to_have_count(1)
        expect(answer(page)).to_have_text(before)

    def test_the_conversation_goes_along(self, page: Page) -> None:
        ask(page, QUESTION)
        ask(page, OTHER)
        first, _, last = sent(page)["messages"]
        assert (first["content"], last["content"]) == (QUESTION, OTHER)

    def test_edit(self, page: Page) -> None:
        ask(page, QUESTION)
        ask(page, OTHER)
        page.locator(".turn").first.get_by_label("Edit this question").click()
        expect(page.locator(".editing")).to_contain_text("replaces the question after it")
        page.keyboard.press("Escape")
        expect(page.locator(".said")).to_have_text([QUESTION, OTHER])
        page.locator(".turn").first.get_by_label("Edit this question").click()
        page.get_by_label("Edit the question").fill("How do I cross a river of lava?")
        with page.expect_request("**/v1/chat/completions") as request:
            page.keyboard.press("Enter")
        assert [m["content"] for m in request.value.post_data_json["messages"]] == ["How do I cross a river of lava?"]
        settled(page)
        expect(page.locator(".said")).to_have_text(["How do I cross a river of lava?"])

    def test_copy(self, browser: Browser, shop: Server) -> None:
        with opened(browser, shop.url, permissions=["clipboard-read", "clipboard-write"]) as page:
            ask(page, QUESTION)
            page.get_by_label("Copy the answer").click()
            page.locator("#status", has_text="Copied").wait_for(state="attached")
            copied = page.evaluate("navigator.clipboard.readText()")
            kept = page.evaluate("JSON.parse(localStorage.getItem(Object.keys(localStorage)[0])).turns[0].answer")
            assert copied == kept
            assert "[1]" in copied


class TestStop:
    def test_stop_frees_the_slot(self, browser: Browser, narrow: Server) -> None:
        free(narrow)
        with opened(browser, narrow.url) as page:
            page.fill("#question", STORY)
            page.press("#question", "Enter")
            page.locator(".prose p").first.wait_for()
            expect(page.locator("#send")).to_have_attribute("aria-label", "Stop the answer")
            page.keyboard.press("Escape")
            settled(page)
            expect(page.locator(".note")).to_have_text(["You stopped this answer."])
            text = answer(page).text_content()
            assert text
            page.wait_for_timeout(500)
            expect(answer(page)).to_have_text(text)
            # There is one slot, and nobody may wait for it.
            page.wait_for_timeout(300)
            ask(page, "Say hello.")
            expect(page.locator(".problem")).to_have_count(0)

    def test_a_page_that_is_closed_keeps_what_had_come(self, browser: Browser, narrow: Server) -> None:
        free(narrow)
        with opened(browser, narrow.url) as page:
            page.fill("#question", STORY)
            page.press("#question", "Enter")
            page.locator(".prose p").first.wait_for()
            page.reload()
            page.locator(".problem.cut").wait_for()
            expect(answer(page)).not_to_be_empty()
            expect(page.locator(".said")).to_have_text(STORY)

    def test_a_connection_that_is_lost(self, browser: Browser) -> None:
        with Server("--slots", "1") as server, opened(browser, server.url) as page:
            page.fill("#question", STORY)
            page.press("#question", "Enter")
            page.locator(".prose p").first.wait_for()
            server.stop(signal.SIGKILL)
            settled(page)
            expect(page.locator(".problem strong")).to_have_text("The connection was lost")
            expect(answer(page)).not_to_be_empty()
            page.get_by_role("button", name="Try again").click()
            page.locator(".problem.offline").wait_for()
            expect(page.locator(".problem strong")).to_have_text("The service cannot be reached")
            expect(page.locator(".said")).to_have_text(STORY)

    def test_a_long_answer_says_that_it_was_cut(self, browser: Browser, narrow: Server) -> None:
        free(narrow)
        with opened(browser, narrow.url) as page:
            page.click("#open-settings")
            page.fill("#set-max_tokens", "5")
            page.click("#settings-done")
            ask(page, STORY)
            expect(page.locator(".note")).to_contain_text("longest length")


class TestHistory:
    def test_it_survives_and_can_be_changed(self, page: Page) -> None:
        ask(page, QUESTION)
        said = answer(page).text_content()
        page.click("#new-chat")
        ask(page, OTHER)
        expect(page.locator("#history a")).to_have_count(2)
        page.reload()
        greeting(page)
        expect(page.locator(".said")).to_have_text([OTHER])
        page.locator("#history a").nth(1).click()
        expect(page.locator(".said")).to_have_text([QUESTION])
        expect(answer(page)).to_have_text(said)
        page.locator(".prose .cite").first.click()
        expect(page.locator("#panel .passage")).not_to_be_empty()
        page.keyboard.press("Escape")
        page.go_back()
        expect(page.locator(".said")).to_have_text([OTHER])

        page.locator("#history li").nth(0).get_by_role("button", name="Rename").click()
        page.keyboard.type("Moonlight")
        page.keyboard.press("Enter")
        expect(page.locator("#history a").nth(0)).to_have_text("Moonlight")
        page.locator("#history li").nth(0).get_by_role("button", name="Delete").click()
        expect(page.locator("#history a")).to_have_count(1)
        expect(page.locator("#hero")).to_be_visible()
        page.get_by_role("button", name="Undo").click()
        expect(page.locator("#history a").nth(0)).to_have_text("Moonlight")

        page.click("#clear")
        page.click("#confirm-no")
        expect(page.locator("#history a")).to_have_count(2)
        page.click("#clear")
        page.click("#confirm-yes")
        expect(page.locator("#history a")).to_have_count(0)
        assert page.evaluate("Object.keys(localStorage).filter((name) => name.includes('chat'))") == []

    def test_another_tab_sees_it(self, page: Page, shop: Server) -> None:
        other = page.context.new_page()
        other.goto(shop.url)
        greeting(other)
        ask(page, QUESTION)
        other.locator("#history a").wait_for()
        other.locator("#history a").click()
        expect(other.locator(".said")).to_have_text(QUESTION)

    def test_a_browser_that_keeps_nothing(self, browser: Browser, shop: Server) -> None:
        visitor = browser.new_context()
        visitor.add_init_script(
            "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError'); }"
        )
        page = visitor.new_page()
        page.goto(shop.url)
        greeting(page)
        ask(page, QUESTION)
        expect(page.locator("#toast")).to_contain_text("no room")
        page.click("#new-chat")
        page.locator("#history a").click()
        expect(page.locator(".said")).to_have_text(QUESTION)
        visitor.close()

    def test_what_another_version_kept_does_no_harm(self, page: Page) -> None:
        page.evaluate(
            """() => {
              const keep = (id, value) => localStorage.setItem(`adventures.chat.${id}`, value);
              keep('a', 'no JSON');
              keep('b', 'null');
              keep('c', '{"turns": 7}');
              keep('d', '{"turns": [null, {}, {"question": "kept?", "sources": [null, {"text": 1}], "cited": {}}]}');
              localStorage.setItem('adventures.settings', '{"k": "many", "hybrid": 1}');
            }"""
        )
        page.reload()
        greeting(page)
        page.locator("#history a").click()
        expect(page.locator(".said")).to_have_text(["kept?"])
        assert "retrieval" not in sent(page)


class TestSettings:
    def test_they_are_used_and_kept(self, page: Page) -> None:
        page.click("#open-settings")
        expect(page.locator("#set-max_tokens")).to_have_attribute("placeholder", "512")
        expect(page.locator("#set-k")).to_have_attribute("placeholder", "4")
        expect(page.locator("#set-min_similarity")).to_have_attribute("placeholder", "0.32")
        page.locator("#set-temperature").fill("0.7")
        page.fill("#set-max_tokens", "40")
        page.fill("#set-k", "2")
        page.fill("#set-min_similarity", "0.1")
        page.check("#set-hybrid")
        page.keyboard.press("Escape")
        page.reload()
        greeting(page)
        ask(page, QUESTION)
        expect(page.locator(".problem")).to_have_count(0)
        body = sent(page)
        assert (body["temperature"], body["max_tokens"]) == (0.7, 40)
        assert body["retrieval"] == {"k": 2, "hybrid": True, "min_similarity": 0.1}
        page.click("#open-settings")
        page.click("#settings-reset")
        page.click("#settings-done")
        assert set(sent(page)) == {"model", "messages", "stream"}

    def test_what_is_out_of_range_is_not_sent(self, page: Page) -> None:
        page.click("#open-settings")
        page.fill("#set-k", "1000")
        page.fill("#set-max_tokens", "-3")
        page.keyboard.press("Escape")
        ask(page, QUESTION)
        assert set(sent(page)) == {"model", "messages", "stream"}

    def test_colours(self, page: Page) -> None:
        page.emulate_media(color_scheme="light")
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        page.emulate_media(color_scheme="dark")
        dark = page.evaluate(ground)
        assert light != dark
        page.click("#theme")
        assert page.evaluate(ground) == light
        page.reload()
        assert page.evaluate(ground) == light
        page.click("#theme")
        page.emulate_media(color_scheme="light")
        assert page.evaluate(ground) == dark
        page.click("#theme")
        assert page.evaluate(ground) == light


class TestSearch:
    def test_it_finds_what_the_service_finds(self, page: Page, shop: Server) -> None:
        page.click("#to-search")
        page.fill("#query", QUESTION)
        page.fill("#search-k", "3")
        page.press("#query", "Enter")
        page.locator(".hit").nth(2).wait_for()
        hits = shop.post("/v1/search", {"query": QUESTION, "k": 3}).json()["hits"]
        expect(page.locator(".hit .passage")).to_have_text([hit["text"] for hit in hits])
        expect(page.locator(".hit .figure")).to_have_text([f"{hit['similarity']:.2f}" for hit in hits])
        page.locator(".hit-name").nth(1).click()
        expect(page.locator("#panel .passage")).to_have_text(hits[1]["text"])
        page.get_by_label("Previous source").click()
        expect(page.locator("#panel .passage")).to_have_text(hits[0]["text"])
        page.keyboard.press("Escape")
        page.check("#search-hybrid")
        with page.expect_request("**/v1/search") as request:
            page.click("#search-go")
        assert request.value.post_data_json["hybrid"] is True

    def test_filters(self, page: Page, shop: Server) -> None:
        page.click("#to-search")
        page.fill("#query", "something warm")
        page.click("#add-filter")
        page.locator(".filter select").first.select_option("category")
        page.locator(".filter input").fill("clothing")
        page.click("#add-filter")
        second = page.locator(".filter").nth(1)
        second.locator("select").first.select_option("price")
        second.locator("select").nth(1).select_option("lt")
        second.locator("input").fill("40")
        where = {"category": {"eq": "clothing"}, "price": {"lt": 40}}
        with page.expect_request("**/v1/search") as request:
            page.click("#search-go")
        assert request.value.post_data_json["where"] == where
        page.locator(".hit").first.wait_for()
        hits = shop.post("/v1/search", {"query": "something warm", "k": 8, "where": where}).json()["hits"]
        assert {hit["metadata"]["category"] for hit in hits} == {"clothing"}
        expect(page.locator(".hit .passage")).to_have_text([hit["text"] for hit in hits])
        second.locator("input").fill("")
        first = page.locator(".filter").nth(0)
        first.locator("select").nth(1).select_option("in")
        first.locator("input").fill("light, charm")
        with page.expect_request("**/v1/search") as request:
            page.click("#search-go")
        assert request.value.post_data_json["where"] == {"category": {"in": ["light", "charm"]}}
        with page.expect_request("**/v1/search") as request:
            first.get_by_label("Remove this filter").click()
        assert "where" not in request.value.post_data_json

    def test_conditions_that_cannot_be(self, page: Page) -> None:
        page.click("#to-search")
        page.fill("#query", "something warm")
        for _ in range(2):
            page.click("#add-filter")
            page.locator(".filter").last.locator("select").first.select_option("category")
            page.locator(".filter").last.locator("input").fill("clothing")
        page.click("#search-go")
        expect(page.locator("#results .problem")).to_contain_text("same condition twice")

    def test_the_address_leads_there(self, browser: Browser, shop: Server) -> None:
        with opened(browser, f"{shop.url}/#search") as page:
            expect(page.locator("#query")).to_be_visible()
            expect(page.locator("#query")).to_be_focused()
            expect(page).to_have_title("Search · The Outfitter")

    def test_no_library_no_search(self, browser: Browser, narrow: Server) -> None:
        with opened(browser, narrow.url) as page:
            expect(page.locator("#to-search")).to_be_hidden()

    def test_no_model_that_writes_no_chat(self, browser: Browser, stock: adv.Library) -> None:
        with Server("--library", stock.path, "--generator", "none") as server, opened(browser, server.url) as page:
            page.locator("#query").wait_for()
            expect(page.locator("#to-chat")).to_be_hidden()
            page.fill("#query", QUESTION)
            page.press("#query", "Enter")
            page.locator(".hit").first.wait_for()


class TestTrouble:
    def test_a_key(self, browser: Browser, stock: adv.Library) -> None:
        with Server("--library", stock.path, env={"ADVENTURES_API_KEY": KEY}) as server:
            with opened(browser, server.url, greeted=False) as page:
                dialog = page.locator("#key-dialog")
                dialog.wait_for()
                expect(page.locator("#key")).to_be_focused()
                page.fill("#key", "another-key-0123456789")
                page.keyboard.press("Enter")
                page.locator("#key-message", has_text="does not know that key").wait_for()
                page.keyboard.press("Escape")
                page.locator("#connection .problem.key").wait_for()
                page.get_by_role("button", name="Enter a key").click()
                page.fill("#key", KEY)
                page.keyboard.press("Enter")
                greeting(page)
                ask(page, QUESTION)
                expect(answer(page)).not_to_be_empty()
                assert KEY not in page.evaluate("JSON.stringify(localStorage)")
                page.reload()
                greeting(page)
                assert dialog.is_hidden()
                # It has been changed meanwhile: the question waits for the new one.
                page.evaluate("sessionStorage.clear()")
                page.fill("#question", OTHER)
                page.keyboard.press("Enter")
                dialog.wait_for()
                page.fill("#key", KEY)
                page.keyboard.press("Enter")
                settled(page)
                expect(page.locator(".problem")).to_have_count(0)
            with opened(browser, server.url, greeted=False) as page:
                page.locator("#key-dialog").wait_for()

    def test_busy(self, browser: Browser, narrow: Server) -> None:
        free(narrow)
        with opened(browser, narrow.url) as page:
            with held(narrow) as (response, _):
                response.readline()
                page.fill("#question", "Say hello.")
                page.press("#question", "Enter")
                page.locator(".problem.busy").wait_for()
                again = page.locator(".problem.busy button")
                assert re.match(r"Try again in \d+ s$", again.text_content() or "")
                assert again.is_disabled()
            free(narrow)
            page.locator(".problem.busy button:enabled").wait_for()
            assert again.text_content() == "Try again"
            again.click()
            page.locator(".prose p").wait_for()
            expect(page.locator(".problem")).to_have_count(0)
            expect(page.locator(".said")).to_have_text(["Say hello."])

    def test_loading(self, browser: Browser, shop: Server) -> None:
        visitor = browser.new_context()
        page = visitor.new_page()
        tries = []

        def ready(route: Route) -> None:
            tries.append(time.monotonic())
            if len(tries) > 2:
                route.continue_()
                return
            body = {
                "error": {
                    "message": "models and library are being loaded",
                    "type": "server_error",
                    "param": None,
                    "code": "loading",
                }
            }
            route.fulfill(status=503, headers={"Retry-After": "1"}, json=body)

        page.route("**/ready", ready)
        page.goto(shop.url)
        page.locator(".loading").wait_for()
        expect(page.locator(".loading")).to_contain_text("being loaded")
        page.fill("#question", QUESTION)
        expect(page.locator("#send")).to_be_disabled()
        page.press("#question", "Enter")
        expect(page.locator(".turn")).to_have_count(0)
        greeting(page)
        expect(page.locator(".loading")).to_have_count(0)
        assert len(tries) == 3
        assert tries[1] - tries[0] >= 0.9
        expect(page.locator("#question")).to_have_value(QUESTION)
        page.press("#question", "Enter")
        settled(page)
        visitor.close()

    def test_a_service_that_is_not_there(self, browser: Browser, shop: Server) -> None:
        visitor = browser.new_context()
        page = visitor.new_page()
        page.route("**/ready", lambda route: route.abort())
        page.goto(shop.url)
        page.locator("#connection .problem.offline").wait_for()
        page.unroute("**/ready")
        page.get_by_role("button", name="Try again").click()
        greeting(page)
        expect(page.locator("#connection *")).to_have_count(0)
        visitor.close()

    def test_the_service_refuses(self, page: Page) -> None:
        ask(page, "word " * 60_000)
        expect(page.locator(".problem strong")).to_have_text("That did not work")
        expect(page.locator(".problem p")).to_contain_text("bytes")

    def test_an_answer_that_fails_midway(self, page: Page) -> None:
        first = {"choices": [{"index": 0, "delta": {"content": "So far **so good**"}, "finish_reason": None}]}
        error = {"error": {"message": "the request took too long", "type": "server_error", "param": None, "code": "x"}}
        body = sse(json.dumps(first)) + f"event: error\ndata: {json.dumps(error)}\n\n"
        page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
        ask(page, QUESTION)
        expect(answer(page)).to_have_text("So far so good")
        expect(page.locator(".problem p")).to_have_text("The request took too long")
        page.unroute("**/v1/chat/completions")
        page.get_by_role("button", name="Try again").click()
        page.locator(".prose .cite").first.wait_for()
        expect(page.locator(".turn")).to_have_count(1)


class TestKeyboard:
    def test_without_a_mouse(self, page: Page) -> None:
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == "skip":
                break
        page.keyboard.press("Enter")
        expect(page.locator("#question")).to_be_focused()
        page.keyboard.type("How do I get past a dragon")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("that is sleeping on its gold?")
        page.keyboard.press("Enter")
        settled(page)
        assert page.locator(".said").text_content() == "How do I get past a dragon\nthat is sleeping on its gold?"
        expect(page.locator("#question")).to_be_focused()
        for _ in range(12):
            page.keyboard.press("Shift+Tab")
            if page.evaluate("document.activeElement.className") == "cite":
                break
        assert page.evaluate("document.activeElement.className") == "cite"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        expect(page.locator("#panel-title")).to_be_focused()
        page.keyboard.press("Escape")
        expect(page.locator(".cite:focus")).to_have_count(1)

    def test_the_focus_goes_through_the_page_in_its_order(self, page: Page) -> None:
        page.evaluate("document.activeElement.blur()")
        seen = []
        for _ in range(12):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        expected = ["skip", "new-chat", "theme", "to-chat", "to-search", "open-settings", "example", "question"]
        assert [name for name in dict.fromkeys(seen) if name in expected] == expected

    def test_composing_a_character_sends_nothing(self, page: Page) -> None:
        page.fill("#question", "にほん")
        page.evaluate(
            """() => document.querySelector('#question').dispatchEvent(
              new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"""
        )
        expect(page.locator(".turn")).to_have_count(0)


def ratio(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """The contrast of two colours, by WCAG 2."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


TEXTS = """
() => {
  const clear = 'rgba(0, 0, 0, 0)';
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    const text = walker.currentNode.data.trim();
    if (!text || !node.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    if (node.closest('.visually-hidden, :disabled, #skip, [inert]')) continue;
    let ground = node;
    while (ground && getComputedStyle(ground).backgroundColor === clear) ground = ground.parentElement;
    found.push([text.slice(0, 40), getComputedStyle(node).color, getComputedStyle(ground).backgroundColor]);
  }
  return found;
}
"""

OUTSIDE = """
() => [...document.querySelectorAll('body *')].filter((node) => {
  if (!node.checkVisibility({ visibilityProperty: true })) return false;
  if (node.closest('.visually-hidden, #skip, .table, pre, svg')) return false;
  const { left, right, width } = node.getBoundingClientRect();
  return width > 0 && (right > innerWidth + 1 || left < -1);
}).map((node) => `${node.localName}#${node.id}.${node.className}`)
"""

MARKDOWN = (
    "Take **Dragonsleep Powder** [1].\n\n### How\n\n1. Blow *upwind*.\n2. Wait for `three` snores.\n\n"
    "| Item | Price |\n|---|---:|\n| Powder of the very longest of all names | 45 |\n\n"
    "> Never wake what you can pass.\n\n```\n" + "walk(); " * 30 + "\n```\n\n[The guild](https://guild.example/) "
    "and https://a-very-long-name-of-a-host-without-a-break.example/" + "x" * 80
)


def states(page: Page, shop: Server) -> Iterator[str]:
    """Brings the page to each of its states."""
    yield "empty"
    hits = shop.post("/v1/search", {"query": QUESTION, "k": 3}).json()["hits"]
    choice = [{"index": 0, "delta": {"content": MARKDOWN}, "finish_reason": None}]
    end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    whole = sse(json.dumps({"choices": choice, "sources": hits, "dropped": 1}))
    whole += sse(json.dumps({"choices": end, "citations": [1]}), "[DONE]")
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=whole))
    ask(page, QUESTION + " " + "x" * 100)
    yield "answered"
    page.locator(".source").first.click()
    yield "source"
    page.keyboard.press("Escape")
    page.locator(".turn").first.get_by_label("Edit this question").click()
    yield "edit"
    page.keyboard.press("Escape")
    busy = {"error": {"message": "all slots are taken", "type": "rate_limit_error", "param": None, "code": "busy"}}
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(status=429, headers={"Retry-After": "30"}, json=busy)
    )
    ask(page, "busy?")
    yield "busy"
    page.route("**/v1/chat/completions", lambda route: route.abort())
    ask(page, "there?")
    yield "error"
    page.click("#open-settings")
    yield "settings"
    page.keyboard.press("Escape")
    if page.locator("#menu").is_visible():
        page.click("#menu")
        page.wait_for_timeout(300)
        yield "menu"
        page.keyboard.press("Escape")
    page.click("#to-search")
    page.fill("#query", QUESTION)
    page.click("#add-filter")
    page.press("#query", "Enter")
    page.locator(".hit").first.wait_for()
    yield "search"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1000, 1280])
def test_it_looks_as_it_should(browser: Browser, shop: Server, tmp_path: Path, width: int, scheme: str) -> None:
    with opened(browser, shop.url, viewport={"width": width, "height": 740}, color_scheme=scheme) as page:
        for state in states(page, shop):
            page.screenshot(path=tmp_path / f"{state}.png", animations="disabled")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, state
            assert page.evaluate(OUTSIDE) == [], state
            for text, *colours in page.evaluate(TEXTS):
                ink, ground = (tuple(map(float, re.findall(r"[\d.]+", colour)[:3])) for colour in colours)
                assert ratio(ink, ground) >= 4.5, (state, text, colours)
    assert len(list(tmp_path.glob("*.png"))) >= 8


def test_everything_has_a_name(browser: Browser, shop: Server) -> None:
    """As the browser itself tells it to screen readers."""
    roles = {
        "button",
        "link",
        "textbox",
        "searchbox",
        "combobox",
        "checkbox",
        "slider",
        "spinbutton",
        "dialog",
        "region",
    }
    with opened(browser, shop.url, viewport={"width": 360, "height": 740}) as page:
        tools = page.context.new_cdp_session(page)
        for state in states(page, shop):
            nodes = tools.send("Accessibility.getFullAXTree")["nodes"]
            shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
            assert len(shown) >= 3
            nameless = [node for node in shown if not node.get("name", {}).get("value", "").strip()]
            assert nameless == [], state
            if state == "answered":
                known = {node["role"]["value"] for node in nodes if not node["ignored"]}
                assert {"main", "navigation", "article", "log", "status"} <= known


def test_a_finished_answer_is_read_out_once(page: Page) -> None:
    page.evaluate(
        """() => {
          window.heard = [];
          const node = document.querySelector('#announcer');
          new MutationObserver(() => window.heard.push(node.textContent)).observe(node, { childList: true });
        }"""
    )
    ask(page, QUESTION)
    page.wait_for_function("window.heard.length > 0")
    assert page.evaluate("window.heard") == [answer(page).text_content()]
    expect(page.locator("#announcer")).to_have_attribute("aria-live", "polite")
    live = page.locator("#thread").evaluate(
        "node => node.closest('[aria-live], [role=log], [role=status], [role=alert]')"
    )
    assert live is None


def test_who_wants_no_motion_sees_none(browser: Browser, shop: Server) -> None:
    with opened(browser, shop.url, reduced_motion="reduce") as page:
        page.route("**/v1/chat/completions", lambda route: None)
        page.fill("#question", QUESTION)
        page.press("#question", "Enter")
        page.locator(".dots i").first.wait_for()
        assert page.evaluate("document.getAnimations().length") == 0
        page.emulate_media(reduced_motion="no-preference")
        assert page.evaluate("document.getAnimations().length") > 0
