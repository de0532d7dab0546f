-- Reads a part of the history in one atomic call, together with the position. It writes nothing.
--
-- KEYS  1 position (hash: epoch, sequence)   2 history (stream: <sequence>-0 -> id, event)
-- ARGV  1-2 the first and the last event wanted   3 the event after the last one   4 how many bytes the answer may hold
--       5 the number of an event whose id the caller knows (the witness)
-- Returns {epoch, sequence, id of the oldest entry, entries, id of the first entry after these, id of the witness}. What does not exist is
-- false: epoch and sequence if there is no position, an id if there is no such entry.
--
-- XRANGE has no bound in bytes, and a hundred large events take longer to transfer than a caller waits. Therefore the
-- entries are read in short steps, until the next one would exceed the bound. The first entry is returned whatever its
-- size. Each step reads about as many entries as will still fit, so an entry is rarely read in vain.

local MOST = 128

-- Reads entries; returns none if the key has another type because something else wrote it, or nil and an error.
local function entries(first, last, count)
  local found = redis.pcall('XRANGE', KEYS[2], first, last, 'COUNT', count)
  if found.err and string.find(found.err, '^WRONGTYPE') then return {} end
  if found.err then return nil, found end
  return found
end

local numbering = redis.pcall('HMGET', KEYS[1], 'epoch', 'sequence')
if numbering.err then
  if not string.find(numbering.err, '^WRONGTYPE') then return numbering end
  numbering = {false, false}
end

local oldest, failed = entries('-', '+', 1)
if failed then return failed end

local taken, size, most = {}, 0, tonumber(ARGV[4])
local start, count, found, beyond = ARGV[1] .. '-0', 1, nil, nil
repeat
  found, failed = entries(start, ARGV[2] .. '-0', count)
  if failed then return failed end
  for _, entry in ipairs(found) do
    for _, field in ipairs(entry[2]) do size = size + #field end
    if size > most and #taken > 0 then
      beyond = entry
      break
    end
    taken[#taken + 1] = entry
  end
  if #taken > 0 then
    start = '(' .. taken[#taken][1]
    count = math.max(1, math.min(MOST, math.floor((most - size) * #taken / math.max(size, 1))))
  end
until beyond or #found == 0

if not beyond then
  found, failed = entries(ARGV[3] .. '-0', '+', 1)
  if failed then return failed end
  beyond = found[1]
end

-- The id of the witness, so that the caller can see whether this is the history that it knows.
found, failed = entries(ARGV[5] .. '-0', ARGV[5] .. '-0', 1)
if failed then return failed end
local witness = found[1] and found[1][2][1] == 'id' and found[1][2][2]

return {numbering[1], numbering[2], oldest[1] and oldest[1][1] or false, taken, beyond and beyond[1] or false, witness or false}
