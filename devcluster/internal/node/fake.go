package node

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	podutil "k8s.io/kubernetes/pkg/util/pod"

	"llmops.dev/devcluster/internal/node/podstatus"
)

// fakeHostIP is the node's address in fake pods. Endpoints refuse loopback ones.
const fakeHostIP = "10.0.0.1"

// fakeWriters is how many requests are under way at once.
const fakeWriters = 32

// fake reports every pod Ready with one write, and removes deleted ones at once.
type fake struct {
	ctx    context.Context
	client kubernetes.Interface
	next   atomic.Uint32
	slots  chan struct{}

	lock sync.Mutex
	seen map[types.UID]bool // pods whose status has been written or is being written
}

func startFake(ctx context.Context, client kubernetes.Interface, factory informers.SharedInformerFactory) error {
	f := &fake{ctx: ctx, client: client, slots: make(chan struct{}, fakeWriters), seen: map[types.UID]bool{}}
	_, err := factory.Core().V1().Pods().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { f.sync(obj.(*corev1.Pod)) },
		UpdateFunc: func(_, obj any) { f.sync(obj.(*corev1.Pod)) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if pod, ok := obj.(*corev1.Pod); ok {
				f.lock.Lock()
				delete(f.seen, pod.UID)
				f.lock.Unlock()
			}
		},
	})
	if err != nil {
		return err
	}
	factory.Start(ctx.Done())
	for kind, synced := range factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("the watch of %s did not start", kind)
		}
	}
	return nil
}

func (f *fake) sync(pod *corev1.Pod) {
	if pod.Spec.NodeName != NodeName {
		return
	}
	if pod.DeletionTimestamp != nil {
		f.attempt(pod, func() error { return deleteNow(f.ctx, f.client, pod) })
		return
	}
	f.lock.Lock()
	done := f.seen[pod.UID] || pod.Status.Phase != corev1.PodPending
	f.seen[pod.UID] = true
	f.lock.Unlock()
	if !done {
		f.attempt(pod, func() error { return f.run(pod) })
	}
}

func (f *fake) attempt(pod *corev1.Pod, do func() error) {
	go func() {
		f.slots <- struct{}{}
		defer func() { <-f.slots }()
		for f.ctx.Err() == nil {
			err := do()
			if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
				return
			}
			slog.Warn("a fake pod could not be written; trying again", "pod", pod.Namespace+"/"+pod.Name, "error", err)
			time.Sleep(500 * time.Millisecond)
			if _, err := f.client.CoreV1().Pods(pod.Namespace).Get(f.ctx, pod.Name, metav1.GetOptions{}); apierrors.IsNotFound(err) {
				return
			}
		}
	}()
}

func (f *fake) run(pod *corev1.Pod) error {
	now := metav1.Now()
	n := f.next.Add(1)
	records := map[string]podstatus.Container{}
	for _, c := range pod.Spec.InitContainers {
		records[c.Name] = podstatus.Container{ID: "fake://" + c.Name, State: corev1.ContainerState{
			Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: now, FinishedAt: now}}}
	}
	for _, c := range pod.Spec.Containers {
		records[c.Name] = podstatus.Container{ID: "fake://" + c.Name, Ready: true, Started: true,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}}
	}
	status := podstatus.Compute(pod, podstatus.Facts{
		Containers: records, StartTime: now, HostIP: fakeHostIP,
		PodIP: fmt.Sprintf("10.%d.%d.%d", 1+n/(254*254)%250, n/254%254, n%254+1),
	}, now)
	_, _, _, err := podutil.PatchPodStatus(f.ctx, f.client, pod.Namespace, pod.Name, pod.UID, pod.Status, status)
	return err
}
