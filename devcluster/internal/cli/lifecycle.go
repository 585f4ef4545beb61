package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"llmops.dev/devcluster/internal/cluster"
	"llmops.dev/devcluster/internal/container"
	"llmops.dev/devcluster/internal/supervisor"
)

type upOptions struct {
	detach   bool
	pods     string
	images   string
	capacity []string
	audit    bool
}

func upCommand(o *options) *cobra.Command {
	u := &upOptions{}
	cmd := &cobra.Command{
		Use: "up", Short: "Start the cluster and wait until it is ready", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return up(cmd, o, u) },
	}
	f := cmd.Flags()
	f.BoolVar(&u.detach, "detach", false, "return when the cluster is ready; otherwise stay until Ctrl-C and then stop it")
	f.StringVar(&u.pods, "pods", "process", "`process` runs containers as processes, `fake` reports pods Ready without running them")
	f.StringVar(&u.images, "images", "", "file that maps image names to commands (default DIR/images.yaml)")
	f.StringArrayVar(&u.capacity, "capacity", nil, "extra node capacity `NAME=QUANTITY`, for example nvidia.com/gpu=2; repeatable")
	f.BoolVar(&u.audit, "audit-log", true, "accepted for clarity: the audit log is always in DIR/audit.log")
	return cmd
}

func up(cmd *cobra.Command, o *options, u *upOptions) error {
	layout, err := o.layout()
	if err != nil {
		return err
	}
	if err := layout.MakeFolders(); err != nil {
		return err
	}
	// Two at once would both create keys; the second finds the cluster up.
	unlock, err := layout.LockStart()
	if err != nil {
		return err
	}
	defer unlock()
	client := supervisor.NewClient(layout)
	if s, err := client.Status(); err == nil && s.Phase != supervisor.Stopping {
		if err := sameSettings(layout, cmd, u); err != nil {
			return err
		}
		if s.Phase != supervisor.Ready {
			return follow(cmd.Context(), layout, client, nil)
		}
		fmt.Printf("already up: export KUBECONFIG=%s\n", layout.Kubeconfig())
		return nil
	}
	config, err := prepare(layout, cmd, u)
	if err != nil {
		return err
	}
	if config.Pods == cluster.PodsProcess {
		if err := container.Check(); err != nil {
			return err
		}
	}
	if !cluster.Privileged() {
		fmt.Println("note: as an ordinary user, Services on ports below 1024 cannot be listened on; use higher ports")
	}
	log := layout.Log("supervisor")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("open the supervisor's log: %w", err)
	}
	defer out.Close()
	child := exec.Command("/proc/self/exe", "--dir", layout.Dir, "supervise")
	child.Args[0] = "devcluster"
	child.Stdout, child.Stderr = out, out
	child.Dir = layout.Dir
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := child.Start(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	if err := follow(cmd.Context(), layout, client, ended); err != nil {
		_ = stopCluster(layout)
		return err
	}
	unlock()
	fmt.Printf("ready: export KUBECONFIG=%s\n", layout.Kubeconfig())
	if u.detach {
		return nil
	}
	fmt.Println("Ctrl-C stops the cluster; its state stays in", layout.Dir)
	select {
	case <-cmd.Context().Done():
		return stopCluster(layout)
	case <-ended:
		return nil // stopped by `devcluster down`
	}
}

// prepare settles the cluster's settings and everything its components read.
func prepare(layout cluster.Layout, cmd *cobra.Command, u *upOptions) (*cluster.Config, error) {
	if supervisor.Locked(layout) {
		return nil, fmt.Errorf("the cluster in %s is stopping or does not answer: run `devcluster down` first", layout.Dir)
	}
	// Before the addresses are looked at, which a killed supervisor's components may hold.
	if err := supervisor.EndRemnants(layout); err != nil {
		return nil, err
	}
	config, err := layout.LoadConfig()
	if err != nil {
		return nil, err
	}
	slot := -1
	if config == nil {
		config = &cluster.Config{Pods: cluster.PodsProcess, Images: layout.Images()}
	} else {
		slot = config.Slot
	}
	if config.Slot, err = cluster.ClaimSlot(layout.Dir, slot); err != nil {
		return nil, err
	}
	if err := u.change(cmd, config); err != nil {
		return nil, err
	}
	if err := layout.SaveConfig(config); err != nil {
		return nil, err
	}
	return config, layout.WriteCredentials(cluster.Addresses{Slot: config.Slot})
}

