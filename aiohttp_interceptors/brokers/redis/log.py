"""The script by which brokers read and write the log of a Hub in Redis: one run is atomic, and replicated wholly."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from ...exceptions import BrokerRefused
from ...hub.broker import IDEMPOTENCY_WINDOW, Entry, LogPosition
from ...hub.epochs import new_epoch
from ..base import Draft, Retention

__all__ = [
    "ELSEWHERE",
    "SCRIPT",
    "Answer",
    "Argument",
    "Break",
    "Call",
    "Claim",
    "Elsewhere",
    "RawEntry",
    "RedisLog",
    "key_of",
    "offset",
    "stream_id",
]


ELSEWHERE = b""  # the first of a reply that says no more than which server this is

# Each entry has the id of the one before it ("l"), so that every hole shows. A *life* of the log is what one server
# has written in one go: it ends when a server was started again or promoted, and whenever a loss was found. The first
# entry of a life says so in its link, which is "epoch life id".
#
# The meta hash has the epoch, the life, the latest id, the server and the lineage of its data, where the life began,
# when a loss was told latest, and for the lives and epochs that are over where they ended ("life:x", "epoch:x"); a
# "fork:x" is an epoch that another server has begun, and where its log and this one part.
#
# Who calls claims what the log had in a life, and where the lives before that ended. Two logs have in common what they
# have of a life that both know: the least of the two ends, and of all such lives the greatest. (When this server was
# set back to an older copy of itself, within a life, that shows in what the entry after the claimed one follows. Then
# nothing of that life counts.) What was claimed beyond is lost, or was told in another epoch that is not known here.
# Then a new epoch begins at the end, by which every process hears of it, and the one that claimed goes back to what is
# common. A loss of what had come to the claimant before the latest loss was told is told by that. The times are
# durations of the claimant's, and moments of one server between two starts; in ids the server's, unless that went back.
SCRIPT = """
local stream, meta = KEYS[1], KEYS[2]
local fresh, expected, known_life, asked, at = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local most, age, remember = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local CLAIMS, DRAFTS, KEPT = 9, 19, 32

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
local function note(kind, name, id)
  redis.call('HSET', meta, kind .. ':' .. name, id)
  local found, count, first = ends(kind), 0, nil
  for other, its in pairs(found) do
    count = count + 1
    if other ~= name and (not first or later(found[first], its)) then first = other end
  end
  if count > KEPT then redis.call('HDEL', meta, kind .. ':' .. first) end
end

local server = redis.pcall('INFO', 'server')
if type(server) == 'table' then return redis.error_reply('NOPERM the right to INFO is missing: ' .. server.err) end
local replication = redis.call('INFO', 'replication')
if string.find(replication, 'role:slave', 1, true) then
  return redis.error_reply('READONLY this server is a replica')
end
local here = string.match(server, 'run_id:(%w+)') or ''
local lineage = string.match(replication, 'master_replid:(%w+)') or ''
if expected ~= '' and expected ~= here then return {'', here} end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('HMGET', meta, 'epoch', 'life', 'last', 'server', 'lineage', 'since', 'told')
local epoch, life, last, since, told = found[1], found[2], found[3], found[6], tonumber(found[7] or '')
local function begin_life()
  if life == fresh then return end
  note('life', life, last)
  life, since = fresh, last
  redis.call('HSET', meta, 'life', life, 'since', since)
end
if not epoch then
  local latest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not latest then redis.call('DEL', stream) end
  epoch, life, last, told = fresh, fresh, latest and latest[1] or '0-0', now
  since = last
  redis.call('HSET', meta, 'epoch', epoch, 'life', life, 'last', last, 'since', since, 'told', told,
    'server', here, 'lineage', lineage)
elseif found[4] ~= here or found[5] ~= lineage then
  begin_life()
  told = nil
  redis.call('HDEL', meta, 'told')
  redis.call('HSET', meta, 'server', here, 'lineage', lineage)
end

local lives = nil
local function common(history, except)
  local best = '0-0'
  lives = lives or ends('life')
  for name, till in string.gmatch(history, '(%S+) (%S+)') do
    local ours = name == life and last or lives[name]
    if ours and name ~= except then
      if later(ours, till) then ours = till end
      if later(ours, best) then best = ours end
    end
  end
  return best
