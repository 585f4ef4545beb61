package images

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLookup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "images.yaml")
	table := NewTable(path)
	var missing *NotMapped
	if _, err := table.Lookup("busybox"); !errors.As(err, &missing) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), `{image: "busybox"`) {
		t.Fatalf("without a file: %v", err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	changed := table.Changed()
	write("images:\n- {image: 'ghcr.io/*/llmops:*', command: [/bin/any]}\n- {image: ghcr.io/x/llmops:dev, command: [/bin/exact], env: {A: b}}\n")
	for name, want := range map[string]string{"ghcr.io/x/llmops:dev": "/bin/exact", "ghcr.io/y/z/llmops:1": "/bin/any"} {
		got, err := table.Lookup(name)
		if err != nil || got.Command[0] != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	select {
	case <-changed:
	default:
		t.Error("the change was not announced")
	}
	if _, err := table.Lookup("docker.io/llmops:dev"); !errors.As(err, &missing) {
		t.Errorf("no entry fits: %v", err)
	}
	write("images:\n- {image: a, comand: [x]}\n")
	if _, err := table.Lookup("a"); err == nil || !strings.Contains(err.Error(), "comand") {
		t.Errorf("a misspelt field: %v", err)
	}
	write("images:\n- {image: a, command: [bin/x]}\n")
	if _, err := table.Lookup("a"); err == nil || !strings.Contains(err.Error(), "images[0].command[0]") {
		t.Errorf("a relative path: %v", err)
	}
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"*", "x/y:z", true}, {"a*", "abc", true}, {"*c", "abc", true},
		{"a*c", "abc", true}, {"a*c", "acb", false}, {"a*b*c", "a-b-c", true}, {"a*b*c", "a-c-b", false}, {"ab*ba", "aba", false},
	} {
		if got := match(c.pattern, c.name); got != c.want {
			t.Errorf("match(%q, %q) = %v", c.pattern, c.name, got)
		}
	}
}

func TestVisible(t *testing.T) {
	dir := t.TempDir()
	top := "/" + strings.Join(strings.Split(dir, "/")[1:3], "/")
	i := Image{Command: []string{dir + "/bin/python", "-m", "/usr/x"}, Env: map[string]string{"PATH": dir + ":/bin"}}
	got := i.Visible()
	if !strings.HasPrefix(dir, "/tmp/") {
		t.Skip("temporary folders are not below /tmp here")
	}
	if len(got) != 1 || got[0] != top {
		t.Fatalf("%v, want [%s]", got, top)
	}
}
