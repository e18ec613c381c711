"""Reading logs and item tables: every fault has its file, line and reason."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import lzma
import time
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import UNKNOWN_TIME
from tests.depth import examples
from training import csv_file
from training.interactions import read_log
from training.item_table import read_items
from training.table_format import TableFormat
from training.tables import BadRow, InputError

MOMENT = datetime(2011, 10, 18, 1, 2, 3, 456000, tzinfo=UTC)
MOMENT_MS = 1_318_899_723_456


def write(tmp_path: Path, text: str, name: str = "log.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(path: Path, **options: bool) -> list[tuple[str, str, int]]:
    return [tuple(row) for row in read_log(path, **options).frame.iter_rows()]  # type: ignore[misc]


def reasons(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_log(path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1318899723", 1_318_899_723_000),
        ("1318899723.456", MOMENT_MS),
        ("1318899723456", MOMENT_MS),
        (" 1318899723 ", 1_318_899_723_000),
        ("-5", -5000),
        ("0", 0),
        ("99999999999", 99_999_999_999_000),  # below 1e11: seconds
        ("100000000000", 100_000_000_000),  # from there on: milliseconds
        ("1318899723455999", MOMENT_MS),  # from 5e14 on: microseconds
        ("1318899723456400123", MOMENT_MS),  # from 5e17 on: nanoseconds
        ("20111018010203", 1_318_899_723_000),
        ("20111018", 1_318_896_000_000),
        ("20111018T010203.456Z", MOMENT_MS),
        ("2011-10-18 01:02:03.456 UTC", MOMENT_MS),
        ("2011-10-18 03:02:03.456 +0200", MOMENT_MS),
        ("2011-10-18T01:02:03.456Z", MOMENT_MS),
        ("2011-10-18T03:02:03.456+02:00", MOMENT_MS),
        ("2011-10-18 01:02:03.456", MOMENT_MS),
        ("2011-10-18", 1_318_896_000_000),
        ("", UNKNOWN_TIME),
        ("  ", UNKNOWN_TIME),
    ],
)
def test_every_form_of_time(tmp_path: Path, text: str, expected: int) -> None:
    path = write(tmp_path, f"user_id,item_id,timestamp\nu,i,{text}\n")
    assert rows(path) == [("u", "i", expected)]


@pytest.mark.parametrize("form", ["csv", "quoted", "parquet"])
def test_kind_and_weight_are_read_where_they_are_asked_for(tmp_path: Path, form: str) -> None:
    table = {
        "weight": [None, 2.5, 0.0, None],
        "item_id": list("abcd"),
        "kind": ["view", None, "buy.2", None],
        "user_id": ["u", "u", "u", "v"],
        "timestamp": [3, 2, 1, 4],
    }
    path = tmp_path / "log"
    if form == "parquet":
        pl.DataFrame(table).with_columns(pl.col("kind").cast(pl.Categorical)).write_parquet(path)
    else:
        style: Any = "always" if form == "quoted" else "necessary"
        path.write_text(
            pl.DataFrame(table).write_csv(quote_style=style).replace("buy.2", " buy.2 ")
        )
    given = read_log(path, kinds=True).frame
    assert given.columns == ["user_id", "item_id", "time_ms", "kind", "weight"]
    assert given.rows() == [
        ("u", "c", 1000, "buy.2", 0.0), ("u", "b", 2000, None, 2.5), ("u", "a", 3000, "view", None),
        ("v", "d", 4000, None, None),
    ]  # fmt: skip
    plain = write(tmp_path, "user_id,item_id,timestamp\nu,i,1\n")
    assert read_log(plain, kinds=True).frame.rows() == [("u", "i", 1000, None, None)]
    assert len(read_log(path).frame.columns) == 3


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("two words,1", "kind 'two words' is not 1 to 32 of A-Z a-z 0-9 _ . -"),
        (f"{'k' * 33},1", "is not 1 to 32 of"),
        ("view,heavy", "weight 'heavy' is not a number from 0 to 1e9"),
        ("view,-1", "weight '-1' is not a number from 0 to 1e9"),
        ("view,1e10", "weight '1e10' is not"),
        ("view,nan", "weight 'nan' is not"),
        ("view,inf", "weight 'inf' is not"),
    ],
)
def test_a_bad_kind_or_weight_is_named(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path, f"user_id,item_id,timestamp,kind,weight\nu,i,1,,\nu,i,1,{line}\n")
    with pytest.raises(InputError, match="1 rows can't be read") as caught:
        read_log(path, kinds=True)
    assert f"  line 3: {reason}" in str(caught.value) or reason in str(caught.value)
    assert len(read_log(path, kinds=True, skip_bad_rows=True).frame) == 1
    assert len(read_log(path).frame) == 2  # other columns are ignored


def test_a_kind_that_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    table = {"user_id": ["u"], "item_id": ["i"], "timestamp": [1], "kind": [["view"]]}
    pl.DataFrame(table).write_parquet(path)
    with pytest.raises(InputError, match=r"kind is List\(String\); store a plain value"):
        read_log(path, kinds=True)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",i,1", "user_id is missing"),
        ("u, ,1", "item_id is missing"),
        ("u,i", "2 fields instead of 3"),
        ("u,i,1,2", "4 fields instead of 3"),
        ("u,i,NaN", "timestamp NaN is not finite"),
        ("u,i,inf", "timestamp inf is not finite"),
        ("u,i,-inf", "timestamp -inf is not finite"),
        ("u,i,yesterday", "timestamp 'yesterday' is neither"),
        ("u,i,2011-02-30", "timestamp '2011-02-30' is neither"),
        ("u,i,1_000", "timestamp '1_000' is neither"),
        ("u,i,318899723456789", "timestamp 318899723456789 is outside"),
        ("u,i,13188997234567890000", "is outside"),
        ('u,"i"x,1', "expected after"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_used_on_demand(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = write(tmp_path, f"user_id,item_id,timestamp\na,b,1\n{line}\nc,d,2\n")
    message = reasons(path)
    assert f"{path}: 1 rows can't be read" in message
    assert "  line 3: " in message
    assert reason in message
    assert "--skip-bad-rows" in message
    log = read_log(path, skip_bad_rows=True)
    assert log.frame.rows() == [("a", "b", 1000), ("c", "d", 2000)]
    assert log.bad_row_count == 1
    assert log.bad_rows[0].line == 3


@pytest.mark.parametrize("rating", ["nan", "inf", "five"])
def test_a_rating_must_be_a_finite_number(tmp_path: Path, rating: str) -> None:
    path = write(tmp_path, f"rating,user_id,item_id,timestamp\n,u,i,1\n{rating},u,j,2\n4.5,u,k,3\n")
    assert f"line 3: rating '{rating}' is not a finite number" in reasons(path)
    assert len(rows(path, skip_bad_rows=True)) == 2


def test_lines_stay_right_across_quotes_blank_lines_and_line_breaks_in_fields(
    tmp_path: Path,
) -> None:
    path = write(
        tmp_path,
        "\ufeffreview,item_id,timestamp,user_id\r\n"
        '"two\nlines, with a comma",i,1,"u,1"\r\n'
        "\r\n"
        "short\r\n"
        '"said ""yes""",j,bad,u\r\n',
    )
    message = reasons(path)
    assert "line 5: 1 fields instead of 4" in message
    assert "line 6: timestamp 'bad'" in message
    assert rows(path, skip_bad_rows=True) == [("u,1", "i", 1000)]


