"""The page shows what it is given and does nothing else with it: no script runs, nothing is loaded from elsewhere."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from browsing import ask, chromium, driving, greeting, opened, resident, sse
from payloads import CANARY, PAYLOADS
from serving import Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page, Playwright, Route

    import adventures as adv

PAGE = Path(__file__).parents[1] / "adventures-server" / "page"

# What may stand where foreign text is shown, and with which attributes.
ALLOWED = {
    "article": {"class", "aria-label", "aria-busy"},
    "div": {"class", "dir", "role", "aria-label", "aria-labelledby", "tabindex", "id"},
    "section": {"class", "aria-label"},
    "header": set(),
    "span": {"class", "dir", "aria-hidden", "title", "style"},
    "i": set(),
    "b": {"class", "title"},
    "p": {"class", "dir", "hidden"},
    "br": set(),
    "hr": set(),
    "strong": set(),
    "em": set(),
    "code": set(),
    "pre": set(),
    "ul": set(),
    "ol": {"class", "start"},
    "li": {"class"},
    "h2": {"id", "tabindex"},
    "h3": {"class"},
    "h4": set(),
    "h5": set(),
    "h6": set(),
    "blockquote": {"class", "dir"},
    "table": set(),
    "thead": set(),
    "tbody": set(),
    "tr": set(),
    "th": {"class"},
    "td": {"class"},
    "bdi": {"class"},
    "a": {"href", "target", "rel", "referrerpolicy", "title", "dir", "aria-current"},
    "button": {"type", "class", "aria-label", "title", "dir", "disabled"},
    "dl": {"class"},
    "dt": {"dir"},
    "dd": {"dir"},
    "svg": {"viewBox", "aria-hidden", "class"},
    "path": {"d"},
}
LINK = {"target": "_blank", "rel": "noopener noreferrer nofollow", "referrerpolicy": "no-referrer"}

# Kept in the browser, so that a check after each of many thousand drawings costs no round trip.
WATCH = """
window.ran = 0;
window.xss = window.alert = () => { window.ran += 1; };
window.foreign = (root, allowed, link) => {
  const found = [];
  for (const node of root.querySelectorAll('*')) {
    const name = node.localName;
    const names = allowed[name];
    if (!names) { found.push(`<${name}>`); continue; }
    for (const { name: attribute, value } of node.attributes) {
      if (!names.includes(attribute)) found.push(`<${name} ${attribute}>`);
      if (attribute === 'style' && !/^width: [\\d.]+%;$/.test(value)) found.push(`style ${value}`);
    }
    if (name !== 'a' || /^#c\\/[0-9a-f]+$/.test(node.getAttribute('href'))) continue;
    if (!/^https?:\\/\\/[^/@]+(\\/|$)/.test(node.href)) found.push(`href ${node.href}`);
    for (const [attribute, value] of Object.entries(link)) {
      if (node.getAttribute(attribute) !== value) found.push(`<a> without ${attribute}`);
    }
    if (!node.textContent.toLowerCase().includes(new URL(node.href).host)) found.push(`no host of ${node.href}`);
  }
  return found;
};
"""
RULES = {name: sorted(names) for name, names in ALLOWED.items()}


class Watched:
    """A page without the policy that would stop what its scripts failed to: their own care is on trial."""

    def __init__(self, page: Page, home: str) -> None:
        self.page = page
        self.elsewhere: list[str] = []
        page.on("request", lambda request: self._asked(request.url, home))

    def _asked(self, url: str, home: str) -> None:
        if urlsplit(url).netloc != urlsplit(home).netloc:
            self.elsewhere.append(url)

    def foreign(self, selector: str = "body") -> list[str]:
        found = self.page.evaluate(
            "([selector, rules, link]) => window.foreign(document.querySelector(selector), rules, link)",
            [selector, RULES, LINK],
        )
        return list(found)

    def check(self) -> None:
        self.page.wait_for_timeout(200)
        assert self.page.evaluate("window.ran") == 0
        assert self.elsewhere == []


@pytest.fixture(scope="module")
def server(stock: adv.Library) -> Iterator[Server]:
    with Server("--library", stock.path) as server:
        yield server


@pytest.fixture(scope="module")
def driver() -> Iterator[Playwright]:
    with driving() as driver:
        yield driver


@pytest.fixture(scope="module")
def browser(driver: Playwright) -> Iterator[Browser]:
    with chromium(driver) as browser:
        yield browser


@pytest.fixture
def watched(browser: Browser, server: Server) -> Iterator[Watched]:
    visitor = browser.new_context(bypass_csp=True)
    visitor.add_init_script(WATCH)
    # Nobody is asked; whoever would be is noted.
    visitor.route(lambda url: urlsplit(url).netloc != urlsplit(server.url).netloc, lambda route: route.abort())
    page = visitor.new_page()
    watched = Watched(page, server.url)
    page.goto(server.url)
    greeting(page)
    yield watched
    visitor.close()


def test_there_are_enough_payloads() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 150


def test_the_payloads_would_be_noticed(watched: Watched) -> None:
    """What is counted below is counted where a page takes the texts for HTML."""
    found = watched.page.evaluate(
        """async ([payloads, rules, link]) => {
          const root = document.createElement('div');
          document.body.append(root);
          const found = [];
          for (const payload of payloads) {
            root.innerHTML = payload;
            found.push(window.foreign(root, rules, link).length > 0);
          }
          return found;
        }""",
        [[text for text in PAYLOADS if "javascript:" not in text and "refresh" not in text], RULES, LINK],
    )
    watched.page.wait_for_timeout(500)
    assert sum(found) >= 80
    assert watched.page.evaluate("window.ran") >= 20
    assert len(watched.elsewhere) >= 10


SPLITS = """
async ([payloads, rules, link]) => {
  const { Markdown } = await import('/page/markdown.js');
  const { events } = await import('/page/api.js');
  const encoder = new TextEncoder();
  const found = new Set();
  let drawn = 0;
  const cite = (number) => {
    const node = document.createElement('button');
    node.className = 'cite';
    node.textContent = number;
    return number <= 2 ? node : null;
  };
  const draw = (pieces) => {
    const root = document.createElement('div');
    document.body.append(root);
    const markdown = new Markdown(root, cite);
    for (const piece of pieces) {
      markdown.push(piece);
      for (const what of window.foreign(root, rules, link)) found.add(what);
    }
    markdown.end();
    for (const what of window.foreign(root, rules, link)) found.add(what);
    drawn += 1;
    const html = root.innerHTML;
    root.remove();
    return html;
  };
  const stream = (chunks) => new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  for (const payload of payloads) {
    const text = payload.replaceAll('\\r', '');
    const whole = draw([text]);
    // The text of the answer, cut at each of its bytes.
    const bytes = encoder.encode(text);
    for (let at = 0; at <= bytes.length; at += 1) {
      const decoder = new TextDecoder();
      const pieces = [decoder.decode(bytes.slice(0, at), { stream: true }), decoder.decode(bytes.slice(at))];
      if (draw(pieces) !== whole) found.add(`${text} differs when cut at ${at}`);
    }
    if (draw(Array.from(text)) !== whole) found.add(`${text} differs letter by letter`);
    // The event that brings it, cut at each of its bytes.
    const sent = encoder.encode(`: waiting\\n\\nevent: message\\ndata: ${JSON.stringify({ text })}\\n\\n`);
    for (let at = 0; at <= sent.length; at += 1) {
      const got = [];
      for await (const { data } of events(stream([sent.slice(0, at), sent.slice(at)]))) got.push(JSON.parse(data).text);
      if (got.length !== 1 || got[0] !== text) found.add(`${text} differs when its event is cut at ${at}`);
      if (draw(got) !== whole) found.add(`${text} is drawn otherwise when its event is cut at ${at}`);
    }
  }
  return { found: [...found], drawn };
}
"""


@pytest.mark.timeout(900)
def test_no_payload_runs_wherever_it_is_cut(watched: Watched) -> None:
    drawn = 0
    for start in range(0, len(PAYLOADS), 30):
        result = watched.page.evaluate(SPLITS, [PAYLOADS[start : start + 30], RULES, LINK])
        assert result["found"] == []
        drawn += result["drawn"]
    watched.check()
    assert drawn >= 2 * sum(len(payload.encode()) for payload in PAYLOADS)


def test_what_is_finished_is_not_drawn_again(watched: Watched) -> None:
    found = watched.page.evaluate(
        """async () => {
          const { Markdown } = await import('/page/markdown.js');
          const stream = (blocks) => {
            const root = document.createElement('div');
            const markdown = new Markdown(root);
            const text = 'A paragraph with **words** and `code`.\\n\\n- one\\n- two\\n\\n'.repeat(blocks);
            markdown.push(text.slice(0, 100));
            const first = root.firstChild;
            const began = performance.now();
            for (let at = 100; at < text.length; at += 5) markdown.push(text.slice(at, at + 5));
            markdown.end();
            return { time: performance.now() - began, same: root.firstChild === first, blocks: root.children.length };
          };
          stream(50);
          return [stream(100), stream(1600)];
        }"""
    )
    small, large = found
    assert (small["blocks"], large["blocks"]) == (200, 3200)
    assert small["same"]
    assert large["same"]
    # 16 times the text; were all drawn again each time, it would take 256 times as long.
    assert large["time"] <= 64 * max(small["time"], 1)


HOSTILE = {
    "brackets": "[" * 50_000,
    "images": "![" * 25_000,
    "links": "[a](" * 12_000,
    "stars": "*a " * 17_000,
    "pairs": "**a *b " * 7_000,
    "underlines": "_a" * 25_000,
    "ticks": "`" * 50_000,
    "growing ticks": " ".join("`" * n for n in range(1, 300)),
    "quotes": ">" * 50_000,
    "nested items": "\n".join(" " * (2 * n) + "- x" for n in range(200)),
    "rules": "- " * 25_000,
    "hashes": "# " + "#" * 25_000 + " " * 25_000 + "x",
    "table": "|" + "a|" * 5_000 + "\n|" + "-|" * 5_000,
    "delimiters": "|a\n" + "|-" * 25_000 + "x",
    "spaces": " " * 50_000 + "x",
    "backslashes": "\\" * 50_000,
    "addresses": "https://" * 6_000,
    "parentheses": "https://a.example/" + ")" * 50_000,
    "closing": "[a](https://a.example/" + "()" * 20_000,
    "lines": "a\n" * 25_000,
}


@pytest.mark.alone
@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_long(watched: Watched, name: str) -> None:
    seconds = watched.page.evaluate(
        """async (text) => {
          const { Markdown } = await import('/page/markdown.js');
          const began = performance.now();
          const markdown = new Markdown(document.createElement('div'));
          markdown.push(text);
          markdown.end();
          return (performance.now() - began) / 1000;
        }""",
        HOSTILE[name],
    )
    assert seconds < 2


def hit(payload: str) -> dict[str, Any]:
    return {
        "id": payload + "#0",
        "text": payload,
        "score": 0.9,
        "similarity": 0.8,
        "metadata": {payload: payload, "nested": {payload: [payload]}, "short": payload[:30]},
        "source": {"table": payload, "version": 1, "row": {payload: payload, "key": payload}},
    }


def chunk(**more: Any) -> str:
    choice = {"index": 0, "delta": more.pop("delta", {}), "finish_reason": more.pop("finish", None)}
    return json.dumps({"id": "x", "object": "chat.completion.chunk", "choices": [choice], **more})


def error(payload: str) -> dict[str, Any]:
    return {"error": {"message": payload, "type": payload, "param": payload, "code": payload}}


@pytest.mark.timeout(900)
def test_no_payload_runs_anywhere_on_the_page(watched: Watched) -> None:
    page = watched.page
    payload, fails = "", ""

    def chat(route: Route) -> None:
        if fails == "status":
            route.fulfill(status=500, json=error(payload))
            return
        first = chunk(delta={"content": ""}, sources=[hit(payload), hit(payload)], dropped=0)
        body = sse(first, chunk(delta={"content": payload + "\n\n"}), chunk(delta={"content": f"{payload} [1][2]"}))
        if fails == "event":
            body += f"event: error\ndata: {json.dumps(error(payload))}\n\n"
        else:
            body += sse(chunk(finish="stop", citations=[1]), "[DONE]")
        route.fulfill(content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", chat)
    page.route("**/v1/search", lambda route: route.fulfill(json={"hits": [hit(payload)]}))
    for i, payload in enumerate(PAYLOADS):
        if i % 20 == 0:
            page.click("#new-chat")
        fails = ""
        ask(page, payload)
        # An answer may open a block that takes the citations in; the list of sources is always there.
        page.locator(".turn").last.locator(".source").first.click()
        assert page.locator("#panel .passage").text_content() == payload.replace("\r", "")
        assert watched.foreign("#panel") == []
        page.keyboard.press("Escape")
        fails = ("status", "event")[i % 2]
        ask(page, payload)
        shown = page.locator(".turn").last.locator(".problem p").text_content() or ""
        assert shown.lower() == payload.lower()
        if i % 20 == 19 or i == len(PAYLOADS) - 1:
            assert watched.foreign("#thread") == []
            assert watched.foreign("#history") == []
    page.click("#to-search")
    for payload in PAYLOADS:
        page.fill("#query", "anything")
        with page.expect_response("**/v1/search"):
            page.press("#query", "Enter")
        page.wait_for_function("text => document.querySelector('.hit .passage').textContent === text", arg=payload)
        assert watched.foreign("#results") == []
    watched.check()
    # What the browser has kept is drawn anew.
    page.click("#to-chat")
    page.reload()
    page.wait_for_selector(".turn")
    assert watched.foreign("#thread") == []
    watched.check()


def test_no_payload_runs_in_the_greeting(watched: Watched) -> None:
    page = watched.page
    info = page.evaluate("fetch('/info').then((response) => response.json())")
    page.route("**/info", lambda route: route.fulfill(json=info))
    for start in range(0, len(PAYLOADS), 40):
        some = PAYLOADS[start : start + 40]
        info["page"] = {"title": some[0], "greeting": "\n".join(some), "examples": list(some)}
        info["library"] |= {"delta": some[0], "columns": dict.fromkeys(some, "Utf8")}
        page.reload()
        page.wait_for_selector(".example")
        assert page.locator(".example").all_text_contents() == list(some)
        assert watched.foreign("#examples") == []
        assert page.locator("#greeting *").count() == page.locator("#hero-title *").count() == 0
        assert page.title() == " ".join(some[0].split())
    watched.check()


def test_links_lead_where_they_say_and_only_when_pressed(watched: Watched) -> None:
    page = watched.page
    links = page.evaluate(
        """async () => {
          const { Markdown } = await import('/page/markdown.js');
          const root = document.createElement('div');
          document.body.append(root);
          const markdown = new Markdown(root);
          markdown.push('[a](https://one.example/x) <https://two.example/> https://three.example/y. '
            + '![c](https://four.example/) [https://bank.example](https://five.example) https://пример.example/z');
          markdown.end();
          return [...root.querySelectorAll('a')].map((node) => [node.href, node.textContent]);
        }"""
    )
    assert links == [
        ["https://one.example/x", "a one.example"],
        ["https://two.example/", "https://two.example/"],
        ["https://three.example/y", "https://three.example/y"],
        ["https://four.example/", "image: c four.example"],
        ["https://five.example/", "https://bank.example five.example"],
        ["https://xn--e1afmkfd.example/z", "https://пример.example/z xn--e1afmkfd.example"],
    ]
    watched.check()
    with page.context.expect_page() as opening:
        page.click("a[href='https://one.example/x']")
    assert opening.value.evaluate("window.opener") is None
    assert page.url.startswith(page.evaluate("location.origin"))


class Careless(BaseHTTPRequestHandler):
    """A page with a link, and without the line that keeps the browser from looking its host up."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><a href=https://control.example/>a</a>")

    def log_message(self, *_: object) -> None:
        pass


