"""How attacks are measured; the attacks themselves are in `tests/faults`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import h11
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks.attacks import ATTACKS, Row, chosen, table  # noqa: E402
from benchmarks.hostile.wire import answers, chunked, requests_begun  # noqa: E402
from cli.console import CommandError  # noqa: E402

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("data", "begun"),
    [
        (b"", 0),
        (GET, 1),
        (GET + GET, 2),
        (GET + GET[:9], 2),
        (POST + GET, 1),
        (POST + GET.ljust(33) + GET, 2),
        (POST.replace(b"Host", b"Upgrade: foo\r\nConnection: Upgrade\r\nHost") + GET.ljust(33), 1),
        (POST.replace(b"33", b"x"), 1),
        (GET.replace(b"Host", b"Connection: close\r\nHost") + GET, 1),
        (b"\x16\x03\x01\r\n\r\n", 1),
    ],
)
def test_requests_are_counted(data: bytes, begun: int) -> None:
    assert requests_begun(data) == begun


def test_answers_are_told_apart() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
    found, rest = answers(b"HTTP/1.1 100 Continue\r\n\r\n" + OK + head + OK, ["POST", "HEAD"])
    assert [(one.status, one.body) for one in found] == [(200, b"{}"), (200, b""), (200, b"{}")]
    assert rest == b""
    found, rest = answers(OK + OK[:-1])
    assert len(found) == 1
    assert rest == OK[:-1]
    with pytest.raises(h11.RemoteProtocolError):
        answers(b"{}" + OK)


def test_chunks_are_a_body() -> None:
    assert chunked(b"abcd", (1, 2)) == b"1\r\na\r\n2\r\nbc\r\n1\r\nd\r\n0\r\n\r\n"
    assert chunked(b"") == b"0\r\n\r\n"


def test_attacks_are_chosen_by_parts_of_their_names() -> None:
    assert {attack.name for attack in chosen(["no key: "])} == {
        attack.name for attack in ATTACKS if attack.name.startswith("no key: ")
    }
    assert len(chosen([])) == len(ATTACKS) == len({attack.name for attack in ATTACKS})
    with pytest.raises(CommandError, match="--list"):
        chosen(["no such attack"])


def test_the_documentation_has_every_attack() -> None:
    rows = [
        Row(a.name, a.promise, "", 0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, True, []) for a in ATTACKS
    ]  # fmt: skip
    promised = {tuple(line.split(" | ")[:2]) for line in table(rows, []).splitlines()[2:]}
    text = (ROOT / "docs" / "security.md").read_text("utf-8")
    section = text.partition("\n## Attacks\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^\| .*$", section, re.MULTILINE)[1:]
    assert {tuple(line.split(" | ")[:2]) for line in lines} == promised
