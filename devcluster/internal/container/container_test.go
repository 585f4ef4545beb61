package container

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func start(t *testing.T, change func(*Spec), command ...string) (*Container, *Spec) {
	t.Helper()
	if err := Check(); err != nil {
		t.Skipf("containers cannot be created here: %v", err)
	}
	spec := &Spec{
		Hostname: "box",
		Root:     t.TempDir(),
		Command:  command,
		Env:      []string{"PATH=/usr/bin:/bin", "GREETING=hello"},
		Dir:      "/",
		LogFile:  filepath.Join(t.TempDir(), "0.log"),
	}
	if change != nil {
		change(spec)
	}
	c, err := Start(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Kill()
		<-c.Done()
	})
	return c, spec
}

func logText(t *testing.T, spec *Spec) string {
	t.Helper()
	data, err := os.ReadFile(spec.LogFile)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(line, " ", 4)
		text.WriteString(parts[1] + ":" + parts[3])
	}
	return text.String()
}

func TestProgramSeesItsOwnWorld(t *testing.T) {
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "note"), []byte("from the volume\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(volume, "note")
	c, spec := start(t, func(s *Spec) {
		s.Mounts = []Mount{
			{Source: file, Target: "/etc/deep/down/note", ReadOnly: true},
			{Source: volume, Target: "/var/run/secrets/x", ReadOnly: true},
			{Source: volume, Target: "/data"},
		}
	}, "sh", "-c", `echo $GREETING $(hostname) $$; cat /etc/deep/down/note /var/run/secrets/x/note; echo written >/data/out
		test -e /etc/passwd && ls /tmp | wc -l; touch /usr/x /var/run/secrets/x/y 2>/dev/null || echo refused >&2; touch /tmp/ok && exit 7`)
	<-c.Done()
	if got := c.Exit(); got.Code != 7 || got.StartError != "" {
		t.Fatalf("exit: %+v", got)
	}
	got := logText(t, spec)
	for _, want := range []string{"stdout:hello box ", "stdout:from the volume\nstdout:from the volume\nstdout:0\n", "stderr:refused\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("log lacks %q:\n%s", want, got)
		}
	}
	if data, err := os.ReadFile(filepath.Join(volume, "out")); err != nil || string(data) != "written\n" {
		t.Errorf("the volume was not written through: %q, %v", data, err)
	}
	if _, err := os.Stat("/etc/deep"); err == nil {
		t.Error("a mount point appeared on the machine itself")
	}
}

func TestMissingProgramIsAStartError(t *testing.T) {
	c, _ := start(t, nil, "no-such-program")
	<-c.Done()
	if got := c.Exit(); got.Code != 128 || !strings.Contains(got.StartError, "no-such-program") {
		t.Fatalf("exit: %+v", got)
	}
}

func TestSignalIsReportedAndDescendantsEnd(t *testing.T) {
	c, spec := start(t, nil, "sh", "-c", "sleep 1000 & echo started; wait")
	for !strings.Contains(logText(t, spec), "started") {
	}
	c.Signal(syscall.SIGTERM)
	<-c.Done()
	if got := c.Exit(); got.Signal != int(syscall.SIGTERM) || got.Code != 143 {
		t.Fatalf("exit: %+v", got)
	}
}

func TestMemoryLimit(t *testing.T) {
	c, _ := start(t, func(s *Spec) { s.MemoryLimit = 32 << 20 },
		"sh", "-c", "head -c 900m /dev/zero | tail -c 890m; sleep 1000")
	<-c.Done()
	if got := c.Exit(); !got.OOM || got.Code == 0 {
		t.Fatalf("exit: %+v", got)
	}
}

func TestExec(t *testing.T) {
	c, _ := start(t, nil, "sleep", "1000")
	var out, errs bytes.Buffer
	code, err := c.Exec(context.Background(), []string{"sh", "-c", "cat; echo $GREETING; echo bad >&2; exit 3"},
		Streams{Stdin: strings.NewReader("typed\n"), Stdout: &out, Stderr: &errs})
	if err != nil || code != 3 || out.String() != "typed\nhello\n" || errs.String() != "bad\n" {
		t.Fatalf("exec: %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
	out.Reset()
	code, err = c.Exec(context.Background(), []string{"tty"}, Streams{Stdout: &out, TTY: true})
	if err != nil || code != 0 || !strings.Contains(out.String(), "/dev/pts/") {
		t.Fatalf("terminal: %d, %v, %q", code, err, out.String())
	}
	if _, err := c.Exec(context.Background(), []string{"no-such-program"}, Streams{}); err == nil {
		t.Fatal("a missing program must be an error")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if code, err := c.Exec(ctx, []string{"sleep", "1000"}, Streams{}); err == nil || code != 137 {
		t.Fatalf("cancelled exec: %d, %v", code, err)
	}
}
