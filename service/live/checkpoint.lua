#!lua flags=allow-oom
-- Set the pointer to a checkpoint, unless it is not what the caller thinks. Whether it is set.
--
-- KEYS[1]  the pointer    ARGV  what it should be, empty: there is none | what it is to be

local now = redis.call('GET', KEYS[1]) or ''
if now == ARGV[2] then return 1 end
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
