"""What every service loads as it starts, once for those that are forked from here."""

from pathlib import Path

import cli.main
import cli.serve  # noqa: F401
from service.app import create_app
from service.settings import Settings

create_app(Settings(artefact=Path("none"), redis_url="redis://none"))
