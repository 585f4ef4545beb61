// Package supervisor starts a cluster's components in order, keeps them running,
// answers commands over a socket in the cluster's directory and stops everything.
package supervisor

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"llmops.dev/devcluster/internal/cluster"
)

// Phase of the cluster as the supervisor sees it.
type Phase string

// Phases in the order in which they follow each other.
const (
	Starting Phase = "Starting"
	Ready    Phase = "Ready"
	Stopping Phase = "Stopping"
)

// Supervisor runs one cluster.
type Supervisor struct {
	layout   cluster.Layout
	config   *cluster.Config
	records  *records
	children map[string]*child
	status   status
	stop     context.CancelFunc
}

// Run starts the cluster and returns when ctx ends or a client asks for shutdown.
func Run(ctx context.Context, layout cluster.Layout, config *cluster.Config) error {
	lock, err := holdLock(layout)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := EndRemnants(layout); err != nil {
		return err
	}
	recs, err := loadRecords(layout.Processes())
	if err != nil {
		return err
	}
	recs.byID = map[string]Process{}
	if _, err := recs.set(supervisorRecord, os.Getpid()); err != nil {
		return fmt.Errorf("record the supervisor's process: %w", err)
	}
	defer recs.remove(supervisorRecord)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &Supervisor{layout: layout, config: config, records: recs, children: map[string]*child{}, stop: cancel}
	s.status.set(Starting, "starting")
	for _, name := range cluster.Components {
		s.children[name] = s.newChild(name)
	}
	server, err := s.listen()
	if err != nil {
		return err
	}
	defer server.Close()
	go func() {
		if err := s.startAll(ctx); err != nil && ctx.Err() == nil {
			slog.Error("the cluster did not start", "error", err)
			s.status.fail(err)
		}
	}()
	<-ctx.Done()
	s.status.set(Stopping, "stopping")
	s.stopAll()
	return nil
}

func (s *Supervisor) newChild(name string) *child {
	grace := 10 * time.Second
	if name == cluster.Node {
		// The node ends its pods first.
		grace = 20 * time.Second
	}
	if name == cluster.APIServer {
		// Open watches would keep it for a minute.
		grace = 2 * time.Second
	}
	return &child{
		name: name, logFile: s.layout.Log(name), records: s.records, grace: grace,
		command: func() *exec.Cmd {
			cmd := exec.Command("/proc/self/exe", append([]string{"component", "run", name, "--"}, s.layout.Arguments(name, s.config)...)...)
			cmd.Args[0] = "devcluster"
			cmd.Dir = s.layout.Dir
			return cmd
		},
	}
}

// startAll goes on to the next component when the one before answers.
func (s *Supervisor) startAll(ctx context.Context) error {
	checks, err := newChecks(s.layout, s.config)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		start []string
		what  string
		check func(context.Context) error
	}{
		{[]string{cluster.Etcd}, "etcd", checks.etcd},
		{[]string{cluster.APIServer}, "API server", checks.apiServer},
		{[]string{cluster.Controller, cluster.Scheduler, cluster.Node}, "controller manager", checks.controllerManager},
		{nil, "scheduler", checks.scheduler},
		{nil, "default ServiceAccount", checks.serviceAccount},
		{nil, "node", checks.node},
	} {
		s.status.set(Starting, "waiting for the "+step.what)
		for _, name := range step.start {
			if err := s.children[name].start(); err != nil {
				return err
			}
		}
		if err := waitFor(ctx, func(ctx context.Context) error { return cmp.Or(s.crashing(), step.check(ctx)) }); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		s.status.done(step.what)
	}
	s.status.set(Ready, "ready")
	return nil
}

// tooManyRestarts of a component during the start say that waiting does not help.
const tooManyRestarts = 4

// crashing names a component that ends again and again.
func (s *Supervisor) crashing() error {
	for _, name := range cluster.Components {
		if state := s.children[name].state(); state.Restarts >= tooManyRestarts {
			return &crashError{fmt.Sprintf("%s ended %d times, last with %s", name, state.Restarts, state.LastExit)}
		}
	}
	return nil
}

type crashError struct{ message string }

func (e *crashError) Error() string { return e.message }

// stopAll goes backwards, so that each component still finds what it needs.
func (s *Supervisor) stopAll() {
	s.children[cluster.Node].stop(syscall.SIGTERM)
	ended := make(chan struct{})
	others := []string{cluster.Controller, cluster.Scheduler}
	for _, name := range others {
		go func() {
			s.children[name].stop(syscall.SIGTERM)
			ended <- struct{}{}
		}()
	}
	for range others {
		<-ended
	}
	s.children[cluster.APIServer].stop(syscall.SIGTERM)
	s.children[cluster.Etcd].stop(syscall.SIGTERM)
}

// holdLock makes a second supervisor for the same directory impossible.
func holdLock(layout cluster.Layout) (*os.File, error) {
	f, err := os.OpenFile(layout.Lock(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the cluster's lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another supervisor runs the cluster in %s", layout.Dir)
	}
	return f, nil
}

// Locked tells whether a supervisor holds the directory.
func Locked(layout cluster.Layout) bool {
	f, err := os.OpenFile(layout.Lock(), os.O_RDWR, 0o600)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil
}

// EndRemnants kills recorded processes of an earlier run that still live.
func EndRemnants(layout cluster.Layout) error {
	recs, err := loadRecords(layout.Processes())
	if err != nil {
		return err
	}
	for name, p := range recs.byID {
		if p.Pid == os.Getpid() || !p.Alive() {
			continue
		}
		slog.Info("ending a process that an earlier run left", "component", name, "pid", p.Pid)
		if !p.end(unix.SIGKILL, 10*time.Second) {
			return fmt.Errorf("process %d (%s) of an earlier run does not end", p.Pid, name)
		}
	}
	return nil
}
