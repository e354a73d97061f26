"""The log with a broker's positions: it begins anywhere and has holes, and what is lost or void is told to all."""

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from aiohttp_interceptors.hub.history import History
from aiohttp_interceptors.hub.record import GapReason, Record
from aiohttp_interceptors.hub.topic_history import RetentionPolicy
from tests.hub.reference import matches

UNBOUNDED = RetentionPolicy(10**9, None, None)
TOPICS = ["a", "b", "a.b", "a.c"]
NAMES = [*TOPICS, "*", ">", "a.*", "nobody"]

names = st.lists(st.sampled_from(NAMES), max_size=3, unique=True)


def positions_of(records):
    return [record.offset for record in records]


def brought(log, offset, topic="a", key=None, time=0.0, size=1):
    """Return a record as it is made of what a broker brought."""
    event_id = f"{log.epoch}-{offset}"
    frame = b"id: %b\ndata: %b\n\n" % (event_id.encode(), b"x" * size)
    return Record(offset, event_id, topic, None, frame, key, time)


class LogOfABrokerAgainstAList(RuleBasedStateMachine):
    """Records come with holes, are evicted, lost and void; who reads has what there is, or knows that some is not."""

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.latest = 0.0  # when the latest record was published
        self.end = 0
        self.kept = []
        self.gone = {}  # positions, and the records that were there; None if nobody knows what it was,
        self.unknown = {}  # in a span that ends there, and after what it begins
        self.made_up_for = (
            set()
        )  # of those the ones for which a later one of the topic and key was there when they went
        self.blurred = 0  # up to here the log may say of any topic that something is missing, since it was rewound
        self.borders = []  # where each era ended
        self.ids = {}  # all that were ever given, with era and position

    @initialize(
        history=st.integers(0, 4) | st.just(1000),
        history_bytes=st.none() | st.integers(30, 200),
        history_age=st.none() | st.integers(1, 5),
        offset=st.integers(0, 9),
    )
    def begin(self, history, history_bytes, history_age, offset):
        self.bounds = RetentionPolicy(history, history_bytes, history_age)
        self.log = History(self.bounds)
        self.log.begin("e0", offset)
        self.lose_list(offset)

    # What a broker brings.

    @rule(
        topic=st.sampled_from(TOPICS),
        hole=st.sampled_from([0, 0, 0, 1, 5]),
        key=st.sampled_from([None, None, "k", "l"]),
        age=st.sampled_from([0.0, 0.0, 0.5, 3.0]),
        size=st.integers(0, 60),
    )
    def add(self, topic, hole, key, age, size):
        self.expire()
        self.end += 1 + hole
        self.latest = max(self.latest, self.now - age)
        record = brought(self.log, self.end, topic, key, self.latest, size)
        assert record.id not in self.ids, "an id of two records"
        self.ids[record.id] = len(self.borders), self.end
        self.log.add(record)
        self.kept.append(record)
        while of_topic := [kept for kept in self.kept if kept.topic == topic]:
            most = self.bounds.history_bytes
            bytes_kept = sum(len(kept.frame) for kept in of_topic)
            if len(of_topic) <= self.bounds.history and (most is None or bytes_kept <= most):
                break
            self.evict(of_topic[0])

    @rule(more=st.integers(1, 4))
    def lose(self, more):
        self.log.lose(self.end + more)
        self.lose_list(self.end + more)

    @rule(back=st.sampled_from([-3, -1, 0, 0, 1, 1, 2, 3, 5, 9, 30]))
    def truncate(self, back):
        border = max(self.end - back, 0)
        self.borders.append(border)
        self.log.truncate(f"e{len(self.borders)}", border)
        self.blurred = min(max([self.blurred, *self.gone]), border)
        clipped = [begin for end, begin in self.unknown.items() if begin < border < end]
        valid = [record for record in [*self.kept, *filter(None, self.gone.values())] if record.offset <= border]
        self.kept = [record for record in self.kept if record.offset <= border]
        self.gone = {offset: record for offset, record in self.gone.items() if offset <= border}
        self.made_up_for = {
            offset
            for offset in self.made_up_for.intersection(self.gone)
            if any(self.makes_up(record, self.gone[offset]) for record in valid)
        }
        self.unknown = {end: begin for end, begin in self.unknown.items() if end <= border}
        if clipped or border > self.end:
            self.lose_list(border, *clipped)
        self.end = border

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.5, 20.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        self.log.expire(self.now)
        age = self.bounds.history_age
        for topic in TOPICS if age is not None else ():
            for record in [kept for kept in self.kept if kept.topic == topic]:
                if record.time + age > self.now:
                    break
                self.evict(record)

    # The list.

    def lose_list(self, offset, *after):
        if offset:
            self.gone[offset] = None
            self.unknown[offset] = min([self.end, *after])
        self.end = offset

    def evict(self, record):
        self.kept.remove(record)
        self.gone[record.offset] = record
        if any(self.makes_up(kept, record) for kept in self.kept):
            self.made_up_for.add(record.offset)

    @staticmethod
    def makes_up(record, other):
        same = (record.topic, record.key) == (other.topic, other.key)
        return same and other.key is not None and record.offset > other.offset

    def missed(self, offset, topics, since):
        """Return the positions of what is gone and may have been for somebody with these topics and positions."""
        starts = {name: max(offset, since.get(name, 0)) for name in topics}
        return {
            gone
            for gone, record in self.gone.items()
            if any(start < gone and (record is None or matches(name, record.topic)) for name, start in starts.items())
        }

    def wanted(self, offset, topics, since):
        starts = {name: max(offset, since.get(name, 0)) for name in topics}
        return [
            record
            for record in self.kept
            if any(start < record.offset and matches(name, record.topic) for name, start in starts.items())
        ]

    def agree(self, reported, truth, offset, topics):
        """Never too little; too much only for what is blurred since the log was rewound."""
        truth = max(truth, default=0)
        note(f"{reported=} {truth=} {self.blurred=}")
        if topics and offset < self.blurred:
            assert truth <= reported <= max(truth, self.blurred)
            assert reported == 0 or reported > offset
        else:
            assert reported == truth

    # What is read.

    @rule(topics=names, back=st.integers(-2, 15), since=st.lists(st.none() | st.integers(0, 12), max_size=3))
    def read(self, topics, back, since):
        offset = max(self.end - back, 0)
        pairs = zip(topics, since, strict=False)
        since = {name: max(self.end - back, 0) for name, back in pairs if back is not None}
        reading = self.log.after(offset, topics, None, since or None)
        missed = self.missed(offset, topics, since)
        assert reading.records == self.wanted(offset, topics, since)
        self.agree(reading.missing, missed, offset, topics)
        self.agree(reading.lost, missed - self.made_up_for, offset, topics)
        assert reading.lost <= reading.missing

    @rule(topics=names, count=st.integers(0, 6))
    def ask_for_the_newest(self, topics, count):
        reading = self.log.after(self.log.newest(topics, count), topics)
        assert reading.missing == reading.lost == 0
        last_gap = max(self.missed(0, topics, {}), default=0)
        possible = self.wanted(last_gap, topics, {})
        newest = possible[len(possible) - min(count, len(possible)) :]
        if last_gap < self.blurred:
            assert reading.records == newest[len(newest) - len(reading.records) :]
        else:
            assert reading.records == newest

    # What holds.

    @invariant()
    def it_has_what_it_should_have(self):
        if not hasattr(self, "log"):
            return
        assert self.log.end == self.end
        assert self.log.records == len(self.kept)
        assert self.log.bytes == sum(len(record.frame) for record in self.kept)
        assert self.log.topics == len({record.topic for record in self.kept})
        assert self.log.after(0, [">"]).records == self.kept

    @invariant()
    def an_id_leads_to_its_position_or_tells_of_the_rewinding(self):
        if not hasattr(self, "log"):
            return
        assert all(self.log.id_of(record.offset) == record.id for record in self.kept if self.era_is(record))
        for given, (era, offset) in self.ids.items():
            later = self.borders[era:]
            assert not self.log.is_ahead(given)
            if not later:
                assert self.log.locate(given) == (offset, None)
            elif min(later):
                assert self.log.locate(given) == (min(offset, *later), GapReason.REWOUND)
            else:
                assert self.log.locate(given) == (0, GapReason.FOREIGN)

    def era_is(self, record):
        """Tell whether it is not on a border, where the later era's id counts."""
        return record.offset not in self.borders

    @invariant()
    def it_knows_when_the_next_one_is_too_old(self):
        if not hasattr(self, "log"):
            return
        age, due = self.bounds.history_age, self.log.next_expiry()
        if age is None:
            assert due is None
        elif self.kept:
            oldest = {}
            for record in self.kept:
                oldest.setdefault(record.topic, record.time)
            assert due is not None
            assert due <= min(oldest.values()) + age


