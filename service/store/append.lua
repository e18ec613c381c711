-- Append events to a user's record and answer what the caller lacks; without events, only answer.
--
-- KEYS[1]  the record
-- ARGV     known version ('' none) | its uid ('' not checked) | page | dedup window
--          | late events: 'clamp', 'reject' or 'replay' | future tolerance, ms | idle TTL, s (0 none)
--          | most events kept (0 all) | most events a late one may move | events...
-- An event comes as  uid 8 | given time, int64 | length of event_id, uint16 | event_id | item id,
-- all big-endian, the given time -2^63 where none was given; the length's highest bit says that kind
-- and weight come before the item id. The record stores the effective time between the uid and the
-- rest.
--
-- A late event that is replayed comes after the last event that is not younger. Those after it move
-- up by one, and get another uid each: they end another history. The one that they were sent with
-- is appended to them. Two bits of the length say so: PLACED, MOVED.
--
-- Returns {now, version, uid of that version, known is in the history, outcomes, version of the
-- first event returned, events, version of the oldest event kept}, an outcome being verdict,
-- version, effective time (0, 0: none).
--
-- Everything is read and checked before the first write: a script that fails has written nothing.
-- Integers become text through %.0f, because Lua's own conversion keeps 14 digits.

local APPLIED, DUPLICATE, LATE, REJECTED, CONFLICT, FUTURE = 0, 1, 2, 3, 4, 5
local NO_TIME = -2 ^ 63
local PLACED, MOVED, KIND = 0x2000, 0x4000, 0x8000
local FIRST_EVENT = 10
local PAIRS_A_CALL = 200
local DROPPED_AT_MOST = 200 -- of a record that was long before there was a limit

local key = KEYS[1]
local known, known_uid = tonumber(ARGV[1]), ARGV[2]
local page, window = tonumber(ARGV[3]), tonumber(ARGV[4])
local policy, tolerance, ttl = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
local limit, most_moved = tonumber(ARGV[8]), tonumber(ARGV[9])

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

local function time_of(version)
  return (struct.unpack('>i8', event(version), 9))
end

-- What was sent of a stored event, its uid and the rest; and whether it was put in its place.
local function sent(value)
  local uid, rest = string.sub(value, 1, 8), string.sub(value, 17)
  local head = struct.unpack('>I2', rest, 9)
  local ours = head % KIND - head % PLACED
  if ours == 0 then return uid, rest, false end
  if ours >= MOVED then uid, rest = string.sub(rest, -8), string.sub(rest, 1, -9) end
  rest = string.sub(rest, 1, 8) .. struct.pack('>I2', head - ours) .. string.sub(rest, 11)
  return uid, rest, ours % MOVED == PLACED
end

-- The field that finds an event again. Two prefixes: a caller's event_id cannot pose as a uid.
local function index_field(uid, rest)
  local length = struct.unpack('>I2', rest, 9) % PLACED
  if length > 0 then return 'ic' .. string.sub(rest, 11, 10 + length) end
  return 'iu' .. uid
end

local before = tonumber(redis.call('HGET', key, 'n') or '0')
local oldest = tonumber(redis.call('HGET', key, 'o') or '1')
local version, newest = before, NO_TIME
if before > 0 then newest = time_of(before) end

local outcomes, index, fields, gone, forgotten = {}, {}, {}, {}, {}
local lowest, moved = before + 1, {} -- the first version to be written; those of stored events

