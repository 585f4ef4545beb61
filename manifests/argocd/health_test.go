// Package argocd tests the health checks of this folder in the interpreter that Argo CD runs them in.
package argocd

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	lua "github.com/yuin/gopher-lua"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write argocd-cm.yaml instead of comparing it")

var kinds = []string{"ModelDeployment", "RagIndex", "PromptFlow", "Evaluation"}

// What Argo CD accepts as the status of a health check.
var statuses = map[string]bool{
	"Healthy": true, "Progressing": true, "Degraded": true, "Suspended": true, "Missing": true, "Unknown": true,
}

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

// A health_test.yaml, in the form that Argo CD's own have.
type suite struct {
	Tests []struct {
		HealthStatus health `json:"healthStatus"`
		InputPath    string `json:"inputPath"`
	} `json:"tests"`
}

func TestEveryCaseHasTheHealthThatItsFileSays(t *testing.T) {
	for _, kind := range kinds {
		folder := filepath.Join("llmops.dev", kind)
		script := read(t, filepath.Join(folder, "health.lua"))
		var suite suite
		if err := yaml.UnmarshalStrict([]byte(read(t, filepath.Join(folder, "health_test.yaml"))), &suite); err != nil {
			t.Fatalf("%s/health_test.yaml: %v", folder, err)
		}
		unused := map[string]bool{}
		files, err := filepath.Glob(filepath.Join(folder, "testdata", "*.yaml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s/testdata: %d files, %v", folder, len(files), err)
		}
		for _, file := range files {
			unused[file] = true
		}
		for _, test := range suite.Tests {
			t.Run(kind+"/"+strings.TrimSuffix(filepath.Base(test.InputPath), ".yaml"), func(t *testing.T) {
				path := filepath.Join(folder, test.InputPath)
				delete(unused, path)
				got := run(t, script, object(t, path, kind))
				if got != test.HealthStatus {
					t.Errorf("%s:\n got %+v\nwant %+v", path, got, test.HealthStatus)
				}
			})
		}
		for file := range unused {
			t.Errorf("%s is in no case of %s/health_test.yaml", file, folder)
		}
	}
}

// A status that lacks everything, and one with what a later version may write, must not be an error: Argo CD shows
// a failed script as an unknown health of the whole application.
func TestStrangeStatusesAreNoErrors(t *testing.T) {
	for _, kind := range kinds {
		script := read(t, filepath.Join("llmops.dev", kind, "health.lua"))
		for _, status := range []string{
			`{}`,
			`{observedGeneration: 1}`,
			`{observedGeneration: 1, phase: Novel, conditions: []}`,
			`{observedGeneration: 1, phase: Degraded}`,
			`{observedGeneration: 1, phase: Holding, rollout: {phase: Novel}}`,
			`{observedGeneration: 1, rollout: {phase: Holding}, candidate: {phase: Holding}}`,
			`{observedGeneration: 1, rollout: {phase: Gating}, candidate: {phase: Failed}}`,
			`{observedGeneration: 1, conditions: [{type: Novel, status: "True", reason: R, message: m}]}`,
			`{observedGeneration: 1, conditions: [{type: Ready, status: "Unknown", reason: R, message: m}]}`,
			`{observedGeneration: 1, conditions: [{type: Complete, status: "True", reason: R, message: m}]}`,
		} {
			text := fmt.Sprintf("{kind: %s, metadata: {generation: 1}, spec: {}, status: %s}", kind, status)
			var object map[string]any
			if err := yaml.Unmarshal([]byte(text), &object); err != nil {
				t.Fatal(err)
			}
			if got := run(t, script, object); got.Status == "Healthy" {
				t.Errorf("%s with status %s is Healthy", kind, status)
			}
		}
	}
}

func TestTheConfigMapHoldsTheScripts(t *testing.T) {
	var text strings.Builder
	text.WriteString("# Generated from llmops.dev/*/health.lua by `make argocd`; a test fails on a difference.\n" +
		"# Adds its keys to the ConfigMap and keeps all others: as a patch of a kustomization, or by\n" +
		"# kubectl apply --server-side --field-manager llmops -n argocd -f argocd-cm.yaml\n" +
		"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: argocd-cm\ndata:\n")
	for _, kind := range kinds {
		script := read(t, filepath.Join("llmops.dev", kind, "health.lua"))
		fmt.Fprintf(&text, "  resource.customizations.health.llmops.dev_%s: |\n", kind)
		for _, line := range strings.SplitAfter(strings.TrimSuffix(script, "\n"), "\n") {
			if strings.TrimSpace(line) != "" {
				text.WriteString("    ")
			}
			text.WriteString(line)
		}
		text.WriteString("\n")
	}
	if *update {
		if err := os.WriteFile("argocd-cm.yaml", []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if read(t, "argocd-cm.yaml") != text.String() {
		t.Fatal("argocd-cm.yaml is not what the scripts give; run `make argocd`")
	}
	var parsed struct {
		Data map[string]string `json:"data"`
	}
	if err := yaml.Unmarshal([]byte(text.String()), &parsed); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		if parsed.Data["resource.customizations.health.llmops.dev_"+kind] != read(t, filepath.Join("llmops.dev", kind, "health.lua")) {
			t.Errorf("the ConfigMap's script of %s is not health.lua", kind)
		}
	}
}

// The operator never writes what Git holds, so there is nothing that a comparison would have to leave out.
func TestTheExampleComparesEverything(t *testing.T) {
	var application struct {
		Metadata struct {
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
		Spec map[string]any `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "application.yaml")), &application); err != nil {
		t.Fatal(err)
	}
	if _, has := application.Spec["ignoreDifferences"]; has {
		t.Error("application.yaml ignores differences")
	}
	if options := application.Metadata.Annotations["argocd.argoproj.io/compare-options"]; options != "ServerSideDiff=true" {
		t.Errorf("compare-options is %q", options)
	}
}

// run gives what a script returns, with the libraries that Argo CD opens for scripts of its ConfigMap: package, base
// and table. Its clock (os.time, os.date) is left out, as health must not depend on when it is asked.
func run(t *testing.T, script string, object map[string]any) health {
	t.Helper()
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	// Argo CD gives a script one second.
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		t.Fatalf("the script failed: %v", err)
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the script returned a %s, not a table", state.Get(-1).Type())
	}
	got := health{Status: text(t, table, "status"), Message: text(t, table, "message")}
	if !statuses[got.Status] {
		t.Fatalf("%q is no health status of Argo CD", got.Status)
	}
	return got
}

func text(t *testing.T, table *lua.LTable, key string) string {
	t.Helper()
	field, ok := table.RawGetString(key).(lua.LString)
	if !ok {
		t.Fatalf("%s is a %s, not a string", key, table.RawGetString(key).Type())
	}
	return string(field)
}

// value is a YAML value as Lua's.
func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case bool:
		return lua.LBool(from)
	case float64:
		return lua.LNumber(from)
	case string:
		return lua.LString(from)
	case []any:
		table := state.NewTable()
		for _, item := range from {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range from {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}

func object(t *testing.T, path, kind string) map[string]any {
	t.Helper()
	var object map[string]any
	if err := yaml.Unmarshal([]byte(read(t, path)), &object); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if object["kind"] != kind {
		t.Fatalf("%s is a %v, not a %s", path, object["kind"], kind)
	}
	return object
}

func read(t *testing.T, path string) string {
	t.Helper()
	bytes, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes)
}
