package supervisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"llmops.dev/devcluster/internal/cluster"
)

func TestProcessIdentity(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := identify(cmd.Process.Pid)
	if err != nil || !p.Alive() {
		t.Fatalf("%+v, %v", p, err)
	}
	stranger := Process{Pid: p.Pid, Start: p.Start + 1}
	if stranger.Alive() {
		t.Error("a reused pid counts as the recorded process")
	}
	if !stranger.end(unix.SIGKILL, time.Second) || !p.Alive() {
		t.Error("a stranger with a reused pid was killed")
	}
	go func() { _ = cmd.Wait() }()
	if !p.end(unix.SIGKILL, 10*time.Second) {
		t.Error("the process was not ended")
	}
	for p.Alive() { // until it is reaped
	}
}

func TestRemnantsAreEnded(t *testing.T) {
	layout := cluster.Layout{Dir: t.TempDir()}
	if err := layout.MakeFolders(); err != nil {
		t.Fatal(err)
	}
	recs, err := loadRecords(layout.Processes())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := recs.set("etcd", cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := EndRemnants(layout); err != nil {
		t.Fatal(err)
	}
	<-ended
	if s := cmd.ProcessState.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
		t.Errorf("ended by %v", s)
	}
}

func newTestChild(t *testing.T, script string) *child {
	t.Helper()
	dir := t.TempDir()
	recs, err := loadRecords(filepath.Join(dir, "processes.json"))
	if err != nil {
		t.Fatal(err)
	}
	c := &child{name: "x", logFile: filepath.Join(dir, "log"), records: recs, grace: 10 * time.Second,
		command: func() *exec.Cmd { return exec.Command("sh", "-c", script) }}
	t.Cleanup(func() { c.stop(syscall.SIGKILL) })
	return c
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 20*time.Second {
			t.Fatal(what)
		}
	}
}

func TestUnexpectedEndIsFollowedByARestart(t *testing.T) {
	c := newTestChild(t, "echo run; exit 3")
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	await(t, "no second restart", func() bool { return c.state().Restarts >= 2 })
	if s := c.state(); s.LastExit != "exit status 3" || !s.Wanted {
		t.Errorf("%+v", s)
	}
	c.lock.Lock()
	delay := c.delay
	c.lock.Unlock()
	if delay < 2*firstDelay {
		t.Errorf("the delay does not grow: %s", delay)
	}
	if log, err := os.ReadFile(c.logFile); err != nil || len(log) < len("run\nrun\n") {
		t.Errorf("log %q, %v", log, err)
	}
}

func TestDeliberateStopStays(t *testing.T) {
	c := newTestChild(t, "exec sleep 1000")
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	pid := c.state().Pid
	if err := c.start(); err != nil || c.state().Pid != pid {
		t.Errorf("start of a running component: %v, %+v", err, c.state())
	}
	c.stop(syscall.SIGKILL)
	if s := c.state(); s.Running || s.Wanted || s.Restarts != 0 {
		t.Errorf("after the kill: %+v", s)
	}
	if err := c.start(); err != nil || !c.state().Running {
		t.Errorf("start again: %v", err)
	}
}
