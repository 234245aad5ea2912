"""A real Chromium, for tests of the page."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, BrowserContext, Page, Playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The browser's own sandbox does not run under root.
_SANDBOX = ("--no-sandbox",) if os.geteuid() == 0 else ()


def executable() -> str:
    """The installed browser; the test is skipped where there is none."""
    given = os.environ.get("CHROMIUM")
    for place in [given] if given else map(shutil.which, NAMES):
        if place:
            return place
    pytest.skip("there is no Chromium; CHROMIUM names one")


@contextmanager
def driving() -> Iterator[Playwright]:
    """What drives browsers; there is one at a time."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable()
    with api.sync_playwright() as driver:
        yield driver


@contextmanager
def chromium(driver: Playwright, *arguments: str) -> Iterator[Browser]:
    """Runs the browser."""
    browser = driver.chromium.launch(executable_path=executable(), args=[*_SANDBOX, *arguments])
    try:
        yield browser
    finally:
        browser.close()


@contextmanager
def resident(driver: Playwright, profile: Path, *arguments: str) -> Iterator[BrowserContext]:
    """Runs the browser as people do, with a profile that stays: so it does what it does not do in private."""
    arguments = (*_SANDBOX, "--headless=new", *arguments)
    context = driver.chromium.launch_persistent_context(profile, executable_path=executable(), args=list(arguments))
    try:
        yield context
    finally:
        context.close()


@contextmanager
def opened(browser: Browser, url: str, *, greeted: bool = True, **context: Any) -> Iterator[Page]:
    """A page of its own, as a new visitor sees it; an error in its scripts fails the test."""
    visitor = browser.new_context(**context)
    visitor.set_default_timeout(30_000)
    page = visitor.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    try:
        page.goto(url)
        if greeted:
            greeting(page)
        yield page
        assert faults == []
    finally:
        visitor.close()


def greeting(page: Page) -> None:
    """Waits until the page knows what is served."""
    page.locator("#hero-title:not(:empty)").wait_for(state="attached")


def ask(page: Page, question: str) -> None:
    """Asks, and waits for the end of the answer."""
    turns = page.locator(".turn")
    before = turns.count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    turns.nth(before).wait_for()
    settled(page)


def settled(page: Page) -> None:
    """Waits for the end of the last answer."""
    page.locator(".turn:last-child:not(.running)").wait_for(timeout=120_000)


def sse(*events: str) -> str:
    """The body of a streamed answer: the data of its events."""
    return "".join(f"data: {event}\n\n" for event in events)
