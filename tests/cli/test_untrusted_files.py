"""What is no file, or has no end, is refused at once in one line, whichever command reads it."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import Result

from model.artefact import CONFIG, METRICS
from model.description import ITEMS, WEIGHTS
from tests.cli.conftest import BASE_MS, Write, tim4rec
from tests.ports import free_port
from tests.service.processes import ROOT
from tests.waited import LONG_S

MEMORY = 512 << 20


def refused(result: Result, *parts: object) -> None:
    """In one line, which holds all of `parts`."""
    assert result.exit_code == 1, (result.output, result.exception)
    assert result.output.startswith("error: ")
    line = result.output.removesuffix("\n")
    assert line.isprintable()
    assert len(line) < 1000
    for part in parts:
        assert str(part) in line


@contextmanager
def little_memory() -> Iterator[None]:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


@pytest.fixture
def log(write: Write) -> Path:
    return write(
        [(f"u{u}", f"i{(u + k) % 5}", BASE_MS + 1000 * k) for u in range(6) for k in range(6)]
    )


READERS: dict[str, Callable[[Path, Path, Path], tuple[object, ...]]] = {
    "train": lambda fifo, log, model: ("train", fifo, "--out", log.parent / "out"),
    "train --items": lambda fifo, log, model: (
        "train", log, "--items", fifo, "--out", log.parent / "out"
    ),
    "evaluate": lambda fifo, log, model: ("evaluate", model, fifo),
    "replay": lambda fifo, log, model: ("replay", fifo),
    "import-log": lambda fifo, log, model: ("import-log", fifo, "--data-dir", log.parent / "d"),
    "import-items": lambda fifo, log, model: ("import-items", fifo, "--data-dir", log.parent / "d"),
    "import-official": lambda fifo, log, model: (
        "import-official", fifo, "--items", log, "--out", log.parent / "out"
    ),
    "serve": lambda fifo, log, model: ("serve", model, "--api-keys-file", fifo),
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
def test_no_command_waits_for_a_fifo(
    reader: str, fifo: Path, log: Path, model_folder: Path
) -> None:
    refused(tim4rec(*READERS[reader](fifo, log, model_folder)), fifo, "is a FIFO")
    assert not (log.parent / "out").exists()


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".csv"])
def test_no_form_of_an_item_table_is_waited_for(tmp_path: Path, fifo: Path, ending: str) -> None:
    named = fifo.rename(fifo.with_suffix(ending))
    refused(tim4rec("import-items", named, "--data-dir", tmp_path / "d"), named, "is a FIFO")


def test_no_public_data_are_waited_for(tmp_path: Path, fifo: Path) -> None:
    result = tim4rec("data", "--from", fifo, "--out", tmp_path / "out")
    refused(result, fifo, "neither a file nor a folder")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, ITEMS, METRICS])
@pytest.mark.parametrize("command", ["serve", "evaluate", "warm", "size"])
def test_no_command_waits_for_a_model(
    command: str, name: str, tmp_path: Path, log: Path, model_folder: Path
) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / name).unlink()
    os.mkfifo(model / name)
    more = {
        "serve": ("--port", free_port()), "evaluate": (log,), "size": (),
        "warm": ("--data-dir", tmp_path / "d"),
    }  # fmt: skip
    refused(tim4rec(command, model, *more[command]), model / name, "is a FIFO")


@pytest.mark.slow
def test_the_service_ends_with_one_line(tmp_path: Path, model_folder: Path) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / CONFIG).unlink()
    (model / CONFIG).symlink_to("/dev/zero")
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "serve", str(model), "--port", str(free_port()),
         "--data-dir", str(tmp_path / "state")],
        cwd=ROOT, capture_output=True, text=True, timeout=LONG_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"error: {model / CONFIG}: is a link that leads out of {model}\n"


@pytest.mark.parametrize(
    "protocol", [7, None, [], {"core": "x"}, {"core": 0}, {"split": []}, {"more": 1}], ids=str
)
def test_a_protocol_that_is_none(
    tmp_path: Path, log: Path, model_folder: Path, protocol: object
) -> None:
    model = shutil.copytree(model_folder, tmp_path / "model")
    (model / METRICS).write_text(json.dumps({"protocol": protocol}))
    refused(tim4rec("evaluate", model, log), model / METRICS, "protocol")


def test_an_id_that_no_model_may_have_is_said_before_training(write: Write, tmp_path: Path) -> None:
    items = ["x" * 257, "a", "b", "c", "d"]
    log = write(
        [(f"u{u}", items[(u + k) % 5], BASE_MS + 1000 * k) for u in range(6) for k in range(6)]
    )
    result = tim4rec("train", log, "--out", tmp_path / "out")
    assert result.exit_code == 1
    said = result.output.splitlines()[-1]
    assert said.startswith(f"error: {log}: items: id 5 has 257 bytes of UTF-8")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.training").exists()


@pytest.mark.slow
@pytest.mark.parametrize("quoted", [False, True])
def test_a_line_without_end(tmp_path: Path, quoted: bool) -> None:
    """A few megabytes that are a gigabyte, unpacked."""
    path = tmp_path / "log.csv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"user_id,item_id,timestamp\n" + (b'"u",i,1\n' if quoted else b""))
        for _ in range(1024):
            file.write(b"x" * (1 << 20))
    with little_memory():
        result = tim4rec("import-log", path, "--data-dir", tmp_path / "d")
    refused(result, path, "a line of more than 1,048,576 characters")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"item_id": "a", "item_id": "b"}', "item_id stands twice"),
        ('{"item_id": "a", "attributes": {"x": NaN}}', "NaN"),
        ('{"item_id": ' + "9" * 5000 + "}", "digits"),
        ('{"item_id": "a", "title": "' + "x" * (1 << 20) + '"}', "line 2 has"),
    ],
    ids=lambda text: text[:20],
)
def test_item_lines_that_are_none(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "first"}\n' + line + "\n")
    result = tim4rec("import-items", path, "--data-dir", tmp_path / "d")
    assert result.exit_code == 1
    assert str(path) in result.output
    assert "line 2" in result.output
    assert said in result.output
    assert result.output.count("\n") <= 2  # the row beneath, where there could be more of them
