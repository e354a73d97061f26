"""The history has what a list of all records says that it should have, resolves any ID, and reads at a bounded cost."""

import tracemalloc

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiohttp_interceptors.hub import history as history_module
from aiohttp_interceptors.hub.history import MAX_RECORDS_SCANNED, History, conflate, limit_bytes
from aiohttp_interceptors.hub.record import GapReason
from aiohttp_interceptors.hub.topic_history import RetentionPolicy
from aiohttp_interceptors.sse import Decoder, Event
from tests.hub.reference import matches

UNBOUNDED = RetentionPolicy(10**9, None, None)
TOPICS = ["a", "b", "a.b", "a.c", "b.b", "a.b.c", "a.c.c"]
PATTERNS = [*TOPICS, "*", ">", "a.*", "*.b", "a.>", "*.*", "*.>", "a.*.c", "unused", "unused.>"]

pattern_lists = st.lists(st.sampled_from(PATTERNS), max_size=4, unique=True)


def offsets_of(records):
    return [record.offset for record in records]


class HistoryAgainstAList(RuleBasedStateMachine):
    """Records are appended under many topics, evicted by each limit, and read from any offset."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.now = 1000.0
        self.everything = []
        self.kept = []
        self.uses = {}  # by topic, the offset of its last use, and a number that it got with its first record
        self.superseded = set()  # offsets of evicted records that a later record with their key superseded
        self.known = set()  # topics that the history remembers
        self.forgotten_through = 0  # offset of the newest record of a forgotten topic
        self.always_known = set(PATTERNS)  # topics that were known when a topic was first forgotten, and since then

    def teardown(self):
        self.patch.undo()

    @initialize(
        history=st.integers(0, 4) | st.just(1000),
        history_bytes=st.none() | st.integers(40, 250),
        history_age=st.none() | st.integers(1, 5),
        max_empty=st.integers(0, 3) | st.just(4096),
        max_topics=st.none() | st.integers(1, 4),
        max_bytes=st.none() | st.integers(40, 400),
    )
    def create(self, history, history_bytes, history_age, max_empty, max_topics, max_bytes):
        self.patch.setattr(history_module, "MAX_EMPTY_TOPICS", max_empty)
        self.max_empty = max_empty
        self.retention = RetentionPolicy(history, history_bytes, history_age, max_topics, max_bytes)
        self.history = History(self.retention)

    # Changes.

    @rule(topic=st.sampled_from(TOPICS), size=st.integers(0, 80), key=st.sampled_from([None, None, "k", "l"]))
    def append(self, topic, size, key):
        if self.max_empty < len(TOPICS):
            self.expire()  # otherwise append() may forget a topic and remember it again
        event = Event("x" * size)
        record = self.history.append(topic, event, key, self.now)
        self.expire_list()
        assert (record.topic, record.event, record.key, record.time) == (topic, event, key, self.now)
        assert record.offset == len(self.everything) + 1 == self.history.end
        assert record.id == self.history.id_of(record.offset)
        assert Decoder().feed(record.frame) == [Event("x" * size, id=record.id)]
        self.everything.append(record)
        self.kept.append(record)
        while of_topic := [kept for kept in self.kept if kept.topic == topic]:
            max_bytes = self.retention.history_bytes
            size = sum(len(kept.frame) for kept in of_topic)
            if len(of_topic) <= self.retention.history and (max_bytes is None or size <= max_bytes):
                break
            self.evict(of_topic[0])
        if self.retention.max_bytes is not None and len(record.frame) > self.retention.max_bytes:
            for kept in of_topic:  # there is no room for it
                self.evict(kept)
        self.uses[topic] = record.offset, self.uses[topic][1] if topic in self.uses else record.offset
        self.evict_beyond_limits()
        self.check_known_topics(topic)

    def evict_beyond_limits(self):
        """Too many topics or bytes: records of the topic that was not used for the longest time are evicted."""
        while True:
            topics = {record.topic for record in self.kept}
            self.uses = {topic: use for topic, use in self.uses.items() if topic in topics}
            size = sum(len(record.frame) for record in self.kept)
            too_many = self.retention.max_topics is not None and len(topics) > self.retention.max_topics
            if not too_many and (self.retention.max_bytes is None or size <= self.retention.max_bytes):
                return
            least_used = min(topics, key=self.uses.__getitem__)
            of_topic = [record for record in self.kept if record.topic == least_used]
            for record in of_topic if too_many else of_topic[:1]:
                self.evict(record)

    @rule(topics=pattern_lists)
    def begin_to_read(self, topics):
        self.history.note_read(topics)
        for topic in set(topics) & self.uses.keys():
            self.uses[topic] = self.history.end + 0.5, self.uses[topic][1]

    @rule(topic=st.sampled_from(TOPICS))
    def erase(self, topic):
        """What was erased is missing, also if a later record with its key superseded it."""
        self.history.erase(topic)
        self.kept = [record for record in self.kept if record.topic != topic]
        self.superseded -= {record.offset for record in self.everything if record.topic == topic}
        self.uses.pop(topic, None)
        self.check_known_topics()

    @rule(seconds=st.sampled_from([0.25, 1.0, 1.0, 2.5, 20.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        """Records expire exactly when they reach the maximum age."""
        self.history.expire(self.now)
        self.expire_list()
        self.check_known_topics()

    @rule()
    @precondition(lambda self: self.history.next_expiry() is not None)
    def expire_on_schedule(self):
        self.now = max(self.now, self.history.next_expiry())
        self.expire()

    # The list.

    def expire_list(self):
        age = self.retention.history_age
        for record in self.kept[:]:
            if age is not None and record.time + age <= self.now:
                self.evict(record)
        self.uses = {topic: use for topic, use in self.uses.items() if topic in {each.topic for each in self.kept}}

    def evict(self, record):
        self.kept.remove(record)
        if record.key is not None and any(
            (kept.topic, kept.key) == (record.topic, record.key) and kept.offset > record.offset for kept in self.kept
        ):
            self.superseded.add(record.offset)

    def check_known_topics(self, *appended):
        """Only empty topics are forgotten, and only if there are too many of them."""
        if not self.forgotten_through:
            self.always_known = self.known.copy()
        self.known.update(appended)
        forgotten = {topic for topic in self.known if topic not in self.history}
        with_records = {record.topic for record in self.kept}
        assert forgotten.isdisjoint(with_records)
        self.known -= forgotten
        assert len(self.known - with_records) <= self.max_empty
        if forgotten:
            assert len(self.known - with_records) == self.max_empty, "a topic was forgotten too early"
            latest = [record.offset for record in self.everything if record.topic in forgotten]
            self.forgotten_through = max(self.forgotten_through, *latest)
            self.always_known -= forgotten
        elif not self.forgotten_through:
            self.always_known = set(PATTERNS)

    def matching(self, records, offset, topics, since):
        """Return the records that a read should return, or report as missing."""
        return [
            record
            for record in records
            if any(matches(each, record.topic) and record.offset > max(offset, since.get(each, 0)) for each in topics)
        ]

    def check_missing(self, reported, missing, offset, topics):
        """The offset is exact, or greater if a topic was forgotten that may match."""
        may_be_forgotten = self.forgotten_through > offset and not self.always_known.issuperset(topics)
        truth = max(offsets_of(missing), default=0)
        note(f"{reported=} {truth=} {self.forgotten_through=}")
        if may_be_forgotten:
            assert reported == truth or offset < reported <= self.forgotten_through
            assert reported >= truth
        else:
            assert reported == truth

    # Reads.

    @rule(
        topics=pattern_lists,
        back=st.integers(-2, 12),
        max_bytes=st.none() | st.integers(0, 200),
        since=st.lists(st.none() | st.integers(0, 12), max_size=4),
    )
    def read(self, topics, back, max_bytes, since):
        offset = max(self.history.end - back, 0)
        pairs = zip(topics, since, strict=False)
        since = {topic: max(self.history.end - back, 0) for topic, back in pairs if back is not None}
        result = self.history.read(offset, topics, max_bytes, since or None)
        evicted = [record for record in self.everything if record not in self.kept]
        expected = self.matching(self.kept, offset, topics, since)
        missing = self.matching(evicted, offset, topics, since)
        if max_bytes is None:
            assert result.records == expected
            assert not result.more
        else:
            assert result.records == expected[: len(result.records)]
            sizes = [len(record.frame) for record in result.records]
            assert sum(sizes[:-1]) < max(max_bytes, 1)
            assert len(sizes) == len(expected) or (result.more and sum(sizes) >= max_bytes)
            assert bool(sizes) == bool(expected)
        assert result.frames == b"".join(record.frame for record in result.records)
        self.check_missing(result.missing_through, missing, offset, topics)
        lost = [record for record in missing if record.offset not in self.superseded]
        self.check_missing(result.unsuperseded_through, lost, offset, topics)
        assert result.unsuperseded_through <= result.missing_through

    @rule(topics=pattern_lists, back=st.integers(0, 30), max_bytes=st.integers(1, 200))
    def read_in_batches(self, topics, back, max_bytes):
        """Consecutive reads return all records, and end."""
        start = offset = max(self.history.end - back, 0)
        expected, found = self.matching(self.kept, start, topics, {}), []
        while records := self.history.read(offset, topics, max_bytes).records:
            found += records
            offset = records[-1].offset
            assert len(found) <= len(expected)
        assert found == expected

    @rule(topics=pattern_lists, count=st.integers(0, 6), widening=st.integers(2, 5))
    def replay(self, topics, count, widening):
        self.patch.setattr(history_module, "WIDENING", widening)
        offset = self.history.replay_start(topics, count)
        result = self.history.read(offset, topics)
        assert result.missing_through == result.unsuperseded_through == 0
        evicted = [record for record in self.everything if record not in self.kept]
        last_gap = max(offsets_of(self.matching(evicted, 0, topics, {})), default=0)
        possible = self.matching(self.kept, last_gap, topics, {})
        newest = possible[len(possible) - min(count, len(possible)) :]
        if self.forgotten_through and not self.always_known.issuperset(topics):
            assert result.records == newest[len(newest) - len(result.records) :]
        else:
            assert result.records == newest
        assert offset <= self.history.end

    # Invariants.

    @invariant()
    def it_keeps_exactly_what_the_retention_policy_says(self):
        if not hasattr(self, "history"):
            return
        assert self.history.end == len(self.everything)
        assert self.history.records == len(self.kept)
        assert self.history.bytes == sum(len(record.frame) for record in self.kept)
        assert self.history.topics == len({record.topic for record in self.kept})
        assert self.history.read(0, [">"]).records == self.kept

    @invariant()
    def the_next_expiry_is_scheduled(self):
        if not hasattr(self, "history"):
            return
        age, due = self.retention.history_age, self.history.next_expiry()
        if age is None:
            assert due is None
        elif self.kept:
            assert due is not None
            assert due <= self.kept[0].time + age


def test_the_history_has_what_a_list_has():
    run_state_machine_as_test(
        HistoryAgainstAList, settings=settings(deadline=None, max_examples=250, stateful_step_count=40)
    )


def filled(*topics, retention=UNBOUNDED, key=None):
    """Return a history with a record under each of the topics, in this order."""
    history = History(retention)
    for topic in topics:
        history.append(topic, Event("x"), key, 0.0)
    return history


class TestReading:
    def test_exactly_the_records_after_the_offset_are_returned(self):
        history = filled("a", "b", "a", "a")
        assert [offsets_of(history.read(offset, ["a"]).records) for offset in range(6)] == [
            [1, 3, 4], [3, 4], [3, 4], [4], [], []
        ]  # fmt: skip

    def test_the_offset_just_before_the_oldest_record_has_no_gap_and_an_earlier_one_has(self):
        history = filled(*["a"] * 10, retention=RetentionPolicy(4, None, None))
        just_before = history.read(6, ["a"])
        assert (offsets_of(just_before.records), just_before.missing_through) == ([7, 8, 9, 10], 0)
        too_early = history.read(5, ["a"])
        assert (offsets_of(too_early.records), too_early.missing_through) == ([7, 8, 9, 10], 6)

    def test_a_busy_topic_leaves_no_gap_in_a_quiet_one(self):
        history = filled("quiet", *["busy"] * 10, retention=RetentionPolicy(2, None, None))
        assert history.read(0, ["quiet"]).missing_through == 0
        assert history.read(0, ["busy"]).missing_through == 9
        assert history.read(0, ["quiet", "busy"]).missing_through == 9
        assert history.read(9, ["*"]).missing_through == 0

    def test_a_topic_in_since_is_read_after_its_own_offset_and_has_no_earlier_gap(self):
        history = filled("a", "b", "b", "b", "a", retention=RetentionPolicy(2, None, None))
        result = history.read(0, ["a", "b"], None, {"b": 3})
        assert (offsets_of(result.records), result.missing_through) == ([1, 4, 5], 0)
        result = history.read(0, ["a", "*", "b"], None, {"b": 5, "*": 4})
        assert offsets_of(result.records) == [1, 5]

    @pytest.mark.parametrize("topics", [["b", "*"], ["*", "b"], ["b", "*", ">"], [">", "*", "b"]])
    def test_if_several_patterns_match_the_earliest_offset_in_since_counts(self, topics):
        result = filled("a", "b", "b", "a").read(0, topics, None, {"b": 2, "*": 1, ">": 3})
        assert offsets_of(result.records) == [2, 3, 4]

    def test_a_superseded_record_is_missing_but_not_lost(self):
        history = History(RetentionPolicy(2, None, None))
        for key in "k", "l", "k", "k":
            history.append("a", Event("x"), key, 0.0)
        result = history.read(0, ["a"])
        assert (offsets_of(result.records), result.missing_through, result.unsuperseded_through) == ([3, 4], 2, 2)
        assert (history.read(2, ["a"]).missing_through, history.read(2, ["a"]).unsuperseded_through) == (0, 0)
        history.append("a", Event("x"), None, 0.0)
        assert (history.read(2, ["a"]).missing_through, history.read(2, ["a"]).unsuperseded_through) == (3, 0)

    def test_a_key_is_scoped_to_its_topic(self):
        history = History(RetentionPolicy(1, None, None))
        for topic in "a", "b", "a":
            history.append(topic, Event("x"), "k", 0.0)
        history.append("a", Event("x"), "l", 0.0)
        assert history.read(0, ["a"]).unsuperseded_through == 3
        assert history.read(0, ["b"]).unsuperseded_through == 0

    def test_a_read_of_no_topics_is_empty_and_has_no_gap(self):
        result = filled("a").read(0, [])
        assert (result.records, result.missing_through, result.unsuperseded_through) == ([], 0, 0)

    def test_a_record_that_several_patterns_match_is_returned_once(self):
        assert offsets_of(filled("a.b", "a.c").read(0, ["a.b", "a.*", ">"]).records) == [1, 2]

    def test_a_record_larger_than_the_limit_is_not_kept_and_is_a_gap(self):
        history = History(RetentionPolicy(10, 100, None))
        history.append("a", Event("x"), None, 0.0)
        record = history.append("a", Event("x" * 200), None, 0.0)
        assert (history.records, history.bytes, history.topics) == (0, 0, 0)
        assert history.read(record.offset - 1, ["a"]).missing_through == record.offset

    def test_with_no_history_every_earlier_offset_has_a_gap(self):
        history = filled("a", "b", retention=RetentionPolicy(0, None, 3600.0))
        assert history.read(0, ["a"]).missing_through == 1
        assert history.read(1, ["a"]).missing_through == 0
        assert history.next_expiry() is None

    def test_take_bytes_returns_records_up_to_the_number_of_bytes(self):
        records = filled("a", "a", "a").read(0, ["a"]).records
        size = len(records[0].frame)
        limits = [None, 0, 1, size, size + 1, 2 * size, 10**9]
        counts = [(len(some), more) for some, more in (limit_bytes(records, limit) for limit in limits)]
        assert counts == [(3, False), (1, True), (1, True), (1, True), (2, True), (2, True), (3, False)]

    @pytest.mark.parametrize("topics", [["a"], ["a", "b"], ["*"]])
    @pytest.mark.parametrize("max_bytes", [100, 1_000, 32 * 1024])
    def test_more_is_true_until_the_last_of_many_small_records(self, topics, max_bytes):
        history = History(UNBOUNDED, "e")
        for number in range(9_000):
            history.append("ab"[number % 2], Event(comment=""), None, 0.0)
        found, offset, more = [], 0, True
        while more:
            result = history.read(offset, topics, max_bytes)
            found += result.records
            offset, more = found[-1].offset, result.more
        assert found == history.read(0, topics).records

    def test_conflate_keeps_the_latest_record_of_each_topic_and_key(self):
        history = History(UNBOUNDED)
        for topic, key in ("a", "k"), ("a", None), ("b", "k"), ("a", "l"), ("a", "k"), ("a", None), ("a", "k"):
            history.append(topic, Event("x"), key, 0.0)
        assert offsets_of(conflate(history.read(0, [">"]).records)) == [2, 3, 4, 6, 7]
        assert conflate([]) == []


class TestReplayStart:
    def test_the_latest_records_of_all_topics_together_are_replayed(self):
        history = filled("a", "b", "c", "a", "b")
        assert offsets_of(history.read(history.replay_start(["a", "b"], 3), ["a", "b"]).records) == [2, 4, 5]

    def test_there_is_no_gap_after_the_start_even_if_a_topic_was_forgotten(self, monkeypatch):
        monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 0)
        history = filled("a", retention=RetentionPolicy(10, 100, None))
        history.append("forgotten", Event("x" * 200), None, 0.0)
        history.append("a", Event("x"), None, 0.0)
        for topics in ["a", "never"], [">"]:
            offset = history.replay_start(topics, 5)
            result = history.read(offset, topics)
            assert (offsets_of(result.records), result.missing_through) == ([3], 0)
        assert history.replay_start(["a"], 5) == 0, "this topic was always known"

    def test_the_start_is_the_end_if_there_is_nothing_to_replay(self):
        history = filled("a", "b")
        assert history.replay_start(["a"], 0) == history.end
        assert history.replay_start(["unused"], 5) == history.end
        assert history.replay_start([], 5) == history.end
        assert History(UNBOUNDED).replay_start([">"], 5) == 0


class TestIds:
    def test_an_id_resolves_to_its_offset(self):
        history = filled(*"aaa")
        assert [history.resolve(history.id_of(offset)) for offset in range(4)] == [(n, None) for n in range(4)]

    def test_the_ids_of_another_history_are_foreign(self):
        history, other = filled(*"aaa"), filled(*"aaa")
        assert history.epoch != other.epoch
        assert history.resolve(other.id_of(2)) == (0, GapReason.FOREIGN)
        assert history.resolve(other.id_of(2_000)) == (0, GapReason.FOREIGN)

    def test_epochs_are_random(self):
        epochs = [History(UNBOUNDED).epoch for _ in range(1_000)]
        assert len(set(epochs)) == 1_000
        assert {len(epoch) for epoch in epochs} == {10}

    @pytest.mark.parametrize(
        ("event_id", "expected"),
        [
            ("e-0", (0, None)),
            ("e-2", (2, None)),
            ("e-3", (3, None)),
            ("e-002", (2, None)),
            ("e-4", (3, GapReason.FUTURE)),
            ("e-" + "9" * 19, (3, GapReason.FUTURE)),
            ("other-2", (0, GapReason.FOREIGN)),
            ("0-2", (0, GapReason.FOREIGN)),
            ("z" * 32 + "-" + "9" * 19, (0, GapReason.FOREIGN)),
        ],
    )
    def test_an_id_in_the_format_of_a_hub_is_classified(self, event_id, expected):
        history = History(UNBOUNDED, "e")
        for _ in range(3):
            history.append("a", Event("x"), None, 0.0)
        assert history.resolve(event_id) == expected

    @pytest.mark.parametrize(
        "event_id",
        [
            *("", "-", "e", "e-", "-2", "2", "e2", "e--2", "e-+2", "e- 2", "e-2 ", " e-2", "e-2\n", "e-2-2", "e-2.0"),
            *("e-0x2", "e-1e0", "e-1_0", "e-\0", "e\0-2", "e-2\0", "E-2", "é-2", "e-\u0662", "e-\uff12", "e-²"),
            *("\ud800-2", "e-\udfff", "\ufeffe-2", "null", "undefined", "NaN", "[object Object]", "e-2,e-3"),
            *("z" * 33 + "-2", "e-" + "0" * 19 + "2", "e-" + "9" * 20, "../../etc/passwd", "' OR 1=1 --"),
        ],
        ids=lambda event_id: ascii(event_id[:20]),
    )
    def test_any_other_string_resolves_to_the_end(self, event_id):
        history = History(UNBOUNDED, "e")
        for _ in range(3):
            history.append("a", Event("x"), None, 0.0)
        assert history.resolve(event_id) == (3, GapReason.UNKNOWN)

    @pytest.mark.parametrize("part", ["9", "e-9", "\0", "e", "\u0662", "\ud800"], ids=ascii)
    def test_a_string_of_ten_megabytes_is_unknown_and_is_not_copied(self, part):
        """Nor does it reach Python's limit of digits in an integer."""
        history = History(UNBOUNDED, "e")
        strings = [part * 10_000_000, "e-" + part * 10_000_000, part * 10_000_000 + "-2"]
        tracemalloc.start()
        try:
            resolved = [history.resolve(string) for string in strings]
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert resolved == [(0, GapReason.UNKNOWN)] * 3
        assert peak < 10_000

    def test_a_record_that_cannot_be_encoded_gets_no_offset(self, monkeypatch):
        history = filled("a")

        def fail(event):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(history_module, "encode", fail)
            with pytest.raises(MemoryError):
                history.append("a", Event("x"), None, 0.0)
        assert (history.end, history.records) == (1, 1)
        assert history.append("a", Event("x"), None, 0.0).offset == 2


