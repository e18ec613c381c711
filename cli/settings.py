"""The service's settings as a command gets them: its own options, else the environment."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from cli.console import CommandError
from service.settings import Settings

ENVIRONMENT = "TIM4REC_"


def chosen_settings(**given: Any) -> Settings:
    """Settings of the given values (None: the environment's or the default).

    Raises:
        CommandError: one line that names each wrong option or variable.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    try:
        settings = Settings(**chosen)
    except ValidationError as error:
        raise CommandError("; ".join(_fault(fault, chosen) for fault in error.errors())) from None
    if settings.redis is not None and "data_dir" in chosen:
        raise CommandError("--data-dir, and a URL in --redis or TIM4REC_REDIS_URL: give one")
    return settings


def _fault(fault: Any, given: dict[str, Any]) -> str:
    name = ".".join(map(str, fault["loc"]))
    if not name:
        return str(fault["msg"]).removeprefix("Value error, ")
    option = name.removesuffix("_url")
    place = f"--{option.replace('_', '-')}" if name in given else f"{ENVIRONMENT}{name.upper()}"
    return f"{place}: {fault['msg']}"
