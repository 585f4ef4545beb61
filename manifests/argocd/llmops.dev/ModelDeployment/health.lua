-- Health of a ModelDeployment for Argo CD. Scripts from argocd-cm have no string library: only .. puts texts together.

local function health(status, message)
  return {status = status, message = message or ""}
end

local status = obj.status
if status == nil or status.observedGeneration == nil then
  return health("Progressing", "the controller has not looked at this ModelDeployment yet")
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
-- Only another spec helps, or a person: Synced and Degraded, whether or not an older revision serves.
if is("Stalled", "True") then
  return health("Degraded", wrong("Stalled"))
end

local rollout = status.rollout or {}
if rollout.phase == "Holding" or rollout.phase == "AwaitingApproval" then
  return health("Suspended", rollout.message)
end
local under_way = {Preparing = true, Gating = true, Shadowing = true, Progressing = true}
if under_way[rollout.phase] then
  return health("Progressing", rollout.message)
end

if is("Ready", "True") and not is("Reconciling", "True") then
  return health("Healthy", told("Ready"))
end
if is("Ready", "False") then
  local reason = conditions.Ready.reason
  -- As Git asks: a Deployment without replicas is Healthy too.
  if reason == "ScaledToZero" then
    return health("Healthy", told("Ready"))
  end
  -- Nothing is on its way here; a provider must come back or accept the token.
  if reason == "ProviderUnreachable" or reason == "ProviderRefuses" then
    return health("Degraded", wrong("Ready"))
  end
  return health("Progressing", wrong("Ready"))
end
return health("Progressing", told("Reconciling"))