// change puts the given flags into the settings; the others stay as they were.
func (u *upOptions) change(cmd *cobra.Command, config *cluster.Config) (err error) {
	if cmd.Flags().Changed("pods") {
		config.Pods = cluster.PodsMode(u.pods)
	}
	if config.Pods != cluster.PodsProcess && config.Pods != cluster.PodsFake {
		return fmt.Errorf("--pods %q: choose process or fake", config.Pods)
	}
	if cmd.Flags().Changed("images") {
		if config.Images, err = filepath.Abs(u.images); err != nil {
			return err
		}
	}
	if cmd.Flags().Changed("capacity") {
		config.Capacity, err = cluster.ParseCapacity(u.capacity)
	}
	return err
}

// sameSettings refuses flags that a running cluster would not follow.
func sameSettings(layout cluster.Layout, cmd *cobra.Command, u *upOptions) error {
	running, err := layout.LoadConfig()
	if err != nil || running == nil {
		return err
	}
	wanted := *running
	if err := u.change(cmd, &wanted); err != nil {
		return err
	}
	if !reflect.DeepEqual(&wanted, running) {
		return fmt.Errorf("the cluster in %s is up with other settings (--pods %s, --images %s, --capacity %v): run `devcluster down` first",
			layout.Dir, running.Pods, running.Images, running.Capacity)
	}
	return nil
}

// follow prints each step and returns when the cluster is ready or has failed.
func follow(ctx context.Context, layout cluster.Layout, client *supervisor.Client, ended <-chan error) error {
	begin := time.Now()
	shown := 0
	for {
		s, err := client.Status()
		switch {
		case err == nil:
			for ; shown < len(s.Done); shown++ {
				fmt.Printf("%5.1fs  %s ready\n", time.Since(begin).Seconds(), s.Done[shown])
			}
			if s.Error != "" {
				return fmt.Errorf("%s\n%s", s.Error, logTails(layout, s))
			}
			if s.Phase == supervisor.Ready {
				return nil
			}
		case !errors.Is(err, supervisor.ErrNotRunning):
			return err
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted before the cluster was ready")
		case <-ended:
			return fmt.Errorf("the supervisor ended:\n%s", tail(layout.Log("supervisor"), 20))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// logTails shows the last lines of what is not running, or else of what was started last.
func logTails(layout cluster.Layout, s *supervisor.Status) string {
	var out strings.Builder
	last := ""
	for _, c := range s.Components {
		if c.Running || c.Wanted {
			last = c.Name
		}
		if c.Wanted && (!c.Running || c.Restarts > 0) {
			fmt.Fprintf(&out, "--- %s (%s), %s:\n%s", c.Name, c.LastExit, layout.Log(c.Name), tail(layout.Log(c.Name), 15))
		}
	}
	if out.Len() == 0 && last != "" {
		fmt.Fprintf(&out, "--- %s:\n%s", layout.Log(last), tail(layout.Log(last), 15))
	}
	return out.String()
}

func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error() + "\n"
	}
	all := bytes.SplitAfter(data, []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines-1):], nil))
}

func superviseCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "supervise", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layout, err := o.layout()
			if err != nil {
				return err
			}
			config, err := layout.LoadConfig()
			if err != nil {
				return err
			}
			if config == nil {
				return errors.New("no settings; start with `devcluster up`")
			}
			return supervisor.Run(cmd.Context(), layout, config)
		},
	}
}

func downCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "down", Short: "Stop the cluster with all its pods; its state stays", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			layout, err := o.layout()
			if err != nil {
				return err
			}
			return stopCluster(layout)
		},
	}
}

// stopTimeout is above the sum of what the supervisor grants its components.
const stopTimeout = 60 * time.Second

func stopCluster(layout cluster.Layout) error {
	if _, err := os.Stat(layout.Run()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := supervisor.NewClient(layout).Shutdown(); err == nil {
		for begin := time.Now(); supervisor.Locked(layout) && time.Since(begin) < stopTimeout; {
			time.Sleep(50 * time.Millisecond)
		}
	} else if !errors.Is(err, supervisor.ErrNotRunning) {
		slog.Warn("the supervisor does not answer and is killed", "error", err)
	}
	// What is still recorded was left by a supervisor that did not end in order.
	return supervisor.EndRemnants(layout)
}

func resetCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "reset", Short: "Stop the cluster and delete its state, volumes included", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			layout, err := o.layout()
			if err != nil {
				return err
			}
			if _, err := os.Stat(layout.Dir); errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err := stopCluster(layout); err != nil {
				return err
			}
			config, _ := layout.LoadConfig()
			if err := layout.Delete(); err != nil {
				return err
			}
			if config != nil {
				cluster.ReleaseSlot(layout.Dir, config.Slot)
			}
			return nil
		},
	}
}

func statusCommand(o *options) *cobra.Command {
	output := ""
	cmd := &cobra.Command{
		Use: "status", Short: "Show whether the cluster is up, and its components", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			layout, err := o.layout()
			if err != nil {
				return err
			}
			return showStatus(layout, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`json` for programs")
	return cmd
}

type statusReport struct {
	supervisor.Status
	Dir         string `json:"dir"`
	Kubeconfig  string `json:"kubeconfig"`
	Server      string `json:"server,omitempty"`
	Pods        string `json:"pods,omitempty"`
	Images      string `json:"images,omitempty"`
	ServiceCIDR string `json:"serviceCIDR,omitempty"`
	PodCIDR     string `json:"podCIDR,omitempty"`
	AuditLog    string `json:"auditLog,omitempty"`
}

// showStatus exits with 3 when the cluster is not up, as service managers do.
func showStatus(layout cluster.Layout, output string) error {
	r := statusReport{Dir: layout.Dir, Kubeconfig: layout.Kubeconfig()}
	if config, err := layout.LoadConfig(); err == nil && config != nil {
		a := cluster.Addresses{Slot: config.Slot}
		r.Server, r.Pods, r.Images = "https://"+a.Endpoint(cluster.PortAPI), string(config.Pods), config.Images
		r.ServiceCIDR, r.PodCIDR, r.AuditLog = a.ServiceCIDR(), a.PodCIDR(), layout.AuditLog()
	}
	s, err := supervisor.NewClient(layout).Status()
	switch {
	case errors.Is(err, supervisor.ErrNotRunning):
		r.Phase = "Down"
	case err != nil:
		return err
	default:
		r.Status = *s
	}
	if output == "json" {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return err
		}
	} else {
		fmt.Printf("%s  %s  %s\n", r.Phase, r.Dir, r.Server)
		if r.Error != "" {
			fmt.Println("error:", r.Error)
		} else if r.Phase == supervisor.Starting {
			fmt.Println(r.Step)
		}
		w := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
		if len(r.Components) > 0 {
			fmt.Fprintln(w, "COMPONENT\tSTATE\tPID\tRESTARTS\tSINCE\tLAST EXIT")
		}
		for _, c := range r.Components {
			state := "running"
			if !c.Running {
				state = map[bool]string{true: "waiting to restart", false: "stopped"}[c.Wanted]
			}
			since := "-"
			if !c.Since.IsZero() {
				since = time.Since(c.Since).Round(time.Second).String()
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\n", c.Name, state, c.Pid, c.Restarts, since, c.LastExit)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if r.Phase == "Down" {
		return exitCode(3)
	}
	return nil
}