class TestEmptyTopics:
    def test_the_topic_that_has_been_empty_for_longest_is_forgotten_if_there_are_too_many(self, monkeypatch):
        monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 3)
        history = filled("a", "b", "c", "d", "e", retention=RetentionPolicy(10, 100, None))
        assert history.topics == 5
        for topic in "b", "a", "e", "d", "c":
            history.append(topic, Event("x" * 200), None, 0.0)
        assert [topic for topic in "abcde" if topic in history] == ["c", "d", "e"]
        assert (history.topics, history.records, history.bytes) == (0, 0, 0)
        history.append("e", Event("x"), None, 0.0)
        history.append("f", Event("x" * 200), None, 0.0)
        assert [topic for topic in "abcdef" if topic in history] == ["c", "d", "e", "f"]

    def test_a_forgotten_topic_has_a_gap_and_a_known_one_has_none(self, monkeypatch):
        monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 1)
        history = filled("quiet", "first", "second", retention=RetentionPolicy(10, 100, None))
        for topic in "first", "second":
            history.append(topic, Event("x" * 200), None, 0.0)
        assert "first" not in history
        assert history.read(3, ["first"]).missing_through == history.read(3, ["first"]).unsuperseded_through == 4
        assert history.read(4, ["first"]).missing_through == 0
        assert history.read(0, ["quiet"]).missing_through == 0
        assert history.read(3, ["quiet", "second"]).missing_through == 5
        assert history.read(3, [">"]).missing_through == 5
        assert history.read(0, ["first"], None, {"first": 4}).missing_through == 0
        assert history.read(0, ["first", "unused"], None, {"first": 4}).missing_through == 4
        history.append("first", Event("x"), None, 0.0)
        assert history.read(3, ["first"]).missing_through == 4, "the gap stays when the topic is known again"
        assert history.read(4, ["first"]).missing_through == 0

    @pytest.mark.parametrize("topics", [["late"], [">"], ["unused"]])
    def test_the_topic_that_is_forgotten_last_may_have_the_oldest_record(self, monkeypatch, topics):
        monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 0)
        history = History(RetentionPolicy(10, 100, 60.0))
        history.append("early", Event("x"), None, 0.0)
        history.append("late", Event("x" * 200), None, 1.0)
        history.expire(60.0)
        assert history.records == 0
        assert history.read(1, topics).missing_through == history.read(1, topics).unsuperseded_through == 2
        assert history.read(2, topics).missing_through == 0

    def test_short_lived_topics_leave_no_memory(self, monkeypatch):
        monkeypatch.setattr(history_module, "MAX_EMPTY_TOPICS", 50)
        history = History(RetentionPolicy(10, 10_000, 1.0))

        def append_and_expire(times):
            for _ in range(times):
                now = float(history.end)
                history.append(f"a.{history.end}.b", Event("x" * 200), str(history.end), now)
                history.append(f"a.{history.end}.b", Event("x" * 20_000), None, now)
                history.expire(now + 1.0)

        append_and_expire(500)
        tracemalloc.start()
        try:
            append_and_expire(500)
            before, _ = tracemalloc.get_traced_memory()
            append_and_expire(5_000)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 20_000
        assert (history.topics, history.records, history.bytes) == (0, 0, 0)