@settings(max_examples=examples(20))
@given(
    st.lists(
        st.lists(st.text('ab",\r\n ', max_size=4), min_size=1, max_size=4), min_size=1, max_size=12
    ),
    st.sampled_from(["\n", "\r\n"]),
    st.integers(1, 40),
)
def test_any_csv_is_read_as_the_csv_module_reads_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    table: list[list[str]],
    ending: str,
    block: int,
) -> None:
    monkeypatch.setattr(csv_file, "BLOCK_CHARACTERS", block)
    path = tmp_path / "log.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator=ending)
        writer.writerow(["user_id", "item_id", "timestamp"])
        writer.writerow(["first", "first", "0"])
        writer.writerows([*row[:2], "1"] if len(row) > 2 else row for row in table)
    with path.open(newline="") as file:
        reader = csv.reader(file, skipinitialspace=True)
        line, good, bad = 1, [], []
        for row in reader:
            if len(row) == 3 and row[0].strip() and row[1].strip():
                good.append((row[0].strip(), row[1].strip()))
            elif row:
                bad.append(line)
            line = reader.line_num + 1
    log = read_log(path, skip_bad_rows=True)
    found = [(user, item) for user, item, _ in log.frame.iter_rows()]
    assert sorted(found) == sorted(good[1:])
    assert log.bad_row_count == len(bad)
    assert [row.line for row in log.bad_rows] == bad[:20]


