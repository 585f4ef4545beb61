// Package environ resolves a container's environment, command and arguments.
package environ

import (
	"fmt"
	"os"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/kubernetes/pkg/api/v1/resource"
	"k8s.io/kubernetes/pkg/fieldpath"
	"k8s.io/kubernetes/pkg/kubelet/envvars"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// Source gives the objects that environments refer to.
type Source interface {
	ConfigMap(namespace, name string) (*corev1.ConfigMap, error)
	Secret(namespace, name string) (*corev1.Secret, error)
	// ServicesIn lists the namespace's services that have a ClusterIP.
	ServicesIn(namespace string) []*corev1.Service
}

// Inputs of a container's environment beside its spec.
type Inputs struct {
	Pod       *corev1.Pod
	Container *corev1.Container
	PodIP     string
	HostIP    string
	// ImageEnv is the images file's; everything in the pod wins over it.
	ImageEnv map[string]string
	// APIHost and APIPort are where the API server is for the pod.
	APIHost, APIPort string
}

// MissingError means that a referenced object or key does not exist (yet).
type MissingError struct{ Message string }

func (e *MissingError) Error() string { return e.Message }

// Resolve returns the environment as KEY=VALUE, sorted, and the same as a map.
func Resolve(in Inputs, src Source) ([]string, map[string]string, error) {
	env := map[string]string{
		"PATH":     os.Getenv("PATH"),
		"HOME":     "/tmp",
		"HOSTNAME": Hostname(in.Pod),
	}
	for k, v := range in.ImageEnv {
		env[k] = v
	}
	links := in.Pod.Spec.EnableServiceLinks == nil || *in.Pod.Spec.EnableServiceLinks
	if links {
		for _, e := range envvars.FromServices(src.ServicesIn(in.Pod.Namespace)) {
			env[e.Name] = e.Value
		}
	}
	env["KUBERNETES_SERVICE_HOST"] = in.APIHost
	env["KUBERNETES_SERVICE_PORT"] = in.APIPort
	env["KUBERNETES_SERVICE_PORT_HTTPS"] = in.APIPort
	env["KUBERNETES_PORT"] = "tcp://" + in.APIHost + ":" + in.APIPort
	for _, from := range in.Container.EnvFrom {
		if err := addAll(env, from, in.Pod.Namespace, src); err != nil {
			return nil, nil, err
		}
	}
	expand := expansion.MappingFuncFor(env)
	for _, e := range in.Container.Env {
		value, ok, err := one(e, in, src, expand)
		if err != nil {
			return nil, nil, err
		}
		if ok {
			env[e.Name] = value
		}
	}
	list := make([]string, 0, len(env))
	for k, v := range env {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return list, env, nil
}

func addAll(env map[string]string, from corev1.EnvFromSource, namespace string, src Source) error {
	add := func(key, value string) {
		if key = from.Prefix + key; len(validation.IsEnvVarName(key)) == 0 {
			env[key] = value
		}
	}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := src.ConfigMap(namespace, from.ConfigMapRef.Name)
		if err != nil {
			return missing(err, from.ConfigMapRef.Optional, "configmap", from.ConfigMapRef.Name)
		}
		for k, v := range cm.Data {
			add(k, v)
		}
	case from.SecretRef != nil:
		secret, err := src.Secret(namespace, from.SecretRef.Name)
		if err != nil {
			return missing(err, from.SecretRef.Optional, "secret", from.SecretRef.Name)
		}
		for k, v := range secret.Data {
			add(k, string(v))
		}
	}
	return nil
}

func missing(err error, optional *bool, kind, name string) error {
	if !apierrors.IsNotFound(err) {
		return err
	}
	if optional != nil && *optional {
		return nil
	}
	return &MissingError{fmt.Sprintf("%s %q not found", kind, name)}
}

func one(e corev1.EnvVar, in Inputs, src Source, expand func(string) string) (string, bool, error) {
	if e.ValueFrom == nil {
		return expansion.Expand(e.Value, expand), true, nil
	}
	switch ref := e.ValueFrom; {
	case ref.FieldRef != nil:
		v, err := Field(in.Pod, ref.FieldRef.FieldPath, in.PodIP, in.HostIP)
		return v, err == nil, err
	case ref.ResourceFieldRef != nil:
		v, err := Resource(in.Pod, in.Container.Name, ref.ResourceFieldRef)
		return v, err == nil, err
	case ref.ConfigMapKeyRef != nil:
		r := ref.ConfigMapKeyRef
		cm, err := src.ConfigMap(in.Pod.Namespace, r.Name)
		if err != nil {
			return "", false, missing(err, r.Optional, "configmap", r.Name)
		}
		if v, ok := cm.Data[r.Key]; ok {
			return v, true, nil
		}
		return "", false, noKey(r.Optional, "ConfigMap", in.Pod.Namespace, r.Name, r.Key)
	case ref.SecretKeyRef != nil:
		r := ref.SecretKeyRef
		secret, err := src.Secret(in.Pod.Namespace, r.Name)
		if err != nil {
			return "", false, missing(err, r.Optional, "secret", r.Name)
		}
		if v, ok := secret.Data[r.Key]; ok {
			return string(v), true, nil
		}
		return "", false, noKey(r.Optional, "Secret", in.Pod.Namespace, r.Name, r.Key)
	}
	return "", false, fmt.Errorf("env %s: this kind of valueFrom is not supported by devcluster", e.Name)
}

func noKey(optional *bool, kind, namespace, name, key string) error {
	if optional != nil && *optional {
		return nil
	}
	return &MissingError{fmt.Sprintf("couldn't find key %s in %s %s/%s", key, kind, namespace, name)}
}

// Field is the downward API's fieldRef.
func Field(pod *corev1.Pod, path, podIP, hostIP string) (string, error) {
	switch path {
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP", "status.podIPs":
		return podIP, nil
	case "status.hostIP", "status.hostIPs":
		return hostIP, nil
	}
	return fieldpath.ExtractFieldPathAsString(pod, path)
}

// Resource is the downward API's resourceFieldRef.
func Resource(pod *corev1.Pod, container string, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" {
		container = ref.ContainerName
	}
	return resource.ExtractResourceValueByContainerName(ref, pod, container)
}

// Hostname of a pod, cut to what the kernel takes.
func Hostname(pod *corev1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if len(name) > 63 {
		name = strings.TrimRight(name[:63], "-.")
	}
	return name
}

// Command joins entry point, command and args as Kubernetes defines it, with
// $(VAR) references expanded.
func Command(c *corev1.Container, entrypoint []string, env map[string]string) []string {
	expand := expansion.MappingFuncFor(env)
	head := entrypoint
	if len(c.Command) > 0 {
		head = nil
		for _, word := range c.Command {
			head = append(head, expansion.Expand(word, expand))
		}
	}
	out := append([]string{}, head...)
	for _, word := range c.Args {
		out = append(out, expansion.Expand(word, expand))
	}
	return out
}
