"""Who takes part: how each is started, which version it is, and what is missing where it cannot be."""

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
    """A peer cannot take part; the message says what to install."""


class Start(NamedTuple):
    """A command to run, and the port if it does not print one."""

    command: list[str]
    port: int | None = None
    folder: Path | None = None  # made for this run, and removed after it


class Peer(NamedTuple):
    """A server that takes part."""

    name: str
    start: Callable[[], Start]
    version: Callable[[], str]
    publishes: bool = True
    pipelines: bool = False  # takes an event per request, not lines
    replays: bool = False


def compiled(name: str) -> Path:
    """Compile a program of this folder, if one of its sources has changed."""
    program, files = BUILT / name, [HERE / file for file in SOURCES[name]]
    if not program.exists() or program.stat().st_mtime < max(file.stat().st_mtime for file in files):
        compiler = shutil.which("cc")
        if compiler is None:
            raise Missing("needs a C compiler in PATH, as cc")
        BUILT.mkdir(parents=True, exist_ok=True)
        sources = [file for file in files if file.suffix == ".c"]
        subprocess.run([compiler, "-O2", "-o", program, *sources], check=True)  # our own source
    return program


def in_python(name: str, loop: str, *modules: str) -> Callable[[], Start]:
    """Return how a server of ``server.py`` is started."""

    def start() -> Start:
        missing = [module for module in modules if find_spec(module) is None]
        if missing:
            raise Missing(f"needs {', '.join(missing)}: scripts/setup bench")
        return Start([sys.executable, "-m", "fanning.server", name, loop])

    return start


def of_packages(*names: str) -> Callable[[], str]:
    """Return what tells the versions of packages."""

    def versions() -> str:
        try:
            return ", ".join(f"{name} {version(name)}" for name in names)
        except PackageNotFoundError as error:
            return f"no {error.name}"

    return versions


def floor() -> Start:
    """Start the program in C."""
    return Start([str(compiled("floor"))])


def better_sse() -> Start:
    """Start Node."""
    node = shutil.which("node")
    if node is None or not MODULE.exists():
        raise Missing("needs Node 20 and better-sse: scripts/fanout-peers")
    return Start([node, "--expose-gc", str(HERE / "node" / "server.mjs"), str(MODULE / "build" / "index.mjs")])


def nginx() -> str:
    """Return where nginx is."""
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if found is None:
        raise Missing("needs nginx and its module nchan: apt install nginx libnginx-mod-nchan")
    return found


def nchan() -> Start:
    """Start nginx with nchan, in a folder of its own."""
    program = nginx()
    said = output([program, "-V"])
    found = re.search(r"--modules-path=(\S+)", said)
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
    """Return what a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # names of ours
    return (done.stdout + done.stderr).strip()


def nchan_version() -> str:
    """Return the versions of nginx and of Debian's package."""
    said = output([nginx(), "-v"]).removeprefix("nginx version: ").replace("/", " ")
    return f"{said}, nchan {output(['dpkg-query', '-Wf', '${Version}', 'libnginx-mod-nchan'])}"


def better_sse_version() -> str:
    """Return the versions of Node and of the package."""
    text = (MODULE / "package.json").read_text(encoding="utf-8")
    found = re.search(r'"version": "([^"]+)"', text)
    assert found is not None
    return f"better-sse {found[1]}, Node {output(['node', '--version'])}"


def floor_version() -> str:
    """Return the version of the compiler."""
    return output(["cc", "--version"]).splitlines()[0]


OURS = Peer(
    "ours on asyncio", in_python("ours", "asyncio"), of_packages("aiohttp-interceptors", "aiohttp"), replays=True
)
OURS_UVLOOP = Peer("ours on uvloop", in_python("ours", "uvloop", "uvloop"), of_packages("uvloop"), replays=True)
FLOOR = Peer("C", floor, floor_version)
NCHAN = Peer("nchan", nchan, nchan_version, pipelines=True, replays=True)
BETTER_SSE = Peer("better-sse", better_sse, better_sse_version)
AIOHTTP_SSE = Peer("aiohttp-sse", in_python("aiohttp-sse", "asyncio"), of_packages("aiohttp-sse", "aiohttp"))
SSE_STARLETTE = Peer(
    "sse-starlette",
    in_python("sse-starlette", "uvloop", "uvicorn", "sse_starlette", "uvloop"),
    of_packages("sse-starlette", "uvicorn", "uvloop"),
)
BARE = Peer("bare", in_python("bare", "asyncio"), of_packages("aiohttp"), publishes=False)
PEERS = (FLOOR, OURS, OURS_UVLOOP, NCHAN, BETTER_SSE, AIOHTTP_SSE, SSE_STARLETTE, BARE)
