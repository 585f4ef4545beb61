// Package shim is the first process (PID 1) of every container: it builds the
// container's root, starts its program, writes its log, reaps orphans, watches
// its memory and runs commands inside on request.
//
// It is the same binary as everything else, entered from a package initialiser:
// Go initialises packages whose imports are ready in the order of their paths, so
// this one, with few imports, runs before those of Kubernetes. That keeps a
// container's start and memory small.
package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"llmops.dev/devcluster/internal/container/protocol"
)

func init() {
	if len(os.Args) > 0 && os.Args[0] == protocol.Argv0 {
		os.Exit(run())
	}
}

type agent struct {
	sendLock sync.Mutex
	reaper   *reaper

	execLock sync.Mutex
	execs    map[int]int // request id → pid
}

// run returns the exit code of the init process: the program's own, 128+n after
// signal n, 128 when it could not be started.
func run() int {
	debug.SetGCPercent(50)
	a := &agent{reaper: newReaper(), execs: map[int]int{}}
	unix.CloseOnExec(protocol.SpecFD)
	unix.CloseOnExec(protocol.ControlFD)
	var spec protocol.Spec
	if err := json.NewDecoder(os.NewFile(protocol.SpecFD, "spec")).Decode(&spec); err != nil {
		return a.fail(fmt.Errorf("read the container description: %w", err))
	}
	log, err := openLog(spec.LogFile)
	if err != nil {
		return a.fail(err)
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return a.fail(fmt.Errorf("set the host name: %w", err))
	}
	if err := buildRoot(&spec); err != nil {
		return a.fail(err)
	}
	program, err := lookPath(spec.Command[0], spec.Env, spec.Dir)
	if err != nil {
		return a.fail(err)
	}
	stdout, err := log.stream("stdout")
	if err != nil {
		return a.fail(err)
	}
	stderr, err := log.stream("stderr")
	if err != nil {
		return a.fail(err)
	}
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return a.fail(err)
	}
	main, err := a.reaper.start(program, spec.Command, &syscall.ProcAttr{
		Dir:   spec.Dir,
		Env:   spec.Env,
		Files: []uintptr{null.Fd(), stdout.Fd(), stderr.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return a.fail(fmt.Errorf("start %q: %w", strings.Join(spec.Command, " "), err))
	}
	stdout.Close()
	stderr.Close()
	memory := watchMemory(spec.MemoryLimit)
	go a.reaper.loop()
	a.send(protocol.Event{Kind: protocol.Started})
	go a.serve(main.pid, spec.Env, spec.Dir)

	status := <-main.done
	// The rest of the container ends with its program; then the log pipes have no
	// writer left and the last lines can be read to their end.
	_ = unix.Kill(-1, unix.SIGKILL)
	log.drain()
	exit := protocol.Event{Kind: protocol.Exited, Code: status.ExitStatus(), OOM: memory.exceeded()}
	if status.Signaled() {
		exit.Signal = int(status.Signal())
		exit.Code = 128 + exit.Signal
	}
	a.send(exit)
	return exit.Code
}

func (a *agent) fail(err error) int {
	a.send(protocol.Event{Kind: protocol.Failed, Message: err.Error()})
	return 128
}

func (a *agent) send(e protocol.Event) {
	data, err := json.Marshal(e)
	if err != nil {
		return
	}
	a.sendLock.Lock()
	defer a.sendLock.Unlock()
	for {
		if err := unix.Sendmsg(protocol.ControlFD, data, nil, nil, unix.MSG_NOSIGNAL); err != unix.EINTR {
			return
		}
	}
}

// serve answers the node's requests until the node is gone.
func (a *agent) serve(main int, env []string, dir string) {
	buf := make([]byte, 1<<20)
	oob := make([]byte, unix.CmsgSpace(3*4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(protocol.ControlFD, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			// The node ended; the kernel's parent-death signal normally ends this
			// process first.
			_ = unix.Kill(-1, unix.SIGKILL)
			os.Exit(137)
		}
		files := receivedFiles(oob[:oobn])
		var req protocol.Request
		if json.Unmarshal(buf[:n], &req) != nil {
			closeAll(files)
			continue
		}
		switch req.Op {
		case protocol.OpSignal:
			_ = unix.Kill(main, unix.Signal(req.Signal))
		case protocol.OpKill:
			a.execLock.Lock()
			if pid, ok := a.execs[req.ID]; ok {
				_ = unix.Kill(-pid, unix.SIGKILL)
			}
			a.execLock.Unlock()
		case protocol.OpExec:
			a.exec(req, files, env, dir)
		}
		closeAll(files)
	}
}

func (a *agent) exec(req protocol.Request, files []int, env []string, dir string) {
	failed := func(err error) {
		a.send(protocol.Event{ID: req.ID, Kind: protocol.ExecFailed, Message: err.Error()})
	}
	if len(files) != 3 || len(req.Argv) == 0 {
		failed(fmt.Errorf("exec needs a command and three descriptors, got %d", len(files)))
		return
	}
	program, err := lookPath(req.Argv[0], env, dir)
	if err != nil {
		failed(err)
		return
	}
	if req.TTY {
		env = append(append([]string{}, env...), "TERM=xterm")
	}
	proc, err := a.reaper.start(program, req.Argv, &syscall.ProcAttr{
		Dir:   dir,
		Env:   env,
		Files: []uintptr{uintptr(files[0]), uintptr(files[1]), uintptr(files[2])},
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: req.TTY, Ctty: 0},
	})
	if err != nil {
		failed(fmt.Errorf("start %q: %w", strings.Join(req.Argv, " "), err))
		return
	}
	a.execLock.Lock()
	a.execs[req.ID] = proc.pid
	a.execLock.Unlock()
	go func() {
		status := <-proc.done
		a.execLock.Lock()
		delete(a.execs, req.ID)
		a.execLock.Unlock()
		code := status.ExitStatus()
		if status.Signaled() {
			code = 128 + int(status.Signal())
		}
		a.send(protocol.Event{ID: req.ID, Kind: protocol.ExecExited, Code: code})
	}()
}

func receivedFiles(oob []byte) []int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []int
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err == nil {
			files = append(files, fds...)
		}
	}
	return files
}

func closeAll(files []int) {
	for _, fd := range files {
		_ = unix.Close(fd)
	}
}