def test_at_every_moment_the_log_of_a_broker_is_what_a_list_would_be():
    run_state_machine_as_test(
        LogOfABrokerAgainstAList, settings=settings(deadline=None, max_examples=250, stateful_step_count=40)
    )


def log_of(*offsets, begin=0, bounds=UNBOUNDED, key=None):
    log = History(bounds)
    log.begin("e", begin)
    for offset in offsets:
        log.add(brought(log, offset, key=key))
    return log


class TestBegin:
    def test_what_was_before_may_have_been_anything(self):
        log = log_of(41, begin=40)
        assert (log.end, log.epoch) == (41, "e")
        for topics in ["a"], ["nobody"], [">"], ["a.*"]:
            assert [log.after(offset, topics).missing for offset in (0, 39, 40)] == [40, 40, 0]
        assert log.after(0, []).missing == 0
        assert log.after(0, ["a"], None, {"a": 40}).missing == 0
        assert positions_of(log.after(log.newest([">"], 5), [">"]).records) == [41]

    def test_at_the_beginning_of_all_nothing_was_before(self):
        assert log_of(1).after(0, [">"]).missing == 0

    def test_positions_may_be_as_great_as_a_broker_has(self):
        last = 2**63 - 1
        log = log_of(last, begin=last - 1)
        assert log.locate(f"e-{last}") == (last, None)
        assert positions_of(log.after(log.newest(["a"], 3), ["a"]).records) == [last]


