"""An event: what it takes, what it refuses, and that it stays as it is."""

import copy
import enum
import json
import pickle
from unittest import mock

import pytest

from aiohttp_interceptors.sse import MAX_RETRY, Event, compact_json

FIELDS = ("data", "name", "id", "retry", "comment")


def fields(event):
    return {field: getattr(event, field) for field in FIELDS if getattr(event, field) is not None}


# What it takes.


@pytest.mark.parametrize("blank", ["", " ", "\t \u00a0", "\u2028"])
def test_a_blank_name_means_none(blank):
    """Behaviour 83: a name that is empty or all whitespace is left out."""
    assert fields(Event("x", blank)) == {"data": "x"}


@pytest.mark.parametrize("blank", [" ", "\t \u00a0", "\u2028"])
def test_a_blank_id_means_none(blank):
    """Behaviour 83: an id that is all whitespace is left out. An empty one differs from Pedestal's: it resets (90)."""
    assert fields(Event("x", id=blank)) == {"data": "x"}


def test_an_empty_id_is_kept():
    """Behaviour 90: an explicit empty id is there, and resets the last event id of a page."""
    assert fields(Event("x", id="")) == {"data": "x", "id": ""}


def test_a_name_or_id_keeps_the_blanks_that_it_has():
    assert fields(Event("x", " tick ", " 7 ")) == {"data": "x", "name": " tick ", "id": " 7 "}


class Level(enum.IntEnum):
    LOW = 1


class Shouted(str):
    """A str whose every way to show it is another one."""

    __slots__ = ()

    def __str__(self):
        return "WRONG\nid: stolen"

    __repr__ = __str__

    def __format__(self, specification):
        return "WRONG\nid: stolen"

    def isascii(self):
        return True

    def __contains__(self, text):
        return False


class Colour(str, enum.Enum):  # noqa: UP042  # what a StrEnum was before there was one
    RED = "red"


@pytest.mark.parametrize(
    ("data", "text"),
    [(0, "0"), (False, "False"), (7, "7"), (-1.5, "-1.5"), (float("inf"), "inf"), (Level.LOW, "1")],
)
def test_numbers_become_text(data, text):
    """Behaviour 83: numbers, and with them 0 and False, are events, with their text as data."""
    assert fields(Event(data)) == {"data": text}


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (42, "42"), (-1, "-1"), (Level.LOW, "1")])
def test_a_number_may_be_an_id(number, text):
    """Behaviour 83: an id that is a number becomes its text."""
    assert fields(Event("x", id=number)) == {"data": "x", "id": text}


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        (field, value, str.__str__(value))
        for field in ("data", "name", "id", "comment")
        for value in (Colour.RED, Shouted("a"))
    ],
)
def test_a_kind_of_str_is_taken_for_its_characters(field, value, text):
    kept = getattr(Event(**{field: value}), field)
    assert kept == text
    assert type(kept) is str


@pytest.mark.parametrize("field", ["name", "id"])
def test_a_kind_of_str_cannot_hide_a_line_end(field):
    with pytest.raises(ValueError, match="is one line"):
        Event("x", **{field: Shouted("a\nb")})


def test_a_kind_of_str_cannot_hide_a_lone_surrogate():
    with pytest.raises(ValueError, match="UTF-8"):
        Event(Shouted("\ud800"))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a\r\nb", "a\nb"),
        ("a\rb", "a\nb"),
        ("a\nb", "a\nb"),
        ("\r\r\n\n", "\n\n\n"),
        ("a\n\rb", "a\n\nb"),
        ("\x0b\x0c\x85\u2028", None),
    ],
)
@pytest.mark.parametrize("field", ["data", "comment"])
def test_line_ends_become_lf_and_nothing_else_is_one(field, given, kept):
    assert getattr(Event(**{field: given}), field) == (given if kept is None else kept)


@pytest.mark.parametrize("nothing", [Event(), Event(None), Event(None, None, None, None, None), Event(name="")])
def test_an_event_of_nothing_has_empty_data(nothing):
    """Behaviour 87: without anything there is one empty data line. ``Event()`` differs from no event."""
    assert fields(nothing) == {"data": ""}


def test_a_name_alone_gets_empty_data():
    """Behaviour 87: ``{name}`` is dispatched, with empty data."""
    assert fields(Event(name="tick")) == {"data": "", "name": "tick"}
    assert fields(Event(name="tick", id="1", retry=2, comment="c"))["data"] == ""


@pytest.mark.parametrize(
    "alone", [{"id": "1"}, {"id": ""}, {"retry": 0}, {"comment": ""}, {"id": "1", "retry": 2, "comment": "c"}]
)
def test_id_retry_and_comment_may_stand_without_data(alone):
    """Behaviour 87 differs: there are frames without data, when asked for."""
    assert fields(Event(**alone)) == alone


