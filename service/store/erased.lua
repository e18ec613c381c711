#!lua flags=allow-oom
-- Announce a user's erasure; announcements older than a while go.
--
-- KEYS[1]  the stream    ARGV  user | how long announcements are kept, ms

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local oldest = string.format('%.0f', now - tonumber(ARGV[2]))
redis.call('XADD', KEYS[1], 'MINID', '=', oldest, '*', 'user', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
