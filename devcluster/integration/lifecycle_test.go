package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// own starts a cluster for one test.
func own(t *testing.T, flags ...string) *testCluster {
	t.Helper()
	c := &testCluster{dir: filepath.Join(t.TempDir(), "a-cluster-in-a-folder-with-a-long-name-because-socket-addresses-are-short")}
	return c.begin(t, flags...)
}

func (c *testCluster) begin(t *testing.T, flags ...string) *testCluster {
	t.Helper()
	if err := c.writeImages(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.must(t, "reset") })
	// Two at once: both must find the cluster up in the end.
	second := c.command(append([]string{"up", "--detach"}, flags...)...)
	if err := second.Start(); err != nil {
		t.Fatal(err)
	}
	c.must(t, append([]string{"up", "--detach"}, flags...)...)
	if err := second.Wait(); err != nil {
		t.Errorf("a second up at the same time: %v", err)
	}
	if err := c.connect(); err != nil {
		t.Fatal(err)
	}
	return c
}

type statusJSON struct {
	Phase      string `json:"phase"`
	Pid        int    `json:"pid"`
	Components []struct {
		Name     string `json:"name"`
		Pid      int    `json:"pid"`
		Running  bool   `json:"running"`
		Restarts int    `json:"restarts"`
	} `json:"components"`
}

