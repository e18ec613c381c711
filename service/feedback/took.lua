#!lua
-- A user has taken something: find the trials for which it counts, once in each.
--
-- KEYS[1]  the user's trials    ARGV  how long a user is observed, ms
-- Returns these: trial | arm@ms, as the user was enrolled | trial | arm@ms...

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local found, new = redis.call('HGETALL', KEYS[1]), {}
for f = 1, #found, 2 do
  local at = string.match(found[f + 1], '^%a+@(%d+)$')
  if at and now - tonumber(at) < tonumber(ARGV[1])
    and redis.call('HSETNX', KEYS[1], found[f] .. ':taken', 1) == 1 then
    new[#new + 1] = found[f]
    new[#new + 1] = found[f + 1]
  end
end
return new