-- Its index field goes, unless it names a younger event.
local function forget(v)
  if forgotten[v] then return end
  local field = index_field(sent(event(v)))
  if tonumber(redis.call('HGET', key, field)) == v then gone[#gone + 1] = field end
  forgotten[v] = true
end

local function answer(verdict, at, time)
  local o = #outcomes
  outcomes[o + 1], outcomes[o + 2], outcomes[o + 3] = verdict, at, time
end

-- The version after which an event of this time belongs, if that is known and near enough.
local function place_of(time)
  local place = version
  while place >= oldest and time_of(place) > time do
    place = place - 1
    if version - place > most_moved then return nil end
  end
  if place >= oldest or oldest == 1 then return place end
end

-- Makes an event the next one after `place`.
local function insert(place, value, field)
  for v = lowest - 1, place + 1, -1 do
    local found_by = index_field(sent(event(v)))
    if tonumber(redis.call('HGET', key, found_by)) == v then
      fields[v], index[found_by] = found_by, v
    end
    moved[v] = true
  end
  for v = version, place + 1, -1 do
    values[v + 1], fields[v + 1], moved[v + 1] = values[v], fields[v], moved[v]
    if fields[v] then index[fields[v]] = v + 1 end
  end
  if place < version then
    for o = 2, #outcomes, 3 do
      if outcomes[o] > place then outcomes[o] = outcomes[o] + 1 end
    end
  end
  values[place + 1], fields[place + 1], moved[place + 1] = value, field, nil
  index[field] = place + 1
  version, lowest = version + 1, math.min(lowest, place + 1)
end

for a = FIRST_EVENT, #ARGV do
  local uid, rest = string.sub(ARGV[a], 1, 8), string.sub(ARGV[a], 9)
  local given, head = struct.unpack('>i8I2', rest)
  local field = index_field(uid, rest)
  local late = given ~= NO_TIME and given < newest
  local at = index[field] or tonumber(redis.call('HGET', key, field))
  if at and at > version - window then
    local time, there_uid, there, placed = time_of(at), sent(event(at))
    if there_uid == uid then
      answer((placed or given ~= NO_TIME and time > given) and LATE or APPLIED, at, time)
    elseif there == rest then
      answer(DUPLICATE, at, time)
    else
      answer(CONFLICT, at, time)
    end
  elseif given ~= NO_TIME and given > now + tolerance then
    answer(FUTURE, 0, 0)
  else
    local place, time = version, given == NO_TIME and now or given
    if not late or policy == 'clamp' then
      time = math.max(newest, time)
      newest = time
    elseif policy == 'replay' then
      place = place_of(time)
      rest = string.sub(rest, 1, 8) .. struct.pack('>I2', head + PLACED) .. string.sub(rest, 11)
    else
      place = nil
    end
    if place then
      insert(place, uid .. struct.pack('>i8', time) .. rest, field)
      answer(late and LATE or APPLIED, place + 1, time)
      if version - window >= oldest then forget(version - window) end
    else
      answer(REJECTED, 0, 0)
    end
  end
end

-- A moved event's uid names what it was and what has come before it since.
local before_it = ''
for v = lowest, lowest <= before and version or 0 do
  local value = values[v]
  if moved[v] then
    local head, own = struct.unpack('>I2', value, 25), ''
    if head % KIND < MOVED then head, own = head + MOVED, string.sub(value, 1, 8) end
    local hex = redis.sha1hex(before_it .. string.sub(value, 1, 8))
    local high, low = tonumber(string.sub(hex, 1, 8), 16), tonumber(string.sub(hex, 9, 16), 16)
    values[v] = struct.pack('>I4I4', high, low) .. string.sub(value, 9, 24) .. struct.pack('>I2', head)
      .. string.sub(value, 27) .. own
  else
    before_it = redis.sha1hex(before_it .. string.sub(value, 1, 8))
  end
end

local kept = oldest
if limit > 0 and version > before then
  kept = math.min(version - limit + 1, oldest + version - before + DROPPED_AT_MOST)
  kept = math.max(oldest, kept)
  for v = oldest, math.min(kept, lowest) - 1 do
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
  for v = math.max(lowest, kept), version do
    local p = #pairs_
    pairs_[p + 1], pairs_[p + 2] = 'e' .. text(v), values[v]
    if fields[v] then pairs_[p + 3], pairs_[p + 4] = fields[v], text(v) end
    if p >= 2 * PAIRS_A_CALL or v == version then
      redis.call('HSET', key, unpack(pairs_))
      pairs_ = {}
    end
  end
  if ttl > 0 then redis.call('EXPIRE', key, text(ttl)) else redis.call('PERSIST', key) end
elseif #outcomes > 0 and version > 0 then
  -- What is answered was written before, by another connection perhaps: WAIT counts from here.
  redis.call('HSET', key, 'n', text(version))
end

return {now, version, newest_uid, in_history, outcomes, first, events, kept}
