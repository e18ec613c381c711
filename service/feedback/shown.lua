#!lua
-- Keep what a user was shown, in front of what was shown before.
--
-- KEYS[1]  the user's lists    ARGV  model | items, a CRC-32 each | for how long, ms | most lists
-- A list is  time, int64 | length of model, uint8 | model | items.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local head = struct.pack('>i8B', now, #ARGV[1])
redis.call('LPUSH', KEYS[1], head .. ARGV[1] .. ARGV[2])
redis.call('LTRIM', KEYS[1], 0, tonumber(ARGV[4]) - 1)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
