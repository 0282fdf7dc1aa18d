package redisstore

import "github.com/redis/go-redis/v9"

// A record is one hash, so that each script touches one slot of a cluster:
//
//	st      P in progress, D done, U unknown
//	fp      the request's fingerprint; Lua keeps one copy of each string and compares by its address, in constant time
//	own     the token of the attempt that has it, or had it last
//	lease   until when, in ms
//	n       how many attempts there were
//	res     the answer
//	who, method, path, at   for operators
//
// The record outlives the lease: otherwise an attempt that crashed could not be told from a request that never came. Each
// transition is one script, compares the owner, and may be sent again: a reply can get lost.

// clock is the server's, in ms. It begins each script.
const clock = `local t = redis.call('TIME'); local now = t[1] * 1000 + math.floor(t[2] / 1000)
`

// reserve: fp, owner, lease, retention, minted (0: none), steal (1) or not, who, method, path.
var reserve = redis.NewScript(clock + `
local retention, minted = tonumber(ARGV[4]), tonumber(ARGV[5])
if minted > 0 and minted + retention <= now then return {'EXPIRED'} end
local r = redis.call('HMGET', KEYS[1], 'st', 'fp', 'lease', 'own')
if not r[1] then
	redis.call('HSET', KEYS[1], 'st', 'P', 'fp', ARGV[1], 'own', ARGV[2], 'lease', now + ARGV[3], 'n', 1,
		'who', ARGV[7], 'method', ARGV[8], 'path', ARGV[9], 'at', now)
	redis.call('PEXPIRE', KEYS[1], math.max(retention, 2 * ARGV[3]))
	return {'NEW'}
end
if r[2] ~= ARGV[1] then return {'MISMATCH'} end
if r[1] == 'D' then
	local v = redis.call('HMGET', KEYS[1], 'res', 'who', 'method', 'path', 'at')
	return {'DONE', v[1], v[2], v[3], v[4], v[5], tostring(now + redis.call('PTTL', KEYS[1]))}
end
if r[1] == 'U' then return {'UNKNOWN'} end
if r[4] == ARGV[2] then return {'NEW'} end
if now < tonumber(r[3]) then return {'BUSY', tonumber(r[3]) - now} end
if ARGV[6] == '1' then
	redis.call('HSET', KEYS[1], 'own', ARGV[2], 'lease', now + ARGV[3])
	redis.call('HINCRBY', KEYS[1], 'n', 1)
	redis.call('PEXPIRE', KEYS[1], math.max(retention, 2 * ARGV[3]))
	return {'NEW'}
end
redis.call('HSET', KEYS[1], 'st', 'U')
redis.call('PEXPIRE', KEYS[1], retention)
return {'UNKNOWN'}`)

// extend: owner, lease.
var extend = redis.NewScript(clock + `
local r = redis.call('HMGET', KEYS[1], 'st', 'own')
if r[1] ~= 'P' or r[2] ~= ARGV[1] then return 'LOST' end
redis.call('HSET', KEYS[1], 'lease', now + ARGV[2])
if redis.call('PTTL', KEYS[1]) < 2 * ARGV[2] then redis.call('PEXPIRE', KEYS[1], 2 * ARGV[2]) end
return 'OK'`)

// complete: owner, retention, minted (0: none), answer. An owner that comes late resolves U.
var complete = redis.NewScript(`
local r = redis.call('HMGET', KEYS[1], 'st', 'own')
if r[2] ~= ARGV[1] then return 'LOST' end
if r[1] == 'D' then return 'OK' end
redis.call('HSET', KEYS[1], 'st', 'D', 'res', ARGV[4])
redis.call('HDEL', KEYS[1], 'lease')
if tonumber(ARGV[3]) > 0 then
	redis.call('PEXPIREAT', KEYS[1], ARGV[2] + ARGV[3])
else
	redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return 'OK'`)

// release: owner.
var release = redis.NewScript(`
local r = redis.call('HMGET', KEYS[1], 'st', 'own')
if r[1] ~= 'P' or r[2] ~= ARGV[1] then return 'LOST' end
redis.call('DEL', KEYS[1])
return 'OK'`)

// mark: owner, retention.
var mark = redis.NewScript(`
local r = redis.call('HMGET', KEYS[1], 'st', 'own')
if r[2] == ARGV[1] and r[1] == 'U' then return 'OK' end
if r[1] ~= 'P' or r[2] ~= ARGV[1] then return 'LOST' end
redis.call('HSET', KEYS[1], 'st', 'U')
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 'OK'`)

// resolve: answer, or ” to forget the record.
var resolve = redis.NewScript(`
if redis.call('HGET', KEYS[1], 'st') ~= 'U' then return 'LOST' end
if ARGV[1] == '' then redis.call('DEL', KEYS[1]) else redis.call('HSET', KEYS[1], 'st', 'D', 'res', ARGV[1]) end
return 'OK'`)
