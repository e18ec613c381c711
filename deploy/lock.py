"""What the CPU image installs beside torch: `make lock` makes deploy/cpu.lock of it.

torch itself comes from an index of its own; without it the rest does not ask for CUDA's libraries.
Its own dependencies therefore stand here by name.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
OF_TORCH = (
    "filelock", "jinja2", "networkx", "setuptools", "sympy", "typing-extensions",
)  # fmt: skip


def requirements() -> list[str]:
    project = tomllib.loads(PROJECT.read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["index"], *extras["s3"]]
    return [one for one in wanted if not one.startswith("torch>")] + list(OF_TORCH)


if __name__ == "__main__":
    print("\n".join(requirements()))
