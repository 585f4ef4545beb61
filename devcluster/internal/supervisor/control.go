package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"llmops.dev/devcluster/internal/cluster"
)

// Status is the supervisor's answer to `status`.
type Status struct {
	Phase Phase `json:"phase"`
	// Step is what is being waited for; Done lists the steps that are over.
	Step       string   `json:"step"`
	Done       []string `json:"done"`
	Error      string   `json:"error,omitempty"`
	Pid        int      `json:"pid"`
	Components []State  `json:"components"`
}

type status struct {
	lock  sync.Mutex
	phase Phase
	step  string
	over  []string
	err   string
}

func (s *status) set(phase Phase, step string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.phase, s.step = phase, step
}

func (s *status) done(step string) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.over = append(s.over, step)
}

func (s *status) fail(err error) {
	s.lock.Lock()
	defer s.lock.Unlock()
	s.err = err.Error()
}

// socketPath reaches a socket below a folder of any length: socket addresses hold
// 107 bytes, the path through a descriptor is short.
func socketPath(path string) (string, *os.File, error) {
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), filepath.Base(path)), folder, nil
}

func (s *Supervisor) listen() (io.Closer, error) {
	_ = os.Remove(s.layout.Control()) // the lock is held: nobody listens there
	path, folder, err := socketPath(s.layout.Control())
	if err != nil {
		return nil, err
	}
	defer folder.Close()
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.serveStatus)
	mux.HandleFunc("POST /shutdown", func(http.ResponseWriter, *http.Request) { s.stop() })
	mux.HandleFunc("POST /component/{name}/{action}", s.serveComponent)
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	return server, nil
}

func (s *Supervisor) serveStatus(w http.ResponseWriter, _ *http.Request) {
	s.status.lock.Lock()
	out := Status{Phase: s.status.phase, Step: s.status.step, Done: s.status.over, Error: s.status.err, Pid: os.Getpid()}
	s.status.lock.Unlock()
	for _, name := range cluster.Components {
		out.Components = append(out.Components, s.children[name].state())
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Supervisor) serveComponent(w http.ResponseWriter, r *http.Request) {
	c, ok := s.children[r.PathValue("name")]
	if !ok {
		http.Error(w, fmt.Sprintf("no component %q; there are %v", r.PathValue("name"), cluster.Components), http.StatusNotFound)
		return
	}
	switch r.PathValue("action") {
	case "start":
		if err := c.start(); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	case "stop":
		c.stop(syscall.SIGTERM)
	case "kill":
		c.stop(syscall.SIGKILL)
	default:
		http.Error(w, "unknown action", http.StatusNotFound)
	}
}

// ErrNotRunning means that no supervisor answers for the directory.
var ErrNotRunning = errors.New("the cluster is not running")

// Client talks to a directory's supervisor.
type Client struct {
	layout cluster.Layout
	http   *http.Client
}

// NewClient does not connect yet.
func NewClient(layout cluster.Layout) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		path, folder, err := socketPath(layout.Control())
		if err != nil {
			return nil, err
		}
		defer folder.Close()
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{layout: layout, http: &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

func (c *Client) call(method, path string) ([]byte, error) {
	req, err := http.NewRequest(method, "http://supervisor"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			return nil, ErrNotRunning
		}
		return nil, fmt.Errorf("ask the supervisor of %s: %w", c.layout.Dir, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(string(bytes.TrimSpace(body)))
	}
	return body, err
}

// Status asks for the cluster's state.
func (c *Client) Status() (*Status, error) {
	body, err := c.call(http.MethodGet, "/status")
	if err != nil {
		return nil, err
	}
	s := &Status{}
	if err := json.Unmarshal(body, s); err != nil {
		return nil, fmt.Errorf("read the supervisor's answer: %w", err)
	}
	return s, nil
}

// Shutdown asks the supervisor to stop everything; it does not wait.
func (c *Client) Shutdown() error {
	_, err := c.call(http.MethodPost, "/shutdown")
	return err
}

// Component starts, stops or kills one component and waits for that.
func (c *Client) Component(name, action string) error {
	_, err := c.call(http.MethodPost, "/component/"+name+"/"+action)
	return err
}
