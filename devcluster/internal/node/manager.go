package node

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"llmops.dev/devcluster/internal/cluster"
	"llmops.dev/devcluster/internal/images"
	"llmops.dev/devcluster/internal/node/podip"
	"llmops.dev/devcluster/internal/services"
)

// manager has a worker for every pod of the node that is not finished.
type manager struct {
	ctx     context.Context
	client  kubernetes.Interface
	objects *objects
	events  record.EventRecorder
	images  *images.Table
	ips     *podip.Pool
	layout  cluster.Layout
	hostIP  string
	// apiHost and apiPort are where pods reach the API server.
	apiHost, apiPort string

	lock    sync.Mutex
	workers map[types.UID]*worker
	names   *services.Names
	closing bool
}

func (m *manager) podDir(uid types.UID) string { return filepath.Join(m.layout.Pods(), string(uid)) }

// handler is for the pod informer.
func (m *manager) handler() cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { m.sync(obj.(*corev1.Pod)) },
		UpdateFunc: func(_, obj any) { m.sync(obj.(*corev1.Pod)) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				m.gone(pod.UID)
			}
		},
	}
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func (m *manager) sync(pod *corev1.Pod) {
	if pod.Spec.NodeName != NodeName {
		return
	}
	m.lock.Lock()
	defer m.lock.Unlock()
	if m.closing {
		return
	}
	// A pod deleted by force and created again under its name has another UID, and
	// the informer may show only the change from one to the other.
	for uid, w := range m.workers {
		if uid != pod.UID && w.namespace == pod.Namespace && w.name == pod.Name {
			w.vanish()
		}
	}
	if w, ok := m.workers[pod.UID]; ok {
		w.update(pod)
		return
	}
	if finished(pod) {
		if pod.DeletionTimestamp != nil {
			go m.deleteFinished(pod)
		}
		return
	}
	w := newWorker(m, pod)
	m.workers[pod.UID] = w
	go w.run()
	go w.report()
}

func (m *manager) gone(uid types.UID) {
	m.lock.Lock()
	w := m.workers[uid]
	m.lock.Unlock()
	if w != nil {
		w.vanish()
		return
	}
	if err := os.RemoveAll(m.podDir(uid)); err != nil {
		slog.Warn("a pod's folder could not be removed", "uid", uid, "error", err)
	}
}

// forget is called by a worker whose pod is gone and whose containers have ended.
func (m *manager) forget(w *worker) {
	m.lock.Lock()
	delete(m.workers, w.uid)
	m.lock.Unlock()
	m.ips.Release(w.uid, w.address())
	if err := os.RemoveAll(w.dir); err != nil {
		slog.Warn("a pod's folder could not be removed", "pod", w.key(), "error", err)
	}
}

func (m *manager) deleteFinished(pod *corev1.Pod) {
	for m.ctx.Err() == nil {
		if err := deleteNow(m.ctx, m.client, pod); err == nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// deleteNow removes the API object of a pod whose containers have ended.
func deleteNow(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) error {
	opts := metav1.NewDeleteOptions(0)
	opts.Preconditions = metav1.NewUIDPreconditions(string(pod.UID))
	err := client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, *opts)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// changed tells the workers of a namespace that an object they may refer to changed.
func (m *manager) changed(namespace, reference string) {
	m.lock.Lock()
	defer m.lock.Unlock()
	for _, w := range m.workers {
		if (namespace == "" || w.namespace == namespace) && w.refersTo(reference) {
			w.wakeVolumes()
		}
	}
}

// setNames writes the hosts files of all pods anew.
func (m *manager) setNames(n *services.Names) {
	m.lock.Lock()
	m.names = n
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.lock.Unlock()
	for _, w := range workers {
		w.writeHosts()
	}
}

func (m *manager) namesFor(namespace string) string {
	m.lock.Lock()
	defer m.lock.Unlock()
	return m.names.For(namespace)
}

// awaitReports waits until what an earlier run of the node reported, pods that were
// ready say, has been replaced by the truth.
func (m *manager) awaitReports(patience time.Duration) {
	m.lock.Lock()
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.lock.Unlock()
	deadline := time.After(patience)
	for _, w := range workers {
		select {
		case <-w.reported:
		case <-w.vanished:
		case <-deadline:
			return
		}
	}
}

// find returns the worker of a pod by name.
func (m *manager) find(namespace, name string) *worker {
	m.lock.Lock()
	defer m.lock.Unlock()
	for _, w := range m.workers {
		if w.namespace == namespace && w.name == name {
			return w
		}
	}
	return nil
}

// removeOrphans deletes folders of pods that the API server no longer knows.
func (m *manager) removeOrphans() {
	known := map[string]bool{}
	for _, p := range m.objects.pods() {
		known[string(p.UID)] = true
	}
	entries, err := os.ReadDir(m.layout.Pods())
	if err != nil {
		return
	}
	for _, e := range entries {
		if !known[e.Name()] {
			_ = os.RemoveAll(filepath.Join(m.layout.Pods(), e.Name()))
		}
	}
}

// close ends all containers, each with its grace period but at most patience. The
// pods stay in the API server and start again with the node.
func (m *manager) close(patience time.Duration) {
	m.lock.Lock()
	m.closing = true
	workers := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		workers = append(workers, w)
	}
	m.lock.Unlock()
	for _, w := range workers {
		w.silence()
		w.beginStop(patience)
	}
	deadline := time.After(patience + 2*time.Second)
	for _, w := range workers {
		select {
		case <-w.done:
		case <-deadline:
			return // the kernel ends what is left with this process
		}
	}
}
