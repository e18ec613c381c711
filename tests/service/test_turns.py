"""Long work of the catalogue holds up nobody: in itself, and over 100,000 items."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model import ModelConfig, TiM4Rec
from model.artefact import Artefact
from model.items import Items
from service.catalogue import column_cache, item_columns, item_selector
from service.catalogue import turns as turns_module
from service.catalogue.catalogue import Catalogue
from service.catalogue.item import read_item
from service.catalogue.item_columns import Column
from service.catalogue.item_store import ItemStore
from service.catalogue.retrieval import Retrieval
from service.catalogue.turns import Shared, Steps, TooManyWait, Turns, at_once
from service.store.client import Store
from tests.service.conftest import ValkeyServer
from tests.service.held import HELD_S, Held, watched, without_garbage
from tests.waited import LONG_S

Run = Callable[[Coroutine[Any, Any, Any]], Any]

SIZE = 100_000


# -- turns -------------------------------------------------------------------------------


def counting(to: int, done: list[int]) -> Steps[int]:
    for number in range(to):
        done.append(number)
        yield
    return to


@pytest.fixture
def one_step_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one step."""
    monkeypatch.setattr(turns_module, "TURN_S", 0)


def test_short_work_is_over_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "TURN_S", LONG_S)

    async def main() -> None:
        turns, others = Turns(), list[int]()
        asyncio.get_running_loop().call_soon(others.append, 1)
        assert await turns.run("short", lambda: counting(3, [])) == 3
        assert not others
        assert at_once(counting(3, [])) == 3

    run(main())


@pytest.mark.usefixtures("one_step_each")
def test_equal_work_is_done_once_and_outlives_who_asked_first(run: Run) -> None:
    async def main() -> None:
        turns, done = Turns(), list[int]()

        def ask() -> asyncio.Task[int]:
            work = turns.run("long", lambda: counting(20, done))
            return asyncio.create_task(work)

        first, second, third = ask(), ask(), ask()
        await asyncio.sleep(0)
        first.cancel()
        assert await second == await third == 20
        assert done == list(range(20))
        assert first.cancelled()
        assert await ask() == 20  # anew
        assert len(done) == 40

    run(main())


@pytest.mark.usefixtures("one_step_each")
def test_too_much_work_is_not_begun(run: Run) -> None:
    async def main() -> None:
        turns, done = Turns(most=2), list[int]()
        works = [asyncio.create_task(turns.run(n, lambda: counting(20, done))) for n in range(5)]
        found = await asyncio.gather(*works, return_exceptions=True)
        assert found[:2] == [20, 20]
        assert [type(one) for one in found[2:]] == [TooManyWait] * 3
        assert await turns.run("again", lambda: counting(1, done)) == 1

    run(main())


@pytest.mark.usefixtures("one_step_each")
def test_long_work_waits_for_that_of_others(run: Run) -> None:
    async def main() -> None:
        turns, done = Turns(), list[int]()
        works = [
            asyncio.create_task(turns.run(n, lambda: counting(9, done), may_be_short=False))
            for n in range(8)
        ]
        await asyncio.sleep(0)
        assert done == [0]  # only the first has begun
        turns._most = 12
        with pytest.raises(TooManyWait):
            await turns.run("long", lambda: counting(9, done), may_be_short=False)
        assert await turns.run("short", lambda: counting(9, done)) == 9
        assert await asyncio.gather(*works) == [9] * 8

    run(main())


@pytest.mark.usefixtures("one_step_each")
def test_an_error_reaches_who_asked(run: Run) -> None:
    def failing() -> Steps[None]:
        yield
        yield
        raise LookupError

    async def main() -> None:
        turns = Turns()
        asking = [asyncio.create_task(turns.run("it", failing)) for _ in range(3)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(error) for error in found] == [LookupError] * 3
        gone = asyncio.create_task(turns.run("it", failing))
        await asyncio.sleep(0)
        gone.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not turns._under_way

    run(main())


@pytest.mark.usefixtures("one_step_each")
def test_all_work_together_has_one_turn_at_a_time(run: Run) -> None:
    async def main() -> None:
        turns, done = Turns(), list[int]()
        works = [asyncio.create_task(turns.run(n, lambda: counting(40, done))) for n in range(8)]
        await asyncio.sleep(0)
        most, before = 0, len(done)  # each has begun
        while not all(work.done() for work in works):
            await asyncio.sleep(0)
            most, before = max(most, len(done) - before), len(done)
        assert most == 1
        assert len(done) == 8 * 40

    run(main())


def test_work_that_is_shared_goes_on_without_who_began_it() -> None:
    done: list[int] = []
    shared = Shared(counting(6, done))
    gone = shared.result()
    for _ in range(3):
        next(gone)
    gone.close()
    one, other = shared.result(), shared.result()
    next(one)
    assert at_once(other) == at_once(one) == at_once(shared.result()) == 6
    assert done == list(range(6))


