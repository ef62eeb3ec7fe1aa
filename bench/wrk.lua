-- Argument: how many milliseconds after the start the first requests are to be sent, if not at once.
-- At the end it prints what the harness wants to know, times in microseconds.

local ffi = require("ffi")

ffi.cdef [[
	struct bench_time { long seconds, nanoseconds; };
	int clock_gettime(int clock, struct bench_time *time);
]]

local CLOCK_MONOTONIC = 1

local function milliseconds()
	local time = ffi.new("struct bench_time")
	ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
	return tonumber(time.seconds) * 1000 + tonumber(time.nanoseconds) / 1e6
end

function init(arguments)
	local pause = tonumber(arguments[1])
	if pause > 0 then
		local start = milliseconds() + pause
		local started = false
		function delay() -- milliseconds before a request
			if started then return 0 end
			local left = start - milliseconds()
			started = left <= 0
			return math.max(0, math.floor(left))
		end
	end
end

function done(summary, latency, requests)
	local e = summary.errors
	io.write(string.format("RESULT %d %d %d\n", latency:percentile(50),
		latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
