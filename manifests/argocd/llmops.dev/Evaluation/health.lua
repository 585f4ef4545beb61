-- Health of an Evaluation for Argo CD. Scripts from argocd-cm have no string library: only .. puts texts together.

local function health(status, message)
  return {status = status, message = message or ""}
end

local status = obj.status
if status == nil or status.observedGeneration == nil then
  return health("Progressing", "the controller has not looked at this Evaluation yet")
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
if is("Stalled", "True") then
  return health("Degraded", wrong("Stalled"))
end
if is("Reconciling", "True") then
  return health("Progressing", told("Reconciling"))
end
-- It did all that it was asked to; its verdict, good or bad, is about what does not serve any more.
if is("Stale", "True") then
  return health("Healthy", told("Stale"))
end
if is("GatesPassed", "True") then
  return health("Healthy", told("GatesPassed"))
end
if is("Complete", "True") and conditions.GatesPassed ~= nil then
  return health("Degraded", wrong("GatesPassed"))
end
return health("Progressing", told("Ready"))
