"""A browser without a screen, for pictures and tests of the page."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str | None:
    """The system's Chromium; None: there is none (Debian's package chromium has one)."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def launching() -> dict[str, Any]:
    """How playwright is to launch it."""
    # Root can't have its sandbox.
    return {"executable_path": chromium(), "chromium_sandbox": os.geteuid() != 0}


@asynccontextmanager
async def running_browser() -> AsyncIterator[Any]:
    """It runs meanwhile, as playwright's asynchronous API has it (the extra `docs`).

    Raises:
        SystemExit: there is none.
    """
    if chromium() is None:
        raise SystemExit("error: no chromium here: install Debian's package chromium")
    playwright: Any = importlib.import_module("playwright.async_api")
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(**launching())
        yield browser
        await browser.close()


async def opened(browser: Any, url: str, **options: Any) -> Any:
    """The page, once a list and people are there."""
    expect: Any = importlib.import_module("playwright.async_api").expect
    page = await browser.new_page(**options)
    await page.goto(url)
    await expect(page.locator("#list li")).to_have_count(10)
    await expect(page.locator(".person").nth(1)).to_be_visible()
    return page
