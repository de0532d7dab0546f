-- Numbers, stores and announces the events of one or more publish requests in one atomic call.
-- A call without a request is the position check.
--
-- KEYS  1 position (hash: epoch, sequence)   2 history (stream: <sequence>-0 -> id, event)
--       3... the record of each request (string)
-- ARGV  1 channel   2 history size   3 name of the new epoch, if one has to start
--       4-6 the position that the caller had delivered when it called (epoch, sequence, event id); "" if none
--       7-8 number and id of the last event of that epoch that the caller has verified; equal to 5-6 if it is the same
--       9 the epochs that the caller has left, separated by spaces
--       10 "1" if the caller has received an announcement that contradicts what it has delivered, else "0"
--       11... four per request: its id, the lifetime of its record in ms, "<id> <bytes>" for each of its events, and
--       the tails of their JSON concatenated (one argument, because clients encode arguments one by one)
-- Returns {epoch, sequence, number of the oldest event in the history (sequence + 1 if it is empty; 0 if events were
-- published), replies}, with a reply per request: {epoch, first sequence, count, subscribers, 1 if it is the reply to
-- another request with the same record (the producer repeated its key) else 0}.
--
-- THEORY OF OPERATION
--
-- State. The position is the epoch and the number of its newest event. The history holds the newest events; event 42 is
-- the entry 42-0, with its id. A record holds the id of a request and its reply until it expires; its key is made from
-- the producer's idempotency key, or from the id.
--
-- Steps. Read the position. A new epoch is due, at 0, if the position is missing or unusable, or if this Redis has been
-- forked, restored or failed over: the epoch is one that the caller has left, or it is the caller's and its sequence is
-- lower than what the caller has delivered, or an event that the caller has delivered or verified has another id here.
-- If the caller doubts, it is also due if the history no longer has such an event, because nothing refutes the doubt.
-- Then look up the record of each request. A record answers its request if it names an event that this numbering has;
-- one of another epoch, or of a number beyond the sequence, speaks of what was lost, and its request is published again.
-- Append the events of the other requests to the history. Write the position, announce all events in one payload
-- together with the id of the event before them, and write the records.
--
-- Invariants. Within an epoch the numbers are consecutive, and so are those of one request. A new epoch is announced
-- even if there are no events. Redis does not roll back a script, so everything that can be unusable or forbidden is
-- checked before the first write. Event data is never decoded, because cjson would turn [] into {}, shorten floats and
-- change integers above 2^53.

local channel, size, fresh = ARGV[1], ARGV[2], ARGV[3]
local FIRST_REQUEST = 11

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

-- Reads the position. Returns epoch and sequence; nil if the position is missing or unusable; or nil, nil and an error.
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

-- Returns the id of the event with this number; "" if the history does not have it, nil if there is no history but a
-- key of another type; or nil and an error. Each event is read once, before anything is written.
local ids = {}
local function id_of(number)
  if ids[number] then return ids[number] end
  local at = string.format('%.0f', number) .. '-0'
  local entry = redis.pcall('XRANGE', KEYS[2], at, at)
  if entry.err then
    return nil, not mistyped(entry) and entry or nil
  end
  local fields = entry[1] and entry[1][2]
  ids[number] = fields and fields[1] == 'id' and fields[2] or ''
  return ids[number]
end

-- True if this Redis was forked from what the caller has delivered. Returns nil and an error if the history cannot be
-- read.
local function forked(epoch, sequence)
  if string.find(' ' .. ARGV[9] .. ' ', ' ' .. epoch .. ' ', 1, true) then return true end
  if ARGV[4] ~= epoch then return false end
  if sequence < tonumber(ARGV[5]) then return true end
  for at = 5, 7, 2 do
    local number, id = tonumber(ARGV[at]), ARGV[at + 1]
    if id ~= '' and (at == 5 or number ~= tonumber(ARGV[5])) then
      local here, failed = id_of(number)
      if failed then return nil, failed end
      if not here then return true end
      if here ~= id and (here ~= '' or ARGV[10] == '1') then return true end
    end
  end
  return false
end

-- True if the ACL allows all commands of a publish. Redis 6.2 has no acl_check_cmd; there it is assumed.
local function permitted()
  local may = redis.acl_check_cmd
  return not may or (may('DEL', KEYS[1], KEYS[2]) and may('HSET', KEYS[1], 'sequence', '0')
    and may('XADD', KEYS[2], '*', 'id', '') and may('XRANGE', KEYS[2], '-', '+') and may('PUBLISH', channel, '')
    and (not KEYS[3] or may('SET', KEYS[3], '')))