class TestLose:
    def test_it_is_a_gap_for_all_who_were_before_and_for_nobody_else(self):
        log = log_of(1, 2)
        log.lose(7)
        log.add(brought(log, 9))
        for topics in ["a"], ["nobody"], [">"]:
            assert [log.after(offset, topics).missing for offset in (0, 2, 6, 7, 9)] == [7, 7, 7, 0, 0]
        assert positions_of(log.after(0, ["a"]).records) == [1, 2, 9]

    def test_no_key_makes_up_for_it(self):
        log = log_of(1, key="k")
        log.lose(2)
        log.add(brought(log, 3, key="k"))
        assert log.after(1, ["a"]).lost == 2


class TestRewind:
    def test_what_was_after_the_border_is_void_and_its_positions_are_used_again(self):
        log = log_of(1, 2, 3, 4)
        log.truncate("f", 2)
        assert (log.end, log.epoch, log.records) == (2, "f", 2)
        log.add(brought(log, 3))
        assert [record.id for record in log.after(0, ["a"]).records] == ["e-1", "e-2", "f-3"]
        assert log.locate("e-4") == log.locate("e-2") == (2, GapReason.REWOUND)
        assert log.locate("f-3") == (3, None)
        assert log.after(0, ["a"]).missing == 0

    def test_a_server_that_has_lost_everything_leaves_nothing(self):
        log = log_of(1, 2, begin=0)
        log.truncate("f", 0)
        assert (log.records, log.bytes, log.topics, log.next_expiry()) == (0, 0, 0, None)
        assert "a" not in log
        assert log.after(0, [">"]).missing == 0
        assert log.locate("e-2") == (0, GapReason.FOREIGN)

    def test_the_border_may_be_before_all_that_is_known(self):
        log = log_of(41, 42, begin=40)
        log.truncate("f", 7)
        assert (log.end, log.records) == (7, 0)
        assert [log.after(offset, ["a"]).missing for offset in (6, 7)] == [7, 0]

    def test_the_border_may_be_after_all_that_came_and_what_was_between_is_a_gap(self):
        """A process that was away when the others went on, and when the server was rewound."""
        log = log_of(1, 2)
        log.truncate("f", 8)
        log.add(brought(log, 9))
        for topics in ["a"], ["nobody"], [">"]:
            assert [log.after(offset, topics).missing for offset in (2, 7, 8)] == [8, 8, 0]
        assert log.locate("e-2") == (2, GapReason.REWOUND)
        assert log.locate("f-5") == (8, GapReason.REWOUND)
        assert positions_of(log.after(0, ["a"]).records) == [1, 2, 9]

    def test_what_was_evicted_before_is_still_a_gap(self):
        log = log_of(*range(1, 8), bounds=RetentionPolicy(3, None, None))
        log.truncate("f", 6)
        assert positions_of(log.after(0, ["a"]).records) == [5, 6]
        assert [log.after(offset, ["a"]).missing for offset in (0, 3, 4)] == [4, 4, 0]

    def test_what_was_made_up_for_by_something_void_is_lost(self):
        log = log_of(1, 2, bounds=RetentionPolicy(1, None, None), key="k")
        assert (log.after(0, ["a"]).missing, log.after(0, ["a"]).lost) == (1, 0)
        log.truncate("f", 1)
        assert (log.after(0, ["a"]).missing, log.after(0, ["a"]).lost) == (1, 1)

    def test_what_is_kept_still_grows_old_and_is_still_evicted(self):
        log = History(RetentionPolicy(2, None, 60.0))
        log.begin("e", 0)
        for offset in 1, 2, 3:
            log.add(brought(log, offset, time=float(offset)))
        log.truncate("f", 2)
        assert log.next_expiry() == 62.0
        log.expire(61.9)
        assert log.records == 1
        for offset in 3, 4:
            log.add(brought(log, offset, time=50.0))
        assert positions_of(log.after(0, ["a"]).records) == [3, 4]
        log.expire(110.0)
        assert (log.records, log.next_expiry()) == (0, None)

    @pytest.mark.parametrize("names", [["a"], [">"], ["*"]])
    def test_names_and_wildcards_find_what_is_kept(self, names):
        log = log_of(1, 2, 3)
        log.truncate("f", 2)
        assert positions_of(log.after(0, names).records) == [1, 2]
        assert positions_of(log.after(log.newest(names, 1), names).records) == [2]
