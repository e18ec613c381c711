"""The page in a real browser: what tests of it share."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from benchmarks.browser import chromium, launching
from tests.service.processes import Service

needs_chromium = pytest.mark.skipif(
    chromium() is None, reason="no chromium here (Debian's package chromium)"
)

KEY = "a key"
HOST = "page.test"  # not 127.0.0.1, where browsers allow more than over plain HTTP elsewhere
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
LOOKS = [(size, scheme) for size in (DESKTOP, PHONE) for scheme in ("light", "dark")]
"""Each size of a window in each scheme of colours."""

expect.set_options(timeout=15_000)  # a busy machine


@contextmanager
def running_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            **launching(), args=[f"--host-resolver-rules=MAP {HOST} 127.0.0.1"]
        )
        yield running
        running.close()


@contextmanager
def opened(
    browser: Browser,
    service: Service,
    user: str | None,
    *,
    key: str | None = KEY,
    admin_key: str | None = None,
    **options: Any,
) -> Iterator[Page]:
    """The page as `user` sees it (None: a visitor); nothing may go wrong in it but what a test asks
    for."""
    context = browser.new_context(**{"viewport": DESKTOP} | options)
    context.set_default_timeout(15_000)
    for name, given in (("key", key), ("admin-key", admin_key)):
        if given is not None:
            stored = f"sessionStorage.setItem('tim4rec.{name}', {json.dumps(given)})"
            context.add_init_script(stored)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    whose = "" if user is None else f"#user={quote(user)}"
    page.goto(f"http://{HOST}:{service.port}/{whose}")
    if key is not None:
        expect(page.locator("#list li")).to_have_count(10)
        expect(page.locator("#picker-list li")).to_have_count(20)
    yield page
    passing = re.compile("Failed to load resource: |.* requires 'TrustedHTML'")
    assert [fault for fault in faults if not passing.match(fault)] == []
    context.close()


def listed(page: Page) -> list[str]:
    return page.locator("#list .title").all_inner_texts()


def unfold(page: Page, name: str) -> None:
    """Opens what is closed until it is wanted."""
    page.locator("summary", has_text=name).first.click()


def has_stored(page: Page, number: int) -> None:
    expect(page.locator("#history li")).to_have_count(number)


def violations(page: Page) -> list[str]:
    """What axe has to say."""
    found = Axe().run(page).response["violations"]
    return [f"{one['id']}: {[node['html'] for node in one['nodes']]}" for one in found]
