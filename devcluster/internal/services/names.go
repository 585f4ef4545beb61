package services

import (
	"fmt"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Names is the part of a hosts file that holds the cluster's services, as seen
// from each namespace.
type Names struct {
	common string            // with the namespace in the name
	local  map[string]string // short names of a namespace's own services
}

// For returns the lines for pods of a namespace.
func (n *Names) For(namespace string) string {
	if n == nil {
		return ""
	}
	return n.local[namespace] + n.common
}

// BuildNames is pure; equal inputs give equal text.
func BuildNames(services []*corev1.Service, pods []*corev1.Pod) *Names {
	byPod := indexPods(pods)
	sorted := append([]*corev1.Service{}, services...)
	sort.Slice(sorted, func(i, j int) bool {
		if sorted[i].Namespace != sorted[j].Namespace {
			return sorted[i].Namespace < sorted[j].Namespace
		}
		return sorted[i].Name < sorted[j].Name
	})
	var common strings.Builder
	local := map[string]*strings.Builder{}
	add := func(namespace, ip, name string) {
		full := name + "." + namespace
		fmt.Fprintf(&common, "%s\t%s %s.svc %s.svc.cluster.local\n", ip, full, full, full)
		if local[namespace] == nil {
			local[namespace] = &strings.Builder{}
		}
		fmt.Fprintf(local[namespace], "%s\t%s\n", ip, name)
	}
	for _, s := range sorted {
		switch {
		case s.Spec.Type == corev1.ServiceTypeExternalName || s.Spec.ClusterIP == "":
		case s.Spec.ClusterIP != corev1.ClusterIPNone:
			add(s.Namespace, s.Spec.ClusterIP, s.Name)
		default:
			serving := byPod.serving(s)
			sort.Slice(serving, func(i, j int) bool { return serving[i].Name < serving[j].Name })
			for _, p := range serving {
				add(s.Namespace, p.Status.PodIP, s.Name)
				if p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name {
					add(s.Namespace, p.Status.PodIP, p.Spec.Hostname+"."+s.Name)
				}
			}
		}
	}
	n := &Names{common: common.String(), local: map[string]string{}}
	for namespace, text := range local {
		n.local[namespace] = text.String()
	}
	return n
}