# -- a large catalogue -------------------------------------------------------------------


@pytest.fixture(scope="module")
def large() -> Artefact:
    model = TiM4Rec(ModelConfig(n_items=SIZE, d_model=16, head_dim=8, d_state=4)).eval()
    ids = [f"item{n * 7919 % SIZE}" for n in range(SIZE)]
    titles: list[str | None] = [f"{['red', 'oak', 'sea', 'star'][n % 4]} {item}" for n, item in
                                enumerate(ids)]  # fmt: skip
    categories = [[f"c{n % 300}", f"d{n % 20}"] for n in range(SIZE)]
    items = Items(ids, np.arange(SIZE, dtype=np.int64), titles, categories)
    return Artefact(model, items, {}, "large", Path())


def opened(artefact: Artefact, store: Store | None) -> Catalogue:
    retrieval = Retrieval(artefact.model.item_embedding.weight, artefact.items)
    records = ItemStore(store) if store is not None else None
    return Catalogue(artefact, records, retrieval)  # type: ignore[arg-type]


def records(start: int, count: int) -> dict[str, bytes | None]:
    return {
        f"new{n}": json.dumps(
            {"title": f"new {n}", "categories": ["c1", "d1"], "attributes": {"price": n}}
        ).encode()
        for n in range(start, start + count)
    }


@pytest.mark.slow
def test_nothing_of_a_large_catalogue_holds_the_loop(
    run: Run, large: Artefact, valkey: ValkeyServer
) -> None:
    """Each act takes longer than the loop may be held, or is one of those that did."""

    def compared(field: str, letter: str) -> str:
        return " or ".join(f'{field} < "{letter}{n}"' for n in range(165))

    async def main() -> None:
        async with Store(valkey.url) as store:
            catalogue = opened(large, store)
            await catalogue.records.refresh()
            shown = catalogue.hashes(np.arange(1, 1001))

            async def look_up() -> None:
                catalogue.shown(shown)

            acts: dict[str, Callable[[], Awaitable[Any]]] = {
                "comparisons of ids": lambda: catalogue.matching(compared("id", "j")),
                "of titles, others": lambda: catalogue.matching(compared("title", "s")),
                "several at once": lambda: asyncio.gather(
                    *(catalogue.matching(compared("id", letter)) for letter in "klmn")
                ),
                "categories": lambda: catalogue.of_categories([f"c{n}" for n in range(5000)]),
                "the list": lambda: catalogue.listed("", limit=20),
                "a search in vain": lambda: catalogue.listed("nowhere", limit=20),
                "a category in vain": lambda: catalogue.listed(
                    "e", limit=20, categories=frozenset(["none"])
                ),
                "what was shown": look_up,
                "writes": lambda: catalogue.records.write(records(0, 1000)),
                "a category more": lambda: catalogue.records.write(
                    {"item1": b'{"categories":["x"]}'}
                ),
                "a list with changes": lambda: catalogue.listed("new", limit=1000),
            }
            took: dict[str, Held] = {}
            for name, act in acts.items():
                async with watched() as took[name]:
                    await act()
            slow = {name: held.longest for name, held in took.items() if held.longest > HELD_S}
            assert not slow
            assert took["comparisons of ids"].total > HELD_S
            assert took["the list"].total > HELD_S
            assert took["a category more"].total > HELD_S
            rows = catalogue.shown(shown).tolist()
            assert sorted(rows) == list(range(1, 1001))
            found, _ = await catalogue.listed("new", limit=1000)
            assert len(found) == 1000

    with without_garbage():
        run(main())


# -- columns -----------------------------------------------------------------------------


@pytest.fixture
def small() -> Catalogue:
    model = TiM4Rec(ModelConfig(n_items=50, d_model=16, head_dim=8, d_state=4)).eval()
    ids = [f"i{n}" for n in range(50)]
    return opened(Artefact(model, Items(ids, np.arange(50)), {}, "small", Path()), None)


def columns_of(catalogue: Catalogue) -> OrderedDict[str, tuple[Column, Shared[None]]]:
    return catalogue._selector._columns._columns


def put(catalogue: Catalogue, item_id: str, **attributes: Any) -> None:
    catalogue._table.set(item_id, read_item(json.dumps({"attributes": attributes}).encode()))


def test_a_name_that_no_item_has_is_not_kept(run: Run, small: Catalogue) -> None:
    async def main() -> None:
        put(small, "i1", price=3)
        for n in range(50):
            text = " or ".join(f"has(x{n}y{m}) or x{n}z{m} < 3" for m in range(20))
            assert not (await small.matching(text)).allowed.any()
        assert not columns_of(small)
        assert (await small.matching("price = 3 or has(nothing)")).allowed.nonzero()[
            0
        ].tolist() == [2]
        assert list(columns_of(small)) == ["price"]
        put(small, "i1", size=3)
        small._table.version += 1
        assert not (await small.matching("has(price)")).allowed.any()
        assert not columns_of(small)

    run(main())


