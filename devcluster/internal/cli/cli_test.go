package cli

import (
	"strings"
	"testing"
)

func TestTakeDir(t *testing.T) {
	t.Setenv("DEVCLUSTER_DIR", "")
	for line, want := range map[string]string{
		"up --detach":                          ".devcluster|up --detach",
		"--dir /x kubectl get pods --dir=mine": "/x|kubectl get pods --dir=mine",
		"--dir=/y helm list":                   "/y|helm list",
		"kubectl --dir /x":                     ".devcluster|kubectl --dir /x",
	} {
		dir, rest := takeDir(strings.Fields(line))
		if got := dir + "|" + strings.Join(rest, " "); got != want {
			t.Errorf("%s: %s", line, got)
		}
	}
	t.Setenv("DEVCLUSTER_DIR", "/env")
	if dir, _ := takeDir([]string{"up"}); dir != "/env" {
		t.Errorf("from the environment: %s", dir)
	}
	if dir, _ := takeDir([]string{"--dir", "/flag", "up"}); dir != "/flag" {
		t.Errorf("the flag wins: %s", dir)
	}
}