def test_the_first_twenty_bad_rows_are_shown_and_all_counted(tmp_path: Path) -> None:
    lines = "".join(f"u,i{n},x\n" for n in range(50))
    message = reasons(write(tmp_path, f"user_id,item_id,timestamp\n{lines}u,i,1\n"))
    assert "50 rows can't be read" in message
    assert message.count("  line ") == 20
    assert "line 21: " in message
    assert "line 22: " not in message
    assert "and 30 more" in message


def test_an_open_quote_is_one_fault_that_says_how_far_it_reached(tmp_path: Path) -> None:
    path = write(tmp_path, 'user_id,item_id,timestamp\nu,i,1\nu,"j,2\nu,k,3\n')
    assert "line 3: unexpected end of data (read up to line 4)" in reasons(path)


def test_bytes_that_are_not_utf8_are_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(b"user_id,item_id,timestamp\nu,caf\xe9,1\n")
    assert "line 2: item_id is not valid UTF-8" in reasons(path)


def test_gzip_is_told_by_content_and_a_cut_one_is_refused(tmp_path: Path) -> None:
    text = "user_id,item_id,timestamp\n" + "".join(f"u{n % 7},i{n},{n}\n" for n in range(5000))
    packed = gzip.compress(text.encode())
    path = tmp_path / "log.csv"
    path.write_bytes(packed)
    assert len(rows(path)) == 5000
    path.write_bytes(packed[: len(packed) // 2])
    assert "the compressed file is damaged" in reasons(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n", "no column user_id, item_id, timestamp; the columns are none"),
        ("user,item_id,timestamp\n", "no column user_id; the columns are 'user'"),
        ("user_id,item_id,timestamp\n", "no interactions in it"),
        ("user_id,item_id,timestamp,item_id\n", "two columns are called item_id"),
    ],
)
def test_a_file_that_is_no_log(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert reasons(path) == f"{path}: {message}" or reasons(path).startswith(f"{path}: {message}")


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_log(tmp_path / "none.csv")


def test_rows_are_sorted_by_user_and_time_and_ties_keep_the_order_of_the_file(
    tmp_path: Path,
) -> None:
    path = write(tmp_path, "user_id,item_id,timestamp\nb,1,5\na,2,9\na,3,5\na,4,9\na,5,1\nb,6,5\n")
    assert [(user, item) for user, item, _ in rows(path)] == [
        ("a", "5"),
        ("a", "3"),
        ("a", "2"),
        ("a", "4"),
        ("b", "1"),
        ("b", "6"),
    ]


def test_a_user_with_an_unknown_time_keeps_the_order_of_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, "user_id,item_id,timestamp\na,1,7\na,2,\nb,3,9\nb,4,8\na,5,7\nc,6,\na,7,9\n"
    )
    log = read_log(path)
    assert log.frame["item_id"].to_list() == ["1", "2", "5", "7", "4", "3", "6"]
    assert log.notes == [
        "2 users have interactions without a time: theirs are taken in the order of the file"
    ]


def test_there_a_known_time_must_not_go_back(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id,item_id,timestamp\na,1,7\na,2,\nb,3,9\na,4,6\nb,5,8\na,6,7\n")
    message = reasons(path)
    assert "1 rows can't be read" in message
    assert "line 5: timestamp is before that of an earlier row" in message
    kept = read_log(path, skip_bad_rows=True).frame
    assert kept["item_id"].to_list() == ["1", "2", "6", "5", "3"]


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([1_318_899_723, 1_318_899_723_456, None]),
        pl.Series([1318899723.0, 1318899723456.0, None]),
        pl.Series(["1318899723", "2011-10-18T01:02:03.456Z", None]),
    ],
)
def test_parquet_columns(tmp_path: Path, times: pl.Series) -> None:
    path = tmp_path / "log.parquet"
    users = pl.Series([7, 7, 8])
    pl.DataFrame({"item_id": ["x", "y", "z"], "timestamp": times, "user_id": users}).write_parquet(
        path
    )
    assert rows(path) == [
        ("7", "x", 1_318_899_723_000),
        ("7", "y", MOMENT_MS),
        ("8", "z", UNKNOWN_TIME),
    ]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_parquet_datetimes(tmp_path: Path, unit: str, zone: str | None) -> None:
    path = tmp_path / "log.parquet"
    moments = pl.Series([MOMENT.replace(tzinfo=None), None]).cast(pl.Datetime(unit))  # type: ignore[arg-type]
    if zone is not None:
        moments = moments.dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["i", "j"], "timestamp": moments})
    frame.write_parquet(path)
    assert [ms for _, _, ms in rows(path)] == [MOMENT_MS, UNKNOWN_TIME]


