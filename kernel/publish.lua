-- Numbers, stores and announces events; with no events it is the position check.
--
-- KEYS  1 position (hash: epoch, sequence)   2 history (stream: <sequence>-0 -> id, event)
--       3 record of this request (string), absent for a plain position check
-- ARGV  1 channel   2 history size   3 epoch to use if a new one must begin
--       4-6 the caller's last delivered position (epoch, sequence, event id) as it was when it called; "" = none
--       7 id of this request   8 lifetime of the record in ms   9... per event: id, tail of its JSON
-- Answers {epoch, first sequence, count, subscribers, 1 if an earlier request's record answered, sequence now}.
--
-- Data is never decoded here: cjson would turn [] into {}, cut floats and break integers above 2^53.
-- Redis does not roll back, so whatever can be unusable is looked at before the first write.

local channel, size, fresh = ARGV[1], ARGV[2], ARGV[3]

if KEYS[3] then
  local kept = redis.pcall('GET', KEYS[3])
  if type(kept) == 'string' then
    local by, epoch, first, count, subscribers = string.match(kept, '^(%S+) (%S+) (%d+) (%d+) (%d+)$')
    if by then
      return {epoch, tonumber(first), tonumber(count), tonumber(subscribers), by == ARGV[7] and 0 or 1, 0}
    end
  end
end

local function begin(epoch)
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'sequence', '0')
  return epoch, 0
end

local function held()
  local fields = redis.pcall('HMGET', KEYS[1], 'epoch', 'sequence')
  if fields.err then
    if string.find(fields.err, '^WRONGTYPE') then return nil end
    return nil, fields
  end
  local epoch, sequence = fields[1], fields[2]
  -- 15 digits stay exact in Lua's doubles; the epoch is spliced into JSON as it is
  if not epoch or not sequence or #epoch > 64 or not string.find(epoch, '^[%w_-]+$')
      or #sequence > 15 or not string.find(sequence, '^%d+$') then
    return nil
  end
  return epoch, tonumber(sequence)
end

-- Whether the caller has delivered what this Redis does not have, or has otherwise.
local function forked(epoch, sequence)
  if ARGV[4] ~= epoch then return false end
  local delivered = tonumber(ARGV[5])
  if sequence < delivered then return true end
  if delivered == 0 or ARGV[6] == '' then return false end
  local at = ARGV[5] .. '-0'
  local entry = redis.pcall('XRANGE', KEYS[2], at, at)
  if entry.err then return true end
  if not entry[1] then return false end
  local fields = entry[1][2]
  return fields[1] ~= 'id' or fields[2] ~= ARGV[6]
end

local epoch, sequence = held()
if not epoch and sequence then return sequence end
local began = false
if not epoch or forked(epoch, sequence) then
  epoch, sequence = begin(fresh)
  began = true
end

local first, parts = sequence + 1, {}
for i = 9, #ARGV, 2 do
  local number = string.format('%.0f', sequence + 1)
  local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', size, number .. '-0', 'id', ARGV[i], 'event', ARGV[i + 1])
  if type(added) == 'table' and added.err then
    -- A foreign entry above our numbers, or no stream at all: only the first event can meet that, nothing is written yet.
    if i > 9 or not (string.find(added.err, '^WRONGTYPE') or string.find(added.err, '^ERR The ID')) then return added end
    epoch, sequence = begin(fresh)
    began, first, number = true, 1, '1'
    redis.call('XADD', KEYS[2], 'MAXLEN', '~', size, '1-0', 'id', ARGV[i], 'event', ARGV[i + 1])
  end
  sequence = sequence + 1
  parts[#parts + 1] = '{"sequence":' .. number .. ARGV[i + 1]
end

local subscribers = 0
if #parts > 0 then
  redis.call('HSET', KEYS[1], 'sequence', string.format('%.0f', sequence))
end
if #parts > 0 or began then
  subscribers = redis.call('PUBLISH', channel, '{"epoch":"' .. epoch .. '","events":[' .. table.concat(parts, ',') .. ']}')
end
if KEYS[3] then
  local record = string.format('%s %s %.0f %d %d', ARGV[7], epoch, first, #parts, subscribers)
  redis.call('SET', KEYS[3], record, 'PX', ARGV[8])
end
return {epoch, first, #parts, subscribers, 0, sequence}
