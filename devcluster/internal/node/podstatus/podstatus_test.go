package podstatus

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var (
	then = metav1.NewTime(time.Unix(1000, 0))
	now  = metav1.NewTime(time.Unix(2000, 0))
)

func testPod() *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "init"}},
		Containers:     []corev1.Container{{Name: "a"}, {Name: "b"}},
	}}
}

func running(ready bool) Container {
	return Container{State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, Ready: ready, Started: true, ID: "x"}
}

func ended(code int32) Container {
	return Container{State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}, ID: "x"}
}

func TestPhasesAndConditions(t *testing.T) {
	for name, c := range map[string]struct {
		containers         map[string]Container
		final              *Final
		phase              corev1.PodPhase
		initialized, ready corev1.ConditionStatus
	}{
		"nothing yet":       {nil, nil, corev1.PodPending, "False", "False"},
		"init failed once":  {map[string]Container{"init": ended(1)}, nil, corev1.PodPending, "False", "False"},
		"one of two starts": {map[string]Container{"init": ended(0), "a": running(true)}, nil, corev1.PodPending, "True", "False"},
		"one is not ready":  {map[string]Container{"init": ended(0), "a": running(true), "b": running(false)}, nil, corev1.PodRunning, "True", "False"},
		"all are ready":     {map[string]Container{"init": ended(0), "a": running(true), "b": running(true)}, nil, corev1.PodRunning, "True", "True"},
		"one has ended":     {map[string]Container{"init": ended(0), "a": running(true), "b": ended(1)}, nil, corev1.PodRunning, "True", "False"},
		"succeeded":         {map[string]Container{"init": ended(0), "a": ended(0), "b": ended(0)}, &Final{Phase: corev1.PodSucceeded}, corev1.PodSucceeded, "True", "False"},
	} {
		t.Run(name, func(t *testing.T) {
			s := Compute(testPod(), Facts{Containers: c.containers, Final: c.final, PodIP: "127.97.0.1"}, now)
			if s.Phase != c.phase || find(s.Conditions, corev1.PodInitialized).Status != c.initialized || find(s.Conditions, corev1.PodReady).Status != c.ready {
				t.Fatalf("%s, %+v", s.Phase, s.Conditions)
			}
		})
	}
}

func TestConditionsOfOthersAndTimesStay(t *testing.T) {
	pod := testPod()
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "gate"}}
	pod.Status.Conditions = []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: "True", LastTransitionTime: then},
		{Type: corev1.PodReady, Status: "False", LastTransitionTime: then},
	}
	f := Facts{Containers: map[string]Container{"init": ended(0), "a": running(true), "b": running(true)}}
	s := Compute(pod, f, now)
	if c := find(s.Conditions, corev1.PodScheduled); c == nil || !c.LastTransitionTime.Equal(&then) {
		t.Errorf("another's condition: %+v", c)
	}
	if c := find(s.Conditions, corev1.PodReady); c.Status != "False" || c.Reason != "ReadinessGatesNotReady" || !c.LastTransitionTime.Equal(&then) {
		t.Errorf("readiness gate: %+v", c)
	}
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: "gate", Status: "True"})
	s = Compute(pod, f, now)
	if c := find(s.Conditions, corev1.PodReady); c.Status != "True" || !c.LastTransitionTime.Equal(&now) {
		t.Errorf("gate passed: %+v", c)
	}
}
