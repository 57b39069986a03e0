"""The scripts that run inside Redis: each is one decision, and one round trip.

Every script takes its arguments as one MessagePack array and answers with one. The first key is the marker of the
data: it holds the epoch, a name for everything counted since the data was last rebuilt. A script that is asked in the
name of another epoch does nothing and answers LOST, so that data which a server lost is noticed in the very call that
would have counted on it.

A window is a hash: `u` what is used, `h` and `t` the numbers of the oldest entry and of the next one, `n` the time of
the latest, and under each number an entry `since, at, weight`. It is the log of `policy.limits.RateWindow`, entry for
entry. `now` is 0 for the server's own clock; tests give their own. All times are microseconds, which a Lua number
holds exactly for two centuries; `..` would round them, so nothing is written that way.
"""

from __future__ import annotations

from typing import Final

from nemo_agents.policy.limits import OWN_ENTRY_LIMIT_MAX

__all__ = ["LOST", "REFUSED", "SCRIPTS"]

LOST: Final = 0
REFUSED: Final = 2

_PRELUDE = """
local call, pack, unpack_, max, floor = redis.call, cmsgpack.pack, cmsgpack.unpack, math.max, math.floor
local LOST, DONE, REFUSED = 0, 1, 2
local a = unpack_(ARGV[1])

local function clock(given)
  if given ~= 0 then return given end
  local t = call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

local function lost()
  return call('GET', KEYS[1]) ~= a[1]
end
"""

_WINDOWS = """
local OWN, BLOCK = OWN_ENTRY_LIMIT_MAX, 256

-- Time and weight of the entries first to last of a window (step -1: backwards), one after the other. They are read in
-- blocks that grow: most who look want the first one, and some want a thousand.
local function entries(key, first, last, step)
  local number, size, block, at = first, 1, {}, 0
  return function()
    at = at + 1
    if not block[at] then
      local numbers = {}
      while #numbers < size and (last - number) * step >= 0 do
        numbers[#numbers + 1] = number
        number = number + step
      end
      if #numbers == 0 then return nil end
      block, at, size = call('HMGET', key, unpack(numbers)), 1, math.min(size * 4, BLOCK)
    end
    local _, when, weight = unpack_(block[at])
    return when, weight
  end
end

local function open(key, now, window)
  local m = call('HMGET', key, 'u', 'h', 't', 'n')
  local w = {key = key, used = tonumber(m[1]) or 0, head = tonumber(m[2]) or 1, tail = tonumber(m[3]) or 1}
  w.raw, w.window, w.now = now, window, max(now, tonumber(m[4]) or 0)
  local gone = {}
  for at, weight in entries(key, w.head, w.tail - 1, 1) do
    if at + window > w.now then break end
    w.used = w.used - weight
    gone[#gone + 1] = w.head
    w.head = w.head + 1
    if #gone == 1000 then
      call('HDEL', key, unpack(gone))
      gone = {}
      w.moved = true
    end
  end
  if #gone > 0 then
    call('HDEL', key, unpack(gone))
    w.moved = true
  end
  if w.moved then call('HSET', key, 'u', w.used, 'h', w.head) end
  return w
end

-- 0 when the weight fits, -1 when it never can, else the microseconds until it does. A limit of -1 is none.
local function check(w, weight, limit)
  if limit < 0 or w.used + weight <= limit then return 0 end
  if weight > limit then return -1 end
  local excess = w.used + weight - limit
  for at, each in entries(w.key, w.head, w.tail - 1, 1) do
    excess = excess - each
    if excess <= 0 then return at + w.window - w.raw end
  end
  return error('the entries of a window add up to its use')
end

local function charge(w, weight, limit)
  w.used = w.used + weight
  local number, since = w.tail, w.now
  local entry_weight = weight
  if w.tail > w.head and (limit < 0 or limit > OWN or w.tail - w.head >= OWN) then
    local last_since, _, last_weight = unpack_(call('HGET', w.key, w.tail - 1))
    if w.now - last_since < floor(w.window / OWN) then
      number, since, entry_weight = w.tail - 1, last_since, last_weight + weight
    end
  end
  w.tail = max(w.tail, number + 1)
  call('HSET', w.key, number, pack(since, w.now, entry_weight), 'u', w.used, 'h', w.head, 't', w.tail, 'n', w.now)
  call('PEXPIRE', w.key, floor(w.window / 1000) + 5000)
  if weight > 0 then w.latest = w.now end
  return number
end

local function reset(w)
  if w.latest then return w.latest + w.window - w.raw end
  for at, weight in entries(w.key, w.tail - 1, w.head, -1) do
    if weight > 0 then return at + w.window - w.raw end
  end
  return 0
end

local function settle(key, number, difference)
  local entry = call('HGET', key, number)
  if not entry then return end
  local since, at, weight = unpack_(entry)
  call('HSET', key, number, pack(since, at, weight + difference))
  call('HINCRBY', key, 'u', difference)
end
""".replace("OWN_ENTRY_LIMIT_MAX", str(OWN_ENTRY_LIMIT_MAX))

