#!lua
-- Find which model showed a user an item last, and take the item out of all lists: it counts once.
--
-- KEYS[1]  the user's lists    ARGV  the item's CRC-32 | how long ago at most, ms
-- Returns the model, or nothing.

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)
local found = false
for place, list in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local at, size = struct.unpack('>i8B', list)
  if now - at > tonumber(ARGV[2]) then break end
  for start = 10 + size, #list, 4 do
    if string.sub(list, start, start + 3) == ARGV[1] then
      found = found or string.sub(list, 10, 9 + size)
      redis.call('LSET', KEYS[1], place - 1, string.sub(list, 1, start - 1) .. string.sub(list, start + 4))
      break
    end
  end
end
return found
