"""The image's lock file is of today's pins, and everything in it has a hash."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


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


def test_oldest_is_within_what_is_allowed() -> None:
    for wanted in output("oldest.py", "otel", "index"):
        assert str(wanted.specifier).startswith("=="), wanted
