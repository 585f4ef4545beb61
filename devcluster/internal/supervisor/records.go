package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"llmops.dev/devcluster/internal/cluster"
)

// Process identifies a process for good: a pid alone may have been reused.
type Process struct {
	Pid   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since boot
}

// identify reads a process's start time.
func identify(pid int) (Process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The name in parentheses may hold anything; fields are counted after it.
	_, rest, ok := bytes.Cut(stat, []byte(") "))
	for ok {
		if _, more, again := bytes.Cut(rest, []byte(") ")); again {
			rest = more
			continue
		}
		break
	}
	fields := bytes.Fields(rest)
	if len(fields) < 20 {
		return Process{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return Process{}, err
	}
	if fields[0][0] == 'Z' {
		return Process{}, os.ErrProcessDone
	}
	return Process{Pid: pid, Start: start}, nil
}

// Alive tells whether exactly this process runs.
func (p Process) Alive() bool {
	if p.Pid <= 0 {
		return false
	}
	now, err := identify(p.Pid)
	return err == nil && now.Start == p.Start
}

// end kills the process and waits until it is gone.
func (p Process) end(signal unix.Signal, patience time.Duration) bool {
	fd, err := unix.PidfdOpen(p.Pid, 0)
	if err != nil {
		return !p.Alive()
	}
	defer unix.Close(fd)
	// Checked after the descriptor is held: from here on it cannot be another process.
	if !p.Alive() {
		return true
	}
	_ = unix.PidfdSendSignal(fd, signal, nil, 0)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(patience)
	for {
		left := time.Until(deadline)
		if left < 0 {
			return !p.Alive()
		}
		if n, err := unix.Poll(poll, int(left.Milliseconds())+1); n > 0 || (err != nil && err != unix.EINTR) {
			return true
		}
	}
}

// records keeps the identity of every process on disk, so that remnants of a
// supervisor that was killed can be found, by identity and never by name.
type records struct {
	lock sync.Mutex
	path string
	byID map[string]Process
}

const supervisorRecord = "supervisor"

func loadRecords(path string) (*records, error) {
	r := &records{path: path, byID: map[string]Process{}}
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the records of processes: %w", err)
	}
	if err := json.Unmarshal(data, &r.byID); err != nil {
		return nil, fmt.Errorf("read the records of processes in %s: %w", path, err)
	}
	return r, nil
}

func (r *records) set(name string, pid int) (Process, error) {
	p, err := identify(pid)
	if err != nil {
		return p, err
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	r.byID[name] = p
	return p, r.save()
}

func (r *records) remove(name string) {
	r.lock.Lock()
	defer r.lock.Unlock()
	delete(r.byID, name)
	_ = r.save()
}

func (r *records) save() error {
	data, err := json.Marshal(r.byID)
	if err != nil {
		return err
	}
	return cluster.WriteFile(r.path, data, 0o600)
}
