package logfile

import (
	"bytes"
	"context"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const sample = `2026-01-01T00:00:01.000000000Z stdout F one
2026-01-01T00:00:02.000000000Z stderr F two
2026-01-01T00:00:03.000000000Z stdout P thr
2026-01-01T00:00:03.000000000Z stdout F ee
2026-01-01T00:00:04.000000000Z stdout F four
`

func TestCopy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]string{
		"":                               "one\ntwo\nthree\nfour\n",
		"tailLines=2":                    "three\nfour\n",
		"tailLines=0":                    "",
		"tailLines=9&stream=Stderr":      "two\n",
		"sinceTime=2026-01-01T00:00:04Z": "four\n",
		"limitBytes=6":                   "one\ntw",
		"tailLines=1&timestamps=true":    "2026-01-01T00:00:04.000000000Z four\n",
	} {
		q, _ := url.ParseQuery(query)
		o, err := ParseOptions(q, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Copy(context.Background(), &out, path, o, nil); err != nil || out.String() != want {
			t.Errorf("%s: %q, %v", query, out.String(), err)
		}
	}
	if _, err := ParseOptions(url.Values{"tailLines": {"-3"}}, time.Now()); err == nil {
		t.Error("a negative number of lines was accepted")
	}
	if got := Last(path, 80, 8); got != "ee\nfour\n" {
		t.Errorf("Last: %q", got)
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir, false); err == nil {
		t.Error("no log yet, but no error")
	}
	for _, n := range []int32{0, 9, 10} {
		if err := os.WriteFile(Path(dir, n), []byte(sample), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Find(dir, true); err != nil || got != Path(dir, 9) {
		t.Errorf("previous: %s, %v", got, err)
	}
	path, err := Find(dir, false)
	if err != nil || path != Path(dir, 10) {
		t.Fatalf("newest: %s, %v", path, err)
	}
	ended := make(chan struct{})
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, _ = f.WriteString("2026-01-01T00:00:05.000000000Z stdout F five\n")
	close(ended)
	var out bytes.Buffer
	if err := Copy(context.Background(), &out, path, Options{Tail: 1, Follow: true}, ended); err != nil || out.String() != "five\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}