class TestAge:
    @pytest.mark.parametrize("pairs", [1, 1_000])
    def test_a_topic_has_one_scheduled_expiry_however_often_it_was_emptied(self, operations, pairs):
        history = History(RetentionPolicy(10, 100, 60.0))
        for _ in range(pairs):
            history.append("a", Event("x" * 200), None, 0.0)
            history.append("a", Event("x"), None, 0.0)
        assert operations(history.expire, 60.0) < 50
        assert (history.records, history.next_expiry()) == (0, None)

    def test_with_no_history_no_expiry_is_scheduled(self):
        history = History(RetentionPolicy(0, None, 3600.0))
        tracemalloc.start()
        try:
            history.append("a", Event("x"), None, 0.0)
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5_000):
                history.append("a", Event("x"), None, 0.0)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 5_000
        assert history.next_expiry() is None

    def test_a_record_expires_exactly_at_the_maximum_age(self):
        history = History(RetentionPolicy(10, None, 60.0))
        history.append("a", Event("x"), None, 1.0)
        history.append("b", Event("x"), None, 2.0)
        assert history.next_expiry() == 61.0
        history.expire(60.9)
        assert history.records == 2
        history.expire(61.0)
        assert (history.records, history.next_expiry()) == (1, 62.0)

    def test_publishing_under_one_topic_expires_the_records_of_all(self):
        history = filled("a", "b", retention=RetentionPolicy(10, None, 60.0))
        history.append("c", Event("x"), None, 60.0)
        assert offsets_of(history.read(2, [">"]).records) == [3]
        assert (history.records, history.topics) == (1, 1)

    def test_many_expired_records_are_evicted_in_batches(self):
        history = filled(
            *[f"t.{number}" for number in range(100)], *["a"] * 50, retention=RetentionPolicy(100, None, 60.0)
        )
        left = []
        while history.records:
            history.expire(60.0, 40)
            left.append(history.records)
            assert (history.next_expiry() or 0) <= 60.0
        assert left == [110, 70, 30, 0]
        assert history.read(0, [">"]).missing_through == 150
        assert history.topics == 0


