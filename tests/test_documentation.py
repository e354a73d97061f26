"""The documentation: the reference has every public name once, and the first page works word by word."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path

import pytest

import aiohttp_interceptors
from aiohttp_interceptors.testing import open_stream
from tests.servers.process import free_port
from tests.wheel import write_wheel

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
START_TIMEOUT = 30.0  # seconds, on a busy machine
PAGES = [page.read_text() for page in sorted((DOCS / "reference").glob("*.md"))]
REFERENCE = Counter(name for page in PAGES for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE))
TIER = re.compile(r"^\*\*(\w+)\.\*\*(.*?)(?=^\*\*|^Modules:)", re.MULTILINE | re.DOTALL)
MODULES = ["aiohttp_interceptors", "aiohttp_interceptors.ready"]


@pytest.mark.parametrize("module", MODULES)
def test_the_reference_has_every_public_name_once(module):
    names = {f"{module}.{name}" for name in import_module(module).__all__}
    assert {name: REFERENCE[name] for name in names} == dict.fromkeys(names, 1)


def test_the_reference_names_only_what_there_is():
    for name in REFERENCE:
        module, _, attribute = name.rpartition(".")
        try:
            import_module(name)
        except ModuleNotFoundError:
            assert hasattr(import_module(module), attribute), name


def test_the_tiers_of_the_reference_are_those_of_the_package():
    tiers = TIER.findall(aiohttp_interceptors.__doc__)
    assert [tier for tier, _ in tiers] == ["Daily", "Hub", "Operating", "Advanced"]
    for tier, text in tiers:
        page = (DOCS / "reference" / f"{tier.lower()}.md").read_text()
        described = set(re.findall(r"^::: aiohttp_interceptors\.(\w+)$", page, re.MULTILINE))
        mentioned = set(re.findall(r"``(\w+)", text)) & set(aiohttp_interceptors.__all__)
        assert described <= mentioned, f"{tier}: {described - mentioned} is on its page, and not in its paragraph"


# ``make docs`` checks the links of the site. These pages are not in it.

OUTSIDE = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", OUTSIDE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_outside_of_the_site_lead_somewhere(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", prose):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# The first page is followed word by word.

START = (DOCS / "start.md").read_text()
BLOCKS = re.findall(r"^```python(?: title=\"([\w.]+)\")?\n(.*?)^```", START, re.MULTILINE | re.DOTALL)


@asynccontextmanager
async def running(folder, port):
    """Run ``app.py`` in a folder until the end of the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "app.py", cwd=folder, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while b"Running on" not in (line := await process.stdout.readline()):
                assert line, "the program ended"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C does
        await asyncio.wait_for(process.communicate(), START_TIMEOUT)


@pytest.fixture
def write(tmp_path):
    port = free_port()

    def write(name, text):
        assert "8080" in text
        (tmp_path / name).write_text(text.replace("8080", str(port)))

    return write, tmp_path, port


async def test_the_first_stream_tells_the_time(write, session):
    write, folder, port = write
    name, text = BLOCKS[0]
    write(name, text)
    async with running(folder, port) as url, open_stream(session, f"{url}/clock") as stream:
        for _ in range(2):
            assert re.fullmatch(r"\d\d:\d\d:\d\d", (await stream.next()).data)


def chat():
    """Return ``app.py`` as the reader of the first page has it at the end."""
    text = BLOCKS[1][1]
    main = text[text.index("if __name__") :]
    broker, interceptor, route = (block for _, block in BLOCKS[2:5])
    imports, _, last_lines = broker.partition("\n\n")
    text = text.replace(main, last_lines).replace("def make_app", f"{interceptor}\n\ndef make_app")
    return f"{imports}\n{text.replace('    return app', f'    {route}    return app')}"


async def test_the_chat_survives_a_restart_with_the_broker_of_the_page(write, session):
    write, folder, port = write
    write("app.py", chat())
    async with running(folder, port) as url:
        async with session.get(url) as response:
            assert "EventSource" in await response.text()
        async with open_stream(session, f"{url}/events") as stream:
            for line in ("one", "two"):
                async with session.post(f"{url}/say", data={"text": line}) as response:
                    assert response.status == 204
            assert [(await stream.next()).data for _ in range(2)] == ["one", "two"]
            last_event_id = stream.last_event_id
        async with session.post(f"{url}/say", data={"text": "three"}):
            pass
    async with running(folder, port) as url:
        async with open_stream(session, f"{url}/events", last_event_id=last_event_id) as stream:
            assert (await stream.next()).data == "three"
        async with open_stream(session, f"{url}/events") as stream:
            assert [(await stream.next()).data for _ in range(3)] == ["one", "two", "three"]


async def test_the_signed_in_stream_of_the_page_asks_for_a_cookie(write, session):
    write, folder, port = write
    write("app.py", chat())
    async with running(folder, port) as url:
        async with session.get(f"{url}/mine") as response:
            assert response.status == 401
        async with open_stream(session, f"{url}/mine", headers={"Cookie": "user=ann"}) as stream:
            assert stream.response.status == 200


async def test_the_test_of_the_page_passes_beside_the_chat_of_yesterday(write, session):
    write, folder, port = write
    write("app.py", chat())
    name, text = BLOCKS[5]
    (folder / name).write_text(text)
    async with running(folder, port) as url, session.post(f"{url}/say", data={"text": "yesterday"}) as response:
        assert response.status == 204
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", name]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


SHELL = re.findall(r"^```sh\n(.*?)^```", START, re.MULTILINE | re.DOTALL)


@pytest.mark.skipif(sys.platform == "win32", reason="the page shows the commands of a POSIX shell")
def test_the_commands_of_the_page_lead_from_an_empty_folder_to_a_test_that_passes(tmp_path):
    """The packages that ``pip`` finds lead to the checkout and to the packages of the tests."""
    install, test = SHELL
    for name in ("aiohttp_interceptors", "pytest_aiohttp"):
        write_wheel(tmp_path, name)
    (tmp_path / "app.py").write_text(chat())
    name, text = BLOCKS[5]
    (tmp_path / name).write_text(text)
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }
    script = f"set -e\n{install}python -c 'import aiohttp_interceptors, sys; print(sys.prefix)'\n{test}"
    done = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(tmp_path / "venv") in done.stdout.splitlines()
    assert "1 passed" in done.stdout
