package node

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podutil "k8s.io/kubernetes/pkg/util/pod"

	"llmops.dev/devcluster/internal/container"
	"llmops.dev/devcluster/internal/node/environ"
	"llmops.dev/devcluster/internal/node/podstatus"
	"llmops.dev/devcluster/internal/node/volumes"
)

// worker runs one pod from its arrival until its API object is gone. run drives
// the containers, report writes the status: a slow API server never delays a pod.
type worker struct {
	m               *manager
	uid             types.UID
	namespace, name string
	dir             string
	volumes         *volumes.Pod

	lock      sync.Mutex
	pod       *corev1.Pod
	refs      map[string]bool
	records   map[string]podstatus.Container
	live      map[string]*container.Container
	final     *podstatus.Final
	ip        string
	startTime metav1.Time
	grace     time.Duration
	expired   bool // activeDeadlineSeconds has passed
	silent    bool // no status any more: the node ends

	dirty    chan struct{} // status to be computed
	refresh  chan struct{} // volumes to be refreshed
	stop     chan struct{} // containers are to end
	force    chan struct{} // at once
	vanished chan struct{} // the API object is gone
	done     chan struct{} // all containers have ended for good
	reported chan struct{} // the first status has been written
	once     struct{ stop, force, vanish, report sync.Once }
}

func newWorker(m *manager, pod *corev1.Pod) *worker {
	w := &worker{
		m: m, uid: pod.UID, namespace: pod.Namespace, name: pod.Name, dir: m.podDir(pod.UID),
		pod: pod, refs: references(pod), startTime: metav1.Now(),
		records: map[string]podstatus.Container{}, live: map[string]*container.Container{},
		dirty: make(chan struct{}, 1), refresh: make(chan struct{}, 1),
		stop: make(chan struct{}), force: make(chan struct{}), vanished: make(chan struct{}), done: make(chan struct{}),
		reported: make(chan struct{}),
	}
	w.volumes = volumes.New(filepath.Join(w.dir, "volumes"), m.objects)
	if pod.Status.StartTime != nil {
		w.startTime = *pod.Status.StartTime
	}
	if m.ips.Keep(pod.UID, pod.Status.PodIP) {
		w.ip = pod.Status.PodIP
	}
	w.recover(pod)
	if pod.DeletionTimestamp != nil {
		w.beginStop(graceOf(pod))
	}
	return w
}

// recover takes over what an earlier run of the node reported. Its containers have
// ended with it.
func (w *worker) recover(pod *corev1.Pod) {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range list {
			if s.ContainerID == "" {
				continue
			}
			r := podstatus.Container{State: s.State, Last: s.LastTerminationState, RestartCount: s.RestartCount, ID: s.ContainerID}
			if s.State.Running != nil {
				r.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
					ExitCode: 137, Reason: "Error", Message: "The container ended with the node.",
					StartedAt: s.State.Running.StartedAt, FinishedAt: metav1.Now(), ContainerID: s.ContainerID,
				}}
			}
			if s.State.Waiting != nil && s.LastTerminationState.Terminated != nil {
				r.State = s.LastTerminationState
			}
			w.records[s.Name] = r
		}
	}
}

func (w *worker) key() string { return w.namespace + "/" + w.name }

func (w *worker) current() *corev1.Pod {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.pod
}

func (w *worker) address() string {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.ip
}

