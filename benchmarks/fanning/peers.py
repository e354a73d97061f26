"""The peers: how each is started, its version, and what to install if it is missing."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

HERE = Path(__file__).parent
BUILT = HERE.parent.parent / "build" / "fanout"
SOURCES = {"load": ("load.c", "stream.c", "stream.h"), "floor": ("floor.c",)}
MODULE = BUILT / "node_modules" / "better-sse"


class Missing(Exception):
    """A peer is not installed. The message says what to install."""


class Start(NamedTuple):
    """A command that starts a server."""

    command: list[str]
    port: int | None = None  # None: the server prints it
    folder: Path | None = None  # a temporary folder, removed after the run


class Peer(NamedTuple):
    """A server that is measured."""

    name: str
    start: Callable[[], Start]
    version: Callable[[], str]
    publishes: bool = True
    pipelines: bool = False  # needs one request per event, instead of one with several lines
    replays: bool = False
    closes: bool = False  # says how many connections it has
    opens_only: bool = False


def compiled(name: str) -> Path:
    """Compile a program of this folder if a source file has changed. Return its path."""
    program, files = BUILT / name, [HERE / file for file in SOURCES[name]]
    if not program.exists() or program.stat().st_mtime < max(file.stat().st_mtime for file in files):
        compiler = shutil.which("cc")
        if compiler is None:
            raise Missing("needs a C compiler in PATH, as cc")
        BUILT.mkdir(parents=True, exist_ok=True)
        sources = [file for file in files if file.suffix == ".c"]
        subprocess.run([compiler, "-O2", "-o", program, *sources], check=True)
    return program


def python_server(name: str, loop: str, *modules: str, logs: str = "filtered") -> Callable[[], Start]:
    """Return a function that starts a server of ``server.py``, which needs some modules."""

    def start() -> Start:
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            raise Missing(f"needs {', '.join(missing)}: scripts/setup bench")
        return Start([sys.executable, "-m", "fanning.server", name, loop, logs])

    return start


def package_versions(*names: str) -> Callable[[], str]:
    """Return a function that returns the versions of packages."""

    def versions() -> str:
        try:
            return ", ".join(f"{name} {version(name)}" for name in names)
        except PackageNotFoundError as error:
            return f"no {error.name}"

    return versions


def floor() -> Start:
    """Start the C program."""
    return Start([str(compiled("floor"))])


def better_sse() -> Start:
    """Start better-sse on Node."""
    node = shutil.which("node")
    if node is None or not MODULE.exists():
        raise Missing("needs Node 20 and better-sse: scripts/fanout-peers")
    return Start([node, "--expose-gc", str(HERE / "node" / "server.mjs"), str(MODULE / "build" / "index.mjs")])


def nginx() -> str:
    """Return the path of nginx."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise Missing("needs nginx and its module nchan: apt install nginx libnginx-mod-nchan")
    return found


def nchan() -> Start:
    """Start nginx with nchan in a temporary folder."""
    program = nginx()
    found = re.search(r"--modules-path=(\S+)", output([program, "-V"]))
    modules = Path(found[1] if found else "/usr/lib/nginx/modules")
    if not (modules / "ngx_nchan_module.so").exists():
        raise Missing("needs the module nchan of nginx: apt install libnginx-mod-nchan")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = Path(mkdtemp(prefix="nchan-"))
    folder.chmod(0o755)
    text = (HERE / "nginx.conf").read_text(encoding="utf-8")
    (folder / "nginx.conf").write_text(text.replace("PORT", str(port)).replace("MODULES", str(modules)))
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    return Start(command, port, folder)


def output(command: list[str]) -> str:
    """Return what a program prints to stdout and stderr."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def nchan_version() -> str:
    """Return the versions of nginx and of Debian's package of nchan."""
    nginx_version = output([nginx(), "-v"]).removeprefix("nginx version: ").replace("/", " ")
    return f"{nginx_version}, nchan {output(['dpkg-query', '-Wf', '${Version}', 'libnginx-mod-nchan'])}"


def better_sse_version() -> str:
    """Return the versions of better-sse and Node."""
    text = (MODULE / "package.json").read_text(encoding="utf-8")
    found = re.search(r'"version": "([^"]+)"', text)
    assert found is not None
    return f"better-sse {found[1]}, Node {output(['node', '--version'])}"


def floor_version() -> str:
    """Return the version of the compiler."""
    return output(["cc", "--version"]).splitlines()[0]


OURS = Peer(
    "ours on asyncio",
    python_server("ours", "asyncio"),
    package_versions("aiohttp-interceptors", "aiohttp"),
    replays=True,
    closes=True,
)
OURS_UNCONFIGURED = OURS._replace(
    name="ours with structlog unconfigured",
    start=python_server("ours", "asyncio", logs="unconfigured"),
    version=package_versions("structlog"),
    opens_only=True,
)
OURS_RENDERED = OURS._replace(
    name="ours with lines rendered",
    start=python_server("ours", "asyncio", logs="rendered"),
    version=package_versions("structlog"),
    opens_only=True,
)
OURS_PROMETHEUS = Peer(
    "ours with Prometheus",
    python_server("ours-prometheus", "asyncio", "prometheus_client"),
    package_versions("aiohttp-interceptors", "prometheus-client"),
    replays=True,
)
"""Measured beside ``OURS`` in one case, and not a peer of its own."""
OURS_UVLOOP = Peer(
    "ours on uvloop", python_server("ours", "uvloop", "uvloop"), package_versions("uvloop"), replays=True, closes=True
)
FLOOR = Peer("C", floor, floor_version)
NCHAN = Peer("nchan", nchan, nchan_version, pipelines=True, replays=True)
BETTER_SSE = Peer("better-sse", better_sse, better_sse_version)
AIOHTTP_SSE = Peer("aiohttp-sse", python_server("aiohttp-sse", "asyncio"), package_versions("aiohttp-sse", "aiohttp"))
SSE_STARLETTE = Peer(
    "sse-starlette",
    python_server("sse-starlette", "uvloop", "uvicorn", "sse_starlette", "uvloop"),
    package_versions("sse-starlette", "uvicorn", "uvloop"),
)
BARE = Peer("bare", python_server("bare", "asyncio"), package_versions("aiohttp"), publishes=False, closes=True)
BARE_UVLOOP = BARE._replace(name="bare on uvloop", start=python_server("bare", "uvloop", "uvloop"), opens_only=True)
PEERS = (
    FLOOR,
    OURS,
    OURS_UNCONFIGURED,
    OURS_RENDERED,
    OURS_UVLOOP,
    NCHAN,
    BETTER_SSE,
    AIOHTTP_SSE,
    SSE_STARLETTE,
    BARE,
    BARE_UVLOOP,
)
