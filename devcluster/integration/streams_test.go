package integration

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func TestLogsExecForwardCopy(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: talker}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: host, command: [sh, -c, "echo one; echo two; until test -e /tmp/go; do sleep 0.05; done; echo three"]}
---
apiVersion: v1
kind: Pod
metadata: {name: server}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: helper:1
    args: [serve, "8080"]
    env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: ANSWER, value: hello}]
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
`)
	shared.await(t, ns, "talker", isReady)
	eventually(t, logIs(shared, ns, "talker", "one\ntwo\n"))
	if got := shared.kubectl(t, "logs", "-n", ns, "talker", "--tail=1"); got != "two\n" {
		t.Errorf("tail: %q", got)
	}
	if got := shared.kubectl(t, "logs", "-n", ns, "talker", "--since=1h", "--timestamps"); !regexp.MustCompile(`^20\d\d-\S+Z one\n`).MatchString(got) {
		t.Errorf("since, timestamps: %q", got)
	}
	follow := shared.command("kubectl", "logs", "-n", ns, "-f", "talker")
	pipe, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(pipe)
	if !lines.Scan() || lines.Text() != "one" || !lines.Scan() || lines.Text() != "two" {
		t.Fatalf("follow began with %q", lines.Text())
	}

	exec := shared.command("kubectl", "exec", "-n", ns, "-i", "talker", "--", "sh", "-c", "cat; echo err >&2; touch /tmp/go; exit 5")
	exec.Stdin = strings.NewReader("typed\n")
	out, err := exec.Output()
	if string(out) != "typed\n" || exec.ProcessState.ExitCode() != 5 {
		t.Errorf("exec: %q, %v", out, err)
	}
	if !lines.Scan() || lines.Text() != "three" || lines.Scan() {
		t.Errorf("follow ended with %q", lines.Text())
	}
	if err := follow.Wait(); err != nil {
		t.Error(err)
	}
	shared.await(t, ns, "talker", phaseIs(corev1.PodSucceeded))

	shared.await(t, ns, "server", isReady)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte(strings.Repeat("x", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	shared.kubectl(t, "cp", "-n", ns, file, "server:/tmp/there")
	shared.kubectl(t, "cp", "-n", ns, "server:/tmp/there", file+".back")
	if info, err := os.Stat(file + ".back"); err != nil || info.Size() != 1<<20 {
		t.Errorf("cp: %v, %v", info, err)
	}

	forward := shared.command("kubectl", "port-forward", "-n", ns, "pod/server", ":8080")
	pipe, err = forward.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := forward.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = forward.Process.Kill()
		_ = forward.Wait()
	}()
	lines = bufio.NewScanner(pipe)
	if !lines.Scan() {
		t.Fatal("port-forward said nothing")
	}
	port := regexp.MustCompile(`127\.0\.0\.1:(\d+)`).FindStringSubmatch(lines.Text())
	if port == nil {
		t.Fatalf("port-forward: %q", lines.Text())
	}
	kept := &http.Client{Timeout: 10 * time.Second}
	for range 3 {
		resp, err := kept.Get("http://127.0.0.1:" + port[1])
		if err != nil {
			t.Fatal(err)
		}
		body := new(strings.Builder)
		_, _ = bufio.NewReader(resp.Body).WriteTo(body)
		resp.Body.Close()
		if body.String() != fmt.Sprint("hello from server") {
			t.Errorf("through port-forward: %q", body)
		}
	}
}
