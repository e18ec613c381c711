"""A small model and a printer for the tests of this folder, which `make test-faults` runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model.artefact import Artefact
from tests.faults.report import Report
from tests.service.conftest import folder
from tests.service.processes import make_artefact

__all__ = ["folder"]

ITEMS = [f"i{n}" for n in range(40)]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.faults)


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("faults") / "model", ITEMS)


@pytest.fixture
def report(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    return Report(request.node.name, capsys)
