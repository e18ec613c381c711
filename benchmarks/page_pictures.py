"""Pictures of the page for the documentation, of a service that runs, such as that of `make run`.

    python -m benchmarks.page_pictures http://127.0.0.1:8000

It posts interactions of new users. Needs Chromium (Debian's package chromium) and the extra `docs`.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import io
import math
from pathlib import Path
from typing import Any

import httpx

from benchmarks.browser import opened, running_browser
from benchmarks.load import Load

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
TAKEN = 2
HEALTH_S = 60
COLOURS, MAXCOVERAGE = 256, 1  # the method of Pillow that keeps the colours of small signs


async def take(url: str, out: Path) -> None:
    expect: Any = importlib.import_module("playwright.async_api").expect
    async with running_browser() as browser:
        still = functools.partial(opened, browser, url, reduced_motion="reduce")

        async def gone_on(page: Any, person: int) -> None:
            """As a person, with some more items."""
            await page.locator(".person").nth(person).click()
            await expect(page.locator("#about")).to_contain_text("You only look")
            for number in range(TAKEN):
                before = await page.locator("#history-count").inner_text()
                await page.locator("#list .pick").nth(1 + number).click()
                await expect(page.locator("#history-count")).not_to_have_text(before)
            await expect(page.locator("#list .why").last).not_to_be_empty()
            await page.mouse.move(0, 0)

        page = await still(viewport=DESKTOP)
        await gone_on(page, 0)
        save(await page.screenshot(), out / "page-light.png")
        page = await still(viewport=DESKTOP, color_scheme="dark")
        await gone_on(page, 1)
        await page.locator("#options > summary").click()
        await page.get_by_role("slider", name="Diversity").fill("0.5")
        await expect(page.locator("#about")).to_contain_text("asked for now")
        await expect(page.locator("#list .why").last).not_to_be_empty()
        await page.evaluate("scrollTo(0, document.getElementById('options').offsetTop - 560)")
        save(await page.screenshot(), out / "page-dark.png")
        page = await still(viewport=PHONE, device_scale_factor=2, is_mobile=True, has_touch=True)
        await gone_on(page, 0)
        await page.evaluate("scrollTo(0, 0)")
        save(await page.screenshot(), out / "page-phone.png")

        page = await still(viewport=DESKTOP)
        await page.click("#tab-health")
        # A connection for each request: none is dropped while a busy machine has one wait.
        once = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, limits=once, timeout=60) as client:
            answer = await client.get("/popular", params={"k": 100})
            load = Load(client, [item["item_id"] for item in answer.json()["items"]], users=200)
            await load.run(HEALTH_S, lambda at: 15 + 10 * math.sin(at / 6))
        await page.mouse.move(0, 0)
        save(await page.screenshot(), out / "page-health.png")


def save(picture: bytes, file: Path) -> None:
    """As a PNG of few colours: a fraction of the size, and no difference to be seen."""
    image: Any = importlib.import_module("PIL.Image")  # only of the extra `docs`
    image.open(io.BytesIO(picture)).convert("RGB").quantize(COLOURS, MAXCOVERAGE, dither=0).save(
        file, optimize=True
    )
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a service without keys")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    asyncio.run(take(args.url, args.out))


if __name__ == "__main__":
    main()
