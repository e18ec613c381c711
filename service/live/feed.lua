#!lua flags=allow-oom
-- Add records to the feed; the oldest ones beyond a number and an age go, a few entries at a time.
--
-- KEYS[1]  the stream
-- ARGV     how many records | the records | most records that are kept | how long they are, ms

local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local count = tonumber(ARGV[1])
if newest then count = count + tonumber(newest[2][2]) end
redis.call('XADD', KEYS[1], '*', 'n', string.format('%.0f', count), 'own', ARGV[1], 'records', ARGV[2])

local clock = redis.call('TIME')
local since = tonumber(clock[1]) * 1000 - tonumber(ARGV[4])
local kept
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 8)) do
  kept = entry[1]
  local old = tonumber(string.match(kept, '^%d+')) < since
  if tonumber(entry[2][2]) > count - tonumber(ARGV[3]) and not old then break end
end
redis.call('XTRIM', KEYS[1], 'MINID', kept)