def test_no_name_is_looked_up_for_a_link(tmp_path: Path, driver: Playwright, server: Server) -> None:
    """A browser may look up the hosts of a page's links, and by that tell them what the link holds."""
    log = tmp_path / "net.json"
    noting = (f"--log-net-log={log}", "--net-log-capture-mode=Everything")
    with resident(driver, tmp_path / "profile", *noting) as visitor:
        page = visitor.new_page()
        page.goto(server.url)
        greeting(page)
        text = " ".join(f"[a](https://told-by-link-{i}.example/) https://told-bare-{i}.example/" for i in range(20))
        body = sse(chunk(delta={"content": text}), chunk(finish="stop", citations=[]), "[DONE]")
        page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
        ask(page, "where?")
        page.reload()
        page.locator(".prose a").nth(39).wait_for()
        page.wait_for_timeout(1000)
        page.locator(".prose a").first.hover()
        page.wait_for_timeout(1000)
        # A page that lets it happen.
        with ThreadingHTTPServer(("127.0.0.1", 0), Careless) as careless:
            threading.Thread(target=careless.serve_forever, daemon=True).start()
            other = visitor.new_page()
            other.goto(f"http://127.0.0.1:{careless.server_port}/")
            other.hover("a")
            other.wait_for_timeout(3000)
            careless.shutdown()
    noted = log.read_text(encoding="utf-8", errors="replace")
    assert "control.example" in noted
    assert re.findall(r"told-[a-z-]+\d+\.example", noted) == []


