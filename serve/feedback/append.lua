-- Takes one judgement: the log, the mark of its id and the counts change together or not at all.
--
-- KEYS: 1 the mark of its id; 2 the log; 3 the counts.
-- ARGV: 1 digest of what is judged; 2 its version; 3 seconds to remember the id; 4 most entries of the log; 5 the entry;
--       6 field of the counts; 7 the field instead, where there are too many; 8 most fields of the counts.
-- Returns {1} where it was taken; {0, version} where it had been; {-1} where its id was another judgement's; {-2} where
-- the log is full of what nothing has read. The log is written first: where it cannot be, nothing is.

local held = redis.call('HMGET', KEYS[1], 'digest', 'version')
if held[1] then
  if held[1] == ARGV[1] then return {0, held[2]} end
  return {-1}
end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[4]) then return {-2} end
redis.call('XADD', KEYS[2], '*', 'feedback', ARGV[5])
redis.call('HSET', KEYS[1], 'digest', ARGV[1], 'version', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local field = ARGV[6]
if redis.call('HEXISTS', KEYS[3], field) == 0 and redis.call('HLEN', KEYS[3]) >= tonumber(ARGV[8]) then
  field = ARGV[7]
end
redis.call('HINCRBY', KEYS[3], field, 1)
return {1}
