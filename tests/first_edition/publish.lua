-- Numbers, stores and announces the events of one or more requests; without a request it is the position check.
--
-- KEYS  1 position (hash: epoch, sequence)   2 history (stream: <sequence>-0 -> id, event)
--       3... the record of each request (string)
-- ARGV  1 channel   2 history size   3 epoch to use if a new one must begin
--       4-6 the caller's last delivered position (epoch, sequence, event id) as it was when it called; "" = none
--       7... four per request: its id, lifetime of its record in ms, "<id> <bytes>" of each of its events, and the tails
--       of their JSON in one piece (callers pack arguments one by one)
-- Answers {epoch, sequence, number of the oldest event kept (sequence + 1 if none is), replies}; a reply per request is
-- {epoch, first sequence, count, subscribers, 1 if an earlier request's record answered}. Where all requests were
-- answered by records there is nothing but the replies.
--
-- Data is never decoded here: cjson would turn [] into {}, cut floats and break integers above 2^53.
-- Redis does not roll back, so whatever can be unusable or forbidden is looked at before the first write.

local channel, size, fresh = ARGV[1], ARGV[2], ARGV[3]

-- Whether an error says that a key is of another type; any other error is the caller's.
local function mistyped(reply)
  return string.find(reply.err, '^WRONGTYPE') ~= nil
end

-- What a record says: the id of the request that made it, and its reply; nil if nothing usable; nil, nil and an error.
local function recorded(key)
  local kept = redis.pcall('GET', key)
  if type(kept) == 'table' then return nil, nil, not mistyped(kept) and kept or nil end
  if type(kept) ~= 'string' then return nil end
  local by, epoch, first, count, subscribers = string.match(kept, '^(%S+) ([%w_-]+) (%d+) (%d+) (%d+)$')
  -- nobody else's text may become a number that is not exact, or thousands of receipts
  if by and #first <= 15 and #count <= 6 and #subscribers <= 15 then
    return by, {epoch, tonumber(first), tonumber(count), tonumber(subscribers), 0}
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

-- What each request comes to: by whom and how it was answered before, or that it is due, where in ARGV it begins.
local replies, due, answered = {}, {}, {}
for i = 3, #KEYS do
  local key, at = KEYS[i], 7 + 4 * (i - 3)
  local id = ARGV[at]
  local before, failed = answered[key], nil
  if not before then
    before = {}
    before.by, before.reply, failed = recorded(key)
    if failed then return failed end
    if not before.by then
      before = {by = id, key = key, at = at, reply = {'', 0, 0, 0, 0}}
      due[#due + 1] = before
    end
    answered[key] = before
  end
  local reply = before.reply
  -- the same key twice in one call: the second is told what the first comes to, whatever that will be
  replies[i - 2] = before.by == id and reply or {before = reply}
end

local function all_replies()
  for i, reply in ipairs(replies) do
    if reply.before then
      local epoch, first, count, subscribers = unpack(reply.before)
      replies[i] = {epoch, first, count, subscribers, 1}
    end
  end
  return replies
end

if #replies > 0 and #due == 0 then return {'', 0, 0, all_replies()} end

local epoch, sequence, failed = held()
local began = not epoch
if epoch then
  began, failed = forked(epoch, sequence)
end
if failed then return failed end
if (began or #due > 0) and not permitted() then
  return redis.error_reply('NOPERM this user may not do all that a publish does')
end
if began then
  epoch, sequence = begin()
end

local parts = {}
for _, request in ipairs(due) do
  local index, tails = ARGV[request.at + 2], ARGV[request.at + 3]
  local first, from = sequence + 1, 1
  for id, bytes in string.gmatch(index, '(%S+) (%d+)') do
    local tail = string.sub(tails, from, from + bytes - 1)
    from = from + bytes
    local number = string.format('%.0f', sequence + 1)
    local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', '~', size, number .. '-0', 'id', id, 'event', tail)
    if type(added) == 'table' and added.err then
      -- A foreign entry above our numbers (maybe at the very top), or no stream at all: only the first event can meet
      -- that, nothing is written yet.
      local taken = string.find(added.err, '^ERR The ID ')
        or string.find(added.err, '^ERR The stream has exhausted ')
      if not (taken or mistyped(added)) then return added end
      epoch, sequence = begin()
      began, number, first = true, '1', 1
      redis.call('XADD', KEYS[2], 'MAXLEN', '~', size, '1-0', 'id', id, 'event', tail)
    end
    sequence = sequence + 1
    parts[#parts + 1] = '{"sequence":' .. number .. tail
  end
  request.reply[2], request.reply[3] = first, sequence + 1 - first
end

local subscribers = 0
if #parts > 0 then
  redis.call('HSET', KEYS[1], 'sequence', string.format('%.0f', sequence))
end
if #parts > 0 or began then
  subscribers = redis.call('PUBLISH', channel, '{"epoch":"' .. epoch .. '","events":[' .. table.concat(parts, ',') .. ']}')
end
for _, request in ipairs(due) do
  local reply = request.reply
  reply[1], reply[4] = epoch, subscribers
  local record = string.format('%s %s %.0f %d %d', request.by, epoch, reply[2], reply[3], subscribers)
  redis.call('SET', request.key, record, 'PX', ARGV[request.at + 1])
end
local oldest = 0
if #parts == 0 then
  local kept = redis.pcall('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  oldest = kept[1] and string.match(kept[1][1], '^(%d+)-0$')
  oldest = oldest and #oldest <= 15 and tonumber(oldest) or sequence + 1
end
return {epoch, sequence, oldest, all_replies()}
