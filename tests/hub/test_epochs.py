"""Epochs: every ID that was ever assigned resolves to its offset, or reports that the log was truncated."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.hub.epochs import EpochHistory, new_epoch, successor
from aiohttp_interceptors.hub.record import GapReason

EPOCH = re.compile(r"[0-9a-z]{1,32}", re.ASCII)
# For each epoch: how many offsets it assigns, and where the next epoch starts, relative to its end.
scenarios = st.lists(st.tuples(st.integers(0, 6), st.integers(-8, 2)), max_size=6)


class Scenario:
    """A log that is truncated some times, with the start of every epoch and every ID that was assigned."""

    def __init__(self, steps) -> None:
        self.epochs = EpochHistory("e0")
        self.starts = [0]
        self.ids = {}  # offset by ID
        self.end = 0
        self.append(0)
        for count, step in steps:
            self.append(count)
            start = max(self.end + step, 0)
            before = [self.epochs.id_of(offset) for offset in range(start)]
            self.epochs.start_epoch(f"e{len(self.starts)}", start)
            assert [self.epochs.id_of(offset) for offset in range(start)] == before, "an ID changed"
            self.starts.append(start)
            self.end = start
            self.append(0)

    def append(self, count):
        self.end += count
        for offset in range(self.end + 1):
            event_id = self.epochs.id_of(offset)
            assert self.ids.setdefault(event_id, offset) == offset, "an ID was assigned to two offsets"


class TestSeveralEpochs:
    @given(scenarios)
    def test_an_offset_has_the_id_of_the_latest_epoch_that_started_at_or_before_it(self, steps):
        scenario = Scenario(steps)
        for offset in range(scenario.end + 5):
            epoch = max(number for number, start in enumerate(scenario.starts) if start <= offset)
            assert scenario.epochs.id_of(offset) == f"e{epoch}-{offset}"

    @given(scenarios)
    def test_every_assigned_id_resolves_to_its_offset_or_reports_the_truncation(self, steps):
        scenario = Scenario(steps)
        for event_id, offset in scenario.ids.items():
            later = scenario.starts[int(event_id[1 : event_id.index("-")]) + 1 :]
            if not later:
                expected = offset, None
            elif not min(later):
                expected = 0, GapReason.FOREIGN  # no record of that epoch is left
            else:
                expected = min(offset, *later), GapReason.TRUNCATED
            assert scenario.epochs.resolve(event_id, scenario.end) == expected

    @given(scenarios, st.integers(0, 30))
    def test_only_an_id_after_the_end_or_of_an_unknown_epoch_may_arrive(self, steps, offset):
        scenario = Scenario(steps)
        current = len(scenario.starts) - 1
        for epoch in range(current + 2):
            event_id = f"e{epoch}-{offset}"
            ahead = epoch == current and offset > scenario.end
            assert scenario.epochs.may_arrive(event_id, scenario.end) is (ahead or epoch > current)
            if ahead:
                assert scenario.epochs.resolve(event_id, scenario.end) == (scenario.end, GapReason.FUTURE)

    @given(scenarios)
    def test_an_id_of_the_current_epoch_from_before_its_start_resolves_to_its_start(self, steps):
        """A process that joined later assigns such IDs, because the current epoch is the first that it knows."""
        scenario = Scenario(steps)
        for offset in range(scenario.starts[-1]):
            event_id = f"{scenario.epochs.epoch}-{offset}"
            assert scenario.epochs.resolve(event_id, scenario.end) == (scenario.starts[-1], GapReason.TRUNCATED)


class TestOneEpoch:
    @pytest.mark.parametrize(
        ("event_id", "expected"),
        [
            ("e-0", (0, None)),
            ("e-7", (7, None)),
            ("e-8", (7, GapReason.FUTURE)),
            ("f-7", (0, GapReason.FOREIGN)),
            ("7", (7, GapReason.UNKNOWN)),
            ("e-" + "0" * 18 + "7", (7, None)),
            ("e-" + "0" * 19 + "7", (7, GapReason.UNKNOWN)),
            ("e" * 32 + "-" + "0" * 19, (0, GapReason.FOREIGN)),
            ("e" * 33 + "-7", (7, GapReason.UNKNOWN)),
        ],
    )
    def test_an_id_is_classified(self, event_id, expected):
        epochs = EpochHistory("e")
        assert epochs.resolve(event_id, 7) == expected
        assert epochs.may_arrive(event_id, 8) is (expected[1] is GapReason.FOREIGN)

    @pytest.mark.parametrize("event_id", ["", "e", "9", "e-", "e-9x", "é-9", "e-٩", "e-" + "9" * 20, "e" * 65])
    def test_a_string_that_is_not_an_id_never_arrives(self, event_id):
        assert not EpochHistory("e").may_arrive(event_id, 3)

    def test_an_id_after_the_end_may_arrive(self):
        epochs = EpochHistory("e")
        assert [epochs.may_arrive(f"e-{offset}", 3) for offset in range(6)] == [False] * 4 + [True] * 2


class TestEpochNames:
    def test_a_new_epoch_and_its_successors_are_valid(self):
        epoch = new_epoch()
        for _ in range(10):
            assert EPOCH.fullmatch(epoch)
            assert EpochHistory(epoch).resolve(f"{epoch}-3", 3) == (3, None)
            epoch = successor(epoch)

    def test_new_epochs_are_unique(self):
        assert len({new_epoch() for _ in range(1_000)}) == 1_000

    def test_all_processes_and_releases_compute_the_same_successor(self):
        assert successor("e") == successor("e") == "3f79bb7b43"

    def test_successors_do_not_repeat(self):
        epochs = [new_epoch()]
        for _ in range(1_000):
            epochs.append(successor(epochs[-1]))
        assert len(set(epochs)) == 1_001
