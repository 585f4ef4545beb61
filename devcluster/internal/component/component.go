// Package component runs one of the upstream programs that this binary contains.
package component

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	_ "time/tzdata" // CronJob time zones
	_ "unsafe"      // go:linkname

	"go.etcd.io/etcd/server/v3/etcdmain"
	helmcmd "helm.sh/helm/v4/pkg/cmd"
	helmkube "helm.sh/helm/v4/pkg/kube"
	_ "k8s.io/client-go/plugin/pkg/client/auth"
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/component-base/version"
	kubectlcmd "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"

	"llmops.dev/devcluster/internal/cluster"
)

// Version is that of the k8s.io/kubernetes module which this binary was built from.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "k8s.io/kubernetes" {
				return m.Version
			}
		}
	}
	return "v1.0.0-unknown"
}

// Kubernetes takes its version from linker flags, which a plain `go build` does
// not give; without one, charts that ask for a minimum version refuse the cluster.
//
//go:linkname kubernetesVersion k8s.io/component-base/version.gitVersion
var kubernetesVersion string

//go:linkname kubernetesMajor k8s.io/component-base/version.gitMajor
var kubernetesMajor string

//go:linkname kubernetesMinor k8s.io/component-base/version.gitMinor
var kubernetesMinor string

// The user agent of kubectl and of the components in the audit log.
//
//go:linkname clientVersion k8s.io/client-go/pkg/version.gitVersion
var clientVersion string

func setVersion() {
	v := Version()
	clientVersion, kubernetesVersion = v, v
	if parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3); len(parts) == 3 {
		kubernetesMajor, kubernetesMinor = parts[0], parts[1]
	}
	if err := version.SetDynamicVersion(v); err != nil {
		slog.Warn("the Kubernetes version cannot be set", "error", err)
	}
}

// Run becomes the named component and returns its exit code.
func Run(name string, args []string) int {
	setVersion()
	os.Args = append([]string{name}, args...)
	switch name {
	case cluster.Etcd:
		etcdmain.Main(os.Args)
		return 0
	case cluster.APIServer:
		return cli.Run(apiserver.NewAPIServerCommand())
	case cluster.Controller:
		return cli.Run(controllermanager.NewControllerManagerCommand())
	case cluster.Scheduler:
		return cli.Run(scheduler.NewSchedulerCommand())
	}
	fmt.Fprintf(os.Stderr, "unknown component %q\n", name)
	return 2
}

// Kubectl runs kubectl with the arguments that follow its name.
func Kubectl(args []string) int {
	setVersion()
	os.Args = append([]string{"kubectl"}, args...)
	_, _ = logs.GlogSetter(kubectlcmd.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectlcmd.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err) // prints and exits
	}
	return 0
}

// Helm runs helm with the arguments that follow its name.
func Helm(args []string) int {
	setVersion()
	os.Args = append([]string{"helm"}, args...)
	helmkube.ManagedFieldsManager = "helm"
	cmd, err := helmcmd.NewRootCmd(os.Stdout, args, helmcmd.SetupLogging)
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	if err := cmd.Execute(); err != nil {
		if coded, ok := errors.AsType[helmcmd.CommandError](err); ok {
			return coded.ExitCode
		}
		return 1
	}
	return 0
}
