"""The script by which brokers read and write the log of a Hub in Redis: one run is atomic, and replicated wholly."""

from __future__ import annotations

__all__ = ["ELSEWHERE", "SCRIPT"]

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
