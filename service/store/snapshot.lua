#!lua
-- Write a snapshot, unless its user was erased a moment ago or it comes too late.
--
-- KEYS[1]  the snapshot    ARGV  its bytes | time to live, s (0: none)
--                                | the moment from which on nothing is written, ms (0: none)
-- Returns whether it was written. An empty value stands where a snapshot was erased.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local by = tonumber(ARGV[3])
if by > 0 and now >= by then return 0 end
if redis.call('EXISTS', KEYS[1]) == 1 and redis.call('STRLEN', KEYS[1]) == 0 then return 0 end
if ARGV[2] == '0' then
  redis.call('SET', KEYS[1], ARGV[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
return 1