func (c *testCluster) status(t *testing.T) statusJSON {
	t.Helper()
	out, err := c.command("status", "-o", "json").Output()
	if err != nil && len(out) == 0 {
		t.Fatal(err)
	}
	var s statusJSON
	if err := json.Unmarshal(out, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s statusJSON) pid(name string) int {
	for _, c := range s.Components {
		if c.Name == name {
			return c.Pid
		}
	}
	return 0
}

func TestLifeOfACluster(t *testing.T) {
	t.Parallel()
	c := own(t)
	if out := c.must(t, "up", "--detach"); !strings.Contains(out, "already up") {
		t.Errorf("up twice: %s", out)
	}
	if out, err := c.command("up", "--detach", "--pods", "fake").CombinedOutput(); err == nil || !strings.Contains(string(out), "other settings") {
		t.Errorf("up with other settings: %v, %s", err, out)
	}
	c.apply(t, "default", web("still here", 1)+`
---
apiVersion: v1
kind: ConfigMap
metadata: {name: memory}
data: {a: b}
`)
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	url := c.serviceURL(t, "default", "web")

	// The API server dies for a while: what runs goes on.
	c.must(t, "component", "kill", "kube-apiserver")
	if s := c.status(t); s.pid("kube-apiserver") != 0 || s.pid("etcd") == 0 {
		t.Errorf("after the kill: %+v", s)
	}
	if answer, err := get(url); err != nil || !strings.HasPrefix(answer, "still here") {
		t.Errorf("without an API server: %q, %v", answer, err)
	}
	c.must(t, "component", "kill", "etcd")
	c.must(t, "component", "start", "etcd")
	c.must(t, "component", "start", "kube-apiserver")
	eventually(t, func() error {
		if out, err := c.command("kubectl", "get", "configmap", "memory").CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	c.kubectl(t, "scale", "deployment/web", "--replicas=2")
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	pods, err := c.client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pods.Items {
		if p.Status.ContainerStatuses[0].RestartCount != 0 {
			t.Errorf("pod %s restarted although only the API server did", p.Name)
		}
	}

	// A component that ends by itself comes back.
	before := c.status(t).pid("kube-scheduler")
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() error {
		if now := c.status(t).pid("kube-scheduler"); now == 0 || now == before {
			return fmt.Errorf("the scheduler is not back: %d", now)
		}
		return nil
	})

	// The node dies with its pods, and starts them again.
	c.must(t, "component", "kill", "node")
	if _, err := get(url); err == nil {
		t.Error("pods outlived their node")
	}
	c.must(t, "component", "start", "node")
	eventually(t, func() error {
		answer, err := get(url)
		if err == nil && !strings.HasPrefix(answer, "still here") {
			err = fmt.Errorf("answer %q", answer)
		}
		return err
	})

	// Down leaves nothing, up finds everything.
	c.must(t, "down")
	if n := processes(t, c.dir); n != 0 {
		t.Errorf("%d processes outlived the cluster", n)
	}
	if out, err := c.command("status").CombinedOutput(); err == nil || !strings.HasPrefix(string(out), "Down") {
		t.Errorf("status when down: %s, %v", out, err)
	}
	c.must(t, "up", "--detach")
	if got := c.kubectl(t, "get", "configmap", "memory", "-o", "jsonpath={.data.a}"); got != "b" {
		t.Errorf("state after a restart: %q", got)
	}
	eventually(t, func() error {
		_, err := get(url)
		return err
	})

	// The supervisor is killed: everything ends with it, and the next start is clean.
	if err := syscall.Kill(c.status(t).Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.must(t, "up", "--detach")
	eventually(t, func() error {
		_, err := get(url)
		return err
	})
	if err := syscall.Kill(c.status(t).Pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	c.must(t, "down")
	if n := processes(t, c.dir); n != 0 {
		t.Errorf("%d processes outlived the killed supervisor", n)
	}
	c.must(t, "reset")
	if _, err := os.Stat(filepath.Join(c.dir, "etcd")); err == nil {
		t.Error("reset left the state")
	}
}

func TestAuditLogNamesWhoWrote(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.kubectl(t, "create", "configmap", "witness", "-n", ns)
	data, err := os.ReadFile(filepath.Join(shared.dir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		var e struct {
			Verb, UserAgent string
			User            struct{ Username string }
			ObjectRef       struct{ Namespace, Name string }
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.ObjectRef.Namespace == ns && e.ObjectRef.Name == "witness" && e.Verb == "create" && e.User.Username == "admin" && strings.HasPrefix(e.UserAgent, "kubectl/v1.37") {
			return
		}
	}
	t.Error("the create is not in the audit log")
}

func TestHelm(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	chart := t.TempDir()
	for name, text := range map[string]string{
		"Chart.yaml":          "apiVersion: v2\nname: c\nversion: 1.0.0\nkubeVersion: '>=1.30.0'\n",
		"templates/conf.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: '{{ .Release.Name }}'}\ndata: {x: '{{ .Values.x }}'}\n",
	} {
		path := filepath.Join(chart, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shared.must(t, "helm", "upgrade", "--install", "rel", chart, "-n", ns, "--set", "x=y")
	if got := shared.kubectl(t, "get", "configmap", "rel", "-n", ns, "-o", "jsonpath={.data.x}"); got != "y" {
		t.Errorf("the chart's value: %q", got)
	}
	shared.must(t, "helm", "uninstall", "rel", "-n", ns)
}

func TestFakePods(t *testing.T) {
	t.Parallel()
	const n = 150
	c := own(t, "--pods", "fake")
	c.apply(t, "default", strings.ReplaceAll(web("x", n), "helper:1", "no/such:image"))
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	eventually(t, func() error {
		slices, err := c.client.DiscoveryV1().EndpointSlices("default").List(context.Background(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=web"})
		if err != nil {
			return err
		}
		ready := 0
		for _, s := range slices.Items {
			ready += len(s.Endpoints)
		}
		if ready != n {
			return fmt.Errorf("%d endpoints", ready)
		}
		return nil
	})
	c.kubectl(t, "delete", "deployment", "web")
	eventually(t, func() error {
		pods, err := c.client.CoreV1().Pods("default").List(context.Background(), metav1.ListOptions{})
		if err != nil || len(pods.Items) > 0 {
			return fmt.Errorf("%d pods are left, %v", len(pods.Items), err)
		}
		return nil
	})
}

func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("the other tests run as an ordinary user already")
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skipf("no user nobody on this machine: %v", err)
	}
	if _, err := exec.LookPath("runuser"); err != nil {
		t.Skipf("runuser is not installed: %v", err)
	}
	if out, err := exec.Command("runuser", "-u", "nobody", "--", "unshare", "-Ur", "true").CombinedOutput(); err != nil {
		t.Skipf("user namespaces are not allowed here: %s", out)
	}
	top, err := os.MkdirTemp("", "devcluster-user-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	c := &testCluster{dir: filepath.Join(top, "cluster"), wrap: []string{"runuser", "-u", "nobody", "--", "env", "HOME=" + top}}
	if err := c.writeImages(); err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(nobody.Uid)
	for _, path := range []string{top, c.dir, filepath.Join(c.dir, "images.yaml")} {
		if err := os.Chown(path, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { c.must(t, "reset") })
	c.must(t, "up", "--detach")
	if err := c.connect(); err != nil {
		t.Fatal(err)
	}
	c.apply(t, "default", `
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  restartPolicy: Never
  containers:
  - name: c
    image: host
    command: [bash, -ec]
    args:
    - |
      echo x > /data/x; ! touch /usr/x; test -s /var/run/secrets/kubernetes.io/serviceaccount/token; test -d /etc/conf
      exec 3<>/dev/tcp/$KUBERNETES_SERVICE_HOST/$KUBERNETES_SERVICE_PORT; echo reached
    volumeMounts: [{name: d, mountPath: /data}, {name: d, mountPath: /etc/conf}]
  volumes: [{name: d, persistentVolumeClaim: {claimName: d}}]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: d}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
`)
	c.await(t, "default", "p", func(p *corev1.Pod) bool {
		if p.Status.Phase == corev1.PodFailed {
			t.Fatalf("%+v\n%s", p.Status.ContainerStatuses, c.kubectl(t, "logs", "p"))
		}
		return p.Status.Phase == corev1.PodSucceeded
	})
	c.must(t, "down")
	if n := processes(t, c.dir); n != 0 {
		t.Errorf("%d processes outlived the cluster", n)
	}
}

func TestFailedStartSaysWhy(t *testing.T) {
	t.Parallel()
	c := own(t)
	c.must(t, "down")
	if err := os.WriteFile(filepath.Join(c.dir, "etcd", "member", "snap", "db"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := c.command("up", "--detach").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "etcd ended") || !strings.Contains(string(out), filepath.Join(c.dir, "logs", "etcd.log")) {
		t.Errorf("%v\n%s", err, out)
	}
	if n := processes(t, c.dir); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}
