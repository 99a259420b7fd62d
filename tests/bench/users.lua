-- A thousand users in turn, so that a ring sends them everywhere.
local requests, at = {}, 0

function init()
  for user = 1, 1000 do
    local with = {}
    for name, value in pairs(wrk.headers) do with[name] = value end
    with["user-id"] = tostring(user)
    requests[user] = wrk.format("GET", "/", with)
  end
end

function request()
  at = at % 1000 + 1
  return requests[at]
end
