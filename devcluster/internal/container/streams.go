package container

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// plumbing joins a command's descriptors to readers and writers.
type plumbing struct {
	theirs []*os.File // stdin, stdout, stderr as the command gets them
	ours   []*os.File
	output sync.WaitGroup
}

func connect(ctx context.Context, s Streams) (*plumbing, error) {
	p := &plumbing{}
	var err error
	if s.TTY {
		err = p.terminal(ctx, s)
	} else {
		err = p.pipes(s)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *plumbing) pipes(s Streams) error {
	if s.Stdin == nil {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, null)
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, r)
		go func() {
			_, _ = io.Copy(w, s.Stdin)
			w.Close()
		}()
	}
	for _, out := range []io.Writer{s.Stdout, s.Stderr} {
		if out == nil {
			out = io.Discard
		}
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.theirs = append(p.theirs, w)
		p.ours = append(p.ours, r)
		p.output.Add(1)
		go func() {
			defer p.output.Done()
			_, _ = io.Copy(out, r)
		}()
	}
	return nil
}

func (p *plumbing) terminal(ctx context.Context, s Streams) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a terminal: %w", err)
	}
	p.ours = append(p.ours, master)
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("unlock the terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("name the terminal: %w", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the terminal's other end: %w", err)
	}
	p.theirs = append(p.theirs, slave, slave, slave)
	if s.Stdin != nil {
		go func() { _, _ = io.Copy(master, s.Stdin) }()
	}
	if s.Resize != nil {
		go func() {
			for {
				select {
				case size, ok := <-s.Resize:
					if !ok {
						return
					}
					_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Width, Row: size.Height})
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	out := s.Stdout
	if out == nil {
		out = io.Discard
	}
	p.output.Add(1)
	go func() {
		defer p.output.Done()
		_, _ = io.Copy(out, master) // ends with EIO when the last user of the terminal is gone
	}()
	return nil
}

func (p *plumbing) fds() []int {
	fds := make([]int, 0, len(p.theirs))
	for _, f := range p.theirs {
		fds = append(fds, int(f.Fd()))
	}
	return fds
}

func (p *plumbing) closeTheirs() {
	for _, f := range p.theirs {
		f.Close()
	}
}

// finish waits for the output of a command that has ended. What it left running
// in the background may hold the pipe open; that is not waited for.
func (p *plumbing) finish() {
	done := make(chan struct{})
	go func() {
		p.output.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(time.Second):
	}
}

func (p *plumbing) close() {
	p.closeTheirs()
	for _, f := range p.ours {
		f.Close()
	}
}
