// Package integration starts real clusters and checks what a node must do.
package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// devcluster is the binary under test; shared is the cluster that most tests use.
var (
	devcluster string
	shared     *testCluster
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(helperVariable); mode != "" {
		os.Exit(helper(os.Args[1:]))
	}
	flag.Parse()
	// The tests mostly wait, so more of them than cores can run side by side.
	_ = flag.Set("test.parallel", "6")
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "devcluster-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// Ordinary users must be able to run it, too.
	_ = os.Chmod(dir, 0o755)
	devcluster = filepath.Join(dir, "devcluster")
	if err := provideBinary(devcluster); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if out, err := exec.Command(devcluster, "--dir", filepath.Join(dir, "check"), "status").CombinedOutput(); !strings.HasPrefix(string(out), "Down") {
		fmt.Fprintf(os.Stderr, "status of nothing: %v\n%s", err, out)
		return 1
	}
	shared = &testCluster{dir: filepath.Join(dir, "shared")}
	defer func() { _ = shared.command("reset").Run() }()
	if err := shared.writeImages(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if out, err := shared.command("up", "--detach", "--capacity", "nvidia.com/gpu=2").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "up: %v\n%s", err, out)
		return 1
	}
	if err := shared.connect(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if code != 0 {
		out, _ := shared.command("kubectl", "get", "events", "-A", "--sort-by=.lastTimestamp").CombinedOutput()
		log, _ := os.ReadFile(filepath.Join(shared.dir, "logs", "node.log"))
		fmt.Fprintf(os.Stderr, "%s\nnode.log:\n%s", lastBytes(out, 8000), lastBytes(log, 4000))
	}
	return code
}

// provideBinary puts the binary where every user can run it. It is built where
// DEVCLUSTER_BIN says or as ../devcluster: `go build` leaves a file alone that is up to
// date, and linking takes half a minute.
func provideBinary(path string) error {
	built := os.Getenv("DEVCLUSTER_BIN")
	if built == "" {
		built = filepath.Join("..", "devcluster")
	}
	if out, err := exec.Command("go", "build", "-o", built, "..").CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	if os.Link(built, path) == nil {
		return nil
	}
	from, err := os.Open(built)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(to, from); err != nil {
		to.Close()
		return err
	}
	return to.Close()
}

func lastBytes(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

type testCluster struct {
	dir    string
	client kubernetes.Interface
	// wrap runs commands as another user.
	wrap []string
}

func (c *testCluster) command(args ...string) *exec.Cmd {
	argv := append(append([]string{}, c.wrap...), append([]string{devcluster, "--dir", c.dir}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = filepath.Dir(c.dir)
	return cmd
}

func (c *testCluster) connect() error {
	rest, err := clientcmd.BuildConfigFromFlags("", filepath.Join(c.dir, "kubeconfig"))
	if err != nil {
		return err
	}
	rest.QPS = -1
	c.client, err = kubernetes.NewForConfig(rest)
	return err
}

// images: `helper` is this test's own binary, `host` gives containers the machine's programs.
func (c *testCluster) writeImages(more ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return err
	}
	text := fmt.Sprintf("images:\n- {image: 'helper:*', command: [%q], env: {%s: '1'}}\n- {image: host, command: []}\n%s", self, helperVariable, strings.Join(more, "\n"))
	return os.WriteFile(filepath.Join(c.dir, "images.yaml"), []byte(text), 0o644)
}

func (c *testCluster) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.command(args...).CombinedOutput()
	if err != nil {
		t.Fatalf("devcluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (c *testCluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.must(t, append([]string{"kubectl"}, args...)...)
}

func (c *testCluster) apply(t *testing.T, namespace, manifest string) {
	t.Helper()
	cmd := c.command("kubectl", "apply", "-n", namespace, "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("apply: %v\n%s", err, out)
	}
}

var namespaces atomic.Int32

// namespace makes a fresh one with its default ServiceAccount.
func (c *testCluster) namespace(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("test-%d", namespaces.Add(1))
	ctx := context.Background()
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return name
}

func (c *testCluster) pod(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	pod, err := c.client.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// await waits until a pod satisfies a condition.
func (c *testCluster) await(t *testing.T, namespace, name string, ok func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	eventually(t, func() error {
		var err error
		pod, err = c.client.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if !ok(pod) {
			status, _ := json.Marshal(pod.Status)
			return fmt.Errorf("pod %s is not there yet: %s", name, status)
		}
		return nil
	})
	return pod
}

func isReady(pod *corev1.Pod) bool {
	for _, cond := range pod.Status.Conditions {
		if cond.Type == corev1.PodReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

func phaseIs(phase corev1.PodPhase) func(*corev1.Pod) bool {
	return func(pod *corev1.Pod) bool { return pod.Status.Phase == phase }
}

// patience is far above what anything here takes, for machines under load.
const patience = 60 * time.Second

func eventually(t *testing.T, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func logIs(c *testCluster, namespace, pod, want string) func() error {
	return func() error {
		var errs bytes.Buffer
		cmd := c.command("kubectl", "logs", "-n", namespace, pod)
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			return errors.New(errs.String())
		}
		if string(out) != want {
			return fmt.Errorf("log of %s: %q, want %q", pod, out, want)
		}
		return nil
	}
}