class TestManyTopics:
    """A read of more topics than it may visit scans the records, in batches of a bounded cost."""

    @pytest.mark.parametrize(
        "patterns", [[">"], ["t.*.s"], ["t.>", "t.3.s"], [f"t.{number}.s" for number in range(500)]]
    )
    def test_all_records_are_read_in_order_and_once(self, patterns):
        history = filled(*[f"t.{number % 500}.s" for number in range(2_000)])
        offset, found, more = 0, [], True
        while more:
            result = history.read(offset, patterns, 1_000)
            found += offsets_of(result.records)
            assert result.read_through > offset
            offset, more = result.read_through, result.more
            assert result.missing_through == 0
        assert found == list(range(1, 2_001))

    def test_a_scan_without_a_match_returns_the_offset_to_continue_from(self):
        history = filled(
            *[f"t.{number}.x" for number in range(MAX_RECORDS_SCANNED)],
            "t.1.s",
            *[f"t.{number}.x" for number in range(300)],
        )
        result = history.read(0, ["t.*.s"], 1_000)
        assert (result.records, result.more, result.read_through) == ([], True, MAX_RECORDS_SCANNED)
        assert offsets_of(history.read(result.read_through, ["t.*.s"], 1_000).records) == [MAX_RECORDS_SCANNED + 1]

    @pytest.mark.parametrize("patterns", [[">"], ["t.*.s"], ["t.*.x"], ["*.*.s", "t.5.s"]])
    @pytest.mark.parametrize("max_records", [1, 2])
    def test_the_cost_does_not_depend_on_the_number_of_topics(self, operations, patterns, max_records):
        def read(topics):
            retention = RetentionPolicy(max_records, None, None)
            history = filled(*[f"t.{number}.s" for number in range(topics)] * 2, retention=retention)
            history.read(0, patterns, 1_000)  # indexes the evictions
            return operations(history.read, topics, patterns, 1_000), operations(history.missing_after, 0, patterns)

        many, few = read(20_000), read(5_000)
        assert abs(many[0] - few[0]) < 20
        assert many[1] == few[1]


