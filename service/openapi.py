"""The OpenAPI document as a file, for whoever makes a client or looks at what has changed.

python -m service.openapi > docs/openapi.json
"""

from __future__ import annotations

import json
import sys

from service.app import create_app
from service.settings import Settings


def document() -> str:
    """The document that `/openapi.json` answers with, a key a line."""
    api = create_app(Settings(artefact=".")).api
    return json.dumps(api.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(document())
