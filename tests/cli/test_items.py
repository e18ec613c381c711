"""`tim4rec import-items` on a real store."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from service.catalogue.item_store import SHARDS
from tests.cli.conftest import tim4rec
from tests.service.processes import in_process
from tests.waited import LONG_S

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

CSV = """item_id,title,genres,price,brand,code,hidden,available_from,empty
1,Toy Story (1995),Animation|Comedy,1.5,lego,007,false,2020-01-01,
2,"A ""quoted"" one",,2,,x,true,,
007,,Drama,,b,1,,1700000000,
"""
EXPECTED = {
    "1": {
        "title": "Toy Story (1995)",
        "categories": ["Animation", "Comedy"],
        "attributes": {"price": 1.5, "brand": "lego", "code": "007"},
        "available_from": 1577836800000,
    },
    "2": {"title": 'A "quoted" one', "attributes": {"price": 2.0, "code": "x"}, "hidden": True},
    "007": {
        "categories": ["Drama"],
        "attributes": {"brand": "b", "code": "1"},
        "available_from": 1700000000000,
    },
}


def stored(store: ValkeyServer, namespace: str = "tim4rec") -> dict[str, Any]:
    with store.client() as client:
        found = {}
        for shard in range(SHARDS):
            found |= client.hgetall(f"{namespace}:items:{shard}")
    return {item.decode(): json.loads(record) for item, record in found.items()}


def as_csv(folder: Path) -> Path:
    (folder / "items.csv").write_text(CSV)
    return folder / "items.csv"


def as_gzip(folder: Path) -> Path:
    (folder / "items.csv.gz").write_bytes(gzip.compress(CSV.encode()))
    return folder / "items.csv.gz"


def as_json_lines(folder: Path) -> Path:
    lines = [json.dumps({"item_id": item, **said}) for item, said in EXPECTED.items()]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n\n")
    return folder / "items.jsonl"


def as_parquet(folder: Path) -> Path:
    rows = [
        {"item_id": item, "title": said.get("title"), "categories": said.get("categories"),
         "hidden": said.get("hidden"), "available_from": said.get("available_from"),
         **{name: said["attributes"].get(name) for name in ("price", "brand", "code")}}
        for item, said in EXPECTED.items()
    ]  # fmt: skip
    times = pl.col("available_from").cast(pl.Datetime("ms"))
    pl.DataFrame(rows).with_columns(times).write_parquet(folder / "items.parquet")
    return folder / "items.parquet"


@pytest.mark.parametrize("write", [as_csv, as_gzip, as_json_lines, as_parquet])
def test_every_format_says_the_same(
    write: Callable[[Path], Path], valkey: ValkeyServer, tmp_path: Path
) -> None:
    path = write(tmp_path)
    for _ in range(2):  # a second time changes nothing
        result = tim4rec("import-items", path, "--redis", valkey.url, "--namespace", "shop")
        assert result.exit_code == 0, result.output
        assert "3 items written" in result.output
        assert stored(valkey, "shop") == EXPECTED
    assert stored(valkey) == {}


def test_a_running_service_heeds_them(
    run: Any, model_folder: Path, valkey: ValkeyServer, tmp_path: Path
) -> None:
    lines = [json.dumps({"item_id": f"i{n}", "hidden": n % 2 == 0}) for n in range(20)]
    lines += [json.dumps({"item_id": f"new{n}", "attributes": {"n": n}}) for n in range(1500)]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines))

    async def main() -> None:
        poll = {"catalogue_poll_s": 0.05, "exactness_every_s": 0, "max_k": 2000}
        async with in_process(model_folder, valkey.url, **poll) as client:
            result = await asyncio.to_thread(tim4rec, "import-items", path, "--redis", valkey.url)
            assert result.exit_code == 0, result.output
            query = {"user_id": "nobody", "k": 2000}
            expected = {f"i{n}" for n in range(1, 20, 2)} | {f"new{n}" for n in range(1500)}
            found = set()
            async with asyncio.timeout(LONG_S):
                while found != expected:
                    answer = (await client.get("/recommend", params=query)).json()
                    found = {item["item_id"] for item in answer["items"]}

    run(main())


def test_nothing_is_written_where_a_row_is_wrong(valkey: ValkeyServer, tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    good = '{"item_id": "a", "title": "Good"}'
    wrong = [
        "{", "[]", '{"title": "x"}', '{"item_id": "b", "price": 1}', good,
        '{"item_id": "c", "attributes": {"id": 1}}',
        json.dumps({"item_id": "d", "title": "x" * 20_000}),
    ]  # fmt: skip
    path.write_text("\n".join([good, *wrong]))
    result = tim4rec("import-items", path, "--redis", valkey.url)
    assert result.exit_code == 1
    for line in range(2, 9):
        assert f"line {line}: " in result.output
    assert "line 5: price: " in result.output
    assert "line 6: item_id 'a' was there before" in result.output
    assert "line 8: the record has 2" in result.output
    assert stored(valkey) == {}
    result = tim4rec("import-items", path, "--redis", valkey.url, "--skip-bad-rows")
    assert result.exit_code == 0, result.output
    assert "7 rows left out" in result.output
    assert stored(valkey) == {"a": {"title": "Good"}}


@pytest.mark.parametrize(
    ("values", "told", "expected", "said"),
    [
        (["1", "2"], None, [1, 2], "number"),
        (["19.90", "", "-5"], None, [19.9, None, -5.0], "number"),
        (["0012345678905", "98765432101"], None, ["0012345678905", "98765432101"], "text"),
        (["98765432101"], "text", ["98765432101"], "text"),
        (["1", "2" * 20], None, ["1", "2" * 20], "text"),
        (["t", "F", "no"], None, [True, False, False], "boolean"),
        (["true", "maybe"], None, ["true", "maybe"], "text"),
        (["1", "0"], None, [1, 0], "number"),
        (["1", "0"], "boolean", [True, False], "boolean"),
        (["42", "XL"], None, ["42", "XL"], "text (1 of 2 are no numbers, such as 'XL')"),
        (["NULL", "7"], None, [None, 7], "number"),
    ],
)
def test_attributes_have_the_type_that_all_values_have(
    valkey: ValkeyServer,
    tmp_path: Path,
    values: list[str],
    told: str | None,
    expected: list[Any],
    said: str,
) -> None:
    lines = "".join(f"{place},{value}\n" for place, value in enumerate(values))
    (tmp_path / "items.csv").write_text(f"item_id,a\n{lines}")
    types = () if told is None else ("--types", f"a={told}")
    result = tim4rec("import-items", tmp_path / "items.csv", "--redis", valkey.url, *types)
    assert result.exit_code == 0, result.output
    assert f"attributes: a {said}" in result.output
    records = stored(valkey)
    found = [records[str(n)].get("attributes", {}).get("a") for n in range(len(values))]
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("values", "told", "said"),
    [
        (["19.90", "NaN"], (), "line 3: price 'NaN' is no plain number"),
        (["19.90", '"1,299.00"'], (), "line 3: price '1,299.00' is no plain number"),
        (["19.90", "$5"], (), "line 3: price '$5' is no plain number"),
        (["5", "cheap"], ("--types", "price=number"), "line 3: price 'cheap' is no plain number"),
        (["yes", "perhaps"], ("--types", "price=boolean"), "'perhaps' is no true or false"),
        (["1"], ("--types", "price=date"), "--types: 'price=date' is no NAME=TYPE"),
        (["1"], ("--types", "prize=text"), "has no column prize"),
    ],
)
def test_a_value_that_is_not_of_its_column_is_named(
    valkey: ValkeyServer, tmp_path: Path, values: list[str], told: tuple[str, ...], said: str
) -> None:
    lines = "".join(f"{place},{value}\n" for place, value in enumerate(values))
    (tmp_path / "items.csv").write_text(f"item_id,price\n{lines}")
    result = tim4rec("import-items", tmp_path / "items.csv", "--redis", valkey.url, *told)
    assert result.exit_code == 1
    assert said in result.output
    assert stored(valkey) == {}


def test_an_item_table_is_read_as_every_table(valkey: ValkeyServer, tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    text = "sku; name; hidden; genre\n i1; Am\u00e9lie; t; A|B\nNULL; x; f;\n"
    path.write_bytes(text.encode("cp1252"))
    result = tim4rec("import-items", path, "--redis", valkey.url)
    assert "did you mean --columns item_id=sku,title=name,categories=genre?" in result.output
    columns = ("--columns", "item_id=sku,title=name,categories=genre")
    result = tim4rec("import-items", path, "--redis", valkey.url, *columns)
    assert "line 2: title is not valid UTF-8: give the file's" in result.output
    how = (*columns, "--encoding", "cp1252", "--skip-bad-rows")
    result = tim4rec("import-items", path, "--redis", valkey.url, *how)
    assert result.exit_code == 0, result.output
    assert "fields are separated by semicolon" in result.output
    assert "line 3: item_id is 'NULL', a word for nothing" in result.output
    assert stored(valkey) == {
        "i1": {"title": "Am\u00e9lie", "categories": ["A", "B"], "hidden": True}
    }


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("items.csv", "id,title\n1,x\n", "no column item_id; the columns are 'id', 'title'"),
        ("items.csv", "", "items.csv"),
        ("items.parquet", "no parquet", "items.parquet"),
        ("items.jsonl", None, "No such file"),
    ],
)
def test_a_file_that_is_none(
    valkey: ValkeyServer, tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    result = tim4rec("import-items", tmp_path / name, "--redis", valkey.url)
    assert result.exit_code == 1
    assert said in result.output
    assert "Traceback" not in result.output
