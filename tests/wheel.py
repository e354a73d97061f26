"""A package for a ``pip`` without a network: it leads to the checkout and to the packages of the tests."""

from __future__ import annotations

import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def write_wheel(folder: Path, name: str) -> None:
    """Write a wheel of this name into a folder."""
    with zipfile.ZipFile(folder / f"{name}-9.9-py3-none-any.whl", "w") as archive:
        info = f"{name}-9.9.dist-info"
        archive.writestr(f"{name}.pth", f"{ROOT}\n{sysconfig.get_path('purelib')}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
