"""The wheel and the source distribution: what they contain, what they need, and that the wheel works by itself."""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import aiohttp_interceptors

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = sorted(PROJECT["optional-dependencies"])
SITE = [folder for folder in sys.path if Path(folder).name == "site-packages"]  # without what is installed as editable
URL = "https://host.example/owner/name"
FILES = {
    *("py.typed", "brokers/postgres/schema.sql", "brokers/sqlite/schema.sql", "brokers/redis/append.lua"),
    *("web/client/event-stream.js", "web/client/event-stream.d.ts", "observe/inspector/page/index.html"),
}


def build(tree: Path, folder: Path, *targets: str, url: str = "") -> dict[str, Path]:
    """Build distributions with hatchling, as pip does."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", folder, *(f"-t{target}" for target in targets)]
    environment = {**os.environ, "PROJECT_URL": url}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"wheel" if file.suffix == ".whl" else "sdist": file for file in folder.iterdir()}


def unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a package that are not made by running it."""
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(ROOT, tmp_path_factory.mktemp("built"), "sdist", "wheel", url=URL)


@pytest.fixture(scope="module")
def source(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(built["sdist"]) as archive:
        archive.extractall(folder, filter="data")
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(built, tmp_path_factory):
    return unpack(built["wheel"], tmp_path_factory.mktemp("wheel"))


# What is in them.


def test_the_wheel_has_every_file_of_the_package(wheel):
    assert contents(wheel / "aiohttp_interceptors") == contents(ROOT / "aiohttp_interceptors")
    assert contents(wheel / "aiohttp_interceptors").keys() >= FILES


def test_the_wheel_has_nothing_beside_the_package(wheel):
    version = aiohttp_interceptors.__version__
    assert {file.name for file in wheel.iterdir()} == {
        "aiohttp_interceptors",
        f"aiohttp_interceptors-{version}.dist-info",
    }


def test_the_source_distribution_has_what_the_tests_and_the_documentation_need(source):
    for folder in "aiohttp_interceptors", "docs", "examples":
        assert contents(source / folder) == contents(ROOT / folder)
    assert {file.name for file in source.iterdir()} >= {
        *("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "constraints.txt"),
        *("benchmarks", "example_app", "hatch_build.py", "mkdocs.yml", "pyproject.toml", "scripts", "tests"),
    }


def test_a_wheel_of_the_source_distribution_equals_that_of_the_tree(built, source, tmp_path):
    again = build(source, tmp_path, "wheel")["wheel"]  # also without the address, which the sdist has kept
    assert again.name == built["wheel"].name
    assert again.read_bytes() == built["wheel"].read_bytes()


# What they say.


def test_the_description_has_links_that_work_on_another_site(built):
    links = re.findall(r"\[[^\[\]]+\]\(([^()\s\"]+)\)", metadata(built["wheel"]).get_payload())
    files = f"{URL}/blob/{aiohttp_interceptors.__version__}/"
    ours = [link.removeprefix(files).partition("#")[0] for link in links if link.startswith(files)]
    assert len(ours) > 30
    assert [name for name in ours if not (ROOT / name).is_file()] == []
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_addresses_are_those_of_the_repository(built):
    urls = dict(line.split(", ") for line in metadata(built["wheel"]).get_all("Project-URL"))
    assert urls.keys() == {"Source", "Documentation", "Changelog", "Issues"}
    assert all(address.startswith(URL) for address in urls.values())


def test_a_build_without_an_address_has_no_links_to_files(tmp_path):
    found = metadata(build(ROOT, tmp_path, "wheel")["wheel"])
    assert found.get_all("Project-URL") is None
    assert re.findall(r"\]\((?!https://|\")[^()\s]*\.md", found.get_payload()) == []
    assert "[aiohttp](https://docs.aiohttp.org)" in found.get_payload()
    assert 'ContextKey[User | None]("user")' in found.get_payload()


def test_the_classifiers_name_the_pythons_and_the_system_that_are_tested():
    workflow = ROOT / ".github" / "workflows" / "ci.yml"
    if not workflow.exists():
        pytest.skip("a source distribution has no workflow")
    tested = re.search(r"python: \[(.*)\]", workflow.read_text())[1].replace('"', "").split(", ")
    classifiers = PROJECT["classifiers"]
    named = [line.rpartition(" ")[2] for line in classifiers if re.fullmatch(r".* :: Python :: 3\.\d+", line)]
    assert named == tested
    assert PROJECT["requires-python"] == f">={tested[0]}"
    assert set(re.findall(r"runs-on: (\S+)", workflow.read_text())) == {"ubuntu-latest"}
    assert [line for line in classifiers if "Operating System" in line] == ["Operating System :: POSIX :: Linux"]


# How they are published.


@pytest.fixture
def release(tmp_path):
    """A copy of what scripts/release-check reads."""
    for name in "scripts/release-check", "CHANGELOG.md", "aiohttp_interceptors/__init__.py":
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    return tmp_path


def check(release: Path, tag: str) -> str:
    command = [sys.executable, release / "scripts" / "release-check", tag]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stderr


def test_a_release_has_the_tag_of_its_version_and_a_dated_entry_in_the_changelog(release):
    version = aiohttp_interceptors.__version__
    changelog = release / "CHANGELOG.md"
    changelog.write_text(f"# Changelog\n\n## [{version}] - 2026-01-31\n")
    assert check(release, version) == ""
    assert check(release, f"v{version}") == f"the tag is 'v{version}', and the version is '{version}'\n"
    changelog.write_text(f"# Changelog\n\n## [Unreleased]\n\n## [{version}] - 2026-01-31\n")
    assert check(release, version).startswith("the first entry of CHANGELOG.md is '[Unreleased]', not")


def test_workflows_pin_their_actions_and_only_the_job_that_publishes_gets_a_token():
    workflows = ROOT / ".github" / "workflows"
    if not workflows.exists():
        pytest.skip("a source distribution has no workflows")
    texts = {file.name: file.read_text() for file in workflows.iterdir()}
    for text in texts.values():
        assert "\npermissions: {}\n" in text
        for action in re.findall(r"uses: (.*)", text):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
    build, publish = texts.pop("release.yml").split("\n  publish:\n")
    assert re.findall(r"\S+: write", publish) == ["id-token: write"]
    assert "environment: pypi\n" in publish
    assert ": write" not in "".join((build, *texts.values()))


# What they do.


def needed(requirements: list[str], extra: str) -> set[str]:
    """Return the names of the installed distributions that an installation of the wheel brings."""
    found: set[tuple[str, str]] = set()
    open_ends = [(requirement, extra) for requirement in map(Requirement, requirements)]
    while open_ends:
        requirement, of_extra = open_ends.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        for wanted in ("", *requirement.extras):
            if (place := (normal(requirement.name), wanted)) not in found:
                found.add(place)
                lines = importlib.metadata.requires(requirement.name) or []
                open_ends += [(each, wanted) for each in map(Requirement, lines)]
    return {name for name, _ in found}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules_without(names: set[str]) -> list[str]:
    """Return the installed modules that belong to no distribution of these names."""
    return [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if module.isidentifier() and not names & set(map(normal, owners))
    ]


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_wheel_works_with_one_extra_and_nothing_else(built, wheel, extra, tmp_path):
    names = needed(metadata(built["wheel"]).get_all("Requires-Dist"), extra)
    command = [sys.executable, "-I", "-S", "-W", "error", "-X", "dev", ROOT / "tests" / "installed.py"]
    command += [f"--path={folder}" for folder in (wheel, *SITE)]
    command += [f"--without={module}" for module in modules_without(names)]
    command += [extra] * bool(extra)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout == f"aiohttp_interceptors with {extra or 'no extra'}: ok\n"
