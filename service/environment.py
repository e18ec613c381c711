"""Settings of flags and of the environment, and what is wrong with them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from service.settings import PREFIX, Settings

CLIENT_VARIABLES = frozenset({"TIM4REC_API_KEY"})
"""Of the commands that talk to a service; no settings of one."""

LEARNER_PREFIX = "TIM4REC_LEARN_"
"""Of the variables of `tim4rec learn`, which knows which ones there are."""

_LINK = re.compile(r"TIM4REC_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)")


class SettingsError(ValueError):
    """Settings that can't be used. One line that names each flag or variable, and the fix."""


def variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def flag(name: str) -> str:
    return f"--{name.removesuffix('_url').replace('_', '-')}"


def read_settings(given: Mapping[str, object] | None = None) -> Settings:
    """Settings of the given values and, for what is None or empty, the environment.

    Raises:
        SettingsError: a value is impossible, or a variable of the environment unknown.
    """
    chosen = {name: value for name, value in (given or {}).items() if value not in (None, "")}
    faults = _unknown_variables()
    settings = None
    try:
        settings = Settings(**chosen)  # type: ignore[arg-type]
    except ValidationError as error:
        faults += [_fault(fault, chosen) for fault in error.errors()]
    if settings is not None and settings.redis is not None and "data_dir" in chosen:
        faults.append(f"--data-dir, and a URL in --redis or {variable('redis_url')}: give one")
    if settings is None or faults:
        raise SettingsError("; ".join(faults))
    return settings


def _fault(fault: Any, given: Mapping[str, object]) -> str:
    name = ".".join(map(str, fault["loc"]))
    message = str(fault["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    if fault["type"] == "missing":
        return f"{variable(name)} is not given: {Settings.model_fields[name].description}"
    return f"{flag(name) if name in given else variable(name)}: {message}"


def _unknown_variables() -> list[str]:
    names = [name.upper() for name in Settings.model_fields]
    known = {PREFIX + name for name in names} | CLIENT_VARIABLES
    faults = []
    for name, value in sorted(os.environ.items()):
        given = name.upper()
        linked = given == variable("port") and "://" in value
        if not given.startswith(PREFIX) or given.startswith(LEARNER_PREFIX):
            continue
        if given in known and not linked:
            continue
        if _LINK.fullmatch(given):
            faults.append(
                f"{name} comes from a Kubernetes service named tim4rec and is no setting: say "
                "enableServiceLinks: false in the pod"
            )
        elif given not in known:
            near = difflib.get_close_matches(given.removeprefix(PREFIX), names, 1)
            hint = f"did you mean {PREFIX}{near[0]}?" if near else "`tim4rec settings` lists all"
            faults.append(f"{name} is no setting: {hint}")
    return faults
