package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"llmops.dev/devcluster/internal/container"
	"llmops.dev/devcluster/internal/images"
	"llmops.dev/devcluster/internal/logfile"
	"llmops.dev/devcluster/internal/node/environ"
	"llmops.dev/devcluster/internal/node/podstatus"
	"llmops.dev/devcluster/internal/node/probes"
	"llmops.dev/devcluster/internal/node/restart"
	"llmops.dev/devcluster/internal/node/volumes"
)

// task is one container of a pod and how it is to be treated.
type task struct {
	*worker
	c     *corev1.Container
	paths map[string]string
	// halt is closed when this container has to end.
	halt <-chan struct{}
	// again tells whether it starts again after an exit code.
	again func(code int32) bool
	// onStarted is called once, when the container counts as started.
	onStarted func()
}

// runContainers returns when all containers have ended for good.
func (w *worker) runContainers(pod *corev1.Pod, paths map[string]string) {
	policy := pod.Spec.RestartPolicy
	haltSidecars := make(chan struct{})
	var sidecars, mains sync.WaitGroup
	defer func() {
		close(haltSidecars)
		sidecars.Wait()
	}()
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			started := make(chan struct{})
			var once sync.Once
			sidecars.Add(1)
			go func() {
				defer sidecars.Done()
				(&task{w, c, paths, haltSidecars, func(int32) bool { return true }, func() { once.Do(func() { close(started) }) }}).run()
			}()
			select {
			case <-started:
			case <-w.stop:
				return
			}
			continue
		}
		code := (&task{w, c, paths, w.stop, func(code int32) bool { return restart.InitWanted(policy, code) }, nil}).run()
		if code != 0 || w.stopping() {
			return
		}
	}
	for i := range pod.Spec.Containers {
		mains.Add(1)
		go func() {
			defer mains.Done()
			(&task{w, &pod.Spec.Containers[i], paths, w.stop, func(code int32) bool { return restart.Wanted(policy, code) }, nil}).run()
		}()
	}
	mains.Wait()
}

func (t *task) halted() bool {
	select {
	case <-t.halt:
		return true
	default:
		return false
	}
}

// pause waits for a change that may help; false means that the container must end.
func (t *task) pause(d time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-t.halt:
		return false
	case <-timer.C:
	case <-wake:
	}
	return true
}

func (t *task) waiting(reason, message string) {
	t.edit(t.c.Name, func(r *podstatus.Container) {
		r.Ready, r.Started = false, false
		r.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	})
}

// run starts the container again and again until it is finished, and returns its
// last exit code; -1 when it never ran.
func (t *task) run() int32 {
	var backoff restart.Backoff
	if end := t.record(t.c.Name).State.Terminated; end != nil { // from before a restart of the node
		if !t.again(end.ExitCode) || t.halted() {
			return end.ExitCode
		}
		t.countRestart()
	}
	for {
		run := t.start()
		if run == nil {
			return -1
		}
		end := t.watch(run)
		if !t.again(end.ExitCode) || t.halted() {
			return end.ExitCode
		}
		if delay := backoff.After(end.FinishedAt.Sub(end.StartedAt.Time)); delay > 0 {
			message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", delay, t.c.Name, t.name, t.namespace, t.uid)
			t.edit(t.c.Name, func(r *podstatus.Container) { r.Last = r.State })
			t.waiting("CrashLoopBackOff", message)
			t.event(corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s", t.c.Name, t.name)
			if !t.pause(delay, nil) {
				t.edit(t.c.Name, func(r *podstatus.Container) { r.State = r.Last })
				return end.ExitCode
			}
		}
		t.countRestart()
	}
}

func (t *task) countRestart() {
	t.edit(t.c.Name, func(r *podstatus.Container) {
		if r.State.Terminated != nil {
			r.Last = r.State
		}
		r.RestartCount++
		r.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}
	})
}

