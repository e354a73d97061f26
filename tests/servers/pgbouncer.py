"""PgBouncer in front of a server: each transaction may run on another connection."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.servers.engines import needs
from tests.servers.postgres import PASSWORD, Postgres, prefix
from tests.servers.process import ServerProcess

_SETTINGS = """
[databases]
postgres = host=127.0.0.1 port={server} user=tester password={password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
"""


class PgBouncer(ServerProcess):
    """A pooler in transaction mode."""

    def __init__(self, folder: Path, server: Postgres) -> None:
        super().__init__(folder)
        self._binary = needs("pgbouncer", shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin"))
        settings = _SETTINGS.format(server=server.port, port=self.port, password=PASSWORD)
        (folder / "settings").write_text(settings)

    @property
    def dsn(self) -> str:
        return f"postgresql://tester@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        return [*prefix(), self._binary, str(self.folder / "settings")]

    def answers(self) -> bool:
        return self.accepts()
