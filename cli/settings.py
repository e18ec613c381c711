"""The service's settings in commands: as flags, as they were read, and as a table."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import typer
from pydantic import SecretStr
from pydantic.fields import FieldInfo

from cli.console import CommandError, out, say
from service.environment import SettingsError, flag, read_settings, variable
from service.settings import Settings

MARKDOWN_HEAD = """\
# Settings

Each comes from the environment variable, or from the flag of `tim4rec serve`; the flag wins. An
empty value is as good as none. An unknown variable TIM4REC_..., or an impossible value, stops the
start with one line. `import-log`, `export-log`, `warm` and `live rebuild` read the same variables.
Times are in seconds.

`tim4rec settings --markdown` writes this page.
"""

PRODUCTION_HEAD = """\
## Before production

Decide these ten; in the tables below they are bold. All others have defaults that fit most.

| variable | the question |
|---|---|"""

BEFORE_PRODUCTION = {
    "models_dir": "Shall models be changed, tried and learned while it serves? Where are they?",
    "operations_port": "Who may read `/metrics`? Without this: everybody who reaches `port`.",
    "redis_url": "Which store has the interactions? Who backs it up?",
    "replica_acks": "Must an acknowledged interaction outlive the loss of the store's machine?",
    "store_away": "While the store does not answer: stale or popular items, or an error?",
    "kinds": "What is a view, a cart, a purchase to the model, and what counts as popular?",
    "idle_ttl_s": "How long are users kept who do nothing? By default for ever.",
    "api_keys": "Who may call the API?",
    "admin_keys": "Who may change the model?",
    "outcome_window_s": "How late does an interaction still count for a recommendation?",
}
"""By setting, in the order of the settings."""


def chosen_settings(**given: Any) -> Settings:
    """Settings of the given values (None: the environment's or the default).

    Raises:
        CommandError: one line that names each wrong option or variable.
    """
    try:
        return read_settings(given)
    except SettingsError as error:
        raise CommandError(str(error)) from None


def takes_settings(command: Callable[[dict[str, Any]], None]) -> Callable[..., None]:
    """A command with a flag for every setting; it is called with the values by name, None where a
    flag is not given."""

    def called(**given: Any) -> None:
        command(given)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[(bool if field.annotation is bool else str) | None, parameter],
            )
            for name, field in Settings.model_fields.items()
            for parameter in [_parameter(name, field)]
        ]
    )
    return called


def _parameter(name: str, field: FieldInfo) -> Any:
    # Values are checked where those of the environment are.
    kind = _kind(field)
    metavar = kind if "|" in kind else kind.upper()
    default = _default(field)
    if field.is_required():
        return typer.Argument(metavar=name.upper(), help=f"{_meaning(field)}; or {variable(name)}")
    flags = flag(name)
    if field.annotation is bool:
        flags = f"{flags}/--no-{flags[2:]}"
    return typer.Option(
        flags,
        metavar=metavar,
        help=f"{_meaning(field)} (default: {default})" if default else _meaning(field),
        show_default=False,
        rich_help_panel=_group(field),
    )


def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of Markdown.")] = False,
) -> None:
    """Show all settings of the service: what they are called, may be, are by default, and mean."""
    if markdown:
        say(as_markdown(), out)
        return
    for group, fields in _groups():
        say(group, out)
        for name, field in fields.items():
            own, option, kind, default, meaning = _row(name, field)
            say(f"  {own}, {option}: {kind}" + (f" (default: {default})" if default else ""), out)
            say(f"      {meaning}", out)


def as_markdown() -> str:
    """The page of all settings."""
    lines = [MARKDOWN_HEAD, PRODUCTION_HEAD]
    lines += [f"| `{variable(name)}` | {asked} |" for name, asked in BEFORE_PRODUCTION.items()]
    lines.append("")
    for group, fields in _groups():
        lines += [f"## {group}", ""]
        lines += ["| variable | flag | type | default | meaning |", "|---|---|---|---|---|"]
        for name, field in fields.items():
            own, option, kind, default, meaning = _row(name, field)
            kind = kind.replace("|", r"\|")
            shown = f"`{default}`" if default else ""
            mark = "**" if name in BEFORE_PRODUCTION else ""
            lines.append(f"| {mark}`{own}`{mark} | `{option}` | {kind} | {shown} | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _row(name: str, field: FieldInfo) -> tuple[str, str, str, str, str]:
    option = name.upper() if field.is_required() else flag(name)
    return variable(name), option, _limited(field), _default(field), _meaning(field)


def _groups() -> Iterator[tuple[str, Mapping[str, FieldInfo]]]:
    for group, fields in groupby(Settings.model_fields.items(), lambda item: _group(item[1])):
        yield group, dict(fields)


def _group(field: FieldInfo) -> str:
    assert isinstance(field.json_schema_extra, dict)
    return str(field.json_schema_extra["group"])


def _meaning(field: FieldInfo) -> str:
    return " ".join((field.description or "").split())


def _default(field: FieldInfo) -> str:
    if field.is_required() or field.default in (None, ()):
        return ""
    if isinstance(field.default, tuple):
        return ",".join(map(str, field.default))
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def _kind(field: FieldInfo) -> str:
    kind = field.annotation
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    names: dict[Any, str] = {
        str: "text", int: "integer", float: "number", bool: "true|false", Path: "path",
        SecretStr: "secret",
    }  # fmt: skip
    if get_origin(kind) is tuple:
        return f"{names[get_args(kind)[0]]},..."
    return names[kind]


def _limited(field: FieldInfo) -> str:
    kind = _kind(field)
    for limit in field.metadata:
        match limit:
            case annotated_types.Ge(ge):
                kind += f" ≥ {ge}"
            case annotated_types.Gt(gt):
                kind += f" > {gt}"
            case annotated_types.Le(le):
                kind += f" and ≤ {le}"
    return kind
