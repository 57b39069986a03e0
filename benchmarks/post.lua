-- wrk's script: every request is the chat completion of the file in BENCH_BODY, with the bearer key of BENCH_KEY and the
-- header lines of BENCH_HEADERS. All come by the environment, so that no key stands in a process list. The result is one
-- line of JSON.

local file = assert(io.open(os.getenv("BENCH_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer " .. (os.getenv("BENCH_KEY") or "none")
for name, value in (os.getenv("BENCH_HEADERS") or ""):gmatch("([^\n:]+): ([^\n]*)") do
   wrk.headers[name] = value
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format(
      'RESULT {"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "refused": %d, "broken": %d}\n',
      summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
      errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
