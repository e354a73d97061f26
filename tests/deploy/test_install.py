"""The shell commands of "In production", word by word, in namespaces with copies of the folders that they change.

systemd does not run there. The test starts what the unit names, as its user, on the socket that systemd would open.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys

import pytest
import trustme

from tests.servers.engines import needs
from tests.servers.proxies import DEPLOY, find
from tests.wheel import write_wheel

PAGE = (DEPLOY.parent / "deploy.md").read_text()
(NGINX, INSTALL, PUBLISH) = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
PREPARE = """
set -e
ip link set lo up
mount -t tmpfs tmpfs {layers}
for folder in etc srv var; do
    mkdir -p {layers}/$folder {layers}/$folder.work
    mount -t overlay -o lowerdir=/$folder,upperdir={layers}/$folder,workdir={layers}/$folder.work overlay /$folder
done
mkdir -p /etc/ssl /etc/nginx
cp shop.pem shop.key /etc/ssl/
systemctl() {{ echo "systemctl $*"; }}
"""
# The interpreter of the tests may be in a folder that only root may read: the user may read all files.
AS_SHOP = "setpriv --reuid shop --regid shop --init-groups --inh-caps +dac_read_search --ambient-caps +dac_read_search"
START = """
systemd-analyze verify --man=no /etc/systemd/system/shop.socket /etc/systemd/system/shop.service
install -d -o shop -g shop /var/lib/{state}
cd {folder}
systemd-socket-activate -l {address} {as_shop} {command} &
nginx
exec 3< <(curl --silent --no-buffer --max-time 120 --cacert {authority} --resolve shop.example:443:127.0.0.1 \
    https://shop.example/prices)
read -r line <&3
"""
READ = """
while read -r line <&3; do
    if [[ $line == "data: 1.20"* ]]; then
        exit 0
    fi
done
exit 1
"""


@pytest.fixture
def namespaces():
    """Return a command that runs a program in namespaces of its own for mounts and the network, or skip the test."""
    for program in ("systemd-socket-activate", "systemd-analyze", "ip"):
        find(program)
    command = [needs("unshare", shutil.which("unshare")), "--mount", "--net", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/srv"], capture_output=True, check=False).returncode:
        pytest.skip("only root may have its own mounts and network")
    return command


def test_the_steps_of_the_page_lead_from_nothing_to_a_stream_behind_nginx(tmp_path, namespaces):
    layers = tmp_path / "layers"
    layers.mkdir()
    for file in DEPLOY.iterdir():
        shutil.copy(file, tmp_path)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    issued = authority.issue_cert("shop.example")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "shop.pem")
    issued.private_key_pem.write_to_path(tmp_path / "shop.key")
    write_wheel(tmp_path, "aiohttp_interceptors")
    units = configparser.ConfigParser(interpolation=None)
    units.read([DEPLOY / "shop.service", DEPLOY / "shop.socket"])
    service = units["Service"]
    assert service["User"] == "shop"
    start = START.format(
        state=service["StateDirectory"],
        folder=service["WorkingDirectory"],
        address=units["Socket"]["ListenStream"],
        command=service["ExecStart"],
        as_shop=AS_SHOP,
        authority=tmp_path / "authority.pem",
    )
    steps = INSTALL.replace("/usr/bin/python3", sys.executable)
    publish = PUBLISH.replace("runuser -u shop --", AS_SHOP)
    assert sys.executable in steps
    assert AS_SHOP in publish
    script = [PREPARE.format(layers=layers), steps, NGINX, start, publish, READ]
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [*namespaces, "bash", "-c", "\n".join(script)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    called = re.findall(r"^systemctl .*$", done.stdout, re.MULTILINE)
    assert called == ["systemctl daemon-reload", "systemctl enable --now shop.socket", "systemctl reload nginx"]