end
local function is_there(id)
  local ms, seq = parts(id)
  local following = redis.call('XRANGE', stream, string.format('%d-%d', ms, seq + 1), '+', 'COUNT', 1)[1]
  local link = following and string.match(following[2][2], '(%d+%-%d+)$')
  return not link or not later(id, link)
end
local function is_known(name)
  return name == epoch or redis.call('HEXISTS', meta, 'epoch:' .. name) == 1
    or redis.call('HEXISTS', meta, 'fork:' .. name) == 1
end

local lost, slept, gone = asked == epoch and later(at, last), false, ''
if lost then at, slept = last, true end
for i = CLAIMS, DRAFTS - 1, 5 do
  local claimed, lived, id, passed, history = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 4]
  if claimed ~= '' then
    local kept = id
    if lived ~= life or later(id, last) then kept = common(history) end
    if not later(id, kept) and not is_there(id) then kept = common(history, lived) end
    local known = is_known(claimed)
    if later(id, kept) or not known then
      if not (told and told <= now and now - passed <= told) then lost = true end
      if not known then note('fork', claimed, kept) end
      if i > CLAIMS then  -- what was acknowledged is no place of a tail's
        gone = '1'
      elseif claimed == asked then
        slept = true
        if asked == epoch then lost = true end
        if later(at, kept) then at = kept end
      end
    end
  end
end
if lost then
  note('epoch', epoch, last)
  begin_life()
  epoch, told = fresh, now
  redis.call('HSET', meta, 'epoch', epoch, 'told', told)
end

local era, through = epoch, ''
if #ARGV < DRAFTS and asked ~= epoch and not slept then
  local over = ends('epoch')
  local border = over[asked] or redis.call('HGET', meta, 'fork:' .. asked)
  if border then
    if later(at, border) then at = border end
  elseif asked == '' then
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    at = first and string.match(first[2][2], '(%S+)$') or last
  else
    at = '0-0'
  end
  for name, id in pairs(over) do
    if later(id, at) and (through == '' or later(through, id)) then era, through = name, id end
  end
end

local past = ''
if life ~= known_life then
  for name, id in pairs(ends('life')) do past = past .. ' ' .. name .. ' ' .. id end
end
local reply = {epoch, life, last, string.format('%d', now), era, at, through, here, past, gone}
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
    local link = last == since and epoch .. ' ' .. life .. ' ' .. last or last
    redis.call('XADD', stream, id, 'l', link, 't', ARGV[i + 1], 'p', ARGV[i + 2])
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
WINDOW = int(IDEMPOTENCY_WINDOW * 1.25 * 1000)  # milliseconds that a key is remembered
LIVES = 8  # whose past is remembered: those that connections are in, and a few more

Argument: TypeAlias = str | bytes | int
RawEntry: TypeAlias = tuple[bytes, list[bytes]]


class Elsewhere(Exception):  # never leaves the broker
    """The script has done nothing, for this is another server than the one that was expected."""


class Claim(NamedTuple):
    """What the log had in one of its lives: all up to a position."""

    epoch: str
    life: str
    offset: int
    past: str = ""
    """The lives before, each with the id where it ended."""
    since: float = 0.0
    """When the latest of it had come, by this process's clock."""

    def arguments(self, now: float) -> list[Argument]:
        """Return it as the script takes it."""
        till = stream_id(self.offset)
        history = b"%b %b %b" % (self.life.encode(), till, self.past.encode())
        return [self.epoch, self.life, till, int((now - self.since) * 1000), history]


NO_CLAIM = Claim("", "", 0)


class Call(NamedTuple):
    """A run of the script."""

    arguments: list[Argument]
    acknowledged: Claim
    """What it claims of publishes."""


class Answer(NamedTuple):
    """What the script returns."""

    latest: Claim
    """What there is now."""
    now: int
    """The time of the server, in milliseconds."""
    start: LogPosition
    """Where to go on: the place that was asked for, unless that is void."""
    through: int | None
    """The position where the epoch of that place ended, if it is over."""
    server: str
    """The run id of the server, which it has until it is started again."""
    positions: list[LogPosition]
    """Of the drafts."""


class Break(NamedTuple):
    """The next entry does not simply follow the one before it here."""

    before: int
    """The position that it follows."""
    mark: str
    """The epoch and the life that begin with it, if they do."""


