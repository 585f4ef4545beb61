-- Health of a PromptFlow for Argo CD. Scripts from argocd-cm have no string library: only .. puts texts together.

local function health(status, message)
  return {status = status, message = message or ""}
end

local status = obj.status
if status == nil or status.observedGeneration == nil then
  return health("Progressing", "the controller has not looked at this PromptFlow yet")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "the controller has not looked at generation " .. obj.metadata.generation .. " yet")
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function told(kind)
  return conditions[kind] and conditions[kind].message or ""
end

-- What is wrong, as REASON: message.
local function wrong()
  local ready = conditions.Ready
  if ready == nil or ready.status == "True" then
    ready = conditions.Stalled
  end
  if ready == nil then
    return "phase " .. status.phase
  end
  return ready.reason .. ": " .. ready.message
end

local rollout = status.rollout or {}

-- What the rollout does or waits for; without one, what Ready says.
local function doing()
  if rollout.message ~= nil and rollout.message ~= "" then
    return rollout.message
  end
  return told("Ready")
end

local phase = status.phase
if phase == "Suspended" then
  return health("Suspended", told("Ready"))
end
-- A rollout that is held, waits for approval or has no verdict goes on only by a person, a new run or more data.
if phase == "Holding" or (phase == "Progressing" and rollout.phase == "AwaitingApproval") then
  return health("Suspended", doing())
end
if phase == "Progressing" then
  return health("Progressing", doing())
end
-- Git still asks for what was refused: Synced and Degraded, until another commit.
if phase == "Degraded" or phase == "Failed" then
  return health("Degraded", wrong())
end
if phase == "Serving" and conditions.Ready ~= nil and conditions.Ready.status == "True" then
  return health("Healthy", told("Ready"))
end
if conditions.Stalled ~= nil and conditions.Stalled.status == "True" then
  return health("Degraded", wrong())
end
if conditions.Ready ~= nil then
  return health("Progressing", told("Ready"))
end
return health("Progressing", told("Reconciling"))
