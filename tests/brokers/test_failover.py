"""Fail-over of each engine under load: two processes, publishers that retry, and four clients.

``make failover`` runs all faults, for longer.
"""

from __future__ import annotations

import pytest

from tests.soak.failover import details, run_fault
from tests.soak.failover_sites import NatsThree, PostgresStandby, SqliteFile, ValkeyCluster, ValkeySentinel


@pytest.mark.parametrize(
    ("site", "fault"),
    [
        (SqliteFile, "kill"),
        (ValkeySentinel, "lose"),
        (ValkeyCluster, "lose"),
        (PostgresStandby, "lose"),
        (NatsThree, "lose"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.engine,
)
async def test_each_client_receives_every_acknowledged_event_or_a_gap(tmp_path, site, fault):
    run = await run_fault(site(tmp_path / "site"), fault, tmp_path, seconds=1.0, calm=0.5, limit=100)
    assert run.passed, details(run)
    assert run.result.acknowledged
