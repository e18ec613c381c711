"""Training asks for room before it begins, and says what could not be written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.console import CommandError
from cli.disk_room import require_room
from model import ModelConfig

FULL = """
import resource, sys
import torch, typer
from pathlib import Path
from cli.console import errors_without_traceback
from model.tensor_file import write_tensors

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with errors_without_traceback():
        write_tensors(Path(sys.argv[1]), {"x": torch.zeros(10_000)})
except typer.Exit as ended:
    sys.exit(ended.exit_code)
"""


def test_what_never_fits_is_refused_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "art"
    with pytest.raises(CommandError) as refused:
        require_room(folder, ModelConfig(n_items=2**31 - 1), 1000)
    assert str(refused.value).startswith(f"--out {folder}: training needs ")
    assert "make room" in str(refused.value)
    assert not folder.parent.exists()


def test_what_fits_is_not(tmp_path: Path) -> None:
    require_room(tmp_path / "art", ModelConfig(n_items=10), 2)


def test_a_file_that_can_t_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == f"error: {file}: File too large\n"
    assert not file.exists()
