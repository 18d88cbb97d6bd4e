-- A role's step, all of it or nothing, and only by whoever has the role.
--
-- KEYS: 1 the role's lease; then the keys that the commands name.
-- ARGV: 1 the lease's token; then commands, each as the number of its parts, the index of its key in KEYS, its name, and its
--       further parts.
-- Returns 1, or 0 where the lease is another's: then nothing was done.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 2
while at <= #ARGV do
  local parts, key = tonumber(ARGV[at]), KEYS[tonumber(ARGV[at + 1])]
  local command = {ARGV[at + 2], key}
  for part = 1, parts do command[#command + 1] = ARGV[at + 2 + part] end
  redis.call(unpack(command))
  at = at + 3 + parts
end
return 1
