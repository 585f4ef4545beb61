package environ

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

type objects struct{}

func (objects) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if name != "settings" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
	}
	return &corev1.ConfigMap{Data: map[string]string{"COLOUR": "red", "not a name": "x"}}, nil
}

func (objects) Secret(_, name string) (*corev1.Secret, error) {
	if name != "keys" {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
	}
	return &corev1.Secret{Data: map[string][]byte{"TOKEN": []byte("s3cret")}}, nil
}

func (objects) ServicesIn(string) []*corev1.Service {
	return []*corev1.Service{{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{ClusterIP: "127.96.1.1", Ports: []corev1.ServicePort{{Port: 80, Protocol: "TCP"}}}}}
}

func inputs(c corev1.Container) Inputs {
	c.Name = "c"
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", Labels: map[string]string{"app": "x"}}}
	pod.Spec.Containers = []corev1.Container{c}
	return Inputs{Pod: pod, Container: &pod.Spec.Containers[0], PodIP: "127.97.0.1", ImageEnv: map[string]string{"COLOUR": "blue", "BASE": "b"}, APIHost: "127.96.0.1", APIPort: "443"}
}

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func TestResolve(t *testing.T) {
	in := inputs(corev1.Container{
		EnvFrom: []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
			{Prefix: "S_", SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}},
		},
		Env: []corev1.EnvVar{
			{Name: "IP", ValueFrom: field("status.podIP")},
			{Name: "APP", ValueFrom: field("metadata.labels['app']")},
			{Name: "ADDR", Value: "$(IP):80 $$(IP) $(NONE)"},
			{Name: "LIMIT", ValueFrom: &corev1.EnvVarSource{ResourceFieldRef: &corev1.ResourceFieldSelector{Resource: "limits.memory"}}},
		},
		Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"memory": apiresource.MustParse("64Mi")}},
	})
	_, env, err := Resolve(in, objects{})
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"COLOUR": "red", "BASE": "b", "S_TOKEN": "s3cret", "IP": "127.97.0.1", "APP": "x", "ADDR": "127.97.0.1:80 $(IP) $(NONE)",
		"LIMIT": "67108864", "WEB_SERVICE_HOST": "127.96.1.1", "KUBERNETES_SERVICE_PORT": "443", "HOSTNAME": "p",
	} {
		if env[k] != want {
			t.Errorf("%s=%q, want %q", k, env[k], want)
		}
	}
	off := false
	in.Pod.Spec.EnableServiceLinks = &off
	if _, env, _ = Resolve(in, objects{}); env["WEB_SERVICE_HOST"] != "" || env["KUBERNETES_SERVICE_HOST"] == "" {
		t.Error("enableServiceLinks: false")
	}
}

func TestMissingReferences(t *testing.T) {
	ref := corev1.LocalObjectReference{Name: "keys"}
	yes := true
	for want, e := range map[string]corev1.EnvVar{
		`secret "nope" not found`:                  {Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "nope"}, Key: "k"}}},
		"couldn't find key NOPE in Secret ns/keys": {Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref, Key: "NOPE"}}},
		"": {Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: ref, Key: "NOPE", Optional: &yes}}},
	} {
		_, env, err := Resolve(inputs(corev1.Container{Env: []corev1.EnvVar{e}}), objects{})
		var gone *MissingError
		if want == "" {
			if _, set := env["A"]; err != nil || set {
				t.Errorf("optional: %v, %v", env["A"], err)
			}
		} else if !errors.As(err, &gone) || gone.Message != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestCommand(t *testing.T) {
	env := map[string]string{"IP": "1.2.3.4"}
	for want, c := range map[string]corev1.Container{
		"/bin/image":                      {},
		"/bin/image serve --host=1.2.3.4": {Args: []string{"serve", "--host=$(IP)"}},
		"sh -c":                           {Command: []string{"sh", "-c"}},
		"sh -c x":                         {Command: []string{"sh", "-c"}, Args: []string{"x"}},
	} {
		if got := strings.Join(Command(&c, []string{"/bin/image"}, env), " "); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
