from __future__ import annotations

import pytest
import typer

from cli.console import CommandError, errors_without_traceback


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (CommandError("the store is gone: start it"), "the store is gone: start it"),
        (ValueError("log.csv:7: [red] is no time"), "log.csv:7: [red] is no time"),
        (FileNotFoundError(2, "No such file or directory", "log.csv"), "log.csv: No such file"),
        (ConnectionRefusedError(), "ConnectionRefusedError"),
        (ValueError("long," * 100), "long," * 100),
    ],
)
def test_what_a_user_can_mend_is_said_in_one_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end, errors_without_traceback():
        raise error
    assert end.value.exit_code == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {line}")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("error", [TypeError("ours"), KeyError("ours"), BrokenPipeError()])
def test_other_errors_pass(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(type(error)), errors_without_traceback():
        raise error
    assert capsys.readouterr().err == ""


def test_a_traceback_can_be_had() -> None:
    with pytest.raises(CommandError), errors_without_traceback(traceback=True):
        raise CommandError("no")
