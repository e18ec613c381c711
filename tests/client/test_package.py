"""The client as a distribution of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "client"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("setuptools") is None, reason="needs setuptools")
def test_it_installs_by_itself_and_needs_httpx_only(tmp_path: Path) -> None:
    source = shutil.copytree(CLIENT, tmp_path / "client")
    command = ["pip", "install", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run(
        [sys.executable, "-m", *command, "--target", str(tmp_path / "site"), str(source)],
        check=True,
        timeout=120,
    )
    code = (
        "import sys, tim4rec_client as c; c.Client('http://x').close(); c.Interaction('a', 'b');"
        "ours = {'model', 'service', 'torch', 'fastapi', 'redis'} & set(sys.modules);"
        "assert not ours, ours; print(c.__file__)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path / "site",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert str(tmp_path / "site") in found.stdout
    assert (tmp_path / "site" / "tim4rec_client" / "py.typed").exists()
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text("utf-8"))["project"]
    assert [need.partition(">")[0] for need in project["dependencies"]] == ["httpx"]
