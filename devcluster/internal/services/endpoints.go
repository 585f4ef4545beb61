// Package services gives pods and people the cluster's Services: a TCP proxy on
// each ClusterIP, and names in a hosts file.
package services

import (
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// index finds the pods of a selector without looking at other namespaces' pods.
type index map[string][]*corev1.Pod

func indexPods(pods []*corev1.Pod) index {
	out := index{}
	for _, p := range pods {
		if p.Status.PodIP != "" && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			out[p.Namespace] = append(out[p.Namespace], p)
		}
	}
	return out
}

func ready(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// serving are the pods that get a service's traffic: the ready ones, and while
// there is none, those that still serve although they are being deleted.
func (i index) serving(s *corev1.Service) []*corev1.Pod {
	if len(s.Spec.Selector) == 0 {
		return nil
	}
	selector := labels.SelectorFromSet(s.Spec.Selector)
	var live, leaving []*corev1.Pod
	for _, p := range i[s.Namespace] {
		if !selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		switch {
		case p.DeletionTimestamp == nil && (s.Spec.PublishNotReadyAddresses || ready(p)):
			live = append(live, p)
		case p.DeletionTimestamp != nil && ready(p):
			leaving = append(leaving, p)
		}
	}
	if len(live) == 0 {
		return leaving
	}
	return live
}

// target is the address of one pod for one port of a service; false when the pod
// has no port of that name.
func target(p *corev1.Pod, port *corev1.ServicePort) (string, bool) {
	number := port.Port
	switch {
	case port.TargetPort.Type == intstr.String && port.TargetPort.StrVal != "":
		number = named(p, port.TargetPort.StrVal, port.Protocol)
	case port.TargetPort.IntVal != 0:
		number = port.TargetPort.IntVal
	}
	if number == 0 {
		return "", false
	}
	return net.JoinHostPort(p.Status.PodIP, strconv.Itoa(int(number))), true
}

func named(p *corev1.Pod, name string, protocol corev1.Protocol) int32 {
	containers := append([]corev1.Container{}, p.Spec.Containers...)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, cp := range c.Ports {
			if cp.Name == name && (cp.Protocol == protocol || cp.Protocol == "" || protocol == "") {
				return cp.ContainerPort
			}
		}
	}
	return 0
}