// start waits until the container can be created, and creates it; nil when the
// container must end first.
func (t *task) start() *container.Container {
	if t.record(t.c.Name).State.Waiting == nil {
		t.waiting("ContainerCreating", "")
	}
	image := t.image()
	if image == nil {
		return nil
	}
	said := ""
	for {
		if t.halted() {
			return nil
		}
		spec, err := t.spec(image)
		var run *container.Container
		if err == nil {
			run, err = container.Start(spec)
		}
		if err == nil {
			t.started(run)
			return run
		}
		reason := "CreateContainerError"
		var missing *environ.MissingError
		if errors.As(err, &missing) {
			reason = "CreateContainerConfigError"
		}
		if err.Error() != said {
			said = err.Error()
			t.waiting(reason, said)
			t.event(corev1.EventTypeWarning, "Failed", "Error: %s", said)
		}
		if !t.pause(time.Second, nil) {
			return nil
		}
	}
}

// image waits for an entry in the images file.
func (t *task) image() *images.Image {
	for attempt := 0; ; attempt++ {
		changed := t.m.images.Changed()
		image, err := t.m.images.Lookup(t.c.Image)
		if err == nil {
			return image
		}
		reason := "ErrImagePull"
		if attempt > 0 {
			reason = "ImagePullBackOff"
		} else {
			t.event(corev1.EventTypeWarning, "Failed", "Failed to pull image %q: %v", t.c.Image, err)
		}
		t.waiting(reason, err.Error())
		wait := time.Minute
		if attempt == 0 {
			wait = 3 * time.Second
		}
		if !t.pause(wait, changed) {
			return nil
		}
	}
}

func (t *task) spec(image *images.Image) (*container.Spec, error) {
	pod := t.current()
	list, env, err := environ.Resolve(environ.Inputs{
		Pod: pod, Container: t.c, PodIP: t.address(), HostIP: t.m.hostIP,
		ImageEnv: image.Env, APIHost: t.m.apiHost, APIPort: t.m.apiPort,
	}, t.m.objects)
	if err != nil {
		return nil, err
	}
	command := environ.Command(t.c, image.Command, env)
	if len(command) == 0 {
		return nil, fmt.Errorf("image %q has no command in the images file and container %q gives none: set one of them", t.c.Image, t.c.Name)
	}
	mounts, err := volumes.Mounts(t.c, pod, t.paths, env)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(t.messageFile(), nil, 0o666); err != nil {
		return nil, err
	}
	mounts = append(mounts,
		container.Mount{Source: t.hostsFile(), Target: "/etc/hosts"},
		container.Mount{Source: t.messageFile(), Target: t.messagePath()})
	dir := t.c.WorkingDir
	if dir == "" {
		dir = image.WorkingDir
	}
	if dir == "" {
		dir = "/"
	}
	spec := &container.Spec{
		Hostname: environ.Hostname(pod), Root: filepath.Join(t.containerDir(t.c.Name), "root"),
		Command: command, Env: list, Dir: dir, Mounts: mounts, Visible: image.Visible(),
		LogFile: logfile.Path(t.containerDir(t.c.Name), t.record(t.c.Name).RestartCount),
	}
	if limit, ok := t.c.Resources.Limits[corev1.ResourceMemory]; ok {
		spec.MemoryLimit = limit.Value()
	}
	if sc := t.c.SecurityContext; sc != nil && sc.ReadOnlyRootFilesystem != nil {
		spec.ReadOnlyRoot = *sc.ReadOnlyRootFilesystem
	}
	return spec, nil
}

func (t *task) messageFile() string {
	return filepath.Join(t.containerDir(t.c.Name), "termination-log")
}

func (t *task) messagePath() string {
	if t.c.TerminationMessagePath != "" {
		return t.c.TerminationMessagePath
	}
	return corev1.TerminationMessagePathDefault
}

func (t *task) started(run *container.Container) {
	t.lock.Lock()
	t.live[t.c.Name] = run
	t.lock.Unlock()
	t.edit(t.c.Name, func(r *podstatus.Container) {
		r.ID = fmt.Sprintf("devcluster://%s/%s/%d", t.uid, t.c.Name, r.RestartCount)
		r.State = corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(run.StartedAt())}}
		r.Started = t.c.StartupProbe == nil
		r.Ready = t.c.StartupProbe == nil && t.c.ReadinessProbe == nil
	})
	t.event(corev1.EventTypeNormal, "Started", "Started container %s", t.c.Name)
}

