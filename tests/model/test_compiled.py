"""What is compiled works where nothing can be kept, and is compiled once where it can be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from numba.core import dispatcher

from model.compiled import compiled

FUNCTION = """
from model.compiled import compiled

@compiled
def twice(x):
    return 2 * x

assert twice(21) == 42
print(sum(twice.stats.cache_hits.values()), sum(twice.stats.cache_misses.values()))
"""


def add(a: int, b: int) -> int:
    return a + b


def test_without_a_folder_that_can_be_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(function: object) -> None:
        raise RuntimeError(f"cannot cache function {function}: no locator available")

    monkeypatch.setattr(dispatcher, "FunctionCache", nowhere)
    assert compiled(add)(40, 2) == 42


@pytest.mark.slow
def test_the_next_process_finds_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(FUNCTION)
    found = [
        subprocess.run(
            [sys.executable, script],
            env={"PYTHONPATH": ":".join(sys.path), "NUMBA_CACHE_DIR": str(tmp_path / "kept")},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for _ in range(2)
    ]
    assert found == ["0 1\n", "1 0\n"]
