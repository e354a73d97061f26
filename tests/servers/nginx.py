"""nginx in front of a server, with its default settings."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.servers.engines import needs
from tests.servers.process import ServerProcess

_SETTINGS = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {settings}
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://127.0.0.1:{upstream}; }}
    }}
}}
"""


class Nginx(ServerProcess):
    """A reverse proxy that speaks HTTP/1.0 to its upstream and buffers responses, as nginx does by default.

    Args:
        folder: Where its files are.
        upstream: The port of the server behind it.
        settings: Additional lines of its ``http`` block.
    """

    def __init__(self, folder: Path, upstream: int, settings: str = "") -> None:
        super().__init__(folder)
        self._binary = needs("nginx", shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin"))
        text = _SETTINGS.format(folder=folder, port=self.port, upstream=upstream, settings=settings)
        (folder / "nginx.conf").write_text(text)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [self._binary, "-p", str(self.folder), "-e", "stderr", "-c", str(self.folder / "nginx.conf")]

    def answers(self) -> bool:
        return self.accepts()