def key_of(stream: str) -> str:
    """Return the key of a stream, which every other key begins with. Raises ``ValueError`` for what can be none."""
    if not isinstance(stream, str) or not stream or set(stream) & set("{}"):
        raise ValueError(f"stream is the name of a stream, without braces, not {stream!r}")
    return f"{{{stream}}}"


def offset(raw: bytes) -> int:
    """Return the position that an id of Redis stands for."""
    milliseconds, _, sequence = raw.partition(b"-")
    return int(milliseconds) << SEQUENCE | int(sequence)


def stream_id(offset: int) -> bytes:
    """Return the id of Redis that a position stands for."""
    return b"%d-%d" % (offset >> SEQUENCE, offset & ((1 << SEQUENCE) - 1))


class RedisLog:
    """Say what is sent to the server, and read what it answers."""

    def __init__(self, name: str, retention: Retention) -> None:
        self.stream: str = key_of(name)
        self.given: Claim = NO_CLAIM
        """What came in tails."""
        self.acknowledged: Claim = NO_CLAIM
        """What came after publishes."""
        self._retention = retention
        self._pasts: OrderedDict[str, str] = OrderedDict()  # what was before each life

    def call(self, after: LogPosition | None, drafts: Sequence[Draft] = (), server: str = "") -> Call:
        """Return a run of the script: to find out about a place, or to store drafts, on that server if it has to be."""
        keys: list[Argument] = [self.stream, f"{self.stream}:log"]
        most, age = self._retention
        epoch, at = after or LogPosition("", 0)
        known = next(reversed(self._pasts), "")
        values: list[Argument] = [new_epoch(), server, known, epoch, stream_id(at)]
        values += [most, "" if age is None else int(age * 1000), WINDOW]
        now = time.monotonic()
        for claim in self.given, self.acknowledged:
            values += claim.arguments(now)
        for topic, payload, key in drafts:
            if key is not None:
                keys.append(f"{self.stream}:key:{key}")
            values += ["0" if key is None else len(keys), topic, payload]
        return Call([len(keys), *keys, *values], self.acknowledged)

    def answer(self, reply: Sequence[bytes], call: Call) -> Answer:
        """Read what the script returned, which knows now of all that was claimed. Raises ``Elsewhere``."""
        if reply[0] == ELSEWHERE:
            raise Elsewhere(reply[1].decode())
        epoch, life, last, now, era, at, through, server, past, gone, *raws = reply
        latest = self.claim(epoch.decode(), life.decode(), offset(last), past.decode())
        positions = []
        for raw in raws:
            its_own, _, where = raw.rpartition(b" ")
            positions.append(LogPosition(its_own.decode() or latest.epoch, offset(where)))
        if positions:
            self.acknowledged = latest
        elif self.acknowledged is call.acknowledged is not NO_CLAIM:
            old = call.acknowledged  # of which all is there still, or else it was told
            self.acknowledged = NO_CLAIM if gone else latest._replace(offset=old.offset, since=old.since)
        start = LogPosition(era.decode(), offset(at))
        return Answer(latest, int(now), start, offset(through) if through else None, server.decode(), positions)

    def claim(self, epoch: str, life: str, offset: int, past: str = "") -> Claim:
        """Make a claim about now. The ``past`` of a life has to be given once."""
        if past or life not in self._pasts:
            self._pasts[life] = past
            while len(self._pasts) > LIVES:
                self._pasts.popitem(last=False)
        self._pasts.move_to_end(life)
        return Claim(epoch, life, offset, self._pasts[life], time.monotonic())

    def entries(
        self, raws: Sequence[RawEntry], at: int, now: int, marks: Sequence[str]
    ) -> tuple[list[Entry], Break | None]:
        """Read entries, up to the first that does not follow the one before, which for the first is that ``at``.

        One that begins a life follows if that is one of ``marks``. ``now`` is the time of the server, in milliseconds.
        Raises ``BrokerRefused`` for what no broker wrote.
        """
        made: list[Entry] = []
        make = tuple.__new__  # what an Entry's own does, less a call for each
        expected = stream_id(at)
        raw = b""
        try:
            for raw, (link, before, _, topic, _, payload) in raws:
                if before != expected:
                    mark, _, previous = before.rpartition(b" ")
                    broken = Break(offset(previous if link == b"l" else b""), mark.decode())  # b"" is no id
                    if previous != expected or broken.mark not in marks:
                        return made, broken
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
