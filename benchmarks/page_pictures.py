"""Pictures of the page for the documentation, of a real service with a trained model.

    python -m benchmarks.page_pictures artefacts/ml-100k

Needs Chromium (Debian's package chromium) and the extra `docs`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import math
import os
from pathlib import Path
from typing import Any

import httpx

from benchmarks.browser import chromium
from benchmarks.load import Load
from benchmarks.running import service, store
from model.artefact import load_artefact

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
SEARCH, CHOSEN = "star", ("Star Wars", "Star Trek: The Wrath", "Stargate")
WEEK = "771"  # of the slider
CHARTS_S = 60
COLOURS, MAXCOVERAGE = 256, 1  # the method of Pillow that keeps the colours of small signs


async def take(url: str, items: list[str], out: Path) -> None:
    playwright: Any = importlib.import_module("playwright.async_api")
    async with playwright.async_playwright() as running:
        browser = await running.chromium.launch(
            executable_path=chromium(), chromium_sandbox=os.geteuid() != 0
        )

        async def opened(user: str, **options: Any) -> Any:
            page = await browser.new_page(reduced_motion="reduce", **options)
            await page.goto(f"{url}/#user={user}")
            await playwright.expect(page.locator("#list li")).to_have_count(10)
            await playwright.expect(page.locator("#picker-list li")).to_have_count(20)
            return page

        async def choose(page: Any, *, touch: bool = False) -> None:
            await page.fill("#search", SEARCH)
            for number, title in enumerate(CHOSEN, 1):
                one = page.locator("#picker-list .pick", has_text=title).first
                await (one.tap() if touch else one.click())
                await playwright.expect(page.locator("#history li")).to_have_count(number)

        page = await opened("ann", viewport=DESKTOP)
        await choose(page)
        await page.mouse.move(0, 0)
        save(await page.screenshot(), out / "page-light.png")
        page = await opened("ann", viewport=DESKTOP, color_scheme="dark")
        await page.locator("#list .similar").first.click()
        await page.fill("#gap", WEEK)
        await page.check("#why")
        await playwright.expect(page.locator("#list .why").last).to_contain_text(" of ")
        await page.mouse.move(0, 0)
        save(await page.screenshot(), out / "page-dark.png")
        page = await opened(
            "ben", viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True
        )
        await choose(page, touch=True)
        await page.evaluate("scrollTo(0, document.getElementById('list-title').offsetTop - 90)")
        save(await page.screenshot(), out / "page-phone.png")

        page = await opened("ann", viewport=DESKTOP)
        await page.click("#tab-charts")
        # A connection for each request: none is dropped while a busy machine has one wait.
        once = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, limits=once, timeout=60) as client:
            load = Load(client, items, users=200)
            await load.run(CHARTS_S, lambda at: 15 + 10 * math.sin(at / 6))
        await page.mouse.move(0, 0)
        save(await page.screenshot(), out / "page-charts.png")
        await browser.close()


def save(picture: bytes, file: Path) -> None:
    """As a PNG of few colours: a fraction of the size, and no difference to be seen."""
    image: Any = importlib.import_module("PIL.Image")  # only of the extra `docs`
    image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, MAXCOVERAGE, dither=0).save(
        file, optimize=True
    )
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artefact", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    if chromium() is None:
        raise SystemExit("error: no chromium here: install Debian's package chromium")
    items = load_artefact(args.artefact).items.ids
    with store() as kept, service(args.artefact, kept) as running:
        asyncio.run(take(f"http://127.0.0.1:{running.port}", items, args.out))


if __name__ == "__main__":
    main()
