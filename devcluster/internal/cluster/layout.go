// Package cluster describes one local cluster: where its files are, which
// addresses are its own, its credentials and the arguments of its components.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Layout names every file of a cluster's directory.
type Layout struct{ Dir string }

// NewLayout makes the directory absolute, since child processes run elsewhere.
func NewLayout(dir string) (Layout, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Layout{}, fmt.Errorf("resolve the cluster directory %q: %w", dir, err)
	}
	return Layout{Dir: abs}, nil
}

func (l Layout) path(parts ...string) string {
	return filepath.Join(append([]string{l.Dir}, parts...)...)
}

func (l Layout) Config() string         { return l.path("config.json") }
func (l Layout) Kubeconfig() string     { return l.path("kubeconfig") }
func (l Layout) Images() string         { return l.path("images.yaml") }
func (l Layout) AuditLog() string       { return l.path("audit.log") }
func (l Layout) Volumes() string        { return l.path("volumes") }
func (l Layout) Pods() string           { return l.path("pods") }
func (l Layout) Etcd() string           { return l.path("etcd") }
func (l Layout) Run() string            { return l.path("run") }
func (l Layout) Hosts() string          { return l.path("run", "hosts") }
func (l Layout) Processes() string      { return l.path("run", "processes.json") }
func (l Layout) Lock() string           { return l.path("run", "lock") }
func (l Layout) Control() string        { return l.path("run", "control.sock") }
func (l Layout) Log(name string) string { return l.path("logs", name+".log") }
func (l Layout) PKI(name string) string { return l.path("pki", name) }

// UserKubeconfig is the credentials file of one component.
func (l Layout) UserKubeconfig(user string) string { return l.path("pki", user+".kubeconfig") }

// MakeFolders creates what must exist before anything starts. Only the owner can
// read them: there are keys and Secrets inside.
func (l Layout) MakeFolders() error {
	for _, folder := range []string{l.Dir, l.path("logs"), l.path("pki"), l.Run(), l.Hosts(), l.Volumes(), l.Pods()} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			return fmt.Errorf("create the cluster directory: %w", err)
		}
	}
	return nil
}

// LockStart waits until no other `up` works on the directory.
func (l Layout) LockStart() (unlock func(), err error) {
	f, err := os.OpenFile(l.path("run", "up.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the cluster's start lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the cluster's start: %w", err)
	}
	return func() { f.Close() }, nil
}

// PodsMode says what the node does with pods.
type PodsMode string

const (
	// PodsProcess runs containers as processes of this machine.
	PodsProcess PodsMode = "process"
	// PodsFake reports pods Ready without running anything.
	PodsFake PodsMode = "fake"
)

// Config is what a cluster keeps between starts.
type Config struct {
	// Slot decides the cluster's address ranges; see Addresses.
	Slot   int      `json:"slot"`
	Pods   PodsMode `json:"pods"`
	Images string   `json:"images"`
	// Capacity holds resources added to the node's own, such as nvidia.com/gpu.
	Capacity map[string]string `json:"capacity,omitempty"`
}

// LoadConfig returns nil when the directory holds no cluster yet.
func (l Layout) LoadConfig() (*Config, error) {
	data, err := os.ReadFile(l.Config())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the cluster's settings: %w", err)
	}
	c := &Config{}
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): run `devcluster reset` and start again", l.Config(), err)
	}
	return c, nil
}

// SaveConfig writes the settings so that a crash leaves the old or the new ones.
func (l Layout) SaveConfig(c *Config) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(l.Config(), append(data, '\n'), 0o600)
}

// WriteFile replaces a file in one step.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(mode)
	}
	if closed := tmp.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}

// Delete removes the cluster's own files and keeps others that someone put into
// the directory, such as an images file.
func (l Layout) Delete() error {
	for _, name := range []string{"kubeconfig", "audit.log", "etcd", "run", "logs", "pki", "pods", "volumes", "config.json"} {
		if err := removeAll(l.path(name)); err != nil {
			return fmt.Errorf("delete the cluster's state: %w", err)
		}
	}
	rotated, _ := filepath.Glob(l.path("audit-*.log"))
	for _, path := range rotated {
		_ = os.Remove(path)
	}
	_ = os.Remove(l.Dir) // only when empty
	return nil
}

// removeAll also removes folders that a pod made read-only.
func removeAll(path string) error {
	if os.RemoveAll(path) == nil {
		return nil
	}
	_ = filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(path)
}
