#!lua
-- Note the settings that processes share: those that are not there yet, unless one that is there is
-- another.
--
-- KEYS[1]  the hash    ARGV  1: in any case, and all of them; 0 | name | value | name | value ...
-- Returns the values that are there afterwards, in the order of the names.

local there, differs = {}, false
for a = 2, #ARGV, 2 do
  local value = redis.call('HGET', KEYS[1], ARGV[a])
  differs = differs or value and value ~= ARGV[a + 1]
  there[#there + 1] = value
end
if differs and ARGV[1] == '0' then return there end
for a = 2, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[a], ARGV[a + 1])
  there[a / 2] = ARGV[a + 1]
end
return there