class TestCost:
    """The number of calls, which does not depend on the machine, does not depend on the size of the history either."""

    @pytest.mark.parametrize("patterns", [[">"], ["*"], ["t.>"], ["t.*"], ["*.3"], ["t.3", "*.5", "unused"]])
    def test_the_cost_of_a_read_does_not_depend_on_the_topics_that_did_not_change(self, operations, patterns):
        def read(quiet):
            history = filled(*[f"t.{number}" for number in range(quiet)], *[str(number) for number in range(quiet)])
            for topic in "t.3", "5", "t.3", "t.5":
                history.append(topic, Event("x"), None, 0.0)
            end = history.end
            return [operations(history.read, end - back, patterns, limit) for back in (0, 1, 4) for limit in (None, 1)]

        assert read(5_000) == read(10)

    def test_the_cost_of_a_read_does_not_depend_on_the_earlier_records(self, operations):
        def read(kept):
            history = filled(*["a", "b"] * kept)
            return [operations(history.read, history.end - 6, patterns) for patterns in (["a"], ["a", "b"], [">"])]

        assert read(5_000) == read(10)

    @pytest.mark.parametrize("patterns", [["a"], ["a", "b"], [">"]])
    def test_the_memory_of_a_limited_read_does_not_depend_on_the_records_that_follow(self, patterns):
        history = filled(*["a", "b"] * 20_000)
        tracemalloc.start()
        try:
            result = history.read(0, patterns, 1_000)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 0 < len(result.records) < 50
        assert peak < 10_000

    @pytest.mark.parametrize("patterns", [[">"], ["t.*"], ["t.3", "5"]])
    def test_the_cost_of_a_replay_start_does_not_depend_on_the_topics_that_did_not_change(self, operations, patterns):
        def find(quiet):
            history = filled(*[f"t.{number}" for number in range(quiet)])
            for topic in "t.3", "t.4", "t.3", "t.5", "5":
                history.append(topic, Event("x"), None, 0.0)
            return operations(history.replay_start, patterns, 3)

        assert find(5_000) == find(20)

    def test_the_cost_of_appending_does_not_depend_on_the_records_and_topics(self, operations):
        def publish(kept):
            history = filled(
                *["a"] * kept, *[f"t{number}" for number in range(kept)], retention=RetentionPolicy(kept, None, 60.0)
            )
            return operations(history.append, "a", Event("x"), "k", 1.0)

        assert publish(5_000) == publish(100)
