from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from cli.main import COMMANDS, app


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "120", "TERM": "dumb"})
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"]])
def test_help_starts_without_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from cli.main import app\n"
        f"assert CliRunner().invoke(app, {arguments}).exit_code == 0\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_commands_are_listed_with_what_they_do() -> None:
    code, shown, _ = run("--help")
    assert code == 0
    for name, command in COMMANDS.items():
        assert any(name in line and command.summary in line for line in shown.splitlines()), name


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_own_help(name: str) -> None:
    code, shown, _ = run(name, "--help")
    assert code == 0
    usage = next(line for line in shown.splitlines() if "Usage:" in line)
    assert f" {name} " in usage
    # More than the `--help` that every command has.
    assert shown.count("--") > 1 or "Commands" in shown


def test_no_arguments_show_the_help() -> None:
    code, shown, said = run()
    assert code == 2
    assert "import-official" in shown + said


def test_a_misspelt_command_is_answered_with_the_likely_one() -> None:
    code, _, said = run("evalute")
    assert code == 2
    assert "'evaluate'" in said


def test_the_version_is_the_installed_one() -> None:
    try:
        installed = metadata.version("tim4rec")
    except metadata.PackageNotFoundError:
        pytest.skip("the package itself is not installed here; make install does it")
    assert run("--version") == (0, f"tim4rec {installed}\n", "")


def test_an_error_is_one_line_unless_a_traceback_is_asked_for() -> None:
    arguments = ("data", "--from", "/no/such/place")
    assert run(*arguments) == (1, "", "error: /no/such/place: no such file or folder\n")
    result = CliRunner().invoke(app, ["--traceback", *arguments])
    assert isinstance(result.exception, FileNotFoundError)
