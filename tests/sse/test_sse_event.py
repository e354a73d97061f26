"""Event: its fields, their validation, JSON data and immutability."""

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


# Fields.


@pytest.mark.parametrize("blank", ["", " ", "\t \u00a0", "\u2028"])
def test_a_blank_name_means_none(blank):
    assert fields(Event("x", blank)) == {"data": "x"}


@pytest.mark.parametrize("blank", [" ", "\t \u00a0", "\u2028"])
def test_a_blank_id_means_none(blank):
    """An empty ID is different: it resets the last event ID."""
    assert fields(Event("x", id=blank)) == {"data": "x"}


def test_an_empty_id_is_kept():
    """It resets the last event ID of a client."""
    assert fields(Event("x", id="")) == {"data": "x", "id": ""}


def test_name_and_id_keep_their_whitespace():
    assert fields(Event("x", " tick ", " 7 ")) == {"data": "x", "name": " tick ", "id": " 7 "}


class Level(enum.IntEnum):
    LOW = 1


class Shouted(str):
    """A str whose methods return other text."""

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


class Colour(str, enum.Enum):  # noqa: UP042  # the way to write a StrEnum before Python 3.11
    RED = "red"


@pytest.mark.parametrize(
    ("data", "text"),
    [(0, "0"), (False, "False"), (7, "7"), (-1.5, "-1.5"), (float("inf"), "inf"), (Level.LOW, "1")],
)
def test_numbers_become_text(data, text):
    assert fields(Event(data)) == {"data": text}


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (42, "42"), (-1, "-1"), (Level.LOW, "1")])
def test_an_id_may_be_a_number(number, text):
    assert fields(Event("x", id=number)) == {"data": "x", "id": text}


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        (field, value, str.__str__(value))
        for field in ("data", "name", "id", "comment")
        for value in (Colour.RED, Shouted("a"))
    ],
)
def test_a_subclass_of_str_becomes_a_plain_str(field, value, text):
    kept = getattr(Event(**{field: value}), field)
    assert kept == text
    assert type(kept) is str


@pytest.mark.parametrize("field", ["name", "id"])
def test_a_subclass_of_str_cannot_hide_a_line_end(field):
    with pytest.raises(ValueError, match="is one line"):
        Event("x", **{field: Shouted("a\nb")})


def test_a_subclass_of_str_cannot_hide_a_lone_surrogate():
    with pytest.raises(ValueError, match="UTF-8"):
        Event(Shouted("\ud800"))


