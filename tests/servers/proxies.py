"""The reverse proxies of ``docs/deploy``, each with the configuration that the documentation shows."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from getpass import getuser
from pathlib import Path

import trustme

from tests.conftest import Raw
from tests.servers.engines import needs
from tests.servers.process import ServerProcess, free_port

DEPLOY = Path(__file__).parents[2] / "docs/deploy"
MODULES = Path("/usr/lib/apache2/modules")
APACHE_MODULES = ("mpm_event", "authz_core", "proxy", "proxy_http", "socache_shmcb", "ssl")


def find(name: str) -> str:
    """Return the path of a program, or skip the test."""
    return needs(name, shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin"))


class Proxy(ServerProcess):
    """A proxy in front of an application that listens on ``backend``.

    Args:
        folder: The folder of the process.
        changes: Texts of the configuration to replace, which it must contain.
        scheme: The scheme of its URL, if the changes alter it.
        parameters: Further arguments of the program.
    """

    program: str
    configuration: str  # the file in docs/deploy
    scheme = "https"
    http2 = True

    def __init__(
        self,
        folder: Path,
        changes: dict[str, str] | None = None,
        *,
        scheme: str | None = None,
        parameters: Sequence[str] = (),
    ) -> None:
        super().__init__(folder)
        self.scheme = scheme or self.scheme
        self._parameters = parameters
        self._binary = find(self.program)
        self.backend = free_port()
        self.certificate, self.key, self.both = (folder / name for name in ("shop.pem", "shop.key", "both.pem"))
        self.authority = folder / "authority.pem"
        if type(self).scheme == "https":
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.authority))
            issued = authority.issue_cert("127.0.0.1", "localhost", "shop.example")
            issued.cert_chain_pems[0].write_to_path(str(self.certificate))
            issued.private_key_pem.write_to_path(str(self.key))
            issued.private_key_and_cert_chain_pem.write_to_path(str(self.both))
        text = (DEPLOY / self.configuration).read_text()
        for old, new in [*(changes or {}).items(), *self.places().items()]:
            assert old in text, f"{self.configuration} does not contain {old!r}"
            text = text.replace(old, new)
        (folder / self.configuration).write_text(text)

    @abstractmethod
    def places(self) -> dict[str, str]:
        """Return the ports and paths of the configuration, and what they are in the test."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def connect(self, request: str) -> Raw:
        """Open a connection and send the text of a request; line feeds become CRLF."""
        trusted = self._trusted if self.scheme == "https" else None
        raw = Raw(*await asyncio.open_connection("127.0.0.1", self.port, ssl=trusted))
        raw.writer.write(request.replace("\n", "\r\n").encode())
        return raw

    @cached_property
    def _trusted(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)

    def answers(self) -> bool:
        return self.accepts()

    def reload(self, changes: dict[str, str]) -> None:
        """Change the configuration, and have the running proxy take it. New requests follow a moment later."""
        file = self.folder / self.configuration
        text = file.read_text()
        for old, new in changes.items():
            assert old in text, f"{self.configuration} does not contain {old!r}"
            text = text.replace(old, new)
        file.write_text(text)
        self.apply()

    @abstractmethod
    def apply(self) -> None:
        """Have the running proxy read its configuration again, as its unit of Debian does."""


class Nginx(Proxy):
    program = "nginx"
    configuration = "nginx.conf"

    def places(self) -> dict[str, str]:
        return {
            "127.0.0.1:8080": f"127.0.0.1:{self.backend}",
            "worker_rlimit_nofile 65536": "worker_rlimit_nofile 8192",
            "worker_connections 32768": "worker_connections 4096",
            "user www-data": f"user {getuser()}",
            "worker_processes auto": "daemon off; pid nginx.pid; error_log stderr; worker_processes 2",
            "http {": "http { access_log off; "
            + " ".join(f"{kind}_temp_path {kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi", "client_body")),
            "listen 443": f"listen 127.0.0.1:{self.port}",
            "/etc/ssl/shop.pem": str(self.certificate),
            "/etc/ssl/shop.key": str(self.key),
        }

    def command(self) -> list[str]:
        return [self._binary, "-p", str(self.folder), "-e", "stderr", "-c", str(self.folder / self.configuration)]

    def apply(self) -> None:
        os.kill(self.pid, signal.SIGHUP)