# KEYS marker, (requests, tokens) of each scope, [the repeats]
# ARGV epoch, now, window, {{rpm, shadow, tpm}}, most repeats or 0, within, shadow
# -> state, {{wait, used, reset, tokens used, tokens reset}}, wait of the loop or 0
_ADMIT = """
if lost() then return pack({LOST, {}, 0}) end
local now, window, scopes = clock(a[2]), a[3], a[4]
local windows, rows, refused = {}, {}, false
for i, s in ipairs(scopes) do
  local w = open(KEYS[2 * i], now, window)
  local wait = check(w, 1, s[1])
  if wait ~= 0 and not s[2] then refused = true end
  windows[i], rows[i] = w, {wait, 0, 0, 0, 0}
end
for i, s in ipairs(scopes) do
  local w, row = windows[i], rows[i]
  if not refused then charge(w, 1, s[1]) end
  row[2], row[3] = w.used, reset(w)
  if s[3] >= 0 then
    local t = open(KEYS[2 * i + 1], now, window)
    row[4], row[5] = t.used, reset(t)
  end
end
local loop, most = 0, a[5]
if most > 0 and not refused then
  local key, at = KEYS[#KEYS], now
  local latest = tonumber(call('LINDEX', key, 0))
  if latest then at = max(at, latest) end
  local made = tonumber(call('LINDEX', key, most - 1))
  if made and made + a[6] > at then loop = made + a[6] - now end
  if loop == 0 or a[7] then
    call('LPUSH', key, at)
    call('LTRIM', key, 0, most - 1)
    call('PEXPIRE', key, floor(a[6] / 1000) + 5000)
  end
end
return pack({refused and REFUSED or DONE, rows, loop})
"""

# KEYS marker, (tokens, places) of each scope
# ARGV epoch, now, window, {{tpm, shadow, most in flight, shadow}}, weight, lease, its life
# -> state, now, {{in flight, wait, used, reset, number of the entry}}
_ENTER = """
if lost() then return pack({LOST, 0, {}}) end
local now, window, scopes, weight, lease, life = clock(a[2]), a[3], a[4], a[5], a[6], a[7]
local windows, rows, refused = {}, {}, false
for i, s in ipairs(scopes) do
  local places = KEYS[2 * i + 1]
  call('ZREMRANGEBYSCORE', places, '-inf', now)
  local flying = call('ZCARD', places)
  if s[3] >= 0 and flying >= s[3] and not s[4] then refused = true end
  local w = open(KEYS[2 * i], now, window)
  local wait = check(w, weight, s[1])
  if wait ~= 0 and not s[2] then refused = true end
  windows[i], rows[i] = w, {flying, wait, 0, 0, 0}
end
for i, s in ipairs(scopes) do
  local w, row = windows[i], rows[i]
  if not refused then
    row[5] = charge(w, weight, s[1])
    call('ZADD', KEYS[2 * i + 1], now + life, lease)
    call('PEXPIRE', KEYS[2 * i + 1], floor(life / 1000) + 5000)
  end
  row[3], row[4] = w.used, reset(w)
end
return pack({refused and REFUSED or DONE, now, rows})
"""

# A lease that is no longer there has been given back before: then there is nothing to settle either.
# KEYS marker, entries of rebuilt leases, (tokens, places) of each scope
# ARGV epoch, lease, difference, {number of the entry} or {} where they are among the rebuilt
# -> state
_LEAVE = """
if lost() then return pack(LOST) end
local lease, difference, numbers = a[2], a[3], a[4]
local there = 0
for i = 3, #KEYS, 2 do
  there = call('ZREM', KEYS[i + 1], lease) + there
end
if there == 0 then return pack(DONE) end
if #numbers == 0 then
  local rebuilt = call('HGET', KEYS[2], lease)
  if rebuilt then numbers = unpack_(rebuilt) end
  call('HDEL', KEYS[2], lease)
end
if difference ~= 0 then
  for i, number in ipairs(numbers) do
    if number > 0 then settle(KEYS[1 + 2 * i], number, difference) end
  end
end
return pack(DONE)
"""

# A place that ended while its gateway could not be reached is taken again: its call is still in flight.
# KEYS marker, places; ARGV epoch, now, life, {{lease, …} for each key} -> state
_RENEW = """
if lost() then return pack(LOST) end
local now, life = clock(a[2]), a[3]
for i, leases in ipairs(a[4]) do
  local key = KEYS[1 + i]
  for _, lease in ipairs(leases) do call('ZADD', key, now + life, lease) end
  call('PEXPIRE', key, floor(life / 1000) + 5000)
end
return pack(DONE)
"""