def test_all_fields_are_taken_by_position_and_by_name():
    """Behaviour 90: ``retry`` and ``comment`` are fields as the others are."""
    event = Event("d", "n", "i", 3, "c")
    assert fields(event) == {"data": "d", "name": "n", "id": "i", "retry": 3, "comment": "c"}
    assert event == Event(comment="c", retry=3, id="i", name="n", data="d")


@pytest.mark.parametrize("retry", [0, 1, 3000, MAX_RETRY])
def test_retry_is_a_whole_number_from_zero_up(retry):
    assert Event(retry=retry).retry == retry


def test_nul_is_text_like_any_other_but_in_an_id():
    assert fields(Event("a\0", "b\0", "c", comment="d\0")) == {
        "data": "a\0",
        "name": "b\0",
        "id": "c",
        "comment": "d\0",
    }


# What it refuses.

REFUSED = [
    ({"id": "1\ndata: stolen"}, ValueError, r"an event's id is one line, and '1\\ndata: stolen' is not"),
    ({"id": "1\r"}, ValueError, r"an event's id is one line, and '1\\r' is not"),
    ({"id": "\n"}, ValueError, "an event's id is one line"),
    ({"id": "a\0b"}, ValueError, r"an event's id holds no NUL, and 'a\\x00b' does"),
    ({"name": "tick\nid: 1"}, ValueError, r"an event's name is one line, and 'tick\\nid: 1' is not"),
    ({"name": "tick\rid: 1"}, ValueError, r"an event's name is one line"),
    ({"name": " \n "}, ValueError, r"an event's name is one line"),
    ({"retry": -1}, ValueError, r"retry is a whole number of milliseconds from 0 to 9007199254740991, not -1"),
    ({"retry": MAX_RETRY + 1}, ValueError, r"retry is a whole number .* not 9007199254740992"),
    ({"retry": 10**5000}, ValueError, "digits"),  # which not even the message can show
    ({"retry": 1.5}, TypeError, r"retry is a whole number of milliseconds .* not 1\.5"),
    ({"retry": 1.0}, TypeError, r"retry is a whole number of milliseconds .* not 1\.0"),
    ({"retry": True}, TypeError, r"retry is a whole number of milliseconds .* not True"),
    ({"retry": "1000"}, TypeError, r"retry is a whole number of milliseconds .* not '1000'"),
    (
        {"data": b"bytes"},
        TypeError,
        r"an event's data is a str, not b'bytes'; Event.json\(value\) makes JSON of anything else",
    ),
    ({"data": {"a": 1}}, TypeError, r"an event's data is a str, not {'a': 1}; Event.json"),
    ({"data": []}, TypeError, "an event's data is a str"),
    ({"name": 7}, TypeError, r"an event's name is a str, not 7$"),
    ({"name": b"tick"}, TypeError, r"an event's name is a str, not b'tick'$"),
    ({"id": 1.5}, TypeError, r"an event's id is a str, not 1\.5$"),
    ({"id": b"1"}, TypeError, r"an event's id is a str, not b'1'$"),
    ({"comment": 7}, TypeError, r"an event's comment is a str, not 7$"),
    ({"data": 10**5000}, ValueError, "digits"),
]


@pytest.mark.parametrize(("arguments", "error", "says"), REFUSED)
def test_what_cannot_be_sent_is_refused_with_its_value(arguments, error, says):
    """Behaviour 88: CR or LF in name or id, NUL in id and their like are errors of the producer, at construction."""
    with pytest.raises(error, match=says):
        Event(**{"data": "x", **arguments})


@pytest.mark.parametrize("field", ["data", "name", "id", "comment"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_what_utf_8_cannot_carry_fails_its_producer(field, text):
    """Scenario 41: an un-encodable event (a lone surrogate) fails the publisher, never a subscriber's stream."""
    with pytest.raises(
        ValueError, match=f"an event's {field} is sent as UTF-8, which cannot carry .*surrogates not allowed"
    ) as caught:
        Event(**{field: text})
    assert caught.value.__suppress_context__
    assert text not in str(caught.value)  # a log that is UTF-8 could not carry it either


def test_a_value_that_cannot_be_text_fails_its_producer():
    """Behaviour 91: an unserialisable event is the producer's error at construction, so no stream ever meets it."""

    class Mute(int):
        def __str__(self):
            raise RuntimeError("no words")

    with pytest.raises(RuntimeError, match="no words"):
        Event(Mute())


# JSON.


def test_json_is_compact():
    assert Event.json({"a": [1, "ü", None]}).data == '{"a":[1,"\\u00fc",null]}'


def test_json_takes_all_other_fields():
    assert Event.json([], "n", "i", 3, "c") == Event("[]", "n", "i", 3, "c")
    assert Event.json([], name="n", id=7, retry=3, comment="c") == Event("[]", "n", "7", 3, "c")


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False])
def test_every_json_value_is_data(value):
    assert json.loads(Event.json(value).data) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_json_that_no_browser_can_parse_is_refused(number):
    with pytest.raises(ValueError, match="JSON compliant"):
        Event.json([number])


