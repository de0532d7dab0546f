-- Numbers, stores and announces events; with no events it is the position check.
--
-- KEYS  1 position (hash: epoch, sequence)   2 history (stream: <sequence>-0 -> id, event)
--       3 record of this request (string), absent for a plain position check
-- ARGV  1 channel   2 history size   3 epoch to use if a new one must begin
--       4-6 the caller's last delivered position (epoch, sequence, event id) as it was when it called; "" = none
--       7 id of this request   8 lifetime of the record in ms   9... per event: id, tail of its JSON
-- Answers {epoch, first sequence, count, subscribers, 1 if an earlier request's record answered, sequence now, and for a
-- position check the number of the oldest event kept (sequence + 1 if none is)}.
--
-- Data is never decoded here: cjson would turn [] into {}, cut floats and break integers above 2^53.
-- Redis does not roll back, so whatever can be unusable or forbidden is looked at before the first write.

local channel, size, fresh = ARGV[1], ARGV[2], ARGV[3]

-- Whether an error says that a key is of another type; any other error is the caller's.
local function mistyped(reply)
  return string.find(reply.err, '^WRONGTYPE') ~= nil
end

if KEYS[3] then
  local kept = redis.pcall('GET', KEYS[3])
  if type(kept) == 'table' and not mistyped(kept) then return kept end
  if type(kept) == 'string' then
    local by, epoch, first, count, subscribers = string.match(kept, '^(%S+) ([%w_-]+) (%d+) (%d+) (%d+)$')
    -- nobody else's text may become a number that is not exact, or thousands of receipts
    if by and #first <= 15 and #count <= 6 and #subscribers <= 15 then
      return {epoch, tonumber(first), tonumber(count), tonumber(subscribers), by == ARGV[7] and 0 or 1, 0}
    end
  end
end

-- The numbering as it is kept: epoch and sequence, nil if unusable; or nil, nil and an error.
local function held()
  local fields = redis.pcall('HMGET', KEYS[1], 'epoch', 'sequence')
  if fields.err then
    if mistyped(fields) then return nil end
    return nil, nil, fields
  end
  local epoch, sequence = fields[1], fields[2]
  -- 15 digits stay exact in Lua's doubles; the epoch is spliced into JSON as it is
  if not epoch or not sequence or #epoch > 64 or not string.find(epoch, '^[%w_-]+$')
      or #sequence > 15 or not string.find(sequence, '^%d+$') then
    return nil
  end
  return epoch, tonumber(sequence)
end

-- Whether the caller has delivered what this Redis does not have, or has otherwise; or nil and an error.
local function forked(epoch, sequence)
  if ARGV[4] ~= epoch then return false end
  local delivered = tonumber(ARGV[5])
  if sequence < delivered then return true end
  if ARGV[6] == '' then return false end
  local at = ARGV[5] .. '-0'
  local entry = redis.pcall('XRANGE', KEYS[2], at, at)
  if entry.err then
    if mistyped(entry) then return true end
    return nil, entry
  end
  return entry[1] ~= nil and entry[1][2][2] ~= ARGV[6]
end

-- Whether this user may do all that a publish does; Redis 6.2 cannot be asked.
local function permitted()
  local may = redis.acl_check_cmd
  return not may or (may('DEL', KEYS[1], KEYS[2]) and may('HSET', KEYS[1], 'sequence', '0')
    and may('XADD', KEYS[2], '*', 'id', '') and may('PUBLISH', channel, '')
    and (not KEYS[3] or may('SET', KEYS[3], '')))
end

local function begin()
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', fresh, 'sequence', '0')
  return fresh, 0
end

local epoch, sequence, failed = held()
local began = not epoch
if epoch then
  began, failed = forked(epoch, sequence)
end
if failed then return failed end
if (began or KEYS[3]) and not permitted() then
  return redis.error_reply('NOPERM this user may not do all that a publish does')
end
if began then
  epoch, sequence = begin()
end

local first, parts = sequence + 1, {}
for i = 9, #ARGV, 2 do
  local number = string.format('%.0f', sequence + 1)
  local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', size, number .. '-0', 'id', ARGV[i], 'event', ARGV[i + 1])
  if type(added) == 'table' and added.err then
    -- A foreign entry above our numbers (maybe at the very top), or no stream at all: only the first event can meet that,
    -- nothing is written yet.
    local taken = string.find(added.err, '^ERR The ID ') or string.find(added.err, '^ERR The stream has exhausted ')
    if not (taken or mistyped(added)) then return added end
    epoch, sequence = begin()
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
local answer = {epoch, first, #parts, subscribers, 0, sequence}
if #parts == 0 then
  local kept = redis.pcall('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  local oldest = kept[1] and string.match(kept[1][1], '^(%d+)-0$')
  answer[7] = oldest and #oldest <= 15 and tonumber(oldest) or sequence + 1
end
return answer
