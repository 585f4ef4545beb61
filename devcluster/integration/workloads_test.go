package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// web is a Deployment of the helper's server and its Service.
func web(answer string, replicas int) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 0, maxSurge: 1}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: helper:1
        args: [serve, "8080"]
        env:
        - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: ANSWER, value: %q}
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 18080, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: members}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
`, replicas, answer)
}

// client opens a connection for every request, so that each is balanced anew.
var client = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

func get(url string) (string, error) {
	resp, err := client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

func (c *testCluster) serviceURL(t *testing.T, namespace, name string) string {
	t.Helper()
	s, err := c.client.CoreV1().Services(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("http://%s:%d", s.Spec.ClusterIP, s.Spec.Ports[0].Port)
}

func TestRollingUpdateLosesNoRequest(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, web("one", 2))
	shared.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	url := shared.serviceURL(t, ns, "web")
	stop := make(chan struct{})
	var traffic sync.WaitGroup
	var lock sync.Mutex
	seen, failures := map[string]int{}, []string{}
	for range 4 {
		traffic.Add(1)
		go func() {
			defer traffic.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				answer, err := get(url)
				lock.Lock()
				if err != nil {
					failures = append(failures, err.Error())
				}
				seen[answer]++
				lock.Unlock()
				time.Sleep(2 * time.Millisecond)
			}
		}()
	}
	shared.apply(t, ns, web("two", 2))
	shared.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	eventually(t, func() error {
		pods, err := shared.client.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{})
		if err != nil || len(pods.Items) != 2 {
			return fmt.Errorf("old pods are still there: %d, %v", len(pods.Items), err)
		}
		return nil
	})
	close(stop)
	traffic.Wait()
	if len(failures) > 0 {
		t.Errorf("%d requests failed, first: %s", len(failures), failures[0])
	}
	members := map[string]bool{}
	for range 40 {
		answer, err := get(url)
		if err != nil || !strings.HasPrefix(answer, "two from ") {
			t.Fatalf("after the update: %q, %v", answer, err)
		}
		members[answer] = true
	}
	if len(members) != 2 {
		t.Errorf("requests were balanced over %v", members)
	}
}

func TestServiceNames(t *testing.T) {
	t.Parallel()
	ns, other := shared.namespace(t), shared.namespace(t)
	shared.apply(t, ns, web("here", 2))
	shared.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=60s")
	pod := func(script string) string {
		return fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: asker}
spec:
  restartPolicy: OnFailure
  containers:
  - {name: c, image: host, command: [bash, -c, %q]}
`, script)
	}
	shared.apply(t, ns, pod(fmt.Sprintf(`set -e
for name in web web.%[1]s web.%[1]s.svc web.%[1]s.svc.cluster.local; do getent hosts $name >/dev/null; done
test $(getent ahostsv4 members | grep -c STREAM) = 2
exec 3<>/dev/tcp/web/18080; printf 'GET / HTTP/1.0\r\n\r\n' >&3; grep -q 'here from web-' <&3`, ns)))
	shared.apply(t, other, pod(fmt.Sprintf(`set -e
getent hosts web.%[1]s.svc >/dev/null
! getent hosts web`, ns)))
	for _, namespace := range []string{ns, other} {
		pod := shared.await(t, namespace, "asker", phaseIs(corev1.PodSucceeded))
		if n := pod.Status.ContainerStatuses[0].RestartCount; n > 0 {
			t.Errorf("the names in %s resolved only after %d restarts", namespace, n)
		}
	}
	// A pod that is not ready gets nothing.
	pods, err := shared.client.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil || len(pods.Items) != 2 {
		t.Fatalf("%v, %v", pods, err)
	}
	if _, err := get("http://" + pods.Items[0].Status.PodIP + ":8080/set?ready=false"); err != nil {
		t.Fatal(err)
	}
	shared.await(t, ns, pods.Items[0].Name, func(p *corev1.Pod) bool { return !isReady(p) })
	url := shared.serviceURL(t, ns, "web")
	eventually(t, func() error {
		for range 10 {
			if answer, err := get(url); err != nil || !strings.HasSuffix(answer, pods.Items[1].Name) {
				return fmt.Errorf("%q, %v", answer, err)
			}
		}
		return nil
	})
}

