package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestVolumesAndEnvironment(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	host := t.TempDir()
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: ConfigMap
metadata: {name: config}
data: {colour: red, page: "<p>"}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: s3cret}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: disk}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: all, labels: {tier: first}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: host
    command: [sh, -ec]
    args:
    - |
      test "$(cat /etc/config/colour)" = red; test "$(cat /usr/share/one/page.html)" = "<p>"; test "$(cat /var/lib/keys/t)" = s3cret
      test "$(cat /all/labels)" = 'tier="first"'; test "$(cat /all/limit)" = 64; test "$(cat /all/colour)" = red; test -s /all/token
      test "$COLOUR/$TOKEN/$X_colour/$NODE/$LIMIT" = red/s3cret/red/devcluster/67108864
      test "$POD_IP" = "$(getent hosts $HOSTNAME | cut -d' ' -f1)"; test "$JOINED" = "$POD_IP:1"
      ! touch /etc/config/x; ! touch /data-ro/x; ! touch /usr/x; ! touch /host-ro/x
      echo kept > /data/file; test "$(cat /data-ro/file)" = kept; test "$(cat /sub/file)" = "" ; echo host > /host/file
      test "$(stat -Lc %%a /var/lib/keys/t)" = 400; echo x > /tmp/own; test -s /run/secrets/kubernetes.io/serviceaccount/token
      touch /tmp/checked
      until test "$(cat /etc/config/colour)" = blue; do sleep 0.05; done
      echo updated; sleep 1000
    readinessProbe: {exec: {command: [test, -e, /tmp/checked]}, periodSeconds: 1}
    resources: {limits: {memory: 64Mi}}
    envFrom: [{prefix: X_, configMapRef: {name: config}}]
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: config, key: colour}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    - {name: JOINED, value: "$(POD_IP):1"}
    volumeMounts:
    - {name: config, mountPath: /etc/config}
    - {name: config, mountPath: /usr/share/one/page.html, subPath: page}
    - {name: keys, mountPath: /var/lib/keys}
    - {name: all, mountPath: /all}
    - {name: disk, mountPath: /data}
    - {name: disk, mountPath: /data-ro, readOnly: true}
    - {name: empty, mountPath: /sub, subPath: deep/er}
    - {name: host, mountPath: /host}
    - {name: host, mountPath: /host-ro, readOnly: true}
  volumes:
  - {name: config, configMap: {name: config}}
  - {name: keys, secret: {secretName: keys, defaultMode: 0400, items: [{key: token, path: t}]}}
  - {name: empty, emptyDir: {}}
  - {name: disk, persistentVolumeClaim: {claimName: disk}}
  - {name: host, hostPath: {path: %s}}
  - name: all
    projected:
      sources:
      - {configMap: {name: config, items: [{key: colour, path: colour}]}}
      - {serviceAccountToken: {path: token, audience: test, expirationSeconds: 600}}
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: limit, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}]}}
`, host))
	// `touch` and the second `cat` complain on purpose.
	shared.await(t, ns, "all", func(p *corev1.Pod) bool {
		if s := p.Status.ContainerStatuses; len(s) > 0 && s[0].RestartCount > 0 {
			t.Fatalf("the pod's checks failed:\n%s", shared.kubectl(t, "logs", "-n", ns, "all", "--previous"))
		}
		return isReady(p)
	})
	shared.kubectl(t, "patch", "configmap", "-n", ns, "config", "-p", `{"data":{"colour":"blue"}}`)
	eventually(t, func() error {
		if out := shared.kubectl(t, "logs", "-n", ns, "all"); !strings.Contains(out, "updated\n") {
			return fmt.Errorf("the ConfigMap's change is not seen: %s", out)
		}
		return nil
	})
	if data, err := os.ReadFile(filepath.Join(host, "file")); err != nil || string(data) != "host\n" {
		t.Errorf("hostPath: %q, %v", data, err)
	}
	// The claim's data outlives the pod and goes with the claim.
	shared.kubectl(t, "delete", "pod", "-n", ns, "all")
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: next}
spec:
  restartPolicy: Never
  containers: [{name: c, image: host, command: [cat, /data/file], volumeMounts: [{name: disk, mountPath: /data}]}]
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
`)
	shared.await(t, ns, "next", phaseIs(corev1.PodSucceeded))
	eventually(t, logIs(shared, ns, "next", "kept\n"))
	claim, err := shared.client.CoreV1().PersistentVolumeClaims(ns).Get(context.Background(), "disk", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(shared.dir, "volumes", claim.Spec.VolumeName)
	if _, err := os.Stat(filepath.Join(folder, "file")); err != nil {
		t.Error(err)
	}
	shared.kubectl(t, "delete", "-n", ns, "pod/next", "pvc/disk")
	eventually(t, func() error {
		_, err := shared.client.CoreV1().PersistentVolumes().Get(context.Background(), claim.Spec.VolumeName, metav1.GetOptions{})
		if _, there := os.Stat(folder); !apierrors.IsNotFound(err) || there == nil {
			return fmt.Errorf("the volume is still there: %v, %v", err, there)
		}
		return nil
	})
}