func (w *worker) refersTo(reference string) bool {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.refs[reference]
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (w *worker) wakeVolumes() { poke(w.refresh) }

func (w *worker) update(pod *corev1.Pod) {
	w.lock.Lock()
	changed := !maps.Equal(w.pod.Labels, pod.Labels) || !maps.Equal(w.pod.Annotations, pod.Annotations)
	w.pod = pod
	w.lock.Unlock()
	if pod.DeletionTimestamp != nil {
		w.beginStop(graceOf(pod))
	}
	if changed {
		w.wakeVolumes() // downward API
	}
	poke(w.dirty)
}

func graceOf(pod *corev1.Pod) time.Duration {
	if pod.DeletionGracePeriodSeconds != nil {
		return time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
	}
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		return time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	return 30 * time.Second
}

// beginStop makes the containers end; called again, it can only shorten the grace.
func (w *worker) beginStop(grace time.Duration) {
	w.once.stop.Do(func() {
		w.lock.Lock()
		w.grace = grace
		w.lock.Unlock()
		close(w.stop)
	})
	w.lock.Lock()
	shorter := grace < w.grace
	w.lock.Unlock()
	if shorter {
		time.AfterFunc(grace, func() { w.once.force.Do(func() { close(w.force) }) })
	}
}

// vanish is for a pod whose API object is gone: nobody waits for it any more.
func (w *worker) vanish() {
	w.once.vanish.Do(func() {
		close(w.vanished)
		w.beginStop(0)
		w.once.force.Do(func() { close(w.force) })
		go func() {
			<-w.done
			w.m.forget(w)
		}()
	})
}

func (w *worker) silence() {
	w.lock.Lock()
	w.silent = true
	w.lock.Unlock()
}

func (w *worker) stopping() bool {
	select {
	case <-w.stop:
		return true
	default:
		return false
	}
}

func (w *worker) edit(name string, change func(*podstatus.Container)) {
	w.lock.Lock()
	r := w.records[name]
	change(&r)
	w.records[name] = r
	w.lock.Unlock()
	poke(w.dirty)
}

func (w *worker) record(name string) podstatus.Container {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.records[name]
}

func (w *worker) event(kind, reason, format string, args ...any) {
	w.m.events.Eventf(w.current(), kind, reason, format, args...)
}

// run drives the pod's containers to their end.
func (w *worker) run() {
	defer poke(w.dirty)
	defer close(w.done)
	ctx, cancel := context.WithCancel(w.m.ctx)
	defer cancel()
	pod := w.current()
	if err := w.setUp(pod); err != nil {
		w.event(corev1.EventTypeWarning, "FailedCreatePodSandBox", "%v", err)
		w.finish(corev1.PodFailed, "FailedCreatePodSandBox", err.Error())
		return
	}
	poke(w.dirty)
	paths, ok := w.awaitVolumes(ctx, pod)
	if !ok {
		w.conclude(pod)
		return
	}
	go w.keepVolumes(ctx)
	if stopTimer := w.watchDeadline(pod); stopTimer != nil {
		defer stopTimer()
	}
	w.runContainers(pod, paths)
	w.conclude(pod)
}

func (w *worker) setUp(pod *corev1.Pod) error {
	for _, c := range allContainers(pod) {
		if err := os.MkdirAll(w.containerDir(c.Name), 0o700); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(w.containerDir(c.Name), "root"), 0o700); err != nil {
			return err
		}
	}
	ip := w.address()
	if ip == "" {
		if pod.Spec.HostNetwork {
			ip = w.m.hostIP
		} else {
			var err error
			if ip, err = w.m.ips.Allocate(w.uid); err != nil {
				return err
			}
		}
		w.lock.Lock()
		w.ip = ip
		w.lock.Unlock()
	}
	w.writeHosts()
	return nil
}

func allContainers(pod *corev1.Pod) []corev1.Container {
	return append(append([]corev1.Container{}, pod.Spec.InitContainers...), pod.Spec.Containers...)
}

func (w *worker) containerDir(name string) string { return filepath.Join(w.dir, "containers", name) }
func (w *worker) hostsFile() string               { return filepath.Join(w.dir, "etc-hosts") }

// writeHosts keeps the file's identity: it is mounted into the containers.
func (w *worker) writeHosts() {
	pod, ip := w.current(), w.address()
	if ip == "" {
		return
	}
	var text strings.Builder
	text.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	host := environ.Hostname(pod)
	if pod.Spec.Hostname != "" && pod.Spec.Subdomain != "" {
		host = fmt.Sprintf("%s.%s.%s.svc.cluster.local %s", host, pod.Spec.Subdomain, w.namespace, host)
	}
	fmt.Fprintf(&text, "%s\t%s\n", ip, host)
	for _, a := range pod.Spec.HostAliases {
		fmt.Fprintf(&text, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, " "))
	}
	text.WriteString(w.m.namesFor(w.namespace))
	data := []byte(text.String())
	if old, err := os.ReadFile(w.hostsFile()); err == nil && bytes.Equal(old, data) {
		return
	}
	f, err := os.OpenFile(w.hostsFile(), os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return // the folder is gone: the pod is just being removed
	}
	defer f.Close()
	_, _ = f.WriteAt(data, 0)
	_ = f.Truncate(int64(len(data)))
}

// awaitVolumes waits for objects that do not exist yet, as the kubelet does.
func (w *worker) awaitVolumes(ctx context.Context, pod *corev1.Pod) (map[string]string, bool) {
	said := ""
	for {
		if w.stopping() {
			return nil, false
		}
		paths, err := w.volumes.Prepare(ctx, pod, w.address(), w.m.hostIP)
		if err == nil {
			return paths, true
		}
		if text := err.Error(); text != said {
			said = text
			w.event(corev1.EventTypeWarning, "FailedMount", "MountVolume.SetUp failed for %v", err)
			for i, c := range pod.Spec.Containers {
				if len(pod.Spec.InitContainers) > 0 || w.record(pod.Spec.Containers[i].Name).ID != "" {
					break
				}
				w.edit(c.Name, func(r *podstatus.Container) {
					r.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating", Message: text}}
				})
			}
		}
		select {
		case <-w.stop:
		case <-w.refresh:
		case <-time.After(2 * time.Second):
		}
	}
}