func TestJobs(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: count}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}
---
apiVersion: batch/v1
kind: Job
metadata: {name: third-time}
spec:
  backoffLimit: 4
  template:
    spec:
      restartPolicy: OnFailure
      containers: [{name: c, image: 'helper:1', args: [fail-until, "3", /count], volumeMounts: [{name: v, mountPath: /count}]}]
      volumes: [{name: v, persistentVolumeClaim: {claimName: count}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: never}
spec:
  backoffLimit: 0
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: host, command: [sh, -c, "exit 3"]}]}
---
apiVersion: batch/v1
kind: Job
metadata: {name: indexed}
spec:
  completionMode: Indexed
  completions: 3
  parallelism: 3
  template:
    spec: {restartPolicy: Never, containers: [{name: c, image: host, command: [sh, -c, "test $JOB_COMPLETION_INDEX -lt 3 && echo index $JOB_COMPLETION_INDEX $HOSTNAME"]}]}
`)
	done := func(name string, kind batchv1.JobConditionType) {
		t.Helper()
		eventually(t, func() error {
			job, err := shared.client.BatchV1().Jobs(ns).Get(context.Background(), name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, cond := range job.Status.Conditions {
				if cond.Type == kind && cond.Status == corev1.ConditionTrue {
					return nil
				}
			}
			return fmt.Errorf("job %s is not %s: %+v", name, kind, job.Status)
		})
	}
	done("indexed", batchv1.JobComplete)
	done("never", batchv1.JobFailed)
	done("third-time", batchv1.JobComplete)
	pods, err := shared.client.CoreV1().Pods(ns).List(context.Background(), metav1.ListOptions{LabelSelector: "job-name=never"})
	if err != nil || len(pods.Items) != 1 {
		t.Fatalf("%v, %v", pods, err)
	}
	if end := pods.Items[0].Status.ContainerStatuses[0].State.Terminated; end == nil || end.ExitCode != 3 || end.Reason != "Error" {
		t.Errorf("exit of the failed job: %+v", end)
	}
	logs := shared.kubectl(t, "logs", "-n", ns, "-l", "job-name=indexed", "--tail=-1")
	for _, want := range []string{"index 0 indexed-0", "index 1 indexed-1", "index 2 indexed-2"} {
		if !strings.Contains(logs, want) {
			t.Errorf("logs of the indexed job lack %q:\n%s", want, logs)
		}
	}
}

func TestInitContainersAndSidecars(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	shared.apply(t, ns, `
apiVersion: v1
kind: Pod
metadata: {name: order}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 5
  initContainers:
  - {name: first, image: host, command: [sh, -c, "test -e /d/tried || { touch /d/tried; exit 1; }; echo first >> /d/order"], volumeMounts: [{name: d, mountPath: /d}]}
  - {name: side, image: host, restartPolicy: Always, command: [sh, -c, "echo side >> /d/order; touch /d/up; sleep 1000"], volumeMounts: [{name: d, mountPath: /d}],
     startupProbe: {exec: {command: [test, -e, /d/up]}, periodSeconds: 1, failureThreshold: 30}}
  - {name: second, image: host, command: [sh, -c, "echo second >> /d/order"], volumeMounts: [{name: d, mountPath: /d}]}
  containers:
  - {name: main, image: host, command: [sh, -c, "cat /d/order"], volumeMounts: [{name: d, mountPath: /d}]}
  volumes: [{name: d, emptyDir: {}}]
`)
	pod := shared.await(t, ns, "order", phaseIs(corev1.PodSucceeded))
	if n := pod.Status.InitContainerStatuses[0].RestartCount; n != 1 {
		t.Errorf("the first init container restarted %d times, want 1", n)
	}
	if got := shared.kubectl(t, "logs", "-n", ns, "order", "-c", "main"); got != "first\nside\nsecond\n" {
		t.Errorf("order: %q", got)
	}
	if side := pod.Status.InitContainerStatuses[1].State.Terminated; side == nil {
		t.Errorf("the sidecar still runs: %+v", pod.Status.InitContainerStatuses[1])
	}
}

func TestSchedulingByExtraResources(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	for i := range 3 {
		shared.apply(t, ns, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: gpu-%d}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: host, command: [sleep, "1000"], resources: {limits: {nvidia.com/gpu: 1}}}]
`, i))
		if i < 2 {
			shared.await(t, ns, fmt.Sprintf("gpu-%d", i), isReady)
		}
	}
	shared.await(t, ns, "gpu-2", func(p *corev1.Pod) bool {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled {
				return c.Reason == corev1.PodReasonUnschedulable && strings.Contains(c.Message, "nvidia.com/gpu")
			}
		}
		return false
	})
	shared.kubectl(t, "delete", "pod", "-n", ns, "gpu-0")
	shared.await(t, ns, "gpu-2", isReady)
}