class HAProxy(Proxy):
    program = "haproxy"
    configuration = "haproxy.cfg"

    def places(self) -> dict[str, str]:
        return {
            "127.0.0.1:8080": f"127.0.0.1:{self.backend}",
            "    user haproxy\n    group haproxy\n": "",
            "maxconn 20000": "maxconn 4000",
            "bind :443": f"bind 127.0.0.1:{self.port}",
            **({"/etc/ssl/shop-and-key.pem": str(self.both)} if self.scheme == "https" else {}),
        }

    def command(self) -> list[str]:
        return [self._binary, "-W", "-f", str(self.folder / self.configuration)]

    def apply(self) -> None:
        os.kill(self.pid, signal.SIGUSR2)


class Apache(Proxy):
    program = "apache2"
    configuration = "apache.conf"
    http2 = False

    def places(self) -> dict[str, str]:
        return {
            "127.0.0.1:8080": f"127.0.0.1:{self.backend}",
            "*:443": f"127.0.0.1:{self.port}",
            "/etc/ssl/shop.pem": str(self.certificate),
            "/etc/ssl/shop.key": str(self.key),
        }

    def command(self) -> list[str]:
        whole = self.folder / "httpd.conf"
        lines = [f"ServerRoot {self.folder}", f"DefaultRuntimeDir {self.folder}", f"PidFile {self.folder}/pid"]
        lines.append(f"Listen 127.0.0.1:{self.port}")
        lines += [f"LoadModule {name}_module {MODULES}/mod_{name}.so" for name in APACHE_MODULES]
        lines += ["ErrorLog /dev/stderr", "User www-data", "Group www-data", f"Include {self.configuration}"]
        whole.write_text("\n".join(lines) + "\n")
        return [self._binary, "-D", "FOREGROUND", "-f", str(whole)]

    def apply(self) -> None:
        os.kill(self.pid, signal.SIGUSR1)


class Caddy(Proxy):
    program = "caddy"
    configuration = "Caddyfile"

    def places(self) -> dict[str, str]:
        settings = f"{{\n\tadmin {self._control}\n\tauto_https disable_redirects\n}}\n"
        site = f"https://:{self.port} {{\n\ttls {self.certificate} {self.key}"
        return {"127.0.0.1:8080": f"127.0.0.1:{self.backend}", "shop.example {": settings + site}

    def command(self) -> list[str]:
        self.environment = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}
        return [self._binary, "run", *self._file]

    def apply(self) -> None:
        subprocess.run([self._binary, "reload", "--force", "--address", self._control, *self._file], check=True)

    @property
    def _control(self) -> str:
        return f"unix//{self.folder}/control.sock"

    @property
    def _file(self) -> list[str]:
        return ["--adapter", "caddyfile", "--config", str(self.folder / self.configuration)]


class Varnish(Proxy):
    program = "varnishd"
    configuration = "varnish.vcl"
    scheme = "http"
    http2 = False

    def places(self) -> dict[str, str]:
        return {'.port = "8080"': f'.port = "{self.backend}"'}

    def command(self) -> list[str]:
        return [
            self._binary, "-F", "-j", "none", "-n", str(self.folder), "-a", f"127.0.0.1:{self.port}",
            "-f", str(self.folder / self.configuration), "-s", "malloc,32m", *self._parameters,
        ]  # fmt: skip

    def apply(self) -> None:
        for command in (["vcl.load", "changed", str(self.folder / self.configuration)], ["vcl.use", "changed"]):
            subprocess.run([find("varnishadm"), "-n", str(self.folder), *command], check=True)


PROXIES = {proxy.program: proxy for proxy in (Nginx, HAProxy, Apache, Caddy, Varnish)}
