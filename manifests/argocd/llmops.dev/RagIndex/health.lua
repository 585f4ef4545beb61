-- Health of a RagIndex for Argo CD. Scripts from argocd-cm have no string library: only .. puts texts together.

local function health(status, message)
  return {status = status, message = message or ""}
end

local status = obj.status
if status == nil or status.observedGeneration == nil then
  return health("Progressing", "the controller has not looked at this RagIndex yet")
end
if status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "the controller has not looked at generation " .. obj.metadata.generation .. " yet")
end

local conditions = {}
for _, condition in ipairs(status.conditions or {}) do
  conditions[condition.type] = condition
end

local function is(kind, value)
  return conditions[kind] ~= nil and conditions[kind].status == value
end

local function told(kind)
  return conditions[kind] and conditions[kind].message or ""
end

local function wrong(kind)
  return conditions[kind].reason .. ": " .. conditions[kind].message
end

if obj.spec.suspend then
  return health("Suspended", told("Reconciling"))
end
-- Ready stays True while an older generation serves; Git still asks for what failed.
if is("Stalled", "True") then
  return health("Degraded", wrong("Stalled"))
end

local candidate = status.candidate or {}
-- A build that failed is tried again later and later; until then something is wrong.
if candidate.phase == "Failed" and is("Reconciling", "True") then
  return health("Degraded", wrong("Reconciling"))
end
if candidate.phase == "Holding" or candidate.phase == "AwaitingApproval" then
  return health("Suspended", told("Reconciling"))
end

if is("Reconciling", "True") then
  return health("Progressing", wrong("Reconciling"))
end
if is("Ready", "True") then
  return health("Healthy", told("Ready"))
end
if conditions.Ready ~= nil then
  return health("Progressing", wrong("Ready"))
end
return health("Progressing", told("Reconciling"))
