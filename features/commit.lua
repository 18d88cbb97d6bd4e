-- Commits events of one profile: its record, the log, the ids seen and the titles' statistics change together or not at all.
--
-- KEYS: 1 the profile's record; 2 the log; then per event the key that marks its id as seen; then per title its record;
--       last the count of all plays.
-- ARGV: 1 the record's version that the caller read ("" none); 2 seconds to remember ids; 3 number of events; 4 number of
--       titles; 5 number of following fields and values of the profile's record; these; then per event its JSON; then 8
--       hash fields of a title's record (impressions, plays, finishes, thumbs_up, thumbs_down, last_ts_ms, trend, _ts);
--       then per title 7 numbers to add to the first five, to take the maximum with, and to add in log2 space; last the
--       number of plays.
-- Returns 1, or 0 where the record changed since it was read or an id was seen meanwhile: read again and retry.
-- A record's key of another type than a hash is none of ours: it is set aside under another name, and the record begun anew.
-- The log is written first: where it cannot be, nothing is.

local function is_strange(key)
  local kind = redis.call('TYPE', key).ok
  return kind ~= 'hash' and kind ~= 'none'
end

local function set_aside(key) redis.call('RENAME', key, key .. ':unreadable') end

local strange = is_strange(KEYS[1])
local version = not strange and redis.call('HGET', KEYS[1], 'playhead:version') or ''
if version ~= ARGV[1] then return 0 end
local n_events, n_titles, n_fields = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
for i = 1, n_events do
  if redis.call('MGET', KEYS[2 + i])[1] then return 0 end
end

-- feast.types.Value: int64_val is field 4 (a varint), double_val is field 5 (little-endian).
local function decode_int(value)
  if not value or string.byte(value, 1) ~= 32 then return 0 end
  local number, scale = 0, 1
  for i = 2, #value do
    local byte = string.byte(value, i)
    number = number + (byte % 128) * scale
    if byte < 128 then break end
    scale = scale * 128
  end
  return number
end

local function varint(number)
  local bytes = {}
  while number >= 128 do
    bytes[#bytes + 1] = string.char(number % 128 + 128)
    number = math.floor(number / 128)
  end
  bytes[#bytes + 1] = string.char(number)
  return table.concat(bytes)
end

local function decode_double(value)
  if not value or #value ~= 9 or string.byte(value, 1) ~= 41 then return -math.huge end
  return (struct.unpack('<d', value, 2))
end

local function add_logs(a, b)
  local high, low = math.max(a, b), math.min(a, b)
  if low == -math.huge then return high end
  return high + math.log(1 + 2 ^ (low - high)) / math.log(2)
end

local function number(text)
  if text == '-inf' then return -math.huge end
  return tonumber(text)
end

local at = 5 + n_fields
for i = 1, n_events do
  redis.call('XADD', KEYS[2], '*', 'event', ARGV[at + i])
  redis.call('SET', KEYS[2 + i], '', 'EX', ARGV[2])
end
if strange then set_aside(KEYS[1]) end
redis.call('HSET', KEYS[1], 'playhead:version', (tonumber(version) or 0) + 1, unpack(ARGV, 6, 5 + n_fields))
at = at + n_events

local fields = {unpack(ARGV, at + 1, at + 8)}
at = at + 8
for t = 1, n_titles do
  local key = KEYS[2 + n_events + t]
  if is_strange(key) then set_aside(key) end
  local held = redis.call('HMGET', key, unpack(fields, 1, 7))
  local row = {}
  for f = 1, 5 do
    row[2 * f - 1] = fields[f]
    row[2 * f] = ' ' .. varint(decode_int(held[f]) + number(ARGV[at + f]))
  end
  local last = math.max(decode_int(held[6]), number(ARGV[at + 6]))
  local trend = add_logs(decode_double(held[7]), number(ARGV[at + 7]))
  local millis = last % 1000
  local ts = '\8' .. varint((last - millis) / 1000)
  if millis > 0 then ts = ts .. '\16' .. varint(millis * 1000000) end
  redis.call('HSET', key, fields[6], ' ' .. varint(last), fields[7], ')' .. struct.pack('<d', trend), fields[8], ts, unpack(row))
  at = at + 7
end
local plays = tonumber(ARGV[at + 1])
if plays > 0 then redis.pcall('INCRBY', KEYS[#KEYS], plays) end
return 1
