"""A silent recording of the page, for the head of the README, of a service that runs.

    python -m benchmarks.page_recording http://127.0.0.1:8000

Somebody looks at two people's lists, becomes somebody new, and takes three items. It posts
interactions of a new user. Needs Chromium (Debian's package chromium) and the extra `docs`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import time
from pathlib import Path
from typing import Any

from benchmarks.browser import opened, running_browser

VIEWPORT = {"width": 1200, "height": 780}
WIDTH = 900
FRAME_S = 0.08
"""While something moves; a frame stands until the next one that differs."""
QUALITY = 60


class Recording:
    """Frames of a page, each with the time in ms that it stands."""

    def __init__(self, page: Any) -> None:
        self._page = page
        self.frames: list[bytes] = []
        self.stands: list[int] = []

    async def moving(self, seconds: float) -> None:
        """What changes in that time."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            begun = time.monotonic()
            self._add(await self._page.screenshot(), 1000 * FRAME_S)
            await asyncio.sleep(max(0.0, FRAME_S - (time.monotonic() - begun)))

    def stand(self, seconds: float) -> None:
        """Time to read the last frame."""
        self.stands[-1] += round(1000 * seconds)

    def _add(self, frame: bytes, stands_ms: float) -> None:
        if self.frames and self.frames[-1] == frame:
            return
        self.frames.append(frame)
        self.stands.append(round(stands_ms))

    def save(self, file: Path) -> None:
        image: Any = importlib.import_module("PIL.Image")  # only of the extra `docs`
        pictures = [image.open(io.BytesIO(frame)).convert("RGB") for frame in self.frames]
        height = round(WIDTH * VIEWPORT["height"] / VIEWPORT["width"])
        small = [picture.resize((WIDTH, height), image.Resampling.LANCZOS) for picture in pictures]
        small[0].save(
            file, save_all=True, append_images=small[1:], duration=self.stands, loop=0,
            quality=QUALITY, method=4,
        )  # fmt: skip
        print(
            f"{file}: {file.stat().st_size / 1000:.0f} kB, {len(small)} frames, "
            f"{sum(self.stands) / 1000:.0f} s"
        )


async def record(url: str, file: Path) -> None:
    expect: Any = importlib.import_module("playwright.async_api").expect
    async with running_browser() as browser:
        page = await opened(browser, url, viewport=VIEWPORT)
        recording = Recording(page)
        await recording.moving(0.5)
        recording.stand(2)
        for person in (0, 1):
            await page.locator(".person").nth(person).click()
            await recording.moving(1.2)
            recording.stand(2.5)
        for place in (1, 3, 2):
            before = await page.locator("#history-count").inner_text()
            await page.locator("#list .pick").nth(place).hover()
            await recording.moving(0.3)
            await page.locator("#list .pick").nth(place).click()
            await recording.moving(0.9)
            await expect(page.locator("#history-count")).not_to_have_text(before)
            await expect(page.locator("#list .why").last).not_to_be_empty()
            await page.mouse.move(0, 0)
            await recording.moving(0.5)
            recording.stand(3)
        recording.save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a service without keys")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures/page.webp"))
    args = parser.parse_args()
    asyncio.run(record(args.url, args.out))


if __name__ == "__main__":
    main()
