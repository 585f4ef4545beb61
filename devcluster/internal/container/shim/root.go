package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"llmops.dev/devcluster/internal/container/protocol"
)

// host is where the machine's own root stays visible while the new one is built.
const host = "/.host"

// hidden are top folders of the machine that a container does not see as they are.
func hidden(name string) bool {
	return slices.Contains([]string{"proc", "sys", "dev", "tmp", "run", "lost+found", ".host"}, name)
}

// consoles are devices that no container needs; leaving them out saves a hundred mounts.
func consoles(name string) bool {
	if name == "tty" {
		return false
	}
	for _, prefix := range []string{"tty", "vcs", "loop", "ram", "hvc", "console", "shm"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func nothing(string) bool { return false }

// buildRoot makes a tmpfs the root, shows the machine's folders read-only in it,
// and mounts the volumes at their places, also where the machine has no such path.
func buildRoot(spec *protocol.Spec) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", spec.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount the container's root: %w", err)
	}
	if err := os.Mkdir(filepath.Join(spec.Root, host), 0o700); err != nil {
		return err
	}
	if err := unix.PivotRoot(spec.Root, filepath.Join(spec.Root, host)); err != nil {
		return fmt.Errorf("enter the container's root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := systemFolders(); err != nil {
		return err
	}
	if err := showFolder(host, "/", hidden, true); err != nil {
		return err
	}
	// Parents before children, so that a volume inside another one is not covered, nor the program by a volume at /tmp.
	mounts := append([]protocol.Mount{}, spec.Mounts...)
	for _, path := range spec.Visible {
		mounts = append(mounts, protocol.Mount{Source: path, Target: path, ReadOnly: true})
	}
	sort.SliceStable(mounts, func(i, j int) bool {
		return strings.Count(filepath.Clean(mounts[i].Target), "/") < strings.Count(filepath.Clean(mounts[j].Target), "/")
	})
	for _, m := range mounts {
		if err := mount(m); err != nil {
			return err
		}
	}
	if _, err := os.Stat(spec.Dir); err != nil {
		if err := makeTarget(spec.Dir, true); err != nil {
			return err
		}
	}
	if err := unix.Unmount(host, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the machine's root: %w", err)
	}
	_ = os.Remove(host)
	if spec.ReadOnlyRoot {
		if err := readOnly("/", false); err != nil {
			return err
		}
	}
	return nil
}

func systemFolders() error {
	for path, mode := range map[string]os.FileMode{"/proc": 0o555, "/sys": 0o555, "/dev": 0o755, "/tmp": 0o777 | os.ModeSticky, "/run": 0o755} {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		// Refused inside some outer containers; the outer process list then shows through.
		if err := bind(host+"/proc", "/proc"); err != nil {
			return err
		}
	}
	// A folder of the container's own, because the termination log belongs into it.
	if err := showFolder(host+"/dev", "/dev", consoles, false); err != nil {
		return err
	}
	if err := os.Mkdir("/dev/shm", 0o755); err != nil {
		return err
	}
	if err := os.Chmod("/dev/shm", 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := bind(host+"/sys", "/sys"); err != nil {
		return err
	}
	return readOnly("/sys", true)
}

// showFolder makes the entries of from appear in the (writable) folder to.
func showFolder(from, to string, skip func(name string) bool, lock bool) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("read %s: %w", from, err)
	}
	for _, e := range entries {
		if skip(e.Name()) {
			continue
		}
		source, target := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		switch {
		case e.Type()&os.ModeSymlink != 0:
			link, err := os.Readlink(source)
			if err == nil {
				err = os.Symlink(link, target)
			}
			if err != nil {
				return err
			}
			continue
		case e.IsDir():
			err = os.Mkdir(target, 0o755)
		default:
			err = emptyFile(target)
		}
		if err != nil {
			return err
		}
		if err := bind(source, target); err != nil {
			if errors.Is(err, os.ErrPermission) {
				continue // not this user's to see
			}
			return err
		}
		if lock {
			if err := readOnly(target, true); err != nil {
				return err
			}
		}
	}
	return nil
}

func mount(m protocol.Mount) error {
	source := filepath.Join(host, m.Source)
	info, err := os.Stat(source)
	if err != nil {
		return fmt.Errorf("mount at %s: source %s: %w", m.Target, m.Source, errors.Unwrap(err))
	}
	if err := makeTarget(m.Target, info.IsDir()); err != nil {
		return fmt.Errorf("mount at %s: %w", m.Target, err)
	}
	if err := bind(source, m.Target); err != nil {
		return err
	}
	if m.ReadOnly {
		return readOnly(m.Target, true)
	}
	return nil
}

// makeTarget creates a mount point. Where the machine's read-only folder is in the
// way, that folder is replaced by a writable one with the same entries.
func makeTarget(path string, folder bool) error {
	path = filepath.Clean(path)
	for attempt := 0; ; attempt++ {
		err := createTarget(path, folder)
		if err == nil || !errors.Is(err, unix.EROFS) || attempt > 16 {
			return err
		}
		existing := filepath.Dir(path)
		for {
			if _, err := os.Stat(existing); err == nil {
				break
			}
			existing = filepath.Dir(existing)
		}
		existing, err = filepath.EvalSymlinks(existing)
		if err != nil {
			return err
		}
		if err := makeWritable(existing); err != nil {
			return err
		}
	}
}

func createTarget(path string, folder bool) error {
	if info, err := os.Stat(path); err == nil {
		if info.IsDir() != folder {
			return fmt.Errorf("%s is there and is not the same kind (file or folder) as the volume", path)
		}
		return nil
	}
	if folder {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return emptyFile(path)
}

func makeWritable(folder string) error {
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount a writable %s: %w", folder, err)
	}
	// Entries of a read-only mount stay read-only when bound elsewhere.
	return showFolder(fmt.Sprintf("/proc/self/fd/%d", fd), folder, nothing, false)
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", strings.TrimPrefix(source, host), err)
	}
	return nil
}

func readOnly(path string, deep bool) error {
	flags := uint(0)
	if deep {
		flags = unix.AT_RECURSIVE
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(-1, path, flags, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", path, err)
	}
	return nil
}

func emptyFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
