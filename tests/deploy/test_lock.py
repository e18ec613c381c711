"""The image's lock file is of today's pins, and everything in it has a hash."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.deploy.dockerfile import ROOT, instructions


def output(script: str, *arguments: str) -> list[Requirement]:
    command = [sys.executable, ROOT / "deploy" / script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [Requirement(line) for line in done.stdout.splitlines()]


def locked() -> dict[str, tuple[str, int]]:
    """Version and number of hashes by name."""
    text = (ROOT / "deploy" / "cpu.lock").read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            name, version = re.match(r"([A-Za-z0-9._-]+)==([^\s;]+)", line).groups()  # type: ignore[union-attr]
            hashes = re.findall(r"--hash=sha256:[0-9a-f]{64}\b", line)
            found[canonicalize_name(name)] = version, len(hashes)
    return found


def test_everything_is_locked_with_hashes() -> None:
    found = locked()
    assert all(hashes for _, hashes in found.values())
    for wanted in output("lock.py"):
        version, _ = found[canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version), wanted
    assert "torch" not in found
    assert not any(name.startswith("nvidia") for name in found)


def test_the_lock_has_the_pins_of_the_constraints() -> None:
    found = locked()
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    for pin in (Requirement(line) for line in lines if line and not line.startswith("#")):
        version, _ = found.get(canonicalize_name(pin.name), (None, 0))
        if version is not None:
            assert Version(version) in pin.specifier, f"{pin}: make lock"


def test_the_cpu_image_installs_what_is_locked_and_nothing_else() -> None:
    stage, installs = "", dict[str, list[list[str]]]()
    for name, rest in instructions():
        if name == "FROM":
            stage = rest.rpartition(" AS ")[2]
        elif name == "RUN":
            parts = (part.strip() for part in re.split(r"&&|;", rest))
            installs.setdefault(stage, []).extend(
                shlex.split(part) for part in parts if "pip install" in part
            )
    torch, locked = installs["packages-cpu"]
    assert {"--no-deps", "$(grep '^torch==' constraints.txt)"} < set(torch)
    assert locked == ["pip", "install", "--no-deps", "--require-hashes", "-r", "cpu.lock"]
    (own,) = installs["application"]
    assert own[:4] == ["pip", "install", "--no-deps", "--no-build-isolation"]
    assert own[-1] == "."
    assert not installs["builder"]
    assert installs.keys() <= {"builder", "packages-cpu", "packages-cuda", "application", stage}
    assert not installs[stage]


@pytest.mark.parametrize(
    ("said", "status", "looked_up"),
    [
        ("No known vulnerabilities found", 0, True),
        ("Name Version ID\nx 1.0 PYSEC-1", 1, True),
        ("ERROR:pip_audit._cli:x: Dependency not found on PyPI and could not be audited", 1, False),
        ("requests.exceptions.ConnectionError: no such host", 1, False),
    ],
)
def test_an_audit_that_could_not_look_up_says_so(
    tmp_path: Path, said: str, status: int, looked_up: bool
) -> None:
    """`make audit`, with a pip-audit that says what the real one does."""
    (tmp_path / "bin").mkdir()
    audit = tmp_path / "bin" / "pip-audit"
    audit.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\nexit {status}\n")
    audit.chmod(0o755)
    (tmp_path / ".installed").touch()
    command = ["make", "-s", "audit", f"TOOLS={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == (status == 0)
    assert said.splitlines()[-1] in done.stdout
    assert ("nothing was looked up" in done.stderr) != looked_up


def test_oldest_is_within_what_is_allowed() -> None:
    for wanted in output("oldest.py", "otel", "index"):
        assert str(wanted.specifier).startswith("=="), wanted
