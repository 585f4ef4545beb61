package shim

import (
	"bytes"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// How often the container's memory is added up: more often when it comes near the limit.
const (
	farInterval  = 150 * time.Millisecond
	nearInterval = 30 * time.Millisecond
)

type memoryWatch struct{ over atomic.Bool }

func (m *memoryWatch) exceeded() bool { return m.over.Load() }

// watchMemory ends the container's processes when their anonymous and shared
// memory exceeds the limit. File pages do not count: the kernel can drop them, so
// a control group would not kill for them either.
func watchMemory(limit int64) *memoryWatch {
	m := &memoryWatch{}
	if limit <= 0 {
		return m
	}
	go func() {
		for {
			used := usedMemory()
			if used > limit {
				m.over.Store(true)
				_ = unix.Kill(-1, unix.SIGKILL)
				return
			}
			if used > limit/2 {
				time.Sleep(nearInterval)
			} else {
				time.Sleep(farInterval)
			}
		}
	}()
	return m
}

// usedMemory adds up the processes of this PID namespace other than init itself.
func usedMemory() int64 {
	proc, err := os.Open("/proc")
	if err != nil {
		return 0
	}
	names, err := proc.Readdirnames(-1)
	proc.Close()
	if err != nil {
		return 0
	}
	var total int64
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 {
			continue
		}
		status, err := os.ReadFile("/proc/" + name + "/status")
		if err != nil {
			continue
		}
		for _, field := range []string{"RssAnon:", "RssShmem:", "VmSwap:"} {
			total += statusKilobytes(status, field) << 10
		}
	}
	return total
}

func statusKilobytes(status []byte, field string) int64 {
	_, rest, ok := bytes.Cut(status, []byte(field))
	if !ok {
		return 0
	}
	words := bytes.Fields(rest)
	if len(words) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(string(words[0]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
