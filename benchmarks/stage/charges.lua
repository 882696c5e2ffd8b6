-- wrk's script: distinct operations, or the same ones again, numbered so that they can be counted.
-- Arguments: mode token prefix first count period [object id]
--   charge  a new bill each time: customer cus_<prefix>n<first + 1>, <first + 2>, ...
--   replay  the bills <first + 1> .. <first + count>, over and over
--   read    GET of one charge
--   chat    a chat completion, for proxies of language models
-- What it prints last is one line of JSON.

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  mode, token, prefix = args[1], args[2], args[3]
  first, count, period, object = tonumber(args[4]), tonumber(args[5]), args[6], args[7]
  made, refused = 0, 0
  head = " HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port ..
    "\r\nAuthorization: Bearer " .. token .. "\r\n"
  form = "Content-Type: application/x-www-form-urlencoded\r\n"
  read = "GET /v1/charges/" .. tostring(object) .. head .. "\r\n"
  local asked = '{"model":"bench","messages":[{"role":"user","content":"charge 29 dollars"}]}'
  chat = "POST /v1/chat/completions" .. head .. "Content-Type: application/json\r\n" ..
    "Content-Length: " .. #asked .. "\r\n\r\n" .. asked
end

function request()
  made = made + 1
  if mode == "read" then return read end
  if mode == "chat" then return chat end
  local number = first + made
  if mode == "replay" then number = first + 1 + (made - 1) % count end
  local body = "amount=100&currency=usd&customer=cus_" .. prefix .. "n" .. number ..
    "&metadata%5Bbilling_period%5D=" .. period
  return "POST /v1/charges" .. head .. form .. "Idempotency-Key: bench-" .. prefix .. "-" ..
    number .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

function done(summary, latency, requests)
  local sent = 0
  for _, thread in ipairs(threads) do sent = sent + thread:get("made") end
  local errors = summary.errors
  print(string.format(
    '{"sent": %d, "answered": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, ' ..
    '"max_us": %d, "not_2xx": %d, "broken": %d}',
    sent, summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    latency.max, errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
