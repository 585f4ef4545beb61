// Package container runs one program as a container made of Linux namespaces: own
// mounts, process ids, host name and IPC, the machine's network. It works for root
// and, with a user namespace, for ordinary users.
package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"llmops.dev/devcluster/internal/container/protocol"
	_ "llmops.dev/devcluster/internal/container/shim" // this binary becomes the container's init
)

// Spec describes a container; see the fields' comments there.
type Spec = protocol.Spec

// Mount shows a host path inside a container.
type Mount = protocol.Mount

// Exit tells how a container ended.
type Exit struct {
	// Code is the program's exit code, or 128 plus the signal.
	Code   int
	Signal int
	// OOM is true when the memory limit was exceeded.
	OOM bool
	// StartError is set when the program never ran.
	StartError string
	Started    time.Time
	Finished   time.Time
}

// Container is a running (or ended) container.
type Container struct {
	cmd     *exec.Cmd
	control int
	started chan struct{}
	done    chan struct{}
	exit    Exit

	lock  sync.Mutex
	next  int
	execs map[int]chan protocol.Event
	gone  bool
}

// spawner forks every container from one thread that never ends: the kernel's
// parent-death signal, which ends all containers with the node, is tied to it.
var spawner = sync.OnceValue(func() chan func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// Start builds the container and returns when its program runs or has failed to.
// A program that cannot be started is not an error but an Exit with StartError.
func Start(spec *Spec) (*Container, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create the container's control socket: %w", err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	specRead, specWrite, err := os.Pipe()
	if err != nil {
		unix.Close(pair[0])
		theirs.Close()
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{protocol.Argv0}
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.ExtraFiles = []*os.File{specRead, theirs}
	// What the init process itself has to say, a crash say, goes to the node's log.
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = namespaces()
	started := make(chan error, 1)
	spawner() <- func() { started <- cmd.Start() }
	err = <-started
	specRead.Close()
	theirs.Close()
	if err != nil {
		specWrite.Close()
		unix.Close(pair[0])
		return nil, startAdvice(err)
	}
	c := &Container{
		cmd: cmd, control: pair[0],
		started: make(chan struct{}), done: make(chan struct{}),
		execs: map[int]chan protocol.Event{},
		exit:  Exit{Started: time.Now()},
	}
	go func() {
		_ = json.NewEncoder(specWrite).Encode(spec)
		specWrite.Close()
	}()
	go c.listen()
	select {
	case <-c.started:
	case <-c.done:
	}
	return c, nil
}

func namespaces() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	return attr
}

func startAdvice(err error) error {
	if os.Geteuid() != 0 && (errors.Is(err, os.ErrPermission) || errors.Is(err, unix.ENOSPC)) {
		return fmt.Errorf("create namespaces as an ordinary user: %w: allow unprivileged user namespaces "+
			"(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0) or run as root", err)
	}
	return fmt.Errorf("create the container's namespaces: %w", err)
}

// Check runs a container that does nothing, and says what to do when that fails:
// some systems allow the namespaces but not the mounts in them.
func Check() error {
	dir, err := os.MkdirTemp("", "devcluster-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := Start(&Spec{Hostname: "check", Root: dir, Command: []string{"true"}, Env: []string{"PATH=" + os.Getenv("PATH")}, Dir: "/", LogFile: os.DevNull})
	if err != nil {
		return err
	}
	<-c.Done()
	switch exit := c.Exit(); {
	case exit.StartError != "":
		return startAdvice(fmt.Errorf("%s: %w", exit.StartError, os.ErrPermission))
	case exit.Code != 0:
		return fmt.Errorf("a container that does nothing ended with %d", exit.Code)
	}
	return nil
}

// listen is the only reader of the control socket and the only waiter for the process.
func (c *Container) listen() {
	buf := make([]byte, 64<<10)
	ended := false
	for {
		n, err := unix.Read(c.control, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			break
		}
		var e protocol.Event
		if json.Unmarshal(buf[:n], &e) != nil {
			continue
		}
		switch e.Kind {
		case protocol.Started:
			c.exit.Started = time.Now()
			close(c.started)
		case protocol.Failed:
			ended = true
			c.exit.Code, c.exit.StartError = 128, e.Message
		case protocol.Exited:
			ended = true
			c.exit.Code, c.exit.Signal, c.exit.OOM = e.Code, e.Signal, e.OOM
		default:
			c.answer(e)
		}
	}
	_ = c.cmd.Wait()
	if !ended {
		// Killed together with its init process.
		c.exit.Code, c.exit.Signal = 137, int(unix.SIGKILL)
	}
	c.exit.Finished = time.Now()
	c.lock.Lock()
	c.gone = true
	unix.Close(c.control)
	for id, answer := range c.execs {
		answer <- protocol.Event{Kind: protocol.ExecExited, Code: 137}
		delete(c.execs, id)
	}
	c.lock.Unlock()
	close(c.done)
}

func (c *Container) answer(e protocol.Event) {
	c.lock.Lock()
	defer c.lock.Unlock()
	if answer, ok := c.execs[e.ID]; ok {
		delete(c.execs, e.ID)
		answer <- e
	}
}

// Done is closed when the container has ended with all its processes.
func (c *Container) Done() <-chan struct{} { return c.done }

// Exit is valid after Done.
func (c *Container) Exit() Exit { return c.exit }

// StartedAt is when the program began to run.
func (c *Container) StartedAt() time.Time { return c.exit.Started }

// Pid is the init process, as the machine numbers it.
func (c *Container) Pid() int { return c.cmd.Process.Pid }

// Signal is delivered to the container's program.
func (c *Container) Signal(sig syscall.Signal) {
	_ = c.send(protocol.Request{Op: protocol.OpSignal, Signal: int(sig)}, nil)
}

// Kill ends every process of the container at once.
func (c *Container) Kill() { _ = c.cmd.Process.Kill() }

func (c *Container) send(req protocol.Request, files []int) error {
	data, err := json.Marshal(req)
	if err != nil {
		return err
	}
	var oob []byte
	if len(files) > 0 {
		oob = unix.UnixRights(files...)
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	if c.gone {
		return errors.New("the container is not running")
	}
	return unix.Sendmsg(c.control, data, oob, nil, unix.MSG_NOSIGNAL)
}

// Streams are the ends of a command run inside a container; nil ones are empty or discarded.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	Resize         <-chan Size
}

// Size is a terminal's.
type Size struct{ Width, Height uint16 }

// Exec runs a command inside the container and returns its exit code.
func (c *Container) Exec(ctx context.Context, argv []string, s Streams) (int, error) {
	plumbing, err := connect(ctx, s)
	if err != nil {
		return 0, err
	}
	defer plumbing.close()
	answer := make(chan protocol.Event, 1)
	c.lock.Lock()
	c.next++
	id := c.next
	c.execs[id] = answer
	c.lock.Unlock()
	err = c.send(protocol.Request{ID: id, Op: protocol.OpExec, Argv: argv, TTY: s.TTY}, plumbing.fds())
	plumbing.closeTheirs()
	if err != nil {
		c.lock.Lock()
		delete(c.execs, id)
		c.lock.Unlock()
		return 0, err
	}
	var e protocol.Event
	select {
	case e = <-answer:
	case <-ctx.Done():
		_ = c.send(protocol.Request{ID: id, Op: protocol.OpKill}, nil)
		<-answer
		return 137, ctx.Err()
	}
	if e.Kind == protocol.ExecFailed {
		return 0, errors.New(e.Message)
	}
	plumbing.finish()
	return e.Code, nil
}