def test_parquet_faults_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    frame = pl.DataFrame(
        {
            "user_id": ["u", None, "u"],
            "item_id": ["i", "j", "k"],
            "timestamp": [1.0, 2.0, float("nan")],
        }
    )
    frame.write_parquet(path)
    message = reasons(path)
    assert "line 2: user_id is missing" in message
    assert "line 3: timestamp NaN is not finite" in message
    frame.with_columns(pl.lit(1.5).alias("user_id")).write_parquet(path)
    assert "user_id is Float64; store it as integers or strings" in reasons(path)
    path.write_bytes(path.read_bytes()[:40])
    assert "not readable as Parquet" in reasons(path)


def test_item_table(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'item_id,title,genres\n1,"Heat, 1995",Action| Crime\n2,,\n3,Up|,|\n', "items.csv"
    )
    assert read_items(path).rows() == [
        ("1", "Heat, 1995", ["Action", "Crime"]),
        ("2", None, []),
        ("3", "Up|", []),
    ]
    more = write(tmp_path, "price,item_id,hidden\n1.50,x,true\n,y,\n", "more.csv")
    assert read_items(more).to_dicts() == [
        {"item_id": "x", "title": None, "categories": [], "price": "1.50"},
        {"item_id": "y", "title": None, "categories": [], "price": ""},
    ]
    bare = write(tmp_path, "item_id\nx\n", "bare.csv")
    assert read_items(bare).rows() == [("x", None, [])]


def test_an_item_listed_twice_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, "item_id,title\n1,a\n1,b\n2,c\n")
    with pytest.raises(InputError, match="line 3: item_id '1' was listed before"):
        read_items(path)
    assert read_items(path, skip_bad_rows=True)["title"].to_list() == ["a", "c"]


def test_item_table_from_parquet_with_lists(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"item_id": [1, 2], "categories": [["a", "b"], None]}).write_parquet(path)
    assert read_items(path).rows() == [("1", None, ["a", "b"]), ("2", None, [])]


