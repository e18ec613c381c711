"""The oldest versions that pyproject.toml allows, as requirements.

    python deploy/oldest.py [EXTRA...]

`make oldest` installs them, and runs tests with them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def oldest(extras: list[str]) -> Iterator[str]:
    """Each requirement, with its lower bound for a version."""
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    for requirement in wanted:
        if not requirement.startswith(f"{project['name']}["):
            yield re.sub(r">=([^;,\s]+)", r"==\1", requirement)


if __name__ == "__main__":
    print("\n".join(oldest(sys.argv[1:])))