func TestMissingReferencesAreWaitedFor(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: env}
spec:
  restartPolicy: Never
  containers: [{name: c, image: host, command: [sh, -c, "echo $V"], env: [{name: V, valueFrom: {secretKeyRef: {name: late, key: v}}}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: volume}
spec:
  restartPolicy: Never
  containers: [{name: c, image: host, command: [cat, /v/v], volumeMounts: [{name: v, mountPath: /v}]}]
  volumes: [{name: v, secret: {secretName: late}}]
`)
	waiting := func(reason string) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			s := p.Status.ContainerStatuses
			return len(s) > 0 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == reason && strings.Contains(s[0].State.Waiting.Message, `secret "late" not found`)
		}
	}
	shared.await(t, ns, "env", waiting("CreateContainerConfigError"))
	shared.await(t, ns, "volume", waiting("ContainerCreating"))
	shared.kubectl(t, "create", "secret", "generic", "late", "-n", ns, "--from-literal=v=here")
	for _, name := range []string{"env", "volume"} {
		shared.await(t, ns, name, phaseIs(corev1.PodSucceeded))
	}
}

func TestProbes(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: probed}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: helper:1
    args: [serve, "8080"]
    env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {exec: {command: [test, "!", -e, /tmp/sick]}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 1}
`)
	pod := shared.await(t, ns, "probed", isReady)
	base := "http://" + pod.Status.PodIP + ":8080"
	for _, ready := range []bool{false, true} {
		if _, err := get(fmt.Sprintf("%s/set?ready=%v", base, ready)); err != nil {
			t.Fatal(err)
		}
		pod = shared.await(t, ns, "probed", func(p *corev1.Pod) bool { return isReady(p) == ready })
	}
	if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("readiness caused %d restarts", n)
	}
	shared.kubectl(t, "exec", "-n", ns, "probed", "--", "touch", "/tmp/sick")
	shared.await(t, ns, "probed", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses[0]
		return s.RestartCount == 1 && s.LastTerminationState.Terminated != nil && isReady(p)
	})
}

