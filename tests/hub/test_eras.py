"""Ids lead back to where they were given, whatever became of the log since, or tell that it was rewound."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.hub.epochs import EpochHistory, new_epoch, successor
from aiohttp_interceptors.hub.record import GapReason

EPOCH = re.compile(r"[0-9a-z]{1,32}", re.ASCII)
# How far each era comes beyond its beginning, and where the next one begins, counted from there.
stories = st.lists(st.tuples(st.integers(0, 6), st.integers(-8, 2)), max_size=6)


class Told:
    """A story of eras: what began where, and every id that was given in the course of it."""

    def __init__(self, story) -> None:
        self.epochs = EpochHistory("e0")
        self.begun = [0]  # where each era began
        self.ids = {}  # each id, and the position that it was given for
        self.end = 0
        self.live(0)
        for growth, step in story:
            self.live(growth)
            begin = max(self.end + step, 0)
            before = [self.epochs.id_of(offset) for offset in range(begin)]
            self.epochs.begin(f"e{len(self.begun)}", begin)
            assert [self.epochs.id_of(offset) for offset in range(begin)] == before, "no id changes afterwards"
            self.begun.append(begin)
            self.end = begin
            self.live(0)

    def live(self, growth):
        self.end += growth
        for offset in range(self.end + 1):
            given = self.epochs.id_of(offset)
            assert self.ids.setdefault(given, offset) == offset, "no id is given for two positions"


class TestAnyNumberOfEras:
    @given(stories)
    def test_each_position_has_the_id_of_the_latest_era_that_began_there_or_before(self, story):
        told = Told(story)
        for offset in range(told.end + 5):
            era = max(number for number, begin in enumerate(told.begun) if begin <= offset)
            assert told.epochs.id_of(offset) == f"e{era}-{offset}"

    @given(stories)
    def test_every_id_that_was_ever_given_leads_to_its_position_or_tells_of_the_rewinding(self, story):
        told = Told(story)
        for given_id, offset in told.ids.items():
            later = told.begun[int(given_id[1 : given_id.index("-")]) + 1 :]
            if not later:
                expected = offset, None
            elif not min(later):
                expected = 0, GapReason.FOREIGN  # nothing is left of what its owner had
            else:
                expected = min(offset, *later), GapReason.REWOUND
            assert told.epochs.locate(given_id, told.end) == expected

    @given(stories, st.integers(0, 30))
    def test_only_an_id_of_this_era_that_has_not_come_or_of_one_to_come_is_ahead(self, story, offset):
        told = Told(story)
        number = len(told.begun) - 1
        for era in range(number + 2):
            ahead = era == number and offset > told.end
            assert told.epochs.is_ahead(f"e{era}-{offset}", told.end) is (ahead or era > number)
            if ahead:
                assert told.epochs.locate(f"e{era}-{offset}", told.end) == (told.end, GapReason.FUTURE)

    @given(stories)
    def test_an_id_of_this_era_from_before_it_began_leads_to_its_beginning(self, story):
        """A process that joined later gives them, as its first era is this one."""
        told = Told(story)
        for offset in range(told.begun[-1]):
            given_id = f"{told.epochs.epoch}-{offset}"
            assert told.epochs.locate(given_id, told.end) == (told.begun[-1], GapReason.REWOUND)


class TestOneEra:
    @pytest.mark.parametrize(
        ("given_id", "expected"),
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
    def test_an_id_is_of_it_of_another_or_none(self, given_id, expected):
        epochs = EpochHistory("e")
        assert epochs.locate(given_id, 7) == expected
        assert epochs.is_ahead(given_id, 8) is (expected[1] is GapReason.FOREIGN)

    @pytest.mark.parametrize("given_id", ["", "e", "9", "e-", "e-9x", "é-9", "e-٩", "e-" + "9" * 20, "e" * 65])
    def test_what_is_no_id_of_it_is_never_ahead(self, given_id):
        assert not EpochHistory("e").is_ahead(given_id, 3)

    def test_a_position_is_ahead_when_it_is_after_the_end(self):
        epochs = EpochHistory("e")
        assert [epochs.is_ahead(f"e-{offset}", 3) for offset in range(6)] == [False] * 4 + [True] * 2


class TestEpochs:
    def test_they_are_what_a_broker_may_use(self):
        epoch = new_epoch()
        for _ in range(10):
            assert EPOCH.fullmatch(epoch)
            assert EpochHistory(epoch).locate(f"{epoch}-3", 3) == (3, None)
            epoch = successor(epoch)

    def test_no_two_are_the_same(self):
        assert len({new_epoch() for _ in range(1_000)}) == 1_000

    def test_processes_of_all_versions_agree_which_one_comes_next(self):
        assert successor("e") == successor("e") == "3f79bb7b43"

    def test_they_do_not_go_round(self):
        epochs = [new_epoch()]
        for _ in range(1_000):
            epochs.append(successor(epochs[-1]))
        assert len(set(epochs)) == 1_001