def test_large_files_take_seconds(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    n = 300_000
    frame = pl.DataFrame({"user_id": pl.int_range(n, eager=True) % 5003}).with_columns(
        item_id=pl.int_range(n) * 7919 % 4001, timestamp=pl.int_range(n) + 1_300_000_000
    )
    frame.write_csv(path)
    began = time.process_time()
    assert len(read_log(path).frame) == n
    assert time.process_time() - began < 10


# -- How the file is written -------------------------------------------------------------------

TEXT = "user_id,item_id,timestamp\nu\u00e9,i,7\nv,j,8\n"
READ = [("u\u00e9", "i", 7000), ("v", "j", 8000)]


def zipped(content: bytes, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(
    "pack",
    [
        bytes, gzip.compress, bz2.compress, lzma.compress,
        pytest.param(lambda content: zipped(content, "log.csv"), id="zip"),
        pytest.param(lambda content: zipped(content, "log.csv", "__MACOSX/log.csv"), id="mac"),
    ],
)  # fmt: skip
def test_a_packed_file_in_any_unicode_is_read(
    tmp_path: Path, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "log"
    path.write_bytes(pack(TEXT.encode(encoding)))
    assert rows(path) == READ


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep={}\n", '"sep={}"\r\n'])
def test_what_stands_between_fields_is_found(tmp_path: Path, separator: str, first: str) -> None:
    text = first.format(separator) + TEXT.replace(",", separator) + f"w{separator}k\n"
    path = write(tmp_path, text)
    log = read_log(path, skip_bad_rows=True)
    assert [tuple(row) for row in log.frame.iter_rows()] == sorted(READ)
    assert log.bad_rows == [BadRow(5 if first else 4, "2 fields instead of 3")]
    names = {";": "semicolon", "\t": "tab", "|": "pipe"}
    said = [f"fields are separated by {names[separator]}"] if separator in names else []
    assert log.notes == said


@given(
    fields=st.lists(
        st.tuples(*[st.text("ab ,;", min_size=1, max_size=4).filter(str.strip)] * 2), min_size=1,
        max_size=5,
    ),
    separator=st.sampled_from([",", ";", "\t", "|"]),
    blanks=st.sampled_from(["", " ", "  "]),
)  # fmt: skip
def test_blanks_around_names_and_values_are_no_part_of_them(
    tmp_path: Path, fields: list[tuple[str, str]], separator: str, blanks: str
) -> None:
    def line(*values: str) -> str:
        quoted = (f'"{value}"' if set(value) & set(",; ") else value for value in values)
        return f"{separator}{blanks}".join(quoted) + "\n"

    text = line("user_id", "item_id", "timestamp")
    path = write(tmp_path, text + "".join(line(user, item, "1") for user, item in fields))
    found = [(user, item) for user, item, _ in rows(path)]
    assert sorted(found) == sorted((user.strip(), item.strip()) for user, item in fields)


def test_blanks_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id, item_id, timestamp\nu, i, 1\n")
    assert read_log(path).notes == ["blanks around item_id, timestamp are no part of the values"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (zipped(b"x", "a.csv", "b.csv"), "is a zip archive of 2 files: unpack it"),
        (zipped(b"x", "[Content_Types].xml"), "is an Excel workbook: save it as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "is an Excel workbook"),
        (b'{"user_id": "u"}\n', "looks like JSON: give CSV or Parquet"),
        (b"ARROW1\0\0", "is an Arrow file"),
        (gzip.compress(gzip.compress(b"x")), "is packed twice"),
        (gzip.compress(b"\0" * 257 + b"ustar"), "is a tar archive"),
        (b"\x00\x01\x02 x \x00\x00", "is no text"),
        (bz2.compress(TEXT.encode() * 999)[:-9], "the compressed file is damaged"),
        (zipped(TEXT.encode(), "log.csv")[:-30], "the compressed file is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # an archive has the time in it
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    assert reasons(path).startswith(f"{path}: ")
    assert said in reasons(path)


def test_an_older_encoding_is_read_when_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_bytes("item_id,title\n1,Am\u00e9lie\n2,Plain\n".encode("latin-1"))
    with pytest.raises(InputError, match="line 2: title is not valid UTF-8") as caught:
        read_items(path)
    assert "--encoding latin-1" in str(caught.value)
    assert read_items(path, skip_bad_rows=True)["title"].to_list() == ["Plain"]
    form = TableFormat(encoding="latin-1")
    assert read_items(path, form=form)["title"].to_list() == ["Am\u00e9lie", "Plain"]
    with pytest.raises(InputError, match="--encoding klingon: there is no such encoding"):
        read_items(path, form=TableFormat(encoding="klingon"))


@pytest.mark.parametrize("parquet", [False, True])
def test_columns_under_other_names(tmp_path: Path, parquet: bool) -> None:
    frame = pl.DataFrame(
        {"user_id": ["x"], " sku ": ["i"], "customer": ["u"], "when": [7], "kind": ["a"]}
    )
    path = tmp_path / "log"
    frame.write_parquet(path) if parquet else frame.write_csv(path)
    assert "no column item_id, timestamp; the columns are 'user_id', 'sku'" in reasons(path)
    form = TableFormat.parse("user_id=customer, item_id=sku,timestamp=when")
    assert read_log(path, form=form).frame.rows() == [("u", "i", 7000)]
    with pytest.raises(InputError, match=r"no column who \(--columns user_id=who\); the columns"):
        read_log(path, form=TableFormat.parse("user_id=who"))


def test_a_mapping_is_offered_where_names_are_near(tmp_path: Path) -> None:
    path = write(tmp_path, "Customer-ID,SKU,event_time,event type\nu,i,1,view\n")
    offered = "user_id=Customer-ID,item_id=SKU,timestamp=event_time,kind=event type"
    assert reasons(path).endswith(f": did you mean --columns '{offered}'?")
    log = read_log(path, kinds=True, form=TableFormat.parse(offered))
    assert log.frame.rows() == [("u", "i", 1000, "view", None)]
    path = write(tmp_path, "customer_id,thing,event_time\n")
    assert "did you mean" not in reasons(path)
    items = write(tmp_path, "id,name\n1,x\n")
    with pytest.raises(InputError, match=r"did you mean --columns item_id=id,title=name\?"):
        read_items(items)


@pytest.mark.parametrize("columns", ["user_id", "=x", "user_id=", "a=b,a=c"])
def test_a_mapping_that_is_none_is_refused(columns: str) -> None:
    with pytest.raises(InputError, match=r"^--columns: "):
        TableFormat.parse(columns)


@pytest.mark.parametrize("word", ["NULL", "nan", "None", "NA", "\\N"])
@pytest.mark.parametrize("parquet", [False, True])
def test_a_word_for_nothing_is_no_id(tmp_path: Path, word: str, parquet: bool) -> None:
    frame = pl.DataFrame({"user_id": ["u", "u"], "item_id": ["i", word], "timestamp": [1, 2]})
    path = tmp_path / "log"
    frame.write_parquet(path) if parquet else frame.write_csv(path)
    row = 2 if parquet else 3
    assert f"line {row}: item_id is '{word}', a word for nothing" in reasons(path)
    assert rows(path, skip_bad_rows=True) == [("u", "i", 1000)]


# -- Times ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "text", "expected"),
    [
        ("%d/%m/%Y %H:%M", "18/10/2011 01:02", 1_318_899_720_000),
        ("%d.%m.%Y", "18.10.2011", 1_318_896_000_000),
        ("%Y%m%d%H%M", "201110180102", 1_318_899_720_000),
        ("%Y-%m-%d %H:%M:%S %z", "2011-10-18 03:02:03 +0200", 1_318_899_723_000),
    ],
)
def test_times_in_a_form_of_their_own(tmp_path: Path, form: str, text: str, expected: int) -> None:
    path = write(tmp_path, f"user_id,item_id,timestamp\nu,i,{text}\nu,j,\n")
    read = read_log(path, form=TableFormat(time_format=form))
    assert sorted(read.frame["time_ms"]) == sorted([expected, UNKNOWN_TIME])
    write(tmp_path, f"user_id,item_id,timestamp\nu,i,{text}\nu,j,soon\n")
    with pytest.raises(InputError, match="line 3: timestamp 'soon' is not written as --time"):
        read_log(path, form=TableFormat(time_format=form))


def test_a_form_of_times_that_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, "user_id,item_id,timestamp\nu,i,1\n")
    with pytest.raises(InputError, match="--time-format %Q"):
        read_log(path, form=TableFormat(time_format="%Q"))


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (["2026-01-01", "0", "-1"], "2 of 3 times lie before 1990 .*leave those fields empty"),
        (["46000.25", "45999"], "2 of 2 times lie before 1990 .*a spreadsheet's day numbers"),
        (["202601011230"], "look like YYYYMMDDHHMM: give --time-format '%Y%m%d%H%M'"),
        (["20261301"], "1 of 1 times lie before 1990 .*from 1970-08-23.* --any-time"),
        (["2026-01-01", "1980-01-01"], "1 of 2 times lie before 1990"),
        (["4102444800"], "there are times to come .* to 2100-01-01.* --any-time"),
    ],
)
def test_times_that_cant_be_meant_are_refused(tmp_path: Path, times: list[str], said: str) -> None:
    table = "user_id,item_id,timestamp\n" + "".join(f"u,i,{time}\n" for time in times)
    path = write(tmp_path, table)
    with pytest.raises(InputError, match=said):
        read_log(path, form=TableFormat(any_time=False))
    assert len(read_log(path, form=TableFormat(any_time=True)).frame) == len(times)


def test_dates_as_numbers_are_dates_in_every_form(tmp_path: Path) -> None:
    whole = pl.DataFrame({"user_id": "u", "item_id": "i", "timestamp": [20260701, 20251231]})
    whole.write_parquet(tmp_path / "whole")
    whole.write_csv(tmp_path / "text")
    for name in ("whole", "text"):
        times = read_log(tmp_path / name, form=TableFormat(any_time=False)).frame["time_ms"]
        assert times.to_list() == [1_767_139_200_000, 1_782_864_000_000]


# -- Folders of parts --------------------------------------------------------------------------


@settings(max_examples=examples(20))
@given(
    log=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "", " "]),
            st.sampled_from(["1", "2", ""]),
            st.sampled_from(["7", "8", "9", "", "soon"]),
        ),
        min_size=1,
        max_size=30,
    ),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    format_=st.sampled_from(["csv", "csv.gz", "parquet"]),
)
def test_a_folder_of_parts_is_their_rows_one_after_the_other(
    tmp_path_factory: pytest.TempPathFactory,
    log: list[tuple[str, str, str]],
    cuts: list[int],
    format_: str,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    names = ["user_id", "item_id", "timestamp"]

    def written(path: Path, part: list[tuple[str, str, str]]) -> Path:
        if format_ == "parquet":
            pl.DataFrame(part, dict.fromkeys(names, pl.String), orient="row").write_parquet(path)
        else:
            text = "".join(",".join(row) + "\n" for row in [tuple(names), *part]).encode()
            path.write_bytes(gzip.compress(text) if format_ == "csv.gz" else text)
        return path

    places = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    parts = [log[begin:end] for begin, end in itertools.pairwise(places)]
    for number, part in enumerate(parts):
        written(folder / f"part-{number}.{format_}", part)
    for other in ("_SUCCESS", ".part-0.csv.crc", "_part.csv", ".hidden.parquet", "manifest.json"):
        (folder / other).write_text("no part")
    one = written(tmp_path_factory.mktemp("one") / "log", log)
    try:
        expected = read_log(one, skip_bad_rows=True)
    except InputError:
        with pytest.raises(InputError, match="no interactions in it"):
            read_log(folder, skip_bad_rows=True)
        return
    found = read_log(folder, skip_bad_rows=True)
    assert found.frame.equals(expected.frame)
    assert found.bad_row_count == expected.bad_row_count
    assert found.notes == expected.notes


def test_a_bad_row_of_a_part_is_named_with_it(tmp_path: Path) -> None:
    write(tmp_path, "user_id,item_id,timestamp\na,1,7\na,2,8\n", "part-0.csv")
    write(tmp_path, "user_id,item_id,timestamp\na,,7\n", "part-1.csv")
    assert "  line 5: item_id is missing (part-1.csv, line 2)\n" in reasons(tmp_path)


def test_parts_that_differ_in_their_columns_are_refused(tmp_path: Path) -> None:
    part = pl.DataFrame({"user_id": ["a"], "item_id": ["1"], "timestamp": [7]})
    part.write_parquet(tmp_path / "part-0.parquet")
    part.cast({"timestamp": pl.String}).write_parquet(tmp_path / "part-1.parquet")
    assert reasons(tmp_path) == (
        f"{tmp_path}/part-1.parquet: user_id String, item_id String, timestamp String; the parts "
        "before it: user_id String, item_id String, timestamp Int64. Give all parts the same "
        "columns of the same types"
    )
    part.drop("timestamp").write_parquet(tmp_path / "part-1.parquet")
    assert f"{tmp_path}/part-1.parquet: no column timestamp" in reasons(tmp_path)


def test_a_folder_without_parts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "notes.txt").touch()
    assert reasons(tmp_path).startswith(f"{tmp_path}: is a folder without parts, *.parquet or")
    assert reasons(tmp_path).endswith("in it: 'notes.txt'")


