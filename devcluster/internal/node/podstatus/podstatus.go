// Package podstatus computes a pod's status from what its containers do. It is pure.
package podstatus

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Container is what the node knows of one container.
type Container struct {
	State, Last  corev1.ContainerState
	Ready        bool
	Started      bool
	RestartCount int32
	ID           string
}

// Facts are the inputs beside the pod itself.
type Facts struct {
	Containers map[string]Container
	PodIP      string
	HostIP     string
	StartTime  metav1.Time
	// Final is set once no container will run again.
	Final *Final
}

// Final is a pod's end.
type Final struct {
	Phase           corev1.PodPhase
	Reason, Message string
}

// Compute builds the status. Conditions that others own are kept; times of own
// conditions move only when they change.
func Compute(pod *corev1.Pod, f Facts, now metav1.Time) corev1.PodStatus {
	s := corev1.PodStatus{
		HostIP: f.HostIP, PodIP: f.PodIP, StartTime: &f.StartTime,
		QOSClass:           pod.Status.QOSClass,
		NominatedNodeName:  pod.Status.NominatedNodeName,
		Resize:             pod.Status.Resize,
		ObservedGeneration: pod.Generation,
	}
	if f.HostIP != "" {
		s.HostIPs = []corev1.HostIP{{IP: f.HostIP}}
	}
	if f.PodIP != "" {
		s.PodIPs = []corev1.PodIP{{IP: f.PodIP}}
	}
	for i := range pod.Spec.InitContainers {
		s.InitContainerStatuses = append(s.InitContainerStatuses, containerStatus(&pod.Spec.InitContainers[i], f))
	}
	for i := range pod.Spec.Containers {
		s.ContainerStatuses = append(s.ContainerStatuses, containerStatus(&pod.Spec.Containers[i], f))
	}
	if f.Final != nil {
		s.Phase, s.Reason, s.Message = f.Final.Phase, f.Final.Reason, f.Final.Message
	} else {
		s.Phase = phase(s.ContainerStatuses)
	}
	s.Conditions = conditions(pod, s, now)
	return s
}

func containerStatus(c *corev1.Container, f Facts) corev1.ContainerStatus {
	k, ok := f.Containers[c.Name]
	if !ok {
		k.State.Waiting = &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	started := k.Started
	s := corev1.ContainerStatus{
		Name: c.Name, Image: c.Image, ImageID: "devcluster://" + c.Image, ContainerID: k.ID,
		State: k.State, LastTerminationState: k.Last, Ready: k.Ready, Started: &started, RestartCount: k.RestartCount,
	}
	if k.ID == "" {
		s.ImageID = ""
	}
	return s
}

// phase is Running from the moment every container has been started once.
func phase(containers []corev1.ContainerStatus) corev1.PodPhase {
	for _, c := range containers {
		if c.State.Running == nil && c.State.Terminated == nil && c.LastTerminationState.Terminated == nil {
			return corev1.PodPending
		}
	}
	return corev1.PodRunning
}

func conditions(pod *corev1.Pod, s corev1.PodStatus, now metav1.Time) []corev1.PodCondition {
	own := []corev1.PodCondition{sandbox(s), initialized(pod, s), containersReady(s)}
	own = append(own, ready(pod, own[2]))
	out := make([]corev1.PodCondition, 0, len(pod.Status.Conditions)+len(own))
	for _, old := range pod.Status.Conditions {
		if find(own, old.Type) == nil {
			out = append(out, old)
		}
	}
	for _, c := range own {
		c.LastTransitionTime = now
		c.ObservedGeneration = pod.Generation
		if old := find(pod.Status.Conditions, c.Type); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, c)
	}
	return out
}

func find(list []corev1.PodCondition, t corev1.PodConditionType) *corev1.PodCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

func condition(t corev1.PodConditionType, ok bool, reason, message string) corev1.PodCondition {
	if ok {
		return corev1.PodCondition{Type: t, Status: corev1.ConditionTrue}
	}
	return corev1.PodCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message}
}

func finished(s corev1.PodStatus) bool {
	return s.Phase == corev1.PodSucceeded || s.Phase == corev1.PodFailed
}

func sandbox(s corev1.PodStatus) corev1.PodCondition {
	return condition(corev1.PodReadyToStartContainers, s.PodIP != "" && !finished(s), "", "")
}

func initialized(pod *corev1.Pod, s corev1.PodStatus) corev1.PodCondition {
	if s.Phase == corev1.PodSucceeded {
		return corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue, Reason: "PodCompleted"}
	}
	var missing []string
	for i, c := range s.InitContainerStatuses {
		sidecar := pod.Spec.InitContainers[i].RestartPolicy != nil
		done := c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
		if sidecar {
			done = c.Started != nil && *c.Started || finished(s)
		}
		if !done {
			missing = append(missing, c.Name)
		}
	}
	return condition(corev1.PodInitialized, len(missing) == 0, "ContainersNotInitialized",
		fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(missing, " ")))
}

func containersReady(s corev1.PodStatus) corev1.PodCondition {
	switch s.Phase {
	case corev1.PodSucceeded:
		return condition(corev1.ContainersReady, false, "PodCompleted", "")
	case corev1.PodFailed:
		return condition(corev1.ContainersReady, false, "PodFailed", "")
	}
	var unready []string
	for _, c := range s.ContainerStatuses {
		if !c.Ready {
			unready = append(unready, c.Name)
		}
	}
	return condition(corev1.ContainersReady, len(unready) == 0, "ContainersNotReady",
		fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " ")))
}

func ready(pod *corev1.Pod, containers corev1.PodCondition) corev1.PodCondition {
	if containers.Status != corev1.ConditionTrue {
		return condition(corev1.PodReady, false, containers.Reason, containers.Message)
	}
	var missing []string
	for _, gate := range pod.Spec.ReadinessGates {
		if c := find(pod.Status.Conditions, gate.ConditionType); c == nil || c.Status != corev1.ConditionTrue {
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\"", gate.ConditionType))
		}
	}
	return condition(corev1.PodReady, len(missing) == 0, "ReadinessGatesNotReady", strings.Join(missing, ", "))
}
