-- Replaces fields of a hash if others are still what the caller read.
--
-- KEYS: 1 the hash. ARGV: 1 number of fields to compare; then per field its name, "1" or "0" (held or missing) and its value;
-- then fields and values to set. Returns 1, or 0 where something changed meanwhile.
-- A key of another type than a hash holds no field of ours; it is set aside under another name.

local kind = redis.call('TYPE', KEYS[1]).ok
local strange = kind ~= 'hash' and kind ~= 'none'
local at = 1
for _ = 1, tonumber(ARGV[1]) do
  local held = not strange and redis.call('HGET', KEYS[1], ARGV[at + 1])
  if ARGV[at + 2] == '1' then
    if held ~= ARGV[at + 3] then return 0 end
  elseif held then
    return 0
  end
  at = at + 3
end
if strange then redis.call('RENAME', KEYS[1], KEYS[1] .. ':unreadable') end
redis.call('HSET', KEYS[1], unpack(ARGV, at + 1))
return 1
