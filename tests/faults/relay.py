"""A relay between the service and its store that breaks connections when it is told to."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from pathlib import Path
from typing import Literal

import uvloop

Where = Literal["request", "reply"]


class Relay:
    """Listens on a TCP port and passes bytes to a server's unix socket, in a thread of its own.

    `target` may be changed: the store's address stays while another server takes over.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.broken = 0
        """Connections reset so far."""
        self._plan: list[Where] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")
        self._thread.start()
        self._listener = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20))
        self.port = self._listener.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"

    def break_next(self, where: Where, times: int) -> None:
        """The next connections that carry an append are reset: in the middle of the request, half
        of which arrives, or in the middle of the reply, when all of it has been carried out."""
        self._plan += [where] * times

    def aim(self, target: Path) -> None:
        """Another server from now on; connections to the one before are reset."""
        self.target = target

        async def drop() -> None:
            for writer in list(self._open):
                _reset(writer)

        self._call(drop())

    def close(self) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._listener.close()
        for writer in list(self._open):
            _reset(writer)
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    def _call(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self, caller: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(self.target, limit=2**20)
        except OSError:
            _reset(back)
            return
        self._open.add(back)
        broken: list[Where] = []
        there = asyncio.create_task(self._requests(caller, writer, back, broken))
        try:
            while data := await reader.read(2**20):
                if broken:
                    back.write(data[: len(data) // 2])
                    await back.drain()
                    break
                back.write(data)
                await back.drain()
        except OSError:
            pass
        finally:
            there.cancel()
            self._open.discard(back)
            _reset(back)
            writer.close()

    async def _requests(
        self,
        caller: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        back: asyncio.StreamWriter,
        broken: list[Where],
    ) -> None:
        try:
            while data := await caller.read(2**20):
                # Appends carry events, so they are long; a script by its hash or as a whole.
                if self._plan and b"EVAL" in data and b"clamp" in data:
                    where = self._plan.pop(0)
                    self.broken += 1
                    if where == "request":
                        writer.write(data[: len(data) // 2])
                        await writer.drain()
                        writer.close()
                        _reset(back)
                        return
                    broken.append(where)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with a RST, as a machine that has lost the connection answers."""
    own = writer.get_extra_info("socket")
    if own is not None and own.fileno() >= 0:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