def test_a_folder_whose_export_is_not_complete_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "user_id,item_id,timestamp\na,1,7\n", "part-0.csv")
    assert rows(tmp_path) == [("a", "1", 7000)]
    (tmp_path / "_export").mkdir()
    assert "the export is not complete" in reasons(tmp_path)
    for manifest, said in (
        ('{"parts": [{"name": "part-1.csv"}]}', "part-1.csv: No such file"),
        ('{"parts": [{"name": ".', "log: "),
        ('{"parts": 7}', "log: "),
    ):
        write(tmp_path, manifest, "manifest.json")
        assert said.replace("log", str(tmp_path)) in reasons(tmp_path)
        assert "\n" not in reasons(tmp_path)
    write(tmp_path, '{"parts": [{"name": "part-0.csv"}]}', "manifest.json")
    assert rows(tmp_path) == [("a", "1", 7000)]


def test_an_id_in_an_export_is_exactly_what_it_says(tmp_path: Path) -> None:
    users = [" ", "\ufffd", "", "NULL"]
    frame = pl.DataFrame({"user_id": users, "item_id": "\n", "timestamp": 7})
    frame.write_parquet(tmp_path / "part-0.parquet")
    assert "4 rows can't be read:\n  line 1: user_id is missing" in reasons(tmp_path)
    (tmp_path / "_export").mkdir()
    write(tmp_path, '{"parts": [{"name": "part-0.parquet"}]}', "manifest.json")
    assert "1 rows can't be read:\n  line 3: user_id is missing\n" in reasons(tmp_path)
    found = [user for user, _, _ in rows(tmp_path, skip_bad_rows=True)]
    assert found == sorted([" ", "\ufffd", "NULL"])
