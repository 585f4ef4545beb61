package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// reaper starts processes and collects all that end, also orphans that became
// children of this init process.
type reaper struct {
	lock    sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

type process struct {
	pid  int
	done chan syscall.WaitStatus
}

func newReaper() *reaper {
	return &reaper{waiting: map[int]chan syscall.WaitStatus{}}
}

// start holds the lock over fork and registration, so that the loop cannot
// deliver an exit that nobody waits for yet.
func (r *reaper) start(program string, argv []string, attr *syscall.ProcAttr) (*process, error) {
	r.lock.Lock()
	defer r.lock.Unlock()
	pid, err := syscall.ForkExec(program, argv, attr)
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, done: make(chan syscall.WaitStatus, 1)}
	r.waiting[pid] = p.done
	return p, nil
}

// loop runs from the first started process on; there is always a child to wait
// for until that one has ended.
func (r *reaper) loop() {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return
		}
		r.lock.Lock()
		if done, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			done <- status
		}
		r.lock.Unlock()
	}
}

// lookPath finds a program as execvp would inside the container.
func lookPath(name string, env []string, dir string) (string, error) {
	if name == "" {
		return "", errors.New("the container's command is empty")
	}
	if strings.Contains(name, "/") {
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		return path, executable(path)
	}
	search := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	for _, folder := range filepath.SplitList(search) {
		path := filepath.Join(folder, name)
		if executable(path) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("executable %q is not on PATH=%s", name, search)
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("executable %s: %w", path, errors.Unwrap(err))
	}
	if info.IsDir() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("executable %s: not an executable file", path)
	}
	return nil
}
