"""The log of a Hub in a stream of Redis: the script that writes it, and what its replies mean. Awaits nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ..errors import BrokerRefused
from ..hub.broker import IDEMPOTENCY_WINDOW, Entry, Place
from ..hub.eras import new_epoch
from .retention import Retention
from .writer import Draft

__all__ = ["SCRIPT", "Answer", "Argument", "Claim", "RawEntry", "RedisLog", "position", "stream_id"]

# One run is atomic, and replicas have all of it or nothing. Each entry has the id of the one before it ("l"), so that
# every hole shows. The meta hash has the epoch; the latest id; the life of the log, which ends when the server was
# restarted or another was promoted (it has another run id), and may have lost what was last; and up to
# which id lives and epochs that are over are still good. Who calls claims what the log of a life had. What is not true
# of that any more was lost, and the log goes on in a new epoch. The time is the server's, unless that went back.
SCRIPT = """
local stream, meta = KEYS[1], KEYS[2]
local fresh, asked, at, most, age, remember = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]
local CLAIMS, DRAFTS = 7, 13

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function later(a, b)
  local ams, aseq = parts(a)
  local bms, bseq = parts(b)
  return ams > bms or (ams == bms and aseq > bseq)
end
local function ends(kind)
  local found, fields = {}, redis.call('HGETALL', meta)
  for i = 1, #fields, 2 do
    local name = string.match(fields[i], '^' .. kind .. ':(.*)$')
    if name then found[name] = fields[i + 1] end
  end
  return found
end
local function finish(kind, name, border)
  for before, id in pairs(ends(kind)) do
    if later(id, border) then redis.call('HSET', meta, kind .. ':' .. before, border) end
  end
  redis.call('HSET', meta, kind .. ':' .. name, border, kind, fresh)
end

local info = redis.pcall('INFO', 'server')
if type(info) == 'table' then return redis.error_reply('NOPERM the right to INFO is missing: ' .. info.err) end
local here = string.match(info, 'run_id:(%w+)') or ''
local found = redis.call('HMGET', meta, 'epoch', 'life', 'last', 'server')
local epoch, life, last, server = found[1], found[2], found[3], found[4]
if not epoch then
  local latest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not latest then redis.call('DEL', stream) end
  epoch, life, last = fresh, fresh, latest and latest[1] or '0-0'
  redis.call('HSET', meta, 'epoch', epoch, 'life', life, 'last', last, 'server', here)
elseif server ~= here then
  finish('life', life, last)
  redis.call('HSET', meta, 'server', here)
  life = fresh
end

local border = asked == epoch and later(at, last) and last
local slept = false
for i = CLAIMS, DRAFTS - 1, 3 do
  local claimed, lived, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if claimed == epoch or claimed == asked then
    local kept = lived == life and last or redis.call('HGET', meta, 'life:' .. lived) or '0-0'
    if later(id, kept) then
      if claimed == epoch and not (border and later(kept, border)) then border = kept end
      if claimed == asked and later(at, kept) then at, slept = kept, true end
    end
  end
end
if border then
  finish('epoch', epoch, border)
  epoch = fresh
end

