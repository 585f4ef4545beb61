// Package cli is the command line.
package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"llmops.dev/devcluster/internal/cluster"
	"llmops.dev/devcluster/internal/component"
	"llmops.dev/devcluster/internal/node"
	"llmops.dev/devcluster/internal/supervisor"
)

// exitCode is an error that carries a program's own exit code and no message.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

type options struct{ dir string }

func (o *options) layout() (cluster.Layout, error) { return cluster.NewLayout(o.dir) }

// Main runs a command line and returns the exit code.
func Main(args []string) int {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	dir, args := takeDir(args)
	cmd := root(dir)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	var code exitCode
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	}
	fmt.Fprintln(os.Stderr, "devcluster:", err)
	return 1
}

// takeDir reads a --dir before the subcommand. kubectl and helm get their arguments
// unparsed, and the command library would count this one among them.
func takeDir(args []string) (string, []string) {
	dir := os.Getenv("DEVCLUSTER_DIR")
	if dir == "" {
		dir = ".devcluster"
	}
	for len(args) > 0 {
		if value, ok := strings.CutPrefix(args[0], "--dir="); ok {
			dir, args = value, args[1:]
		} else if args[0] == "--dir" && len(args) > 1 {
			dir, args = args[1], args[2:]
		} else {
			break
		}
	}
	return dir, args
}

func root(dir string) *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "devcluster",
		Short: "A real Kubernetes in one binary, for one machine",
		Long: "devcluster runs etcd, the Kubernetes control plane and a node whose pods are processes of this machine.\n" +
			"Everything it keeps is in one directory; several clusters in different directories run side by side.",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	cmd.PersistentFlags().StringVar(&o.dir, "dir", dir, "the cluster's directory (or DEVCLUSTER_DIR)")
	cmd.AddCommand(upCommand(o), downCommand(o), resetCommand(o), statusCommand(o), kubeconfigCommand(o), componentCommand(o), superviseCommand(o),
		passThrough(o, "kubectl", "Run kubectl against the cluster", component.Kubectl),
		passThrough(o, "helm", "Run helm against the cluster", component.Helm))
	return cmd
}

func kubeconfigCommand(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "kubeconfig", Short: "Print the path of the cluster's kubeconfig", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			layout, err := existing(o)
			if err != nil {
				return err
			}
			fmt.Println(layout.Kubeconfig())
			return nil
		},
	}
}

// existing is the layout of a cluster that has been started at least once.
func existing(o *options) (cluster.Layout, error) {
	layout, err := o.layout()
	if err != nil {
		return layout, err
	}
	if _, err := os.Stat(layout.Kubeconfig()); err != nil {
		return layout, fmt.Errorf("no cluster in %s: start one with `devcluster --dir %s up --detach`", layout.Dir, o.dir)
	}
	return layout, nil
}

func passThrough(o *options, name, short string, run func([]string) int) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			layout, err := existing(o)
			if err != nil && !offline(name, args) {
				return err
			}
			if err := os.Setenv("KUBECONFIG", layout.Kubeconfig()); err != nil {
				return err
			}
			// kubectl and helm handle signals themselves, or end by them.
			signal.Reset(os.Interrupt, syscall.SIGTERM)
			if code := run(args); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	}
}

// offline says that a command works on files alone, so that charts can be rendered before there is a cluster.
func offline(name string, args []string) bool {
	return name == "helm" && len(args) > 0 && slices.Contains([]string{"template", "lint", "show", "package", "version"}, args[0])
}

func componentCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "component", Short: "Start, stop or kill one component while the others live",
		Long: "Components: " + strings.Join(cluster.Components, ", ") + ".\n" +
			"One that was stopped or killed here stays so until `component start`; one that ends by itself is restarted.",
	}
	for action, short := range map[string]string{
		"start": "Start a component",
		"stop":  "Stop a component (SIGTERM) and wait until it has ended",
		"kill":  "Kill a component (SIGKILL)",
	} {
		cmd.AddCommand(&cobra.Command{
			Use: action + " NAME", Short: short, Args: cobra.ExactArgs(1), ValidArgs: cluster.Components,
			RunE: func(_ *cobra.Command, args []string) error {
				if !slices.Contains(cluster.Components, args[0]) {
					return fmt.Errorf("no component %q; there are %s", args[0], strings.Join(cluster.Components, ", "))
				}
				layout, err := existing(o)
				if err != nil {
					return err
				}
				return supervisor.NewClient(layout).Component(args[0], action)
			},
		})
	}
	cmd.AddCommand(&cobra.Command{
		Use: "run NAME", Hidden: true, DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 || args[1] != "--" {
				return errors.New("component run is for the supervisor")
			}
			name, rest := args[0], args[2:]
			if name == cluster.Node {
				if len(rest) != 1 {
					return errors.New("the node needs the cluster's directory")
				}
				layout, err := cluster.NewLayout(rest[0])
				if err != nil {
					return err
				}
				return node.Run(cmd.Context(), layout)
			}
			// The upstream programs handle their signals themselves.
			signal.Reset(syscall.SIGINT, syscall.SIGTERM)
			if code := component.Run(name, rest); code != 0 {
				return exitCode(code)
			}
			return nil
		},
	})
	return cmd
}
