package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// maxLine is the longest piece of a line kept together, as in container runtimes.
const maxLine = 16 << 10

// logWriter appends the program's output in CRI format: time, stream, F(ull) or P(artial), text.
type logWriter struct {
	lock    sync.Mutex
	file    *os.File
	readers sync.WaitGroup
	pipes   []*os.File
}

func openLog(path string) (*logWriter, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the container's log: %w", err)
	}
	return &logWriter{file: file}, nil
}

// stream returns the writing end for the program and copies what arrives.
func (l *logWriter) stream(name string) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("create the %s pipe: %w", name, err)
	}
	l.pipes = append(l.pipes, r)
	l.readers.Add(1)
	go func() {
		defer l.readers.Done()
		l.copy(name, r)
	}()
	return w, nil
}

func (l *logWriter) copy(name string, r io.Reader) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		line, err := in.ReadSlice('\n')
		if len(line) > 0 {
			tag := "F"
			if errors.Is(err, bufio.ErrBufferFull) || line[len(line)-1] != '\n' {
				tag = "P"
			}
			l.write(name, tag, line)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *logWriter) write(name, tag string, line []byte) {
	record := make([]byte, 0, len(line)+64)
	record = time.Now().UTC().AppendFormat(record, "2006-01-02T15:04:05.000000000Z07:00")
	record = append(record, ' ')
	record = append(record, name...)
	record = append(record, ' ')
	record = append(record, tag...)
	record = append(record, ' ')
	record = append(record, line...)
	if line[len(line)-1] != '\n' {
		record = append(record, '\n')
	}
	l.lock.Lock()
	defer l.lock.Unlock()
	_, _ = l.file.Write(record)
}

// drain waits for the last lines, but not for a pipe that something keeps open.
func (l *logWriter) drain() {
	deadline := time.Now().Add(2 * time.Second)
	for _, p := range l.pipes {
		_ = p.SetReadDeadline(deadline)
	}
	l.readers.Wait()
}