# KEYS marker, (requests, tokens) of each scope; ARGV epoch, now, window -> state, {{requests, tokens}}
_USED = """
if lost() then return pack({LOST, {}}) end
local now, rows = clock(a[2]), {}
for i = 2, #KEYS, 2 do
  rows[#rows + 1] = {open(KEYS[i], now, a[3]).used, open(KEYS[i + 1], now, a[3]).used}
end
return pack({DONE, rows})
"""

# --- rebuilding --------------------------------------------------------------------------------------------------

# An epoch begins with the name of the server's own life: what a server read back from its disk is of another one.
# KEYS marker, lock; ARGV server, candidate, life of the lock in ms, life of the marker in s
# -> "ready" | "waiting" | "mine", the epoch that is or will be, now
_LOOK = """
local server, now = a[1], clock(0)
local marker = call('GET', KEYS[1])
if marker and marker:sub(1, #server) == server then
  call('EXPIRE', KEYS[1], a[4])
  return pack({'ready', marker, now})
end
local lock = call('GET', KEYS[2])
if lock and lock:sub(1, #server) == server then return pack({'waiting', lock, now}) end
call('SET', KEYS[2], a[2], 'PX', a[3])
return pack({'mine', a[2], now})
"""

# A call in flight says that it is, to whoever rebuilds; its tokens are charged there, or here if that is over.
# KEYS marker, lock, leases to rebuild, entries of rebuilt leases, (tokens, places) of each scope
# ARGV epoch, now, window, lease, life, what the lease holds, weight
# -> state
_REJOIN = """
local ready = call('GET', KEYS[1]) == a[1]
if not ready and call('GET', KEYS[2]) ~= a[1] then return pack(LOST) end
local now, window, lease, life = clock(a[2]), a[3], a[4], a[5]
local numbers = {}
for i = 5, #KEYS, 2 do
  call('ZADD', KEYS[i + 1], now + life, lease)
  call('PEXPIRE', KEYS[i + 1], floor(life / 1000) + 5000)
  if ready then numbers[#numbers + 1] = charge(open(KEYS[i], now, window), a[7], -1) end
end
if ready then
  call('HSET', KEYS[4], lease, pack(numbers))
else
  call('HSET', KEYS[3], lease, a[6])
end
for i = 3, 4 do call('PEXPIRE', KEYS[i], 86400000) end
return pack(DONE)
"""

# KEYS leases to rebuild; ARGV - -> {lease, what it holds, …}
_REJOINED = """
return pack(call('HGETALL', KEYS[1]))
"""

# KEYS window; ARGV life in ms, {since, at, weight, …} oldest first -> state
_FILL = """
local key, entries, used, number = KEYS[1], a[2], 0, 0
call('DEL', key)
for i = 1, #entries, 3 do
  number = number + 1
  used = used + entries[i + 2]
  call('HSET', key, number, pack(entries[i], entries[i + 1], entries[i + 2]))
end
call('HSET', key, 'u', used, 'h', 1, 't', number + 1, 'n', entries[#entries - 1])
call('PEXPIRE', key, a[1])
return pack(DONE)
"""

# KEYS entries of rebuilt leases; ARGV {{lease, {number of the entry}}} -> state
_PLACE = """
for _, placed in ipairs(a[1]) do call('HSET', KEYS[1], placed[1], pack(placed[2])) end
call('PEXPIRE', KEYS[1], 86400000)
return pack(DONE)
"""

# Who rejoined after the rebuilt windows were written must be in them too: then it is REFUSED, and done again.
# KEYS marker, lock, leases to rebuild; ARGV epoch, life of the marker in s, how many leases were rebuilt -> state
_PUBLISH = """
if call('GET', KEYS[2]) ~= a[1] then return pack(LOST) end
if call('HLEN', KEYS[3]) ~= a[3] then return pack(REFUSED) end
call('SET', KEYS[1], a[1], 'EX', a[2])
call('DEL', KEYS[2])
return pack(DONE)
"""

# KEYS lock; ARGV epoch -> state
_GIVE_UP = """
if call('GET', KEYS[1]) == a[1] then call('DEL', KEYS[1]) end
return pack(DONE)
"""

SCRIPTS: Final[dict[str, str]] = {
    "admit": _PRELUDE + _WINDOWS + _ADMIT,
    "enter": _PRELUDE + _WINDOWS + _ENTER,
    "leave": _PRELUDE + _WINDOWS + _LEAVE,
    "renew": _PRELUDE + _RENEW,
    "used": _PRELUDE + _WINDOWS + _USED,
    "look": _PRELUDE + _LOOK,
    "rejoin": _PRELUDE + _WINDOWS + _REJOIN,
    "rejoined": _PRELUDE + _REJOINED,
    "publish": _PRELUDE + _PUBLISH,
    "give_up": _PRELUDE + _GIVE_UP,
    "fill": _PRELUDE + _FILL,
    "place": _PRELUDE + _PLACE,
}
