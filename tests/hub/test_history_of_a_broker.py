"""The history of a broker's log: starts at any offset, has holes, and follows when the log is trimmed or truncated."""

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
PATTERNS = [*TOPICS, "*", ">", "a.*", "unused"]

pattern_lists = st.lists(st.sampled_from(PATTERNS), max_size=3, unique=True)


def offsets_of(records):
    return [record.offset for record in records]


def replicated(history, offset, topic="a", key=None, time=0.0, size=1):
    """Return a record with an offset of the broker, as the replicator makes it."""
    event_id = f"{history.epoch}-{offset}"
    frame = b"id: %b\ndata: %b\n\n" % (event_id.encode(), b"x" * size)
    return Record(offset, event_id, topic, None, frame, key, time)


class HistoryOfABrokerAgainstAList(RuleBasedStateMachine):
    """Records are added with holes and evicted, and the log is trimmed and truncated.

    Every read returns the records that are kept, and reports those that are not.
    """

    def __init__(self):
        super().__init__()
        self.now = 1000.0
        self.latest = 0.0  # when the latest record was published
        self.end = 0
        self.kept = []
        self.missing = {}  # offsets, and the evicted record, or None for the last offset of an unknown range
        self.unknown = {}  # the last offset of each unknown range, and the offset before the range
        self.superseded = set()  # offsets of evicted records that a later record with their key superseded
        self.inexact_through = 0  # up to this offset a gap may be reported for any topic, because of a truncation
        self.borders = []  # where each epoch ended
        self.ids = {}  # every ID that was assigned, with the number of its epoch and its offset

    @initialize(
        history=st.integers(0, 4) | st.just(1000),
        history_bytes=st.none() | st.integers(30, 200),
        history_age=st.none() | st.integers(1, 5),
        offset=st.integers(0, 9),
    )
    def start(self, history, history_bytes, history_age, offset):
        self.retention = RetentionPolicy(history, history_bytes, history_age)
        self.history = History(self.retention)
        self.history.start_after("e0", offset)
        self.add_unknown_range(offset)

    # Items of the broker's tail.

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
        record = replicated(self.history, self.end, topic, key, self.latest, size)
        assert record.id not in self.ids, "an ID was assigned to two records"
        self.ids[record.id] = len(self.borders), self.end
        self.history.add(record)
        self.kept.append(record)
        while of_topic := [kept for kept in self.kept if kept.topic == topic]:
            max_bytes = self.retention.history_bytes
            size = sum(len(kept.frame) for kept in of_topic)
            if len(of_topic) <= self.retention.history and (max_bytes is None or size <= max_bytes):
                break
            self.evict(of_topic[0])

    @rule(count=st.integers(1, 4))
    def trim(self, count):
        """The earlier records are removed too: one of the trimmed entries may have erased them."""
        self.history.trim(self.end + count)
        self.missing.update({record.offset: record for record in self.kept})
        self.kept = []
        self.add_unknown_range(self.end + count)

    @rule(back=st.sampled_from([-3, -1, 0, 0, 1, 1, 2, 3, 5, 9, 30]))
    def truncate(self, back):
        border = max(self.end - back, 0)
        if back < 0:
            self.missing.update({record.offset: record for record in self.kept})
            self.kept = []
        self.borders.append(border)
        self.history.truncate(f"e{len(self.borders)}", border)
        self.inexact_through = min(max([self.inexact_through, *self.missing]), border)
        clipped = [start for end, start in self.unknown.items() if start < border < end]
        valid = [record for record in [*self.kept, *filter(None, self.missing.values())] if record.offset <= border]
        self.kept = [record for record in self.kept if record.offset <= border]
        self.missing = {offset: record for offset, record in self.missing.items() if offset <= border}
        self.superseded = {
            offset
            for offset in self.superseded.intersection(self.missing)
            if any(self.supersedes(record, self.missing[offset]) for record in valid)
        }
        self.unknown = {end: start for end, start in self.unknown.items() if end <= border}
        if clipped or border > self.end:
            self.add_unknown_range(border, *clipped)
        self.end = border

    @rule(seconds=st.sampled_from([0.25, 1.0, 2.5, 20.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        self.history.expire(self.now)
        age = self.retention.history_age
        for topic in TOPICS if age is not None else ():
            for record in [kept for kept in self.kept if kept.topic == topic]:
                if record.time + age > self.now:
                    break
                self.evict(record)

    # The list.

    def add_unknown_range(self, offset, *starts):
        if offset:
            self.missing[offset] = None
            self.unknown[offset] = min([self.end, *starts])
        self.end = offset

    def evict(self, record):
        self.kept.remove(record)
        self.missing[record.offset] = record
        if any(self.supersedes(kept, record) for kept in self.kept):
            self.superseded.add(record.offset)

    @staticmethod
    def supersedes(record, other):
        same = (record.topic, record.key) == (other.topic, other.key)
        return same and other.key is not None and record.offset > other.offset

    def expected_missing(self, offset, topics, since):
        """Return the offsets of the missing records that match, or that may."""
        starts = {topic: max(offset, since.get(topic, 0)) for topic in topics}
        return {
            missing
            for missing, record in self.missing.items()
            if any(
                start < missing and (record is None or matches(each, record.topic)) for each, start in starts.items()
            )
        }

    def expected_records(self, offset, topics, since):
        starts = {topic: max(offset, since.get(topic, 0)) for topic in topics}
        return [
            record
            for record in self.kept
            if any(start < record.offset and matches(each, record.topic) for each, start in starts.items())
        ]

    def check_missing(self, reported, expected, offset, topics):
        """The offset is exact, or greater for what is inexact since a truncation."""
        truth = max(expected, default=0)
        note(f"{reported=} {truth=} {self.inexact_through=}")
        if topics and offset < self.inexact_through:
            assert truth <= reported <= max(truth, self.inexact_through)
            assert reported == 0 or reported > offset
        else:
            assert reported == truth

    # Reads.

    @rule(topics=pattern_lists, back=st.integers(-2, 15), since=st.lists(st.none() | st.integers(0, 12), max_size=3))
    def read(self, topics, back, since):
        offset = max(self.end - back, 0)
        pairs = zip(topics, since, strict=False)
        since = {topic: max(self.end - back, 0) for topic, back in pairs if back is not None}
        result = self.history.read(offset, topics, None, since or None)
        missing = self.expected_missing(offset, topics, since)
        assert result.records == self.expected_records(offset, topics, since)
        self.check_missing(result.missing_through, missing, offset, topics)
        self.check_missing(result.unsuperseded_through, missing - self.superseded, offset, topics)
        assert result.unsuperseded_through <= result.missing_through

    @rule(topics=pattern_lists, count=st.integers(0, 6))
    def replay(self, topics, count):
        result = self.history.read(self.history.replay_start(topics, count), topics)
        assert result.missing_through == result.unsuperseded_through == 0
        last_gap = max(self.expected_missing(0, topics, {}), default=0)
        possible = self.expected_records(last_gap, topics, {})
        newest = possible[len(possible) - min(count, len(possible)) :]
        if last_gap < self.inexact_through:
            assert result.records == newest[len(newest) - len(result.records) :]
        else:
            assert result.records == newest

    # Invariants.

    @invariant()
    def it_keeps_exactly_what_the_retention_policy_says(self):
        if not hasattr(self, "history"):
            return
        assert self.history.end == self.end
        assert self.history.records == len(self.kept)
        assert self.history.bytes == sum(len(record.frame) for record in self.kept)
        assert self.history.topics == len({record.topic for record in self.kept})
        assert self.history.read(0, [">"]).records == self.kept

    @invariant()
    def every_id_resolves_to_its_offset_or_reports_the_truncation(self):
        if not hasattr(self, "history"):
            return
        for record in self.kept:
            if record.offset not in self.borders:  # at a border the ID of the later epoch counts
                assert self.history.id_of(record.offset) == record.id
        for event_id, (epoch, offset) in self.ids.items():
            later = self.borders[epoch:]
            assert not self.history.may_arrive(event_id)
            if not later:
                assert self.history.resolve(event_id) == (offset, None)
            elif min(later):
                assert self.history.resolve(event_id) == (min(offset, *later), GapReason.TRUNCATED)
            else:
                assert self.history.resolve(event_id) == (0, GapReason.FOREIGN)

    @invariant()
    def the_next_expiry_is_scheduled(self):
        if not hasattr(self, "history"):
            return
        age, due = self.retention.history_age, self.history.next_expiry()
        if age is None:
            assert due is None
        elif self.kept:
            oldest = {}
            for record in self.kept:
                oldest.setdefault(record.topic, record.time)
            assert due is not None
            assert due <= min(oldest.values()) + age


def test_the_history_of_a_broker_has_what_a_list_has():
    run_state_machine_as_test(
        HistoryOfABrokerAgainstAList, settings=settings(deadline=None, max_examples=250, stateful_step_count=40)
    )


def history_of(*offsets, start=0, retention=UNBOUNDED, key=None):
    history = History(retention)
    history.start_after("e", start)
    for offset in offsets:
        history.add(replicated(history, offset, key=key))
    return history


class TestStart:
    def test_earlier_offsets_have_a_gap_for_every_topic(self):
        history = history_of(41, start=40)
        assert (history.end, history.epoch) == (41, "e")
        for topics in ["a"], ["unused"], [">"], ["a.*"]:
            assert [history.read(offset, topics).missing_through for offset in (0, 39, 40)] == [40, 40, 0]
        assert history.read(0, []).missing_through == 0
        assert history.read(0, ["a"], None, {"a": 40}).missing_through == 0
        assert offsets_of(history.read(history.replay_start([">"], 5), [">"]).records) == [41]

    def test_a_history_that_starts_at_0_has_no_gap(self):
        assert history_of(1).read(0, [">"]).missing_through == 0

    def test_offsets_may_be_as_great_as_those_of_a_broker(self):
        last = 2**63 - 1
        history = history_of(last, start=last - 1)
        assert history.resolve(f"e-{last}") == (last, None)
        assert offsets_of(history.read(history.replay_start(["a"], 3), ["a"]).records) == [last]


class TestTrim:
    def test_earlier_offsets_have_a_gap_for_every_topic_and_later_ones_have_none(self):
        history = history_of(1, 2)
        history.trim(7)
        history.add(replicated(history, 9))
        for topics in ["a"], ["unused"], [">"]:
            assert [history.read(offset, topics).missing_through for offset in (0, 2, 6, 7, 9)] == [7, 7, 7, 0, 0]

    def test_earlier_records_are_removed_because_a_trimmed_entry_may_have_erased_them(self):
        history = history_of(1, 2)
        history.trim(2)
        assert offsets_of(history.read(0, ["a"]).records) == [1, 2], "nothing that was not received is trimmed"
        history.trim(7)
        history.add(replicated(history, 9))
        assert offsets_of(history.read(0, ["a"]).records) == [9]
        assert (history.records, history.topics, history.bytes) == (1, 1, len(history.newest("a").frame))

    def test_no_key_supersedes_a_trimmed_record(self):
        history = history_of(1, key="k")
        history.trim(2)
        history.add(replicated(history, 3, key="k"))
        assert history.read(1, ["a"]).unsuperseded_through == 2


class TestTruncate:
    def test_later_records_are_removed_and_their_offsets_are_assigned_again(self):
        history = history_of(1, 2, 3, 4)
        history.truncate("f", 2)
        assert (history.end, history.epoch, history.records) == (2, "f", 2)
        history.add(replicated(history, 3))
        assert [record.id for record in history.read(0, ["a"]).records] == ["e-1", "e-2", "f-3"]
        assert history.resolve("e-4") == history.resolve("e-2") == (2, GapReason.TRUNCATED)
        assert history.resolve("f-3") == (3, None)
        assert history.read(0, ["a"]).missing_through == 0

    def test_a_truncation_to_0_removes_everything(self):
        history = history_of(1, 2, start=0)
        history.truncate("f", 0)
        assert (history.records, history.bytes, history.topics, history.next_expiry()) == (0, 0, 0, None)
        assert "a" not in history
        assert history.read(0, [">"]).missing_through == 0
        assert history.resolve("e-2") == (0, GapReason.FOREIGN)

    def test_the_offset_may_be_before_the_first_known_record(self):
        history = history_of(41, 42, start=40)
        history.truncate("f", 7)
        assert (history.end, history.records) == (7, 0)
        assert [history.read(offset, ["a"]).missing_through for offset in (6, 7)] == [7, 0]

    def test_the_offset_may_be_after_the_end_and_the_records_in_between_are_missing(self):
        """The process was disconnected while others published, and while the log was truncated."""
        history = history_of(1, 2)
        history.truncate("f", 8)
        history.add(replicated(history, 9))
        for topics in ["a"], ["unused"], [">"]:
            assert [history.read(offset, topics).missing_through for offset in (2, 7, 8)] == [8, 8, 0]
        assert history.resolve("e-2") == (2, GapReason.TRUNCATED)
        assert history.resolve("f-5") == (8, GapReason.TRUNCATED)
        assert offsets_of(history.read(0, ["a"]).records) == [9], "an entry in between may have erased the others"

    def test_evicted_records_are_still_missing(self):
        history = history_of(*range(1, 8), retention=RetentionPolicy(3, None, None))
        history.truncate("f", 6)
        assert offsets_of(history.read(0, ["a"]).records) == [5, 6]
        assert [history.read(offset, ["a"]).missing_through for offset in (0, 3, 4)] == [4, 4, 0]

    def test_a_record_that_a_removed_one_superseded_is_lost(self):
        history = history_of(1, 2, retention=RetentionPolicy(1, None, None), key="k")
        assert (history.read(0, ["a"]).missing_through, history.read(0, ["a"]).unsuperseded_through) == (1, 0)
        history.truncate("f", 1)
        assert (history.read(0, ["a"]).missing_through, history.read(0, ["a"]).unsuperseded_through) == (1, 1)

    def test_the_kept_records_still_expire_and_are_still_evicted(self):
        history = History(RetentionPolicy(2, None, 60.0))
        history.start_after("e", 0)
        for offset in 1, 2, 3:
            history.add(replicated(history, offset, time=float(offset)))
        history.truncate("f", 2)
        assert history.next_expiry() == 62.0
        history.expire(61.9)
        assert history.records == 1
        for offset in 3, 4:
            history.add(replicated(history, offset, time=50.0))
        assert offsets_of(history.read(0, ["a"]).records) == [3, 4]
        history.expire(110.0)
        assert (history.records, history.next_expiry()) == (0, None)

    @pytest.mark.parametrize("topics", [["a"], [">"], ["*"]])
    def test_topics_and_wildcards_find_the_kept_records(self, topics):
        history = history_of(1, 2, 3)
        history.truncate("f", 2)
        assert offsets_of(history.read(0, topics).records) == [1, 2]
        assert offsets_of(history.read(history.replay_start(topics, 1), topics).records) == [2]
