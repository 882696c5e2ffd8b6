-- wrk's script: distinct operations, or the same ones again, numbered so that they can be counted.
-- Arguments: mode token prefix first count period [object id]
--   charge  a new bill each time: customer cus_<prefix>n<first + 1>, <first + 2>, ...
--   replay  the bills <first + 1> .. <first + count>, over and over
--   read    GET of one charge
--   tool    a new bill each time, by tools/call over MCP: 2025-11-25
--   tool26  the same in the stateless era: 2026-07-28
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
  tool = "POST /mcp" .. head .. "Content-Type: application/json\r\n" ..
    "Accept: application/json, text/event-stream\r\n"
  local asked = '{"model":"bench","messages":[{"role":"user","content":"charge 29 dollars"}]}'
  chat = "POST /v1/chat/completions" .. head .. "Content-Type: application/json\r\n" ..
    "Content-Length: " .. #asked .. "\r\n\r\n" .. asked
end

function call(number)
  local modern, version, meta = mode == "tool26", "2025-11-25", ""
  local named = ""
  if modern then
    version, named = "2026-07-28", "Mcp-Method: tools/call\r\nMcp-Name: charge\r\n"
    meta = ',"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",' ..
      '"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},' ..
      '"io.modelcontextprotocol/clientCapabilities":{}}'
  end
  local body = '{"jsonrpc":"2.0","id":' .. number .. ',"method":"tools/call","params":{' ..
    '"name":"charge","arguments":{"customer_id":"cus_' .. prefix .. "n" .. number ..
    '","amount_cents":100,"billing_period":"' .. period .. '"}' .. meta .. "}}"
  return tool .. "MCP-Protocol-Version: " .. version .. "\r\n" .. named ..
    "Content-Length: " .. #body .. "\r\n\r\n" .. body
end

function request()
  made = made + 1
  if mode == "read" then return read end
  if mode == "chat" then return chat end
  local number = first + made
  if mode == "replay" then number = first + 1 + (made - 1) % count end
  if mode == "tool" or mode == "tool26" then return call(number) end
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
