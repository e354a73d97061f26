-- Delete the entries of a topic from a part of the stream. A call is atomic.
--
-- The hash has one more field for it:
--   erased        ID of the last entry before which a topic was erased. A tail that misses entries before it, after the
--                 first entry of the stream, knows by it that they were erased and not lost
-- It is written before anything is deleted. The links of the entries that follow are as they were.

-- KEYS: the stream, the hash.
-- ARGV: the epoch of the caller's position and its ID; the topic; the ID to begin with; how many entries to look at.
-- Reply: the ID to begin the next call with, or '' if this was the last part; nil if the log does not have the position.

local stream, log = KEYS[1], KEYS[2]
local epoch, before, topic, start, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local stored = redis.call('HMGET', log, 'epoch', 'last', 'erased')
if stored[1] ~= epoch or is_later(before, stored[2]) then return false end
if not stored[3] or is_later(before, stored[3]) then redis.call('HSET', log, 'erased', before) end

local last = nil
for _, entry in ipairs(redis.call('XRANGE', stream, start, before, 'COUNT', count)) do
  last = entry[1]
  if last == before then return '' end
  if entry[2][4] == topic then redis.call('XDEL', stream, last) end
end
if not last then return '' end
local ms, seq = parse(last)
return string.format('%d-%d', ms, seq + 1)