local era, through = epoch, ''
if asked ~= epoch then
  local over = ends('epoch')
  if over[asked] then
    if later(at, over[asked]) then at = over[asked] end
  elseif asked == '' then
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    at = first and first[2][2] or last
  else
    at = '0-0'
  end
  for name, id in pairs(over) do
    if not slept and later(id, at) and (through == '' or later(through, id)) then era, through = name, id end
  end
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local reply = {epoch, life, last, string.format('%d', now), era, at, through}
local ms, seq = parts(last)
local before = last
for i = DRAFTS, #ARGV, 3 do
  local key = ARGV[i] ~= '0' and KEYS[tonumber(ARGV[i])]
  local repeated = key and redis.call('GET', key)
  if repeated then
    reply[#reply + 1] = repeated
  else
    if now > ms then ms, seq = now, 0 else seq = seq + 1 end
    if seq >= 1048576 then ms, seq = ms + 1, 0 end
    local id = string.format('%d-%d', ms, seq)
    redis.call('XADD', stream, id, 'l', last, 't', ARGV[i + 1], 'p', ARGV[i + 2])
    if key then redis.call('SET', key, epoch .. ' ' .. id, 'PX', remember) end
    last = id
    reply[#reply + 1] = id
  end
end
if last ~= before then
  redis.call('HSET', meta, 'last', last)
  redis.call('XTRIM', stream, 'MAXLEN', '~', most)
  if age then redis.call('XTRIM', stream, 'MINID', '~', string.format('%d', now - age)) end
  reply[3] = last
end
return reply
"""
SEQUENCE = 20  # bits of a position; the script lets no more than these be numbered in a millisecond
LIFE = int(IDEMPOTENCY_WINDOW * 1.25 * 1000)  # milliseconds that a key is remembered

Argument: TypeAlias = str | bytes | int
RawEntry: TypeAlias = tuple[bytes, list[bytes]]


class Claim(NamedTuple):
    """What the log had in one of its lives: all up to a position."""

    epoch: str
    life: str
    position: int


NO_CLAIM = Claim("", "", 0)


class Answer(NamedTuple):
    """What the script returns."""

    latest: Claim
    """What there is now."""
    now: int
    """The time of the server, in milliseconds."""
    start: Place
    """Where to go on: the place that was asked for, unless that is void."""
    through: int | None
    """The position where the epoch of that place ended, if it is over."""
    places: list[Place]
    """Of the drafts."""


def position(raw: bytes) -> int:
    """Return the position that an id of Redis stands for."""
    milliseconds, _, sequence = raw.partition(b"-")
    return int(milliseconds) << SEQUENCE | int(sequence)


def stream_id(position: int) -> bytes:
    """Return the id of Redis that a position stands for."""
    return b"%d-%d" % (position >> SEQUENCE, position & ((1 << SEQUENCE) - 1))


class RedisLog:
    """Say what is sent to the server, and read what it answers."""

    def __init__(self, name: str, retention: Retention) -> None:
        self.stream: str = f"{{{name}}}"
        self.given: Claim = NO_CLAIM
        """What came in tails."""
        self.acknowledged: Claim = NO_CLAIM
        """What came after publishes."""
        self._retention = retention

    def call(self, after: Place | None, drafts: Sequence[Draft] = ()) -> list[Argument]:
        """Return the arguments of the script: to find out about a place, and to store drafts."""
        keys: list[Argument] = [self.stream, f"{self.stream}:log"]
        most, age = self._retention
        epoch, at = after or Place(self.acknowledged.epoch if drafts else "", 0)
        values: list[Argument] = [new_epoch(), epoch, stream_id(at), most, "" if age is None else int(age * 1000), LIFE]
        for claim in self.given, self.acknowledged:
            values += [claim.epoch, claim.life, stream_id(claim.position)]
        for topic, payload, key in drafts:
            if key is not None:
                keys.append(f"{self.stream}:key:{key}")
            values += ["0" if key is None else len(keys), topic, payload]
        return [len(keys), *keys, *values]

    def answer(self, reply: Sequence[bytes]) -> Answer:
        """Read what the script returned."""
        epoch, life, last, now, era, at, through, *raws = reply
        latest = Claim(epoch.decode(), life.decode(), position(last))
        places = []
        for raw in raws:
            its_own, _, where = raw.rpartition(b" ")
            places.append(Place(its_own.decode() or latest.epoch, position(where)))
        start = Place(era.decode(), position(at))
        return Answer(latest, int(now), start, position(through) if through else None, places)

    def entries(self, raws: Sequence[RawEntry], at: int, now: int) -> tuple[list[Entry], int | None]:
        """Read entries, up to the first that does not follow the one before, which for the first is that ``at``.

        If there is such a one, the other position is that which it follows. ``now`` is the time of the server, in
        milliseconds. Raises ``BrokerRefused`` for what no broker wrote.
        """
        made: list[Entry] = []
        make = tuple.__new__  # what an Entry's own does, less a call for each
        expected = stream_id(at)
        raw = b""
        try:
            for raw, (link, before, _, topic, _, payload) in raws:
                if before != expected:
                    return made, position(before if link == b"l" else b"")  # which is no id
                milliseconds, _, sequence = raw.partition(b"-")
                stamp = int(milliseconds)
                age = (now - stamp) / 1000 if now > stamp else 0.0
                made.append(make(Entry, (stamp << SEQUENCE | int(sequence), topic.decode(), payload, age)))
                expected = raw
        except ValueError as error:
            raise BrokerRefused(
                f"{self.stream} has an entry that no broker wrote, {raw.decode()}: a Hub needs a stream of its own"
            ) from error
        return made, None
