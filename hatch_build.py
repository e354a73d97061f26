"""Metadata that a release has and a checkout does not: the addresses of the project, and absolute links in the README.

``PROJECT_URL`` is the address of the repository, which the release workflow knows. Without it a package has no
addresses, and the links of its README to other files are text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_LINK = re.compile(r"\[([^\[\]]+)\]\((?!\w+:|#)([^()\s]+)\)")
_CODE = re.compile(r"(```.*?```)", re.DOTALL)


class ProjectMetadata(MetadataHookInterface):
    """Fill in ``readme`` and ``urls``."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the dynamic fields. A source distribution has them in its PKG-INFO, and is not asked again."""
        url = os.environ.get("PROJECT_URL", "").rstrip("/")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        files = f"{url}/blob/{metadata['version']}" if url else ""
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text, files)}
        metadata["urls"] = {}
        if url:
            metadata["urls"] = {
                "Source": url,
                "Documentation": f"{files}/docs/index.md",
                "Changelog": f"{files}/CHANGELOG.md",
                "Issues": f"{url}/issues",
            }


def absolute(text: str, files: str) -> str:
    """Let the relative links of a text in Markdown lead below an address, or be text if there is none."""
    replacement = rf"[\1]({files}/\2)" if files else r"\1"
    parts = _CODE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(replacement, part) for part in parts)
