-- Arguments: how many connections there are, and how many milliseconds are to pass on each of them
-- before its first request.
-- At the end it prints what the harness wants to know, times in microseconds.

function init(arguments)
	local waiting = tonumber(arguments[1])
	local pause = tonumber(arguments[2])
	if pause > 0 then
		function delay()
			if waiting == 0 then return 0 end
			waiting = waiting - 1
			return pause
		end
	end
end

function done(summary, latency, requests)
	local e = summary.errors
	io.write(string.format("RESULT %d %d %d\n", latency:percentile(50),
		latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