func TestEndsOfContainers(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	pod := func(name, policy, container string) {
		t.Helper()
		shared.apply(t, ns, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  restartPolicy: %s\n  terminationGracePeriodSeconds: 1\n  containers: [{name: c, %s}]\n", name, policy, container))
	}
	pod("message", "Never", `image: host, command: [sh, -c, "echo because > /dev/termination-log; exit 42"]`)
	pod("fallback", "Never", `image: host, command: [sh, -c, "echo last words; exit 1"], terminationMessagePolicy: FallbackToLogsOnError`)
	pod("signal", "Never", `image: host, command: [sh, -c, "kill -s SEGV $$$$"]`)
	pod("oom", "Never", `image: 'helper:1', args: [allocate, "300"], resources: {limits: {memory: 64Mi}}`)
	pod("nothing", "Never", `image: host, command: [/no/such/program]`)
	pod("crash", "Always", `image: host, command: [sh, -c, "echo run; exit 1"]`)
	pod("sealed", "Never", `image: host, command: [sh, -c, "touch /tmp/x || touch /new || exit 7"], securityContext: {readOnlyRootFilesystem: true}`)
	for _, c := range []struct {
		name    string
		code    int32
		reason  string
		message string
	}{
		{"message", 42, "Error", "because\n"}, {"fallback", 1, "Error", "last words\n"}, {"signal", 139, "Error", ""},
		{"sealed", 7, "Error", ""}, {"oom", 137, "OOMKilled", ""}, {"nothing", 128, "StartError", "/no/such/program"},
	} {
		p := shared.await(t, ns, c.name, phaseIs(corev1.PodFailed))
		end := p.Status.ContainerStatuses[0].State.Terminated
		if end == nil || end.ExitCode != c.code || end.Reason != c.reason || !strings.Contains(end.Message, c.message) {
			t.Errorf("%s: %+v", c.name, end)
		}
	}
	shared.await(t, ns, "crash", func(p *corev1.Pod) bool {
		s := p.Status.ContainerStatuses[0]
		return s.RestartCount >= 2 && s.State.Waiting != nil && s.State.Waiting.Reason == "CrashLoopBackOff" && s.LastTerminationState.Terminated.ExitCode == 1
	})
	if out := shared.kubectl(t, "logs", "-n", ns, "crash", "--previous"); out != "run\n" {
		t.Errorf("previous log: %q", out)
	}
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: late}
spec:
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: host, command: [sleep, "1000"]}]
`)
	if p := shared.await(t, ns, "late", phaseIs(corev1.PodFailed)); p.Status.Reason != "DeadlineExceeded" {
		t.Errorf("deadline: %+v", p.Status)
	}
}

// processes counts those whose command line holds a mark.
func processes(t *testing.T, mark string) int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range paths {
		if data, err := os.ReadFile(path); err == nil && strings.Contains(string(data), mark) {
			n++
		}
	}
	return n
}

func TestDeletionEndsProcesses(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	out := t.TempDir()
	// The polite one ends by itself after its hook; the stubborn one and its orphan must be killed.
	mark := fmt.Sprintf("98%d", time.Now().UnixNano()%1e9)
	shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: polite}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: c
    image: host
    command: [sh, -c, "trap 'echo term >> /out/polite; exit 0' TERM; touch /tmp/armed; while :; do sleep 0.05; done"]
    lifecycle: {preStop: {exec: {command: [sh, -c, "echo hook >> /out/polite"]}}}
    readinessProbe: {exec: {command: [test, -e, /tmp/armed]}, periodSeconds: 1}
    volumeMounts: [{name: out, mountPath: /out}]
  volumes: [{name: out, hostPath: {path: %[1]s}}]
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: host
    command: [sh, -c, "trap '' TERM; (setsid sleep %[2]s &) ; sleep %[2]s; sleep %[2]s"]
`, out, mark))
	shared.await(t, ns, "polite", isReady)
	shared.await(t, ns, "stubborn", isReady)
	eventually(t, func() error {
		if n := processes(t, "sleep\x00"+mark); n != 2 {
			return fmt.Errorf("%d processes run", n)
		}
		return nil
	})
	shared.kubectl(t, "delete", "pod", "-n", ns, "polite")
	if data, err := os.ReadFile(filepath.Join(out, "polite")); err != nil || string(data) != "hook\nterm\n" {
		t.Errorf("order at the end: %q, %v", data, err)
	}
	shared.kubectl(t, "delete", "pod", "-n", ns, "stubborn")
	if n := processes(t, "sleep\x00"+mark); n != 0 {
		t.Errorf("%d processes outlived their pod", n)
	}
	eventually(t, func() error {
		if entries, err := os.ReadDir(filepath.Join(shared.dir, "pods")); err == nil {
			for _, e := range entries {
				if hosts, err := os.ReadFile(filepath.Join(shared.dir, "pods", e.Name(), "etc-hosts")); err == nil && strings.Contains(string(hosts), "\tstubborn\n") {
					return fmt.Errorf("the pod's folder %s is still there", e.Name())
				}
			}
		}
		return nil
	})
}

func TestMissingImage(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: new}
spec:
  restartPolicy: Never
  containers: [{name: c, image: "ghcr.io/x/new:1", args: [it, works]}]
`)
	shared.await(t, ns, "new", func(p *corev1.Pod) bool {
		if len(p.Status.ContainerStatuses) == 0 {
			return false
		}
		w := p.Status.ContainerStatuses[0].State.Waiting
		return w != nil && (w.Reason == "ErrImagePull" || w.Reason == "ImagePullBackOff") && strings.Contains(w.Message, filepath.Join(shared.dir, "images.yaml"))
	})
	if err := shared.writeImages(`- {image: "ghcr.io/x/new:1", command: [echo]}`); err != nil {
		t.Fatal(err)
	}
	shared.await(t, ns, "new", phaseIs(corev1.PodSucceeded))
	eventually(t, logIs(shared, ns, "new", "it works\n"))
}
