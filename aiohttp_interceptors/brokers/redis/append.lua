-- Compare the log of a RedisBroker with what the caller knows of it, and append entries.
-- A call is atomic, and everything that it writes is replicated together.
--
-- The log is a stream and a hash. The hash has the state of the log:
--   epoch         of new entries
--   run           of new entries. A run is what one server has appended without interruption: the next one begins when
--                 a server was restarted or promoted, and when a loss was found
--   run_start     ID of the last entry before the run
--   last          ID of the newest entry that was ever appended
--   server        the server's run ID (INFO server)
--   replication   the server's replication ID (INFO replication)
--   truncated_at  when the last epoch began because of a loss, in milliseconds of the server's clock. It is deleted
--                 when the server changes, because the times of two servers cannot be compared
--   run:X         ID of the last entry of the former run X
--   epoch:X       ID of the last entry of the former epoch X
--   fork:X        ID of the last entry in common with the epoch X, which began on another server
--
-- An entry has the fields l (link), t (topic) and p (payload). The link is the ID of the previous entry, so that a
-- missing entry is noticed. In the first entry of a run the link is "epoch run ID".
--
-- The caller gives two checkpoints: the latest entry that its tail has received, and the latest one that was
-- acknowledged to it. A checkpoint is an epoch, a run, an ID, the milliseconds since it was received, and a history:
-- its run and the runs before, each with the ID of the last entry.
--
-- Two logs that both have a run share its entries up to the lesser of the two ends. The greatest ID that they share in
-- any run is the last common entry (the merge base). If this server was set back to an older copy of itself within a
-- run, the ends do not show it, but the link of the entry after the checkpoint does. Then nothing of that run counts.
--
-- If a checkpoint is later than the last common entry, or its epoch is unknown here, entries were lost. Then an epoch
-- begins at the end of the log, by which all processes notice the loss, and the caller resumes after the last common
-- entry. That epoch also covers whatever other callers had received before it began: no further one begins for them.

-- KEYS: the stream, the hash, and the idempotency keys of the requests.
-- ARGV: a name for an epoch or a run that begins; the run ID of the expected server, or ''; the run whose ancestry the
--   caller has; epoch and ID of the position to locate; entries and milliseconds ('' for no limit) to keep, and
--   milliseconds to keep an idempotency key; two checkpoints; and for each request the index of its idempotency key in
--   KEYS, or '0', its topic and its payload.
-- Reply: epoch, run, last, the time; the position to resume after, with its epoch, and the ID of the last entry of that
--   epoch, or '' for the current one; the server's run ID; the ancestry of the run, or '' if the caller has it; '1' if
--   acknowledged entries were lost; and for each request its ID, after its epoch if it was appended before.
--   If the server is not the expected one: '' and the server's run ID.

local stream, log = KEYS[1], KEYS[2]
local fresh, expected_server, known_run, asked_epoch, position = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local max_entries, max_age, key_ttl = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local FIRST_CHECKPOINT, FIRST_REQUEST = 9, 19  -- in ARGV
local MAX_ENDS = 32  -- former runs, epochs and forks to remember, each

-- Return the former runs, epochs or forks, each with the ID of its last entry.
local function ends_of(kind)
  local ends, fields = {}, redis.call('HGETALL', log)
  for i = 1, #fields, 2 do
    local name = string.match(fields[i], '^' .. kind .. ':(.*)$')
    if name then ends[name] = fields[i + 1] end
  end
  return ends
end
local function store_end(kind, name, id)
  redis.call('HSET', log, kind .. ':' .. name, id)
  local ends, count, oldest = ends_of(kind), 0, nil
  for other, other_id in pairs(ends) do
    count = count + 1
    if other ~= name and (not oldest or is_later(ends[oldest], other_id)) then oldest = other end
  end
  if count > MAX_ENDS then redis.call('HDEL', log, kind .. ':' .. oldest) end
end

-- Check the server.

local server_info = redis.pcall('INFO', 'server')
if type(server_info) == 'table' then
  return redis.error_reply('NOPERM the right to INFO is missing: ' .. server_info.err)
end
local replication_info = redis.call('INFO', 'replication')
if string.find(replication_info, 'role:slave', 1, true) then
  return redis.error_reply('READONLY this server is a replica')
end
local server = string.match(server_info, 'run_id:(%w+)') or ''
local replication = string.match(replication_info, 'master_replid:(%w+)') or ''
if expected_server ~= '' and expected_server ~= server then return {'', server} end

-- Read the state, and begin a run if this server has not appended before.

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local stored = redis.call('HMGET', log, 'epoch', 'run', 'last', 'server', 'replication', 'run_start', 'truncated_at')
local epoch, run, last, run_start, truncated_at = stored[1], stored[2], stored[3], stored[6], tonumber(stored[7] or '')
local function begin_run()
  if run == fresh then return end
  store_end('run', run, last)
  run, run_start = fresh, last
  redis.call('HSET', log, 'run', run, 'run_start', run_start)
end
if not epoch then
  local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  if not newest then redis.call('DEL', stream) end  -- an empty stream would refuse IDs before its last one
  epoch, run, last, truncated_at = fresh, fresh, newest and newest[1] or '0-0', now
  run_start = last
  redis.call('HSET', log, 'epoch', epoch, 'run', run, 'last', last, 'run_start', run_start,
    'truncated_at', truncated_at, 'server', server, 'replication', replication)
