"""What a test of a fault measured, printed as it goes."""

from __future__ import annotations

import pytest


class Report:
    def __init__(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.name, self.capsys = name, capsys

    def __call__(self, **figures: object) -> None:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {f'{value:.2f}' if isinstance(value, float) else value}"
            for name, value in figures.items()
        )
        with self.capsys.disabled():
            print(f"\n{self.name}: {shown}", flush=True)
