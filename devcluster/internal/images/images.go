// Package images maps image names to programs of this machine. There is no
// registry and no image format: a container runs a local command.
package images

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/yaml"
)

// Image is one entry of the file.
type Image struct {
	// Image is a name as in a pod; `*` stands for any text.
	Image string `json:"image"`
	// Command is the image's entry point. Empty: pods must give a command.
	Command []string `json:"command"`
	// Env is the image's environment; a container's own wins.
	Env map[string]string `json:"env"`
	// WorkingDir is where the program starts; default "/".
	WorkingDir string `json:"workingDir"`
}

type file struct {
	Images []Image `json:"images"`
}

// NotMapped means that no entry fits the image.
type NotMapped struct{ Image, File string }

func (e *NotMapped) Error() string {
	return fmt.Sprintf("image %q has no entry in %s: add a line below `images:` such as\n  - {image: %q, command: [\"/absolute/path/of/the/program\"]}", e.Image, e.File, e.Image)
}

// Table is the file's content, read again whenever the file changes.
type Table struct {
	path string

	lock    sync.Mutex
	stamp   string
	images  []Image
	err     error
	changed chan struct{}
}

// NewTable does not require the file to exist yet.
func NewTable(path string) *Table {
	return &Table{path: path, changed: make(chan struct{})}
}

// Parse reads the file's text.
func Parse(data []byte, name string) ([]Image, error) {
	var f file
	if err := yaml.UnmarshalStrict(data, &f); err != nil {
		return nil, fmt.Errorf("%s: %w (expected `images:` with a list of {image, command, env, workingDir})", name, err)
	}
	for i, image := range f.Images {
		if image.Image == "" {
			return nil, fmt.Errorf("%s: images[%d].image is empty: write the image's name", name, i)
		}
		if len(image.Command) > 0 && strings.Contains(image.Command[0], "/") && !filepath.IsAbs(image.Command[0]) {
			return nil, fmt.Errorf("%s: images[%d].command[0] %q must be an absolute path or a program on PATH", name, i, image.Command[0])
		}
	}
	return f.Images, nil
}

// refresh needs the lock.
func (t *Table) refresh() {
	stamp := "none"
	if info, err := os.Stat(t.path); err == nil {
		stamp = fmt.Sprint(info.ModTime().UnixNano(), info.Size(), info.Mode())
	}
	if stamp == t.stamp {
		return
	}
	t.stamp = stamp
	data, err := os.ReadFile(t.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		t.images, t.err = nil, nil
	case err != nil:
		t.images, t.err = nil, fmt.Errorf("read the images file: %w", err)
	default:
		t.images, t.err = Parse(data, t.path)
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

// Lookup returns the entry for an image. An exact name wins over a pattern,
// otherwise the first that fits.
func (t *Table) Lookup(image string) (*Image, error) {
	t.lock.Lock()
	defer t.lock.Unlock()
	t.refresh()
	if t.err != nil {
		return nil, t.err
	}
	for i := range t.images {
		if t.images[i].Image == image {
			return &t.images[i], nil
		}
	}
	for i := range t.images {
		if match(t.images[i].Image, image) {
			return &t.images[i], nil
		}
	}
	return nil, &NotMapped{Image: image, File: t.path}
}

// Changed is closed at the next change of the file that is noticed.
func (t *Table) Changed() <-chan struct{} {
	t.lock.Lock()
	defer t.lock.Unlock()
	return t.changed
}

// Watch notices changes until stop is closed.
func (t *Table) Watch(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(500 * time.Millisecond):
			t.lock.Lock()
			t.refresh()
			t.lock.Unlock()
		}
	}
}

// match knows only `*`, which also stands for slashes.
func match(pattern, name string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == name
	}
	if !strings.HasPrefix(name, parts[0]) {
		return false
	}
	name = name[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(name, part)
		if i < 0 {
			return false
		}
		name = name[i+len(part):]
	}
	return strings.HasSuffix(name, last)
}

// Visible lists the folders below hidden ones (the machine's /tmp and /run are not
// seen in containers) that the image's command and environment name.
func (i *Image) Visible() []string {
	var out []string
	words := append([]string{i.WorkingDir}, i.Command...)
	for _, v := range i.Env {
		words = append(words, strings.Split(v, ":")...)
	}
	seen := map[string]bool{}
	for _, w := range words {
		w = path.Clean(w)
		parts := strings.Split(w, "/")
		if len(parts) < 3 || parts[0] != "" || (parts[1] != "tmp" && parts[1] != "run") {
			continue
		}
		top := "/" + parts[1] + "/" + parts[2]
		if _, err := os.Stat(top); err == nil && !seen[top] {
			seen[top] = true
			out = append(out, top)
		}
	}
	return out
}
