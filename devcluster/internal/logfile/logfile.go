// Package logfile reads the logs that containers' init processes write.
package logfile

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Options are those of `kubectl logs`.
type Options struct {
	// Tail is a number of lines; -1 means all.
	Tail       int64
	LimitBytes int64 // 0 means no limit
	Since      time.Time
	Timestamps bool
	Follow     bool
	Previous   bool
	// Stream is stdout or stderr; empty means both.
	Stream string
}

// ParseOptions reads the query of a log request, as the API server sends it.
func ParseOptions(q url.Values, now time.Time) (Options, error) {
	o := Options{Tail: -1}
	var err error
	number := func(name string, min int64) int64 {
		text := q.Get(name)
		if text == "" || err != nil {
			return -1
		}
		n, bad := strconv.ParseInt(text, 10, 64)
		if bad != nil || n < min {
			err = fmt.Errorf("%s=%q must be a number from %d on", name, text, min)
		}
		return n
	}
	flag := func(name string) bool {
		b, _ := strconv.ParseBool(q.Get(name))
		return b
	}
	o.Tail = number("tailLines", 0)
	o.LimitBytes = max(number("limitBytes", 1), 0)
	if seconds := number("sinceSeconds", 1); seconds > 0 {
		o.Since = now.Add(-time.Duration(seconds) * time.Second)
	}
	if text := q.Get("sinceTime"); text != "" && err == nil {
		o.Since, err = time.Parse(time.RFC3339, text)
	}
	switch s := q.Get("stream"); s {
	case "Stdout":
		o.Stream = "stdout"
	case "Stderr":
		o.Stream = "stderr"
	}
	o.Timestamps, o.Follow, o.Previous = flag("timestamps"), flag("follow"), flag("previous")
	return o, err
}

// Path is the log of a container's run number n.
func Path(dir string, n int32) string { return filepath.Join(dir, fmt.Sprintf("%d.log", n)) }

// Find returns the log of the newest run, or of the one before it.
func Find(dir string, previous bool) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", errors.New("the container has no log yet")
	}
	newest, before := int64(-1), int64(-1)
	for _, e := range entries {
		name, ok := bytes.CutSuffix([]byte(e.Name()), []byte(".log"))
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(string(name), 10, 32)
		if err != nil {
			continue
		}
		if n > newest {
			newest, before = n, newest
		} else if n > before {
			before = n
		}
	}
	if previous {
		newest = before
	}
	if newest < 0 {
		if previous {
			return "", errors.New("previous terminated container not found")
		}
		return "", errors.New("the container has no log yet")
	}
	return Path(dir, int32(newest)), nil
}

// Copy writes a log's lines to w. With Follow it goes on until ended is closed and
// the rest is read.
func Copy(ctx context.Context, w io.Writer, path string, o Options, ended <-chan struct{}) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the container's log: %w", err)
	}
	defer f.Close()
	if o.Tail >= 0 {
		if err := seekTail(f, o); err != nil {
			return err
		}
	}
	in := bufio.NewReaderSize(f, 64<<10)
	out := &limited{w: w, left: o.LimitBytes, unlimited: o.LimitBytes == 0}
	var part []byte
	last := false
	for {
		line, err := in.ReadBytes('\n')
		part = append(part, line...)
		if err == nil {
			if done, err := out.line(part, o); done || err != nil {
				return err
			}
			part = part[:0]
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if !o.Follow || last {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			last = true // once more to the end
		case <-time.After(50 * time.Millisecond):
		}
	}
}

type limited struct {
	w         io.Writer
	left      int64
	unlimited bool
}

// line writes one record's text; done means that the limit is reached.
func (l *limited) line(record []byte, o Options) (done bool, err error) {
	stamp, stream, text, ok := split(record)
	if !ok || (o.Stream != "" && string(stream) != o.Stream) {
		return false, nil
	}
	if !o.Since.IsZero() {
		if t, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil && t.Before(o.Since) {
			return false, nil
		}
	}
	if o.Timestamps {
		text = append(append(append([]byte{}, stamp...), ' '), text...)
	}
	if !l.unlimited && int64(len(text)) > l.left {
		text, done = text[:l.left], true
	}
	l.left -= int64(len(text))
	_, err = l.w.Write(text)
	return done, err
}

// split takes a record apart; the text of a partial line comes without its newline.
func split(record []byte) (stamp, stream, text []byte, ok bool) {
	stamp, rest, ok := bytes.Cut(record, []byte(" "))
	if !ok {
		return nil, nil, nil, false
	}
	stream, rest, ok = bytes.Cut(rest, []byte(" "))
	if !ok {
		return nil, nil, nil, false
	}
	tag, text, ok := bytes.Cut(rest, []byte(" "))
	if ok && string(tag) == "P" {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	return stamp, stream, text, ok
}

// seekTail puts the file before its last lines.
func seekTail(f *os.File, o Options) error {
	var starts []int64
	in := bufio.NewReaderSize(f, 64<<10)
	offset, fresh := int64(0), true
	for {
		record, err := in.ReadBytes('\n')
		if len(record) > 0 {
			_, stream, _, ok := split(record)
			if ok && (o.Stream == "" || string(stream) == o.Stream) {
				if fresh {
					starts = append(starts, offset)
					if int64(len(starts)) > o.Tail {
						starts = starts[1:]
					}
				}
				fresh = !isPartial(record)
			}
			offset += int64(len(record))
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	at := offset
	if len(starts) > 0 {
		at = starts[0]
	}
	_, err := f.Seek(at, io.SeekStart)
	return err
}

func isPartial(record []byte) bool {
	fields := bytes.SplitN(record, []byte(" "), 4)
	return len(fields) == 4 && string(fields[2]) == "P"
}

// Last returns the end of a log, at most so many lines and bytes.
func Last(path string, lines int64, limit int) string {
	var out bytes.Buffer
	if err := Copy(context.Background(), &out, path, Options{Tail: lines}, nil); err != nil {
		return ""
	}
	text := out.Bytes()
	return string(text[max(0, len(text)-limit):])
}