end

local epoch, sequence, failed = held()
local began = not epoch
if epoch then
  began, failed = forked(epoch, sequence)
end
if failed then return failed end

-- What each record says, read before the first write.
local records = {}
for i = 3, #KEYS do
  local key = KEYS[i]
  if not records[key] then
    local by, reply, failed = recorded(key)
    if failed then return failed end
    records[key] = {by = by, reply = reply}
  end
end

-- Divides the requests: `due` are those to be published, with their offset in ARGV; `replies` has a reply per request,
-- which a due request fills in later. `current` is the epoch whose records answer.
local due, replies
local function divide(current)
  local answered = {} -- maps the key of each record to the request that answers it
  due, replies = {}, {}
  for i = 3, #KEYS do
    local key, at = KEYS[i], FIRST_REQUEST + 4 * (i - 3)
    local id = ARGV[at]
    local before = answered[key]
    if not before then
      before = records[key]
      local reply = before.reply
      if not reply or reply[1] ~= current or reply[2] + reply[3] - 1 > sequence then
        before = {by = id, key = key, at = at, reply = {'', 0, 0, 0, 0}}
        due[#due + 1] = before
      end
      answered[key] = before
    end
    -- If a key occurs twice in one call, the second request gets the reply of the first, once that is known.
    replies[i - 2] = before.by == id and before.reply or {before = before.reply}
  end
end

divide(not began and epoch)
if (began or #due > 0) and not permitted() then
  return redis.error_reply('NOPERM this user may not run all commands of a publish')
end

local function begin()
  redis.call('DEL', KEYS[1], KEYS[2])
  redis.call('HSET', KEYS[1], 'epoch', fresh, 'sequence', '0')
  began, epoch, sequence = true, fresh, 0
end

if began then begin() end

-- The id of the event before those that follow. It is inserted into JSON without escaping; nil if it is unknown.
local after
local function look_back()
  local newest = sequence > 0 and id_of(sequence) or ''
  after = (sequence == 0 or (#newest <= 128 and string.find(newest, '^[%w_.:-]+$'))) and newest or nil
end

-- Appends the events of the due requests. Returns false if the history cannot take them, or nil and an error; only the
-- first event can meet that, so nothing has been written then.
local parts = {}
local function append()
  if #due > 0 then look_back() end
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
        local taken = string.find(added.err, '^ERR The ID ')
          or string.find(added.err, '^ERR The stream has exhausted ')
        if taken or mistyped(added) then return false end
        return nil, added
      end
      sequence = sequence + 1
      parts[#parts + 1] = '{"sequence":' .. number .. tail
    end
    request.reply[2], request.reply[3] = first, sequence + 1 - first
  end
  return true
end

local appended
appended, failed = append()
if failed then return failed end
if not appended then
  begin()
  divide(nil)
  appended, failed = append()
  if failed then return failed end
end

local subscribers = 0
if #parts > 0 then
  redis.call('HSET', KEYS[1], 'sequence', string.format('%.0f', sequence))
end
if #parts > 0 or began then
  if began then after = '' end
  local chain = after and ',"after":"' .. after .. '"' or ''
  local head = '{"epoch":"' .. epoch .. '"' .. chain .. ',"events":['
  subscribers = redis.call('PUBLISH', channel, head .. table.concat(parts, ',') .. ']}')
end
for _, request in ipairs(due) do
  local reply = request.reply
  reply[1], reply[4] = epoch, subscribers
  local record = string.format('%s %s %.0f %d %d', request.by, epoch, reply[2], reply[3], subscribers)
  redis.call('SET', request.key, record, 'PX', ARGV[request.at + 1])
end
for i, reply in ipairs(replies) do
  if reply.before then
    local epoch, first, count, subscribers = unpack(reply.before)
    replies[i] = {epoch, first, count, subscribers, 1}
  end
end
local oldest = 0
if #parts == 0 then
  local kept = redis.pcall('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)
  oldest = kept[1] and string.match(kept[1][1], '^(%d+)-0$')
  oldest = oldest and #oldest <= 15 and tonumber(oldest) or sequence + 1
end
return {epoch, sequence, oldest, replies}