// keepVolumes follows changes of ConfigMaps, Secrets, labels, and renews tokens.
func (w *worker) keepVolumes(ctx context.Context) {
	for {
		wait := time.Hour
		if next := w.volumes.NextRefresh(); !next.IsZero() {
			wait = max(time.Until(next), 10*time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-w.done:
			return
		case <-w.refresh:
		case <-time.After(wait):
		}
		if _, err := w.volumes.Prepare(ctx, w.current(), w.address(), w.m.hostIP); err != nil && ctx.Err() == nil {
			slog.Debug("volumes stay as they are", "pod", w.key(), "error", err)
		}
	}
}

func (w *worker) watchDeadline(pod *corev1.Pod) func() {
	if pod.Spec.ActiveDeadlineSeconds == nil {
		return nil
	}
	deadline := w.startTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second)
	timer := time.AfterFunc(time.Until(deadline), func() {
		w.lock.Lock()
		w.expired = true
		w.lock.Unlock()
		w.beginStop(graceOf(pod))
	})
	return func() { timer.Stop() }
}

func (w *worker) finish(phase corev1.PodPhase, reason, message string) {
	w.lock.Lock()
	defer w.lock.Unlock()
	if !w.silent {
		w.final = &podstatus.Final{Phase: phase, Reason: reason, Message: message}
	}
}

// conclude decides the final phase from the main containers' exits.
func (w *worker) conclude(pod *corev1.Pod) {
	w.lock.Lock()
	expired := w.expired
	w.lock.Unlock()
	if expired {
		w.finish(corev1.PodFailed, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
		return
	}
	phase := corev1.PodSucceeded
	for _, c := range pod.Spec.Containers {
		r := w.record(c.Name)
		t := r.State.Terminated
		if t == nil {
			t = r.Last.Terminated
		}
		if t == nil || t.ExitCode != 0 {
			phase = corev1.PodFailed
		}
	}
	w.finish(phase, "", "")
}

// report writes the status whenever it changes, and the deletion at the end.
func (w *worker) report() {
	written := w.current().Status
	retry := time.Duration(0)
	for {
		var again <-chan time.Time
		if retry > 0 {
			again = time.After(retry)
		}
		select {
		case <-w.vanished:
			return
		case <-w.m.ctx.Done():
			return
		case <-w.dirty:
		case <-again:
		}
		err := w.write(&written)
		if err == nil {
			w.once.report.Do(func() { close(w.reported) })
		}
		switch {
		case err == nil:
			retry = 0
		case apierrors.IsNotFound(err):
			retry = 0 // deleted; the watch will say so
		default:
			slog.Warn("a pod's status could not be written; trying again", "pod", w.key(), "error", err)
			retry = min(max(100*time.Millisecond, 2*retry), 2*time.Second)
		}
	}
}

func (w *worker) write(written *corev1.PodStatus) error {
	// Looked at first: a status computed before the end is not the last one.
	ended := false
	select {
	case <-w.done:
		ended = true
	default:
	}
	w.lock.Lock()
	if w.silent {
		w.lock.Unlock()
		return nil
	}
	pod := w.pod
	status := podstatus.Compute(w.known(*written), podstatus.Facts{
		Containers: maps.Clone(w.records), PodIP: w.ip, HostIP: w.m.hostIP, StartTime: w.startTime, Final: w.final,
	}, metav1.Now())
	w.lock.Unlock()
	if !equality.Semantic.DeepEqual(status, *written) {
		_, _, _, err := podutil.PatchPodStatus(w.m.ctx, w.m.client, w.namespace, w.name, w.uid, *written, status)
		if err != nil {
			if strings.Contains(err.Error(), "not found") {
				return nil
			}
			return err
		}
		*written = status
	}
	if ended && pod.DeletionTimestamp != nil {
		return deleteNow(w.m.ctx, w.m.client, pod)
	}
	return nil
}

// known is the pod with the conditions that this worker wrote last, which the
// watch may not show yet, and others' from the watch. It needs the lock.
func (w *worker) known(written corev1.PodStatus) *corev1.Pod {
	pod := w.pod.DeepCopy()
	own := map[corev1.PodConditionType]bool{
		corev1.PodReady: true, corev1.ContainersReady: true, corev1.PodInitialized: true, corev1.PodReadyToStartContainers: true,
	}
	conditions := pod.Status.Conditions[:0]
	for _, c := range pod.Status.Conditions {
		if !own[c.Type] {
			conditions = append(conditions, c)
		}
	}
	for _, c := range written.Conditions {
		if own[c.Type] {
			conditions = append(conditions, c)
		}
	}
	pod.Status.Conditions = conditions
	return pod
}
