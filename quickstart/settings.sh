# Sourced by the quickstart's scripts: where things are, and how they speak.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
STATE=$ROOT/.quickstart
CLUSTER=$STATE/cluster
DEVCLUSTER=$STATE/bin/devcluster
# `run` notes where cargo builds, which a configuration of the user's may change.
LLMOPS=${LLMOPS_BIN:-$(cat "$STATE/target" 2>/dev/null || echo "${CARGO_TARGET_DIR:-$ROOT/target}")/debug/llmops}
export LLMOPS_MODELS_DIR=$ROOT/.models
SYSTEM=llmops-system
NAMESPACE=quickstart
begin=${QUICKSTART_BEGIN:-$(date +%s)}

step() { printf '\n\033[1m[%3ds] %s\033[0m\n' $(($(date +%s) - begin)) "$*"; }
fail() {
  echo "quickstart: $*" >&2
  exit 1
}
kubectl() { "$DEVCLUSTER" --dir "$CLUSTER" kubectl "$@"; }
helm() { "$DEVCLUSTER" --dir "$CLUSTER" helm "$@"; }