def test_the_policy_stops_what_the_scripts_would_not(browser: Browser, server: Server) -> None:
    """Behind the scripts' care the browser itself is told to run and load nothing."""
    with opened(browser, server.url) as page:
        page.evaluate(
            """(canary) => {
              window.ran = 0;
              window.xss = () => { window.ran += 1; };
              const root = document.createElement('div');
              document.body.append(root);
              root.innerHTML = `<img src=x onerror=xss()><svg onload=xss()></svg><img src="${canary}">`;
              const script = document.createElement('script');
              script.textContent = 'xss()';
              document.body.append(script);
            }""",
            CANARY,
        )
        loaded: list[str] = []
        page.on("response", lambda response: loaded.append(response.url))
        page.wait_for_timeout(300)
        assert page.evaluate("window.ran") == 0
        assert [url for url in loaded if "canary" in url] == []


FORBIDDEN = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|setHTML|createContextualFragment|DOMParser|srcdoc"
    r"|\beval\s*\(|new Function|setTimeout\(\s*['\"`]|setAttribute\(\s*['\"]on|javascript:"
)


def test_the_files_use_no_api_that_takes_text_for_html() -> None:
    files = sorted(PAGE.iterdir())
    assert len(files) >= 10
    for path in files:
        assert FORBIDDEN.findall(path.read_text(encoding="utf-8")) == [], path.name


def test_the_files_name_no_other_origin() -> None:
    for path in PAGE.iterdir():
        found = re.findall(r"""["'(=]\s*(?:https?:)?//[\w.-]+""", path.read_text(encoding="utf-8"))
        assert [link for link in found if "www.w3.org" not in link] == [], path.name


def test_the_markup_has_nothing_inline() -> None:
    markup = (PAGE / "index.html").read_text(encoding="utf-8")
    assert re.findall(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\ssrc=)", markup) == []
    scripts = {path.name for path in PAGE.glob("*.js")}
    named = set(re.findall(r'(?:src|href)="page/(\w+\.js)"', markup))
    # Each is asked for at once, not when the one before it is read.
    assert named == scripts


def test_every_file_is_served(server: Server) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css"}
    for path in PAGE.iterdir():
        if path.suffix in kinds:
            reply = server.get(f"/page/{path.name}")
            assert reply.status == 200, path.name
            assert reply.headers["Content-Type"] == f"{kinds[path.suffix]}; charset=utf-8"
            assert reply.body == path.read_bytes(), f"{path.name} is not the one that was compiled in"
    assert server.get("/favicon.ico").body == (PAGE / "favicon.svg").read_bytes()