def test_columns_are_kept_up_to_a_bound(
    run: Run, small: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_cache, "BYTES", 3 * Column().nbytes)
    monkeypatch.setattr(column_cache, "BYTES_A_ROW", 0)

    async def main() -> None:
        for n in range(50):
            put(small, f"i{n}", **{f"a{m}": n for m in range(20)})
        for m in range(20):
            small._table.version += 1
            found = await small.matching(f"a{m} < 7")
            assert found.allowed.sum() == 7
            assert len(columns_of(small)) <= 3
        assert "a19" in columns_of(small)
        small._table.version += 1
        every = await small.matching(" and ".join(f"a{m} < 7" for m in range(20)))
        assert every.allowed.sum() == 7
        assert len(columns_of(small)) <= 3

    run(main())


def test_answers_to_filters_are_kept_up_to_a_bound(
    run: Run, small: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_selector, "SELECTIONS_BYTES", 100_000)

    async def main() -> None:
        for length in (1800, 3):
            for n in range(300):
                small._table.version += n % 7 == 0
                await small.matching(f'id = "{n:0{length}}"')
                held = small._selector._selections.items()
                counted = sum(
                    500 + 4 * (len(text) + sum(map(len, found.warnings))) + 51
                    for text, (_, found) in held
                )
                assert small._selector._selected_bytes == counted <= 100_000
        assert len(small._selector._selections) > 100

    run(main())


def test_a_write_costs_what_the_item_has(
    run: Run, small: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        for n in range(40):
            put(small, f"i{n}", **{f"a{n}": n}, kind="x")
        await small.matching(" or ".join(f"a{n} = {n}" for n in range(40)) + ' or kind = "x"')
        assert len(columns_of(small)) == 41
        puts: list[int] = []
        plain = Column.put

        def counted(self: Column, row: int, values: Any) -> None:
            puts.append(row)
            plain(self, row, values)

        monkeypatch.setattr(Column, "put", counted)
        put(small, "i1", a1=99, kind="x")
        assert puts == [2]
        small._table.version += 1
        assert not (await small.matching("a1 = 1")).allowed.any()
        assert (await small.matching("a1 = 99")).allowed.sum() == 1

    run(main())


def test_a_column_of_much_that_was_is_made_anew(run: Run, small: Catalogue) -> None:
    async def main() -> None:
        for n in range(5000):
            put(small, f"i{n % 50}", sku=f"s{n}")
            if n % 50 == 0:
                small._table.version += 1
                assert (await small.matching(f'sku <= "s{n}" and sku >= "s{n}"')).allowed.sum() == 1
                column, _ = columns_of(small)["sku"]
                assert column.nbytes < 200_000

    run(main())


WRITES = st.tuples(
    st.integers(0, 55), st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 3))
)


@given(
    st.lists(WRITES, max_size=20),
    st.lists(st.lists(WRITES, max_size=4), max_size=25),
    st.sampled_from(
        ["a < 2 and b > 0", "not has(a) or c = 1", 'id < "i3" and a >= 1', "a in (1, 2) or b = 3"]
    ),
    st.sampled_from([1, 50]),
)
def test_what_changes_while_a_filter_is_looked_at_counts(
    before: list[Any], meanwhile: list[list[Any]], text: str, few: int
) -> None:
    """However changes and turns alternate, the answer is that of the catalogue at its end."""
    model = TiM4Rec(ModelConfig(n_items=50, d_model=16, head_dim=8, d_state=4)).eval()
    items = Items([f"i{n}" for n in range(50)], np.arange(50))
    catalogue = opened(Artefact(model, items, {}, "small", Path()), None)

    def write(place: int, said: dict[str, int] | None) -> None:
        if said is None:
            catalogue._table.set(f"i{place}", None)
        else:
            put(catalogue, f"i{place}", **said)

    for one in before:
        write(*one)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(column_cache, "_AT_ONCE", few)
        patch.setattr(item_columns, "_FEW", 0)
        patch.setattr(item_columns, "_AT_ONCE", few)
        selector = catalogue._selector
        steps = [selector._matching(text) for _ in range(2)]
        left = list(steps)
        for some in meanwhile:
            for work in list(left):
                if next(work, left) is left:
                    left.remove(work)
            if not left:
                break
            for one in some:
                write(*one)
        flags = at_once(steps[1]).allowed if steps[1] in left else None
        columns_of(catalogue).clear()
        expected = at_once(selector._matching(text)).allowed
    if flags is not None:
        assert flags.tolist() == expected.tolist()
    for work in steps:
        work.close()
    assert not selector._changed
