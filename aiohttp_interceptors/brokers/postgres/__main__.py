"""Print the migration for a table: ``python -m aiohttp_interceptors.brokers.postgres [TABLE]``."""

from __future__ import annotations

import sys

from .schema import migration

if __name__ == "__main__":
    sys.stdout.write(migration(*sys.argv[1:2]))
