-- Append events to a user's record and answer what the caller lacks; without events, only answer.
--
-- KEYS[1]  the record
-- ARGV     known version ('' none) | its uid ('' not checked) | page | dedup window
--          | '1' reject late events | future tolerance, ms | idle TTL, s (0 none)
--          | most events kept (0 all) | events...
-- An event comes as  uid 8 | given time, int64 | length of event_id, uint16 | event_id | item id,
-- all big-endian, the given time -2^63 where none was given. The record stores the effective time
-- between the uid and the rest.
--
-- Returns {now, version, uid of that version, known is in the history, outcomes, version of the
-- first event returned, events, version of the oldest event kept}, an outcome being verdict,
-- version, effective time (0, 0: none).
--
-- Everything is read and checked before the first write: a script that fails has written nothing.
-- Integers become text through %.0f, because Lua's own conversion keeps 14 digits.

local APPLIED, DUPLICATE, LATE, REJECTED, CONFLICT, FUTURE = 0, 1, 2, 3, 4, 5
local NO_TIME = -2 ^ 63
local FIRST_EVENT = 9
local PAIRS_A_CALL = 200
local DROPPED_AT_MOST = 200 -- of a record that was long before there was a limit

local key = KEYS[1]
local known, known_uid = tonumber(ARGV[1]), ARGV[2]
local page, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local reject_late, tolerance, ttl = ARGV[5] == '1', tonumber(ARGV[6]), tonumber(ARGV[7])
local limit = tonumber(ARGV[8])

local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

local values = {} -- version -> the event's value, read or about to be written

local function text(integer)
  return string.format('%.0f', integer)
end

local function peek(version)
  local value = values[version]
  if not value then
    value = redis.call('HGET', key, 'e' .. text(version))
    if value then values[version] = value end
  end
  return value
end

local function damaged(version)
  error({err = 'DAMAGED event ' .. text(version) .. ' is missing'})
end

local function event(version)
  return peek(version) or damaged(version)
end

-- The field that finds an event again. Two prefixes: a caller's event_id cannot pose as a uid.
local function index_field(uid, rest)
  local _, length = struct.unpack('>i8I2', rest)
  if length > 0 then return 'ic' .. string.sub(rest, 11, 10 + length) end
  return 'iu' .. uid
end

local before = tonumber(redis.call('HGET', key, 'n') or '0')
local oldest = tonumber(redis.call('HGET', key, 'o') or '1')
local version, newest = before, NO_TIME
if before > 0 then newest = struct.unpack('>i8', event(before), 9) end

local outcomes, index, fields, gone, forgotten = {}, {}, {}, {}, {}

-- Its index field goes, unless it names a younger event.
local function forget(v)
  if forgotten[v] then return end
  local old = event(v)
  local field = index_field(string.sub(old, 1, 8), string.sub(old, 17))
  if tonumber(redis.call('HGET', key, field)) == v then gone[#gone + 1] = field end
  forgotten[v] = true
end

local function answer(verdict, at, time)
  local o = #outcomes
  outcomes[o + 1], outcomes[o + 2], outcomes[o + 3] = verdict, at, time
end

for a = FIRST_EVENT, #ARGV do
  local uid, rest = string.sub(ARGV[a], 1, 8), string.sub(ARGV[a], 9)
  local given = struct.unpack('>i8', rest)
  local field = index_field(uid, rest)
  local at = index[field] or tonumber(redis.call('HGET', key, field))
  if at and at > version - window then
    local there = event(at)
    local time = struct.unpack('>i8', there, 9)
    if string.sub(there, 1, 8) == uid then
      answer(given ~= NO_TIME and time > given and LATE or APPLIED, at, time)
    elseif string.sub(there, 17) == rest then
      answer(DUPLICATE, at, time)
    else
      answer(CONFLICT, at, time)
    end
  elseif given ~= NO_TIME and given > now + tolerance then
    answer(FUTURE, 0, 0)
  elseif given ~= NO_TIME and given < newest and reject_late then
    answer(REJECTED, 0, 0)
  else
    local late = given ~= NO_TIME and given < newest
    newest = math.max(newest, given == NO_TIME and now or given)
    version = version + 1
    values[version] = uid .. struct.pack('>i8', newest) .. rest
    index[field] = version
    fields[version] = field
    answer(late and LATE or APPLIED, version, newest)
    if version - window >= oldest then forget(version - window) end
  end
end

local kept = oldest
if limit > 0 and version > before then
  kept = math.min(version - limit + 1, oldest + version - before + DROPPED_AT_MOST)
  kept = math.max(oldest, kept)
  for v = oldest, math.min(kept - 1, before) do
    forget(v)
    gone[#gone + 1] = 'e' .. text(v)
  end
end

local in_history, first = 0, math.max(oldest, version - page + 1)
if known then
  local there = known > 0 and known <= version and peek(known)
  local begins = known == 0 or known_uid == '' and known < oldest -- with what is still there
  if begins or there and (known_uid == '' or string.sub(there, 1, 8) == known_uid) then
    in_history, first = 1, math.max(oldest, known + 1)
  end
end

local last = math.min(version, first + page - 1)
local absent = {}
for v = first, last do
  if not values[v] then absent[#absent + 1] = 'e' .. text(v) end
end
local read = #absent > 0 and redis.call('HMGET', key, unpack(absent)) or {}
local events, r = {}, 0
for v = first, last do
  local value = values[v]
  if not value then
    r = r + 1
    value = read[r] or damaged(v)
  end
  events[#events + 1] = value
end
local newest_uid = version > 0 and string.sub(event(version), 1, 8) or ''

if version > before then
  -- First, because an event_id that has left the window may be among the new events.
  for g = 1, #gone, 2 * PAIRS_A_CALL do
    redis.call('HDEL', key, unpack(gone, g, math.min(#gone, g + 2 * PAIRS_A_CALL - 1)))
  end
  local pairs_ = {'n', text(version)}
  if kept > oldest then pairs_[3], pairs_[4] = 'o', text(kept) end
  for v = math.max(before + 1, kept), version do
    local p = #pairs_
    pairs_[p + 1], pairs_[p + 2] = 'e' .. text(v), values[v]
    pairs_[p + 3], pairs_[p + 4] = fields[v], text(v)
    if p >= 2 * PAIRS_A_CALL or v == version then
      redis.call('HSET', key, unpack(pairs_))
      pairs_ = {}
    end
  end
  if ttl > 0 then redis.call('EXPIRE', key, text(ttl)) else redis.call('PERSIST', key) end
end

return {now, version, newest_uid, in_history, outcomes, first, events, kept}
