package supervisor

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Restart back-off of a component that ends by itself.
const (
	firstDelay = 500 * time.Millisecond
	maxDelay   = 10 * time.Second
	// steady is how long a component must have run for the next delay to be short again.
	steady = 30 * time.Second
)

// child keeps one component running until it is told not to.
type child struct {
	name    string
	logFile string
	command func() *exec.Cmd
	records *records
	// grace is how long the component may take to end after SIGTERM.
	grace time.Duration

	lock     sync.Mutex
	want     bool // false after a deliberate stop or kill
	cmd      *exec.Cmd
	ended    chan struct{} // closed when the present process has ended
	since    time.Time
	restarts int
	lastExit string
	delay    time.Duration
	timer    *time.Timer
}

// State is what status shows of a component.
type State struct {
	Name     string    `json:"name"`
	Pid      int       `json:"pid,omitempty"`
	Running  bool      `json:"running"`
	Wanted   bool      `json:"wanted"`
	Since    time.Time `json:"since"`
	Restarts int       `json:"restarts"`
	LastExit string    `json:"lastExit,omitempty"`
}

func (c *child) state() State {
	c.lock.Lock()
	defer c.lock.Unlock()
	s := State{Name: c.name, Wanted: c.want, Since: c.since, Restarts: c.restarts, LastExit: c.lastExit}
	if c.cmd != nil {
		s.Running, s.Pid = true, c.cmd.Process.Pid
	}
	return s
}

func (c *child) start() error {
	c.lock.Lock()
	defer c.lock.Unlock()
	c.want = true
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if c.cmd != nil {
		return nil
	}
	return c.launch()
}

// launch needs the lock.
func (c *child) launch() error {
	if err := rotate(c.logFile); err != nil {
		return err
	}
	log, err := os.OpenFile(c.logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log of %s: %w", c.name, err)
	}
	defer log.Close()
	cmd := c.command()
	cmd.Stdout, cmd.Stderr = log, log
	// A supervisor that is killed takes its components with it; a process group of
	// their own spares them the terminal's Ctrl-C, which stops them in order instead.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error, 1)
	forker() <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	if _, err := c.records.set(c.name, cmd.Process.Pid); err != nil {
		slog.Warn("a component's process could not be recorded", "component", c.name, "error", err)
	}
	c.cmd, c.ended, c.since = cmd, make(chan struct{}), time.Now()
	go c.wait(cmd, c.ended)
	return nil
}

func (c *child) wait(cmd *exec.Cmd, ended chan struct{}) {
	_ = cmd.Wait()
	c.lock.Lock()
	defer c.lock.Unlock()
	defer close(ended)
	c.records.remove(c.name)
	c.lastExit = cmd.ProcessState.String()
	ran := time.Since(c.since)
	c.cmd, c.since = nil, time.Now()
	if !c.want {
		return
	}
	c.restarts++
	if c.delay == 0 || ran > steady {
		c.delay = firstDelay
	} else {
		c.delay = min(2*c.delay, maxDelay)
	}
	slog.Warn("a component ended by itself and is restarted", "component", c.name, "exit", c.lastExit, "delay", c.delay)
	c.timer = time.AfterFunc(c.delay, func() {
		c.lock.Lock()
		defer c.lock.Unlock()
		if c.want && c.cmd == nil {
			if err := c.launch(); err != nil {
				slog.Error("restart failed", "component", c.name, "error", err)
			}
		}
	})
}

// stop ends the component and leaves it ended.
func (c *child) stop(signal syscall.Signal) {
	c.lock.Lock()
	c.want = false
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	cmd, ended := c.cmd, c.ended
	c.lock.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(signal)
	select {
	case <-ended:
	case <-time.After(c.grace):
		_ = cmd.Process.Kill()
		<-ended
	}
}

// forker starts children from one thread that lasts: the parent-death signal
// fires when the forking thread ends, not only with the process.
var forker = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// maxLog is how large a component's log may be when the component starts anew.
const maxLog = 32 << 20

func rotate(path string) error {
	info, err := os.Stat(path)
	if err != nil || info.Size() < maxLog {
		return nil
	}
	return os.Rename(path, path+".1")
}
