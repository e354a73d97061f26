"""The recipe of a dashboard: two processes behind nginx, connected by Valkey."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from playwright.async_api import expect

from aiohttp_interceptors.testing import open_stream
from tests.browser.accessibility import violations
from tests.recipes.site import FOLDER
from tests.servers.engines import needs
from tests.servers.process import ServerProcess
from tests.servers.valkey import Valkey
from tests.waiting import within


class Nginx(ServerProcess):
    """nginx with the configuration of the recipe, in front of these ports."""

    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, *ports: int) -> None:
        super().__init__(folder)
        self._program = needs("nginx", shutil.which("nginx") or shutil.which("/usr/sbin/nginx"))
        text = (FOLDER / "dashboard.nginx.conf").read_text()
        for old, new in zip(("8080", "8081", "8082", "/tmp"), (self.port, *ports, folder), strict=True):
            text = text.replace(old, str(new))
        (folder / "dashboard.nginx.conf").write_text(text)

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}"

    def command(self) -> list[str]:
        return [self._program, "-p", ".", "-c", "dashboard.nginx.conf"]

    def answers(self) -> bool:
        return self.accepts()


@pytest.fixture
def valkey(own, tmp_path):
    return own(Valkey(tmp_path / "valkey"))


@pytest.fixture
def processes(run, valkey):
    replace = {"redis://localhost:6379/0": valkey.url}
    return [run("dashboard", folder=folder, port_as_argument=True, replace=replace) for folder in ("one", "two")]


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_goes_on_when_a_process_is_killed_or_stopped(visit, processes, own, tmp_path, console_errors):
    nginx = own(Nginx(tmp_path / "nginx", *(process.port for process in processes)))
    page = await visit(nginx.url)
    rows, state = page.locator("tbody tr"), page.locator("#state")
    await expect(rows).to_have_count(2)
    for process in processes:
        await expect(page.get_by_role("cell", name=str(process.port), exact=True)).to_be_visible()
    processes[0].kill()
    await expect(page.locator("tr.old")).to_have_count(1)
    await expect(state).to_have_text("connected")
    processes[0].restart()
    await expect(page.locator("tr.old")).to_have_count(0)
    processes[1].stop()
    await expect(rows).to_have_count(1)
    await expect(state).to_have_text("connected")
    console_errors[:] = [each for each in console_errors if "ERR_" not in each and "502" not in each]


async def test_a_new_page_gets_the_last_report_of_a_process_that_was_killed(session, processes):
    one, two = processes
    async with open_stream(session, f"{one.url}/reports") as stream:
        while json.loads((await stream.next()).data)["process"] != two.port:
            pass  # it has reported
        two.kill()
    async with open_stream(session, f"{one.url}/reports") as stream:
        assert {json.loads((await stream.next()).data)["process"] for _ in range(2)} == {one.port, two.port}


async def test_a_process_that_has_lost_valkey_is_not_ready_and_comes_back(session, processes, valkey):
    process = processes[0]

    async def ready():
        async with session.get(f"{process.url}/ready") as response:
            return response.status

    async def until_ready(status):
        while await ready() != status:
            pass

    await within(until_ready(200))
    async with open_stream(session, f"{process.url}/reports", timeout=30) as stream:
        valkey.kill()
        await within(until_ready(503))
        valkey.restart()
        await within(until_ready(200))
        assert (await stream.next()).name in {"report", "gap"}
    for process in processes:
        process.log_may_have("hub_down")


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_has_no_violations_for_axe_also_with_a_process_that_was_killed(visit, processes):
    one, two = processes
    page = await visit(one.url)
    await expect(page.locator("tbody tr")).to_have_count(2)
    two.kill()
    await expect(page.locator("tr.old")).to_have_count(1)
    assert await violations(page) == []
    await page.context.close()


@pytest.mark.browser
@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_goes_on_after_all_processes_were_down(visit, processes, own, tmp_path, console_errors):
    nginx = own(Nginx(tmp_path / "nginx", *(process.port for process in processes)))
    page = await visit(nginx.url)
    rows, state = page.locator("tbody tr"), page.locator("#state")
    await expect(rows).to_have_count(2)
    async with page.expect_response(lambda response: response.status == 502):  # the source gives up
        for process in processes:
            process.kill()
    await expect(state).to_have_text("connecting")
    processes[0].restart()
    await expect(state).to_have_text("connected")
    await expect(page.locator("tbody tr:not(.old)")).to_have_count(1)
    console_errors[:] = [each for each in console_errors if "ERR_" not in each and "502" not in each]


async def test_a_process_stops_without_valkey(session, processes, valkey):
    """The log of the process has no exception of the last report."""
    process = processes[0]
    async with open_stream(session, f"{process.url}/reports") as stream:
        await stream.next()
    valkey.kill()
    for process in processes:
        process.stop()
        process.log_may_have("hub_down")
        assert "Traceback" not in (process.folder / "log").read_text()