@pytest.mark.parametrize(
    ("text", "expected"),
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
def test_cr_and_crlf_become_lf_and_other_separators_are_kept(field, text, expected):
    assert getattr(Event(**{field: text}), field) == (text if expected is None else expected)


@pytest.mark.parametrize("nothing", [Event(), Event(None), Event(None, None, None, None, None), Event(name="")])
def test_an_event_without_fields_has_empty_data(nothing):
    assert fields(nothing) == {"data": ""}


def test_a_name_alone_gets_empty_data():
    assert fields(Event(name="tick")) == {"data": "", "name": "tick"}
    assert fields(Event(name="tick", id="1", retry=2, comment="c"))["data"] == ""


@pytest.mark.parametrize(
    "alone", [{"id": "1"}, {"id": ""}, {"retry": 0}, {"comment": ""}, {"id": "1", "retry": 2, "comment": "c"}]
)
def test_id_retry_and_comment_do_not_need_data(alone):
    assert fields(Event(**alone)) == alone


def test_all_fields_are_positional_and_keyword_arguments():
    event = Event("d", "n", "i", 3, "c")
    assert fields(event) == {"data": "d", "name": "n", "id": "i", "retry": 3, "comment": "c"}
    assert event == Event(comment="c", retry=3, id="i", name="n", data="d")


@pytest.mark.parametrize("retry", [0, 1, 3000, MAX_RETRY])
def test_retry_may_be_zero_or_more(retry):
    assert Event(retry=retry).retry == retry


def test_nul_is_allowed_except_in_an_id():
    assert fields(Event("a\0", "b\0", "c", comment="d\0")) == {
        "data": "a\0",
        "name": "b\0",
        "id": "c",
        "comment": "d\0",
    }


# Validation.

INVALID = [
    ({"id": "1\ndata: stolen"}, ValueError, r"an event's id is one line, and '1\\ndata: stolen' is not"),
    ({"id": "1\r"}, ValueError, r"an event's id is one line, and '1\\r' is not"),
    ({"id": "\n"}, ValueError, "an event's id is one line"),
    ({"id": "a\0b"}, ValueError, r"an event's id must not contain NUL, and 'a\\x00b' does"),
    ({"name": "tick\nid: 1"}, ValueError, r"an event's name is one line, and 'tick\\nid: 1' is not"),
    ({"name": "tick\rid: 1"}, ValueError, r"an event's name is one line"),
    ({"name": " \n "}, ValueError, r"an event's name is one line"),
    ({"retry": -1}, ValueError, r"retry is a whole number of milliseconds from 0 to 9007199254740991, not -1"),
    ({"retry": MAX_RETRY + 1}, ValueError, r"retry is a whole number .* not 9007199254740992"),
    ({"retry": 10**5000}, ValueError, "digits"),  # too large for the message to show
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


@pytest.mark.parametrize(("arguments", "error", "says"), INVALID)
def test_an_invalid_field_is_rejected_with_its_value(arguments, error, says):
    with pytest.raises(error, match=says):
        Event(**{"data": "x", **arguments})


@pytest.mark.parametrize("field", ["data", "name", "id", "comment"])
@pytest.mark.parametrize("text", ["\ud800", "a\udfffb"])
def test_a_lone_surrogate_is_rejected(field, text):
    with pytest.raises(
        ValueError, match=f"an event's {field} is sent as UTF-8, which cannot encode .*surrogates not allowed"
    ) as caught:
        Event(**{field: text})
    assert caught.value.__suppress_context__
    assert text not in str(caught.value)  # a log in UTF-8 could not contain it


def test_an_exception_of_str_is_raised_by_the_constructor():
    class Mute(int):
        def __str__(self):
            raise RuntimeError("no words")

    with pytest.raises(RuntimeError, match="no words"):
        Event(Mute())


# JSON.


def test_json_is_compact():
    assert Event.json({"a": [1, "ü", None]}).data == '{"a":[1,"\\u00fc",null]}'


def test_json_accepts_all_other_fields():
    assert Event.json([], "n", "i", 3, "c") == Event("[]", "n", "i", 3, "c")
    assert Event.json([], name="n", id=7, retry=3, comment="c") == Event("[]", "n", "7", 3, "c")


@pytest.mark.parametrize("value", [None, 0, "", [], {}, False])
def test_any_json_value_may_be_data(value):
    assert json.loads(Event.json(value).data) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_rejected(number):
    with pytest.raises(ValueError, match="JSON compliant"):
        Event.json([number])


def test_a_value_that_cannot_be_serialised_is_rejected():
    with pytest.raises(TypeError, match="not JSON serializable"):
        Event.json(object())


@pytest.mark.parametrize("result", ['{"ü":1}', '{"ü":1}'.encode()])
def test_dumps_may_return_str_or_bytes(result):
    assert Event.json("value", dumps=lambda value: result).data == '{"ü":1}'


def test_dumps_receives_the_value():
    assert Event.json("value", dumps=str.upper).data == "VALUE"


@pytest.mark.parametrize("result", [None, 7, bytearray(b"1")])
def test_dumps_that_returns_another_type_is_rejected(result):
    def odd(value):
        return result

    with pytest.raises(TypeError, match=r"dumps must return str or bytes, and <function .*odd at .* returned "):
        Event.json("value", dumps=odd)


def test_bytes_that_are_not_utf_8_are_rejected():
    with pytest.raises(UnicodeDecodeError):
        Event.json("value", dumps=lambda value: b"\xff")


def test_indented_json_remains_one_value():
    event = Event.json({"a": 1}, dumps=lambda value: json.dumps(value, indent=1).replace("\n", "\r\n"))
    assert json.loads(event.data) == {"a": 1}


def test_compact_json_is_the_default():
    assert Event.json([1, 2]).data == compact_json([1, 2]) == "[1,2]"


# Immutability, equality and pickling.

FULL = Event("d\ne", "n", "i", 3, "c")


@pytest.mark.parametrize("field", FIELDS)
def test_fields_are_read_only(field):
    with pytest.raises(AttributeError):
        setattr(FULL, field, "other")
    with pytest.raises(AttributeError):
        delattr(FULL, field)
    assert Event("d\ne", "n", "i", 3, "c") == FULL


def test_an_event_accepts_no_other_attributes():
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
def test_events_are_equal_if_all_fields_are(other):
    assert other != FULL
    assert not other == FULL  # noqa: SIM201  # the other operator
    assert FULL in {FULL, other}
    assert len({FULL, other}) == 2


def test_comparison_with_another_type_is_left_to_it():
    assert FULL == mock.ANY


def test_equal_events_have_the_same_hash():
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
def test_repr_shows_the_fields_that_are_set(event, shown):
    assert repr(event) == shown
    assert eval(shown, {"Event": Event}) == event


@pytest.mark.parametrize("event", [FULL, Event(), Event("x"), Event(id=""), Event(comment="")])
def test_an_event_can_be_pickled_and_copied(event):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(event, protocol)) == event
    assert copy.copy(event) == event
    assert copy.deepcopy(event) == event


def test_pickling_keeps_a_subclass():
    assert type(pickle.loads(pickle.dumps(Tick("1")))) is Tick


class Tick(Event):
    __slots__ = ()


def test_an_event_has_no_dict():
    assert not hasattr(FULL, "__dict__")


def test_data_is_serialised_when_the_event_is_created():
    value = {"names": ["a"]}
    event = Event.json(value)
    value["names"].append("b")
    assert event.data == '{"names":["a"]}'
