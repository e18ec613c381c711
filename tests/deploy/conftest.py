"""What the tests of the deployment share with the service's."""

from __future__ import annotations

from tests.service.conftest import folder

__all__ = ["folder"]
