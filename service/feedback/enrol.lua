#!lua
-- Enrol a user in trials, those that the user is not in yet.
--
-- KEYS[1]  the user's trials    ARGV  for how long, ms | trial | arm | trial | arm...
-- Returns the new ones: trial | arm@ms | trial | arm@ms...

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local new = {}
for a = 2, #ARGV, 2 do
  local enrolled = ARGV[a + 1] .. '@' .. string.format('%d', now)
  if redis.call('HSETNX', KEYS[1], ARGV[a], enrolled) == 1 then
    new[#new + 1] = ARGV[a]
    new[#new + 1] = enrolled
  end
end
if #new > 0 then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return new
