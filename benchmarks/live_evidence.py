"""What live evidence takes: of a process's memory, of the store's, and of the time of a start.

    python -m benchmarks.live_evidence --items 1000000 --events 5000000

Every item has one event at least; of the others item i has as many as 1 / i. Users come by chance.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import psutil  # type: ignore[import-untyped]
import typer

from cli.console import out, say
from model.live.evidence import Evidence, EvidenceRules, Observed
from service.live.checkpoint import CHUNK
from service.live.entry import packed, unpacked

BATCH = 10_000
START_MS = 1_700_000_000_000
EVERY_MS = 100


def batches(items: int, events: int, users: int) -> Iterator[list[Observed]]:
    draw = np.random.default_rng(0)
    popular = np.exp(draw.random(max(0, events - items)) * np.log(items)).astype(np.int64) - 1
    numbers = np.concatenate([np.arange(items), popular])[:events]
    draw.shuffle(numbers)
    own = draw.integers(users, size=events)
    for start in range(0, events, BATCH):
        part = slice(start, start + BATCH)
        pairs = zip(own[part].tolist(), numbers[part].tolist(), strict=True)
        yield [
            Observed(user, f"{item:08}", START_MS + EVERY_MS * (start + n))
            for n, (user, item) in enumerate(pairs)
        ]


class Watch:
    """Seconds since it was begun or read."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def read(self) -> float:
        since, self._since = self._since, time.perf_counter()
        return self._since - since


def resident() -> str:
    """What the process has in memory."""
    return f"{psutil.Process().memory_info().rss / 1e6:,.0f} MB in memory"


def main(
    items: Annotated[int, typer.Option(min=1)] = 1_000_000,
    events: Annotated[int, typer.Option(min=1)] = 5_000_000,
    users: Annotated[int, typer.Option(min=1)] = 200_000,
    neighbours: Annotated[int, typer.Option(min=1)] = 64,
) -> None:
    rules = EvidenceRules(neighbours, users, items)
    evidence, counting = Evidence(rules), 0.0
    evidence.observe([Observed(0, "00000000", START_MS)] * 2)
    say(f"nothing: {resident()}", out)
    watch = Watch()
    for batch in batches(items, events, users):
        watch.read()
        evidence.observe(batch)
        counting += watch.read()
    say(f"counted: {1e6 * counting / events:.1f} us an event, {resident()}", out)
    record = packed(batch)
    watch.read()
    list(unpacked(record))
    unpacking = watch.read()
    say(
        f"an event of the feed: {len(record) / len(batch):.0f} bytes, "
        f"unpacked in {1e6 * unpacking / len(batch):.1f} us",
        out,
    )
    watch.read()
    data = evidence.to_bytes()
    say(f"to bytes: {watch.read():.2f} s, {len(data) / 1e6:,.0f} MB", out)
    del evidence
    chunks = [zlib.compress(data[start : start + CHUNK], 1) for start in range(0, len(data), CHUNK)]
    size = sum(map(len, chunks)) / 1e6
    say(f"compressed: {watch.read():.1f} s, {size:,.0f} MB in {len(chunks):,} chunks", out)
    del data
    whole = memoryview(b"".join(map(zlib.decompress, chunks)))
    say(f"decompressed: {watch.read():.1f} s", out)
    read = Evidence.from_bytes(whole, rules)
    say(f"from bytes: {watch.read():.1f} s", out)
    del whole, chunks
    say(f"of {len(read.item_ids):,} items: {resident()}", out)


if __name__ == "__main__":
    typer.run(main)
