package node

import (
	"context"
	"sort"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
)

// objects reads what pods refer to from watches, so that starting a pod costs the
// API server nothing but a token.
type objects struct {
	client  kubernetes.Interface
	factory informers.SharedInformerFactory
}

func (o *objects) ConfigMap(namespace, name string) (*corev1.ConfigMap, error) {
	return o.factory.Core().V1().ConfigMaps().Lister().ConfigMaps(namespace).Get(name)
}

func (o *objects) Secret(namespace, name string) (*corev1.Secret, error) {
	return o.factory.Core().V1().Secrets().Lister().Secrets(namespace).Get(name)
}

func (o *objects) Claim(namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	return o.factory.Core().V1().PersistentVolumeClaims().Lister().PersistentVolumeClaims(namespace).Get(name)
}

func (o *objects) Volume(name string) (*corev1.PersistentVolume, error) {
	return o.factory.Core().V1().PersistentVolumes().Lister().Get(name)
}

func (o *objects) services() []*corev1.Service {
	list, _ := o.factory.Core().V1().Services().Lister().List(labels.Everything())
	return list
}

func (o *objects) pods() []*corev1.Pod {
	list, _ := o.factory.Core().V1().Pods().Lister().List(labels.Everything())
	return list
}

func (o *objects) ServicesIn(namespace string) []*corev1.Service {
	list, _ := o.factory.Core().V1().Services().Lister().Services(namespace).List(labels.Everything())
	var out []*corev1.Service
	for _, s := range list {
		if s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone {
			out = append(out, s)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (o *objects) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error) {
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	name := pod.Spec.ServiceAccountName
	if name == "" {
		name = "default"
	}
	got, err := o.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, name, req, metav1.CreateOptions{})
	if err != nil {
		return "", time.Time{}, err
	}
	return got.Status.Token, got.Status.ExpirationTimestamp.Time, nil
}

// references lists the ConfigMaps and Secrets that a pod's volumes and environments name.
func references(pod *corev1.Pod) map[string]bool {
	out := map[string]bool{}
	config := func(name string) { out["configmap/"+name] = true }
	secret := func(name string) { out["secret/"+name] = true }
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap != nil {
			config(v.ConfigMap.Name)
		}
		if v.Secret != nil {
			secret(v.Secret.SecretName)
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil {
					config(s.ConfigMap.Name)
				}
				if s.Secret != nil {
					secret(s.Secret.Name)
				}
			}
		}
		if v.PersistentVolumeClaim != nil || v.Ephemeral != nil {
			out["claims"] = true
		}
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for _, c := range list {
			for _, e := range c.EnvFrom {
				if e.ConfigMapRef != nil {
					config(e.ConfigMapRef.Name)
				}
				if e.SecretRef != nil {
					secret(e.SecretRef.Name)
				}
			}
			for _, e := range c.Env {
				if e.ValueFrom == nil {
					continue
				}
				if e.ValueFrom.ConfigMapKeyRef != nil {
					config(e.ValueFrom.ConfigMapKeyRef.Name)
				}
				if e.ValueFrom.SecretKeyRef != nil {
					secret(e.ValueFrom.SecretKeyRef.Name)
				}
			}
		}
	}
	return out
}