elseif stored[4] ~= server or stored[5] ~= replication then
  begin_run()
  truncated_at = nil
  redis.call('HDEL', log, 'truncated_at')
  redis.call('HSET', log, 'server', server, 'replication', replication)
end

-- Compare the log with the checkpoints.

local former_runs = nil
local function last_common(history, excluded_run)
  local common = '0-0'
  former_runs = former_runs or ends_of('run')
  for name, theirs in string.gmatch(history, '(%S+) (%S+)') do
    local ours = name == run and last or former_runs[name]
    if ours and name ~= excluded_run then
      if is_later(ours, theirs) then ours = theirs end
      if is_later(ours, common) then common = ours end
    end
  end
  return common
end
-- Return whether the next entry follows this one, or a later one that was trimmed.
local function is_linked(id)
  local ms, seq = parse(id)
  local following = redis.call('XRANGE', stream, string.format('%d-%d', ms, seq + 1), '+', 'COUNT', 1)[1]
  local previous = following and string.match(following[2][2], '(%d+%-%d+)$')
  return not previous or not is_later(id, previous)
end
local function is_known_epoch(name)
  return name == epoch or redis.call('HEXISTS', log, 'epoch:' .. name) == 1
    or redis.call('HEXISTS', log, 'fork:' .. name) == 1
end

local lost = asked_epoch == epoch and is_later(position, last)  -- whether to begin an epoch
local truncated = lost  -- whether the caller's position is of entries that were lost
local acknowledged_lost = ''
if lost then position = last end
for i = FIRST_CHECKPOINT, FIRST_REQUEST - 1, 5 do
  local its_epoch, its_run, id, age, history = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3]), ARGV[i + 4]
  if its_epoch ~= '' then
    local common = id
    if its_run ~= run or is_later(id, last) then common = last_common(history) end
    if not is_later(id, common) and not is_linked(id) then common = last_common(history, its_run) end
    local known = is_known_epoch(its_epoch)
    if is_later(id, common) or not known then
      local covered = truncated_at and truncated_at <= now and now - age <= truncated_at
      if not covered then lost = true end
      if not known then store_end('fork', its_epoch, common) end
      if i > FIRST_CHECKPOINT then
        acknowledged_lost = '1'
      elseif its_epoch == asked_epoch then
        truncated = true
        if asked_epoch == epoch then lost = true end
        if is_later(position, common) then position = common end
      end
    end
  end
end
if lost then
  store_end('epoch', epoch, last)
  begin_run()
  epoch, truncated_at = fresh, now
  redis.call('HSET', log, 'epoch', epoch, 'truncated_at', truncated_at)
end

-- Find the epoch of the caller's position, and where that ended. A position of the current epoch is valid as it is.

local start_epoch, epoch_end = epoch, ''
if #ARGV < FIRST_REQUEST and asked_epoch ~= epoch and not truncated then
  local former_epochs = ends_of('epoch')
  local shared = former_epochs[asked_epoch] or redis.call('HGET', log, 'fork:' .. asked_epoch)
  if shared then
    if is_later(position, shared) then position = shared end
  elseif asked_epoch == '' then  -- the position before the first entry
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    position = first and string.match(first[2][2], '(%S+)$') or last
  else
    position = '0-0'
  end
  for name, id in pairs(former_epochs) do
    if is_later(id, position) and (epoch_end == '' or is_later(epoch_end, id)) then
      start_epoch, epoch_end = name, id
    end
  end
end

-- Append.

local ancestry = ''
if run ~= known_run then
  for name, id in pairs(ends_of('run')) do ancestry = ancestry .. ' ' .. name .. ' ' .. id end
end
local reply = {epoch, run, last, string.format('%d', now), start_epoch, position, epoch_end, server, ancestry,
  acknowledged_lost}
local ms, seq = parse(last)
local before = last
for i = FIRST_REQUEST, #ARGV, 3 do
  local key = ARGV[i] ~= '0' and KEYS[tonumber(ARGV[i])]
  local repeated = key and redis.call('GET', key)
  if repeated then
    reply[#reply + 1] = repeated
  else
    if now > ms then ms, seq = now, 0 else seq = seq + 1 end
    if seq >= 1048576 then ms, seq = ms + 1, 0 end  -- an offset has 20 bits for it
    local id = string.format('%d-%d', ms, seq)
    local link = last == run_start and epoch .. ' ' .. run .. ' ' .. last or last
    redis.call('XADD', stream, id, 'l', link, 't', ARGV[i + 1], 'p', ARGV[i + 2])
    if key then redis.call('SET', key, epoch .. ' ' .. id, 'PX', key_ttl) end
    last = id
    reply[#reply + 1] = id
  end
end
if last ~= before then
  redis.call('HSET', log, 'last', last)
  redis.call('XTRIM', stream, 'MAXLEN', '~', max_entries)
  if max_age then redis.call('XTRIM', stream, 'MINID', '~', string.format('%d', now - max_age)) end
  reply[3] = last
end
return reply