// watch supervises a running container to its end.
func (t *task) watch(run *container.Container) *corev1.ContainerStateTerminated {
	ctx, cancel := context.WithCancel(t.m.ctx)
	defer cancel()
	unhealthy := make(chan *corev1.Probe, 2)
	target := t.target(run)
	hooked := make(chan error, 1)
	go func() {
		if hook := t.c.Lifecycle; hook != nil && hook.PostStart != nil {
			if err := t.hook(ctx, hook.PostStart, target); err != nil && ctx.Err() == nil {
				hooked <- err
				return
			}
		}
		t.probe(ctx, target, unhealthy)
	}()
	select {
	case <-run.Done():
	case <-t.halt:
		t.end(run, cancel, t.stopGrace())
	case err := <-hooked:
		t.event(corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed: %v", err)
		t.end(run, cancel, graceOf(t.current()))
	case probe := <-unhealthy:
		grace := graceOf(t.current())
		if probe.TerminationGracePeriodSeconds != nil {
			grace = time.Duration(*probe.TerminationGracePeriodSeconds) * time.Second
		}
		t.event(corev1.EventTypeNormal, "Killing", "Container %s failed its %s, will be restarted", t.c.Name, t.probeName(probe))
		t.end(run, cancel, grace)
	}
	<-run.Done()
	return t.ended(run)
}

func (t *task) probeName(p *corev1.Probe) string {
	if p == t.c.StartupProbe {
		return "startup probe"
	}
	return "liveness probe"
}

func (t *task) stopGrace() time.Duration {
	t.lock.Lock()
	defer t.lock.Unlock()
	return t.grace
}

func (t *task) target(run *container.Container) probes.Target {
	return probes.Target{PodIP: t.address(), Ports: t.c.Ports, Exec: func(ctx context.Context, argv []string) (int, string, error) {
		var out bytes.Buffer
		code, err := run.Exec(ctx, argv, container.Streams{Stdout: &capped{&out}, Stderr: &capped{&out}})
		return code, out.String(), err
	}}
}

// capped keeps the first kilobytes; both streams of a command write at once.
type capped struct{ *bytes.Buffer }

var cappedLock sync.Mutex

func (c *capped) Write(p []byte) (int, error) {
	cappedLock.Lock()
	defer cappedLock.Unlock()
	if room := 4096 - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// probe runs the startup probe and then the others.
func (t *task) probe(ctx context.Context, target probes.Target, unhealthy chan<- *corev1.Probe) {
	failed := func(kind string) func(error) {
		return func(err error) {
			t.event(corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %v", kind, err)
		}
	}
	if p := t.c.StartupProbe; p != nil {
		startCtx, cancel := context.WithCancel(ctx)
		passed := false
		probes.Loop(startCtx, p, target, probes.Tracker{}, func(healthy bool, _ error) {
			passed = healthy
			if !healthy {
				unhealthy <- p
			}
			cancel()
		}, failed("Startup"))
		cancel()
		if !passed {
			return
		}
		t.edit(t.c.Name, func(r *podstatus.Container) { r.Started, r.Ready = true, t.c.ReadinessProbe == nil })
	}
	if t.onStarted != nil {
		t.onStarted()
	}
	if p := t.c.LivenessProbe; p != nil {
		go func() {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			probes.Loop(ctx, p, target, probes.Tracker{Healthy: true}, func(healthy bool, _ error) {
				if !healthy {
					unhealthy <- p
					cancel()
				}
			}, failed("Liveness"))
		}()
	}
	if p := t.c.ReadinessProbe; p != nil {
		probes.Loop(ctx, p, target, probes.Tracker{}, func(healthy bool, _ error) {
			if t.record(t.c.Name).Ready != healthy && ctx.Err() == nil {
				t.edit(t.c.Name, func(r *podstatus.Container) { r.Ready = healthy })
			}
		}, failed("Readiness"))
	}
}

func (t *task) hook(ctx context.Context, h *corev1.LifecycleHandler, target probes.Target) error {
	switch {
	case h.Exec != nil:
		return probes.Exec(ctx, h.Exec, target)
	case h.HTTPGet != nil:
		return probes.HTTPGet(ctx, h.HTTPGet, target)
	case h.Sleep != nil:
		select {
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
		case <-ctx.Done():
		}
	}
	return nil
}

// end is the graceful way: preStop hook, SIGTERM, and SIGKILL when the grace period,
// which the hook uses up too, is over.
func (t *task) end(run *container.Container, stopProbes func(), grace time.Duration) {
	stopProbes()
	t.event(corev1.EventTypeNormal, "Killing", "Stopping container %s", t.c.Name)
	ctx, cancel := context.WithTimeout(t.m.ctx, grace)
	defer cancel()
	go func() { // forced while the hook or the program takes its time
		select {
		case <-t.force:
			run.Kill()
		case <-run.Done():
		}
	}()
	if h := t.c.Lifecycle; h != nil && h.PreStop != nil && grace > 0 {
		if err := t.hook(ctx, h.PreStop, t.target(run)); err != nil {
			t.event(corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed: %v", err)
		}
	}
	run.Signal(t.stopSignal())
	select {
	case <-run.Done():
	case <-ctx.Done():
		// As the kubelet, leave two seconds to a program whose hook took all the time.
		if t.c.Lifecycle != nil && t.c.Lifecycle.PreStop != nil && grace > 0 {
			select {
			case <-run.Done():
			case <-time.After(2 * time.Second):
			}
		}
		run.Kill()
	}
}

func (t *task) stopSignal() syscall.Signal {
	if t.c.Lifecycle != nil && t.c.Lifecycle.StopSignal != nil {
		switch strings.TrimPrefix(string(*t.c.Lifecycle.StopSignal), "SIG") {
		case "INT":
			return syscall.SIGINT
		case "QUIT":
			return syscall.SIGQUIT
		case "HUP":
			return syscall.SIGHUP
		case "USR1":
			return syscall.SIGUSR1
		case "USR2":
			return syscall.SIGUSR2
		case "KILL":
			return syscall.SIGKILL
		}
	}
	return syscall.SIGTERM
}

// Sizes of termination messages, as in Kubernetes.
const (
	messageBytes     = 4096
	fallbackLogLines = 80
	fallbackLogBytes = 2048
)

// ended records the exit.
func (t *task) ended(run *container.Container) *corev1.ContainerStateTerminated {
	exit := run.Exit()
	end := &corev1.ContainerStateTerminated{
		ExitCode: int32(exit.Code), Signal: int32(exit.Signal), Reason: "Completed",
		StartedAt: metav1.NewTime(exit.Started), FinishedAt: metav1.NewTime(exit.Finished),
	}
	switch {
	case exit.StartError != "":
		end.Reason, end.Message = "StartError", exit.StartError
	case exit.OOM:
		end.Reason = "OOMKilled"
	case exit.Code != 0:
		end.Reason = "Error"
	}
	if end.Message == "" {
		if data, err := os.ReadFile(t.messageFile()); err == nil {
			end.Message = string(data[:min(len(data), messageBytes)])
		}
	}
	t.lock.Lock()
	delete(t.live, t.c.Name)
	count := t.records[t.c.Name].RestartCount
	t.lock.Unlock()
	if end.Message == "" && exit.Code != 0 && t.c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError {
		end.Message = logfile.Last(logfile.Path(t.containerDir(t.c.Name), count), fallbackLogLines, fallbackLogBytes)
	}
	t.edit(t.c.Name, func(r *podstatus.Container) {
		end.ContainerID = r.ID
		r.Ready, r.Started = false, false
		r.State = corev1.ContainerState{Terminated: end}
	})
	return end
}