def test_what_is_no_json_is_refused_in_the_producer():
    """Behaviour 91: what cannot be serialised raises where the event is made."""
    with pytest.raises(TypeError, match="not JSON serializable"):
        Event.json(object())


@pytest.mark.parametrize("result", ['{"ü":1}', '{"ü":1}'.encode()])
def test_dumps_may_give_text_or_bytes(result):
    assert Event.json("value", dumps=lambda value: result).data == '{"ü":1}'


def test_dumps_is_given_the_value():
    assert Event.json("value", dumps=str.upper).data == "VALUE"


@pytest.mark.parametrize("result", [None, 7, bytearray(b"1")])
def test_dumps_that_gives_neither_is_named(result):
    def odd(value):
        return result

    with pytest.raises(TypeError, match=r"dumps gives a str or bytes, and <function .*odd at .* gave "):
        Event.json("value", dumps=odd)


def test_bytes_that_are_no_utf_8_are_refused():
    with pytest.raises(UnicodeDecodeError):
        Event.json("value", dumps=lambda value: b"\xff")


def test_data_in_several_lines_of_json_stays_one_value():
    event = Event.json({"a": 1}, dumps=lambda value: json.dumps(value, indent=1).replace("\n", "\r\n"))
    assert json.loads(event.data) == {"a": 1}


def test_compact_json_is_the_default():
    assert Event.json([1, 2]).data == compact_json([1, 2]) == "[1,2]"


# It stays as it is.

FULL = Event("d\ne", "n", "i", 3, "c")


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_does_not_change(field):
    with pytest.raises(AttributeError):
        setattr(FULL, field, "other")
    with pytest.raises(AttributeError):
        delattr(FULL, field)
    assert Event("d\ne", "n", "i", 3, "c") == FULL


def test_nothing_can_be_added():
    with pytest.raises(AttributeError):
        FULL.other = 1


@pytest.mark.parametrize(
    "other",
    [
        Event("other", "n", "i", 3, "c"),
        Event("d\ne", "other", "i", 3, "c"),
        Event("d\ne", "n", "other", 3, "c"),
        Event("d\ne", "n", "i", 4, "c"),
        Event("d\ne", "n", "i", 3, "other"),
        Event("d\ne", "n", "i", 3),
        "d\ne",
        ("d\ne", "n", "i", 3, "c"),
        None,
    ],
)
def test_it_is_equal_to_one_of_the_same_fields_only(other):
    assert other != FULL
    assert not other == FULL  # noqa: SIM201  # the other operator
    assert FULL in {FULL, other}
    assert len({FULL, other}) == 2


def test_what_compares_itself_to_an_event_is_asked():
    assert FULL == mock.ANY


def test_equal_events_have_one_hash():
    assert hash(Event("d\r\ne", "n", "i", 3, "c")) == hash(FULL)
    assert {FULL: "found"}[Event("d\ne", "n", "i", 3, "c")] == "found"


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (FULL, r"Event(data='d\ne', name='n', id='i', retry=3, comment='c')"),
        (Event(), "Event(data='')"),
        (Event(id=""), "Event(id='')"),
        (Event(retry=0), "Event(retry=0)"),
    ],
)
def test_it_shows_what_it_has(event, shown):
    assert repr(event) == shown
    assert eval(shown, {"Event": Event}) == event


@pytest.mark.parametrize("event", [FULL, Event(), Event("x"), Event(id=""), Event(comment="")])
def test_it_can_be_pickled_and_copied(event):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(event, protocol)) == event
    assert copy.copy(event) == event
    assert copy.deepcopy(event) == event


def test_a_subclass_stays_one_when_it_is_pickled():
    assert type(pickle.loads(pickle.dumps(Tick("1")))) is Tick


class Tick(Event):
    __slots__ = ()


def test_it_is_small():
    assert not hasattr(FULL, "__dict__")


def test_changing_a_value_after_it_was_made_an_event_changes_nothing():
    """Peer bug 42: what is put is text, and no later reader sees another one."""
    value = {"names": ["a"]}
    event = Event.json(value)
    value["names"].append("b")
    assert event.data == '{"names":["a"]}'
