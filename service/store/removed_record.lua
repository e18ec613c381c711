#!lua flags=allow-oom
-- Delete a record that has a mark, and tell the events after it.
--
-- KEYS[1]  the record    ARGV  the mark's version | its uid
-- Returns those events; false: the record does not have the mark, or more of them than one reply
-- takes, or lacks one. Then it stays as it is.

local MOST = 1000

local function text(integer)
  return string.format('%.0f', integer)
end

local known = tonumber(ARGV[1])
local version = tonumber(redis.call('HGET', KEYS[1], 'n') or '0')
local there = redis.call('HGET', KEYS[1], 'e' .. text(known))
if not there or string.sub(there, 1, 8) ~= ARGV[2] or version - known > MOST then return false end

local events = {}
for v = known + 1, version do
  local value = redis.call('HGET', KEYS[1], 'e' .. text(v))
  if not value then return false end
  events[#events + 1] = value
end
redis.call('UNLINK', KEYS[1])
return events
