"""The catalogue in memory follows the store; its columns and listing are what they should be."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.artefact import Artefact
from service.catalogue import item_listing, item_store
from service.catalogue.catalogue import Catalogue
from service.catalogue.item_listing import Listing
from service.catalogue.item_store import ItemStore
from service.catalogue.retrieval import Retrieval
from service.catalogue.turns import at_once
from service.store.client import Store
from tests.depth import examples
from tests.service.conftest import ValkeyServer
from tests.service.processes import make_artefact
from tests.waited import LONG_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]

ITEMS = [f"i{n}" for n in range(6)]


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("catalogue") / "model", ITEMS)


def opened(artefact: Artefact, store: Store) -> Catalogue:
    retrieval = Retrieval(artefact.model.item_embedding.weight, artefact.items)
    return Catalogue(artefact, ItemStore(store), retrieval)


async def shown(catalogue: Catalogue) -> dict[str, Any]:
    """Everything that answers are made from, by item."""
    view = catalogue._retrieval.view
    rows = [row for row in range(1, len(catalogue.ids) + 1) if catalogue.exists(row)]
    matching = {
        text: (await catalogue.matching(text)).on(view)
        for text in ("a > 1", 'a == "x"', "has(a)", "category = 'c'", "not has(title)")
    }
    table = catalogue._retrieval.vectors(np.array(rows)).numpy()
    listed, _ = await catalogue.listed("", limit=1000, unavailable=True)
    return {
        catalogue.ids[row - 1]: (
            catalogue.titles[row - 1],
            catalogue.categories(row),
            catalogue.is_open(row),
            [text for text, flags in matching.items() if flags[row]],
            table[place].tolist(),
        )
        for place, row in enumerate(rows)
    } | {"listed": [catalogue.ids[row - 1] for row in listed]}


RECORDS = st.sampled_from(
    [
        None,
        b"{}",
        b'{"hidden":true}',
        b'{"title":"T","attributes":{"a":2}}',
        b'{"title":"S","attributes":{"a":["x",2,3]}}',
        b'{"categories":["c"],"attributes":{"a":"x"}}',
        b'{"categories":["c","d"],"attributes":{"a":true,"b":{"a":3}}}',
        b'{"categories":["d"],"available_until":1}',
        b'{"similar_to":["i1","i2","none"],"attributes":{"a":[0,5]}}',
    ]
)
STEPS = st.lists(
    st.dictionaries(st.sampled_from([*ITEMS[:3], "n0", "n1", "n2"]), RECORDS, min_size=1)
    | st.just("look"),
    max_size=8,
)


@settings(max_examples=examples(15))
@given(steps=STEPS, page=st.sampled_from([1, 2, 100]))
def test_one_that_followed_is_like_one_loaded_anew(
    run: Run, valkey: ValkeyServer, artefact: Artefact, steps: list[Any], page: int
) -> None:
    """Whatever is written, in whatever portions it is heard of, or when too much was missed."""

    async def main() -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            followed, writer = opened(artefact, store), ItemStore(store)
            await followed.records.refresh()
            for step in steps:
                if step == "look":
                    await followed.records.refresh()
                    await shown(followed)  # columns and listing are there from now on
                else:
                    await writer.write(step)
            await followed.records.refresh()
            fresh = opened(artefact, store)
            await fresh.records.refresh()
            there, expected = await shown(followed), await shown(fresh)
            assert there.keys() == expected.keys()
            for item, own in there.items():
                assert own == expected[item], item

    with valkey.client() as client:
        client.flushall()
    before, item_store._PAGE = item_store._PAGE, page
    try:
        run(main())
    finally:
        item_store._PAGE = before


def test_a_process_that_missed_announcements_reads_all(
    run: Run, valkey: ValkeyServer, artefact: Artefact
) -> None:
    async def main() -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            writer, behind = ItemStore(store), opened(artefact, store)
            await writer.write({"n0": b"{}", "i1": b'{"hidden":true}'})
            await behind.records.refresh()
            await writer.write({"n0": None, "n1": b'{"title":"One"}'})
            await writer.write({"i1": None})
            with valkey.client() as client:
                assert client.xtrim("tim4rec:catalogue", maxlen=1, approximate=False)
            await behind.records.refresh()
            fresh = opened(artefact, store)
            await fresh.records.refresh()
            assert await shown(behind) == await shown(fresh)
            assert "n1" in await shown(behind)
            with valkey.client() as client:
                client.flushall()
            await behind.records.refresh()
            assert (await shown(behind)).keys() == {*ITEMS, "listed"}

    run(main())


def test_a_damaged_record_leaves_the_item_as_it_was(
    run: Run, valkey: ValkeyServer, artefact: Artefact, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Store(valkey.url, timeout_s=30) as store:
            catalogue, writer = opened(artefact, store), ItemStore(store)
            await catalogue.records.refresh()
            for damaged in (b"{", b"[]", b"\xff", b'{"attributes":{"a":NaN}}'):
                await writer.write({"i1": damaged, "i2": b'{"title":"Two"}'})
                await catalogue.records.refresh()
                assert (await shown(catalogue))["i1"][0] == artefact.items.titles[1]  # type: ignore[index]
                assert (await shown(catalogue))["i2"][0] == "Two"
                assert "'i1' is left as it was" in caplog.text

    run(main())


def test_a_store_that_is_gone_for_a_while_is_followed_again(
    run: Run, durable_valkey: ValkeyServer, artefact: Artefact
) -> None:
    async def main() -> None:
        async with Store(durable_valkey.url, timeout_s=5) as store:
            records = ItemStore(store)
            retrieval = Retrieval(artefact.model.item_embedding.weight, artefact.items)
            catalogue = Catalogue(artefact, records, retrieval)
            async with catalogue.followed(0.02):
                await records.write({"i0": b'{"hidden":true}'})
                durable_valkey.kill()
                await asyncio.sleep(0.5)
                durable_valkey.start()
                await asyncio.sleep(0.5)
                await records.write({"i1": b'{"hidden":true}'})
                expected = [False, False, True]
                async with asyncio.timeout(LONG_S):
                    while [catalogue.is_open(row) for row in (1, 2, 3)] != expected:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)

    run(main())


def test_what_is_over_is_over_while_the_store_is_silent(
    run: Run, durable_valkey: ValkeyServer, artefact: Artefact
) -> None:
    async def main() -> None:
        async with Store(durable_valkey.url, timeout_s=60) as store:
            records = ItemStore(store)
            retrieval = Retrieval(artefact.model.item_embedding.weight, artefact.items)
            over = round(time.time() * 1000) + 2000
            await records.write({"i0": b'{"available_until":%d}' % over})
            catalogue = Catalogue(artefact, records, retrieval)
            async with catalogue.followed(0.02):
                assert catalogue.is_open(1)
                durable_valkey.send(signal.SIGSTOP)
                try:
                    async with asyncio.timeout(LONG_S):
                        while catalogue.is_open(1):  # noqa: ASYNC110
                            await asyncio.sleep(0.05)
                    assert time.time() * 1000 >= over
                finally:
                    durable_valkey.send(signal.SIGCONT)

    run(main())


TITLES = st.none() | st.text(st.sampled_from("aAáb \nß"), max_size=5)


@given(
    st.lists(TITLES, max_size=12),
    st.lists(st.dictionaries(st.integers(1, 12), TITLES | st.just("gone")), max_size=3),
    st.text(st.sampled_from("aÁb ß"), max_size=4),
    st.sampled_from([1, 2, 500]),
)
def test_a_listing_is_a_sorted_search(
    titles: list[str | None], changes: list[dict[int, str | None]], text: str, part: int
) -> None:
    there = {row: title for row, title in enumerate(titles, 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_listing, "MOST_IN_BLOCK", part)
        listing = Listing()
        at_once(listing.fill((row, f"I{row}", title) for row, title in there.items()))
        for change in changes:
            for row, title in change.items():
                if title == "gone":
                    listing.remove(row)
                else:
                    listing.put(row, f"I{row}", title)
            there = {row: title for row, title in (there | change).items() if title != "gone"}
            list(listing.find(text, None))
    compared = str.maketrans({"á": "a", "Á": "a", "A": "a", "I": "i", "ß": "ss"})
    folded = " ".join(text.translate(compared).split())
    names = {
        row: " ".join((f"I{row}" if title is None else title).translate(compared).split())
        for row, title in there.items()
    }
    order = sorted(there, key=lambda row: (names[row], f"I{row}"))
    first = [row for row in order if names[row].startswith(folded)]
    rest = [
        row
        for row in order
        if all(word in names[row] for word in folded.split()) and row not in first
    ]
    found = [hit for hits in listing.find(text, None) for hit in hits]
    assert [row for row, _ in found] == first + rest
    # From each place on it is the rest.
    for place, (_, after) in enumerate(found):
        left = [row for hits in listing.find(text, after) for row, _ in hits]
        assert left == (first + rest)[place + 1 :]
