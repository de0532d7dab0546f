-- Numbers, stores and announces the events of one or more publish requests in one atomic call.
-- A call without a request is the position check.
--
-- KEYS  1 position (hash: epoch, sequence)   2 history (stream: <sequence>-0 -> id, event)
--       3... the record of each request (string)
-- ARGV  1 channel   2 history size   3 name of the new epoch, if one has to start
--       4-6 the position that the caller had delivered when it called (epoch, sequence, event id); "" if none
--       7... four per request: its id, the lifetime of its record in ms, "<id> <bytes>" for each of its events, and
--       the tails of their JSON concatenated (one argument, because clients encode arguments one by one)
-- Returns {epoch, sequence, number of the oldest event in the history (sequence + 1 if it is empty), replies}, with a
-- reply per request: {epoch, first sequence, count, subscribers, 1 if it is the reply to another request with the same
-- record (the producer repeated its key) else 0}. If records answer all requests, only the replies are filled in.
--
-- THEORY OF OPERATION
--
-- State. The position is the epoch and the number of its newest event. The history holds the newest events; event 42 is
-- the entry 42-0. A record holds the id of a request and its reply until it expires; its key is made from the
-- producer's idempotency key, or from the id.
--
-- Steps. Look up the record of each request: a request whose record exists is answered from it and not numbered again.
-- Read the position. Start a new epoch, at 0, if the position is missing or unusable, or if the caller has delivered an
-- event of this epoch that this Redis lacks or has with another id (a fork: Redis was restored or failed over). Append
-- the events of the other requests to the history. Write the position, announce all events in one payload, and write
-- the records.
--
-- Invariants. Within an epoch the numbers are consecutive, and so are those of one request. A new epoch is announced
-- even if there are no events. Redis does not roll back a script, so everything that can be unusable or forbidden is
-- checked before the first write. Event data is never decoded, because cjson would turn [] into {}, shorten floats and
-- change integers above 2^53.

local channel, size, fresh = ARGV[1], ARGV[2], ARGV[3]

-- True if the error says that a key has another type. Any other error is returned to the caller.
local function mistyped(reply)
  return string.find(reply.err, '^WRONGTYPE') ~= nil
end

-- Reads a record. Returns the id of the request that wrote it and its reply; nil if there is no usable record; or nil,
-- nil and an error.
local function recorded(key)
  local kept = redis.pcall('GET', key)
  if type(kept) == 'table' then return nil, nil, not mistyped(kept) and kept or nil end
  if type(kept) ~= 'string' then return nil end
  local by, epoch, first, count, subscribers = string.match(kept, '^(%S+) ([%w_-]+) (%d+) (%d+) (%d+)$')
  -- Foreign text must not become an inexact number, or a count that makes thousands of receipts.
  if by and #first <= 15 and #count <= 6 and #subscribers <= 15 then
    return by, {epoch, tonumber(first), tonumber(count), tonumber(subscribers), 0}
  end
end

-- Reads the position. Returns epoch and sequence; nil if it is missing or unusable; or nil, nil and an error.
local function held()
  local fields = redis.pcall('HMGET', KEYS[1], 'epoch', 'sequence')
  if fields.err then
    if mistyped(fields) then return nil end
    return nil, nil, fields
  end
  local epoch, sequence = fields[1], fields[2]
  -- Lua's doubles hold 15 digits exactly. The epoch is inserted into JSON without escaping.
  if not epoch or not sequence or #epoch > 64 or not string.find(epoch, '^[%w_-]+$')
      or #sequence > 15 or not string.find(sequence, '^%d+$') then
    return nil
  end
  return epoch, tonumber(sequence)
end

-- True if the caller has delivered an event of this epoch that this Redis lacks or has with another id. Returns nil and
-- an error if the history cannot be read.
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

-- True if the ACL allows all commands of a publish. Redis 6.2 has no acl_check_cmd; there it is assumed.
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

-- Divide the requests: `due` are those to be published, with their offset in ARGV; `answered` maps the key of each
-- record to the request that answers it; `replies` has a reply per request, which a due request fills in below.
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
  -- If a key occurs twice in one call, the second request gets the reply of the first, once that is known.
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
  return redis.error_reply('NOPERM this user may not run all commands of a publish')
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
      -- The stream has a foreign entry above the sequence (possibly with the highest id), or the key is not a stream.
      -- Only the first event of a call can meet this, so nothing has been written yet.
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
