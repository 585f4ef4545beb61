// Package volumes makes a pod's volumes folders of this machine and keeps those
// that come from API objects up to date.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	volumeutil "k8s.io/kubernetes/pkg/volume/util"

	"llmops.dev/devcluster/internal/container"
	"llmops.dev/devcluster/internal/node/environ"
)

// Source gives what volumes are made of.
type Source interface {
	environ.Source
	Claim(namespace, name string) (*corev1.PersistentVolumeClaim, error)
	Volume(name string) (*corev1.PersistentVolume, error)
	// Token asks for a ServiceAccount token bound to the pod.
	Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, time.Time, error)
}

// Pod holds one pod's volumes below a folder.
type Pod struct {
	dir    string
	source Source

	lock   sync.Mutex
	tokens map[string]token
}

type token struct {
	text    string
	refresh time.Time
}

// New does not touch the disk.
func New(dir string, source Source) *Pod {
	return &Pod{dir: dir, source: source, tokens: map[string]token{}}
}

// Prepare makes or refreshes all volumes and returns their paths by name. An
// error names the volume; it may go away when a referenced object appears.
func (p *Pod) Prepare(ctx context.Context, pod *corev1.Pod, podIP, hostIP string) (map[string]string, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	paths := map[string]string{}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		path, err := p.one(ctx, pod, v, podIP, hostIP)
		if err != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, err)
		}
		paths[v.Name] = path
	}
	return paths, nil
}

// NextRefresh is when the first token is due, or zero.
func (p *Pod) NextRefresh() time.Time {
	p.lock.Lock()
	defer p.lock.Unlock()
	var first time.Time
	for _, t := range p.tokens {
		if first.IsZero() || t.refresh.Before(first) {
			first = t.refresh
		}
	}
	return first
}

func (p *Pod) one(ctx context.Context, pod *corev1.Pod, v *corev1.Volume, podIP, hostIP string) (string, error) {
	own := filepath.Join(p.dir, v.Name)
	switch s := v.VolumeSource; {
	case s.EmptyDir != nil:
		return own, makeShared(own)
	case s.HostPath != nil:
		return s.HostPath.Path, checkHostPath(s.HostPath)
	case s.PersistentVolumeClaim != nil:
		return p.claim(pod.Namespace, s.PersistentVolumeClaim.ClaimName)
	case s.Ephemeral != nil:
		return p.claim(pod.Namespace, pod.Name+"-"+v.Name)
	}
	sources, mode, err := projection(v)
	if err != nil {
		return "", err
	}
	files := map[string]volumeutil.FileProjection{}
	for _, s := range sources {
		if err := p.project(ctx, pod, s, mode, podIP, hostIP, files); err != nil {
			return "", err
		}
	}
	return own, write(own, files)
}

// projection turns every API-backed volume into the sources of a projected one.
func projection(v *corev1.Volume) ([]corev1.VolumeProjection, int32, error) {
	mode := func(m *int32) int32 {
		if m != nil {
			return *m
		}
		return 0o644
	}
	switch s := v.VolumeSource; {
	case s.ConfigMap != nil:
		return []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{
			LocalObjectReference: s.ConfigMap.LocalObjectReference, Items: s.ConfigMap.Items, Optional: s.ConfigMap.Optional}}}, mode(s.ConfigMap.DefaultMode), nil
	case s.Secret != nil:
		return []corev1.VolumeProjection{{Secret: &corev1.SecretProjection{
			LocalObjectReference: corev1.LocalObjectReference{Name: s.Secret.SecretName}, Items: s.Secret.Items, Optional: s.Secret.Optional}}}, mode(s.Secret.DefaultMode), nil
	case s.DownwardAPI != nil:
		return []corev1.VolumeProjection{{DownwardAPI: &corev1.DownwardAPIProjection{Items: s.DownwardAPI.Items}}}, mode(s.DownwardAPI.DefaultMode), nil
	case s.Projected != nil:
		return s.Projected.Sources, mode(s.Projected.DefaultMode), nil
	}
	return nil, 0, errors.New("this kind of volume is not supported by devcluster (supported: configMap, secret, projected, downwardAPI, emptyDir, hostPath, persistentVolumeClaim, ephemeral)")
}

func (p *Pod) project(ctx context.Context, pod *corev1.Pod, s corev1.VolumeProjection, mode int32, podIP, hostIP string, files map[string]volumeutil.FileProjection) error {
	switch {
	case s.ConfigMap != nil:
		cm, err := p.source.ConfigMap(pod.Namespace, s.ConfigMap.Name)
		if err != nil {
			return optional(err, s.ConfigMap.Optional, "configmap", s.ConfigMap.Name)
		}
		data := map[string][]byte{}
		for k, v := range cm.Data {
			data[k] = []byte(v)
		}
		for k, v := range cm.BinaryData {
			data[k] = v
		}
		return addItems(files, data, s.ConfigMap.Items, mode, isTrue(s.ConfigMap.Optional), "configmap "+s.ConfigMap.Name)
	case s.Secret != nil:
		secret, err := p.source.Secret(pod.Namespace, s.Secret.Name)
		if err != nil {
			return optional(err, s.Secret.Optional, "secret", s.Secret.Name)
		}
		return addItems(files, secret.Data, s.Secret.Items, mode, isTrue(s.Secret.Optional), "secret "+s.Secret.Name)
	case s.DownwardAPI != nil:
		return addFields(files, pod, s.DownwardAPI.Items, mode, podIP, hostIP)
	case s.ServiceAccountToken != nil:
		text, err := p.token(ctx, pod, s.ServiceAccountToken)
		if err != nil {
			return fmt.Errorf("token of ServiceAccount %q: %w", pod.Spec.ServiceAccountName, err)
		}
		files[s.ServiceAccountToken.Path] = volumeutil.FileProjection{Data: []byte(text), Mode: 0o600}
		return nil
	}
	return errors.New("this kind of projected source is not supported by devcluster")
}

func isTrue(b *bool) bool { return b != nil && *b }

func optional(err error, is *bool, kind, name string) error {
	if apierrors.IsNotFound(err) {
		if isTrue(is) {
			return nil
		}
		return fmt.Errorf("%s %q not found", kind, name)
	}
	return err
}

func addItems(files map[string]volumeutil.FileProjection, data map[string][]byte, items []corev1.KeyToPath, mode int32, optional bool, of string) error {
	if len(items) == 0 {
		for k, v := range data {
			files[k] = volumeutil.FileProjection{Data: v, Mode: mode}
		}
		return nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("%s references non-existent key %q", of, item.Key)
		}
		m := mode
		if item.Mode != nil {
			m = *item.Mode
		}
		files[item.Path] = volumeutil.FileProjection{Data: v, Mode: m}
	}
	return nil
}

func addFields(files map[string]volumeutil.FileProjection, pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, mode int32, podIP, hostIP string) error {
	for _, item := range items {
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = environ.Field(pod, item.FieldRef.FieldPath, podIP, hostIP)
		case item.ResourceFieldRef != nil:
			text, err = environ.Resource(pod, item.ResourceFieldRef.ContainerName, item.ResourceFieldRef)
		}
		if err != nil {
			return fmt.Errorf("downwardAPI item %q: %w", item.Path, err)
		}
		m := mode
		if item.Mode != nil {
			m = *item.Mode
		}
		files[item.Path] = volumeutil.FileProjection{Data: []byte(text), Mode: m}
	}
	return nil
}

func (p *Pod) token(ctx context.Context, pod *corev1.Pod, s *corev1.ServiceAccountTokenProjection) (string, error) {
	key := s.Audience + "\x00" + s.Path
	if t, ok := p.tokens[key]; ok && time.Now().Before(t.refresh) {
		return t.text, nil
	}
	seconds := int64(3600)
	if s.ExpirationSeconds != nil {
		seconds = *s.ExpirationSeconds
	}
	text, expires, err := p.source.Token(ctx, pod, s.Audience, seconds)
	if err != nil {
		if t, ok := p.tokens[key]; ok {
			return t.text, nil // still valid for a while; tried again soon
		}
		return "", err
	}
	// At four fifths of its life, as the kubelet does.
	p.tokens[key] = token{text: text, refresh: time.Now().Add(time.Until(expires) * 4 / 5)}
	return text, nil
}

func (p *Pod) claim(namespace, name string) (string, error) {
	claim, err := p.source.Claim(namespace, name)
	if err != nil {
		return "", optional(err, nil, "persistentvolumeclaim", name)
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return "", fmt.Errorf("persistentvolumeclaim %q is not bound yet", name)
	}
	pv, err := p.source.Volume(claim.Spec.VolumeName)
	if err != nil {
		return "", optional(err, nil, "persistentvolume", claim.Spec.VolumeName)
	}
	switch {
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path, checkHostPath(pv.Spec.HostPath)
	case pv.Spec.Local != nil:
		_, err := os.Stat(pv.Spec.Local.Path)
		return pv.Spec.Local.Path, err
	}
	return "", fmt.Errorf("persistentvolume %q is neither hostPath nor local", pv.Name)
}

func checkHostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	info, err := os.Stat(h.Path)
	switch kind {
	case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
		if errors.Is(err, os.ErrNotExist) {
			return os.MkdirAll(h.Path, 0o755)
		}
		return err
	case corev1.HostPathFileOrCreate:
		if errors.Is(err, os.ErrNotExist) {
			return os.WriteFile(h.Path, nil, 0o644)
		}
		return err
	}
	if err != nil {
		return err
	}
	if isDir := kind == corev1.HostPathDirectory; isDir != info.IsDir() {
		return fmt.Errorf("hostPath %s is not a %s", h.Path, kind)
	}
	return nil
}

func makeShared(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	return os.Chmod(dir, 0o777)
}

// write swaps the whole content in one step, so that readers never see half of it.
func write(dir string, files map[string]volumeutil.FileProjection) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	writer, err := volumeutil.NewAtomicWriter(dir, dir)
	if err != nil {
		return err
	}
	return writer.Write(files, nil)
}

// Mounts are a container's, from the paths that Prepare returned.
func Mounts(c *corev1.Container, pod *corev1.Pod, paths, env map[string]string) ([]container.Mount, error) {
	api := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		s := v.VolumeSource
		api[v.Name] = s.ConfigMap != nil || s.Secret != nil || s.Projected != nil || s.DownwardAPI != nil
		if s.PersistentVolumeClaim != nil && s.PersistentVolumeClaim.ReadOnly {
			api[v.Name] = true
		}
	}
	var out []container.Mount
	for _, m := range c.VolumeMounts {
		source, ok := paths[m.Name]
		if !ok {
			return nil, fmt.Errorf("volumeMount %q: the pod has no such volume", m.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expandPath(m.SubPathExpr, env)
		}
		if sub != "" {
			var err error
			if source, err = subPath(source, sub, api[m.Name]); err != nil {
				return nil, fmt.Errorf("volumeMount %q: %w", m.Name, err)
			}
		}
		target := m.MountPath
		if !path.IsAbs(target) {
			target = "/" + target
		}
		out = append(out, container.Mount{Source: source, Target: target, ReadOnly: m.ReadOnly || api[m.Name]})
	}
	return out, nil
}

func expandPath(text string, env map[string]string) string {
	for k, v := range env {
		text = strings.ReplaceAll(text, "$("+k+")", v)
	}
	return text
}

// subPath resolves links, but not out of the volume, and creates a missing folder.
func subPath(volume, sub string, readOnly bool) (string, error) {
	full := filepath.Join(volume, sub)
	if _, err := os.Lstat(full); errors.Is(err, os.ErrNotExist) && !readOnly {
		if err := makeShared(full); err != nil {
			return "", err
		}
	}
	real, err := filepath.EvalSymlinks(full)
	if err != nil {
		return "", fmt.Errorf("subPath %q: %w", sub, err)
	}
	base, err := filepath.EvalSymlinks(volume)
	if err != nil {
		return "", err
	}
	if real != base && !strings.HasPrefix(real, base+"/") {
		return "", fmt.Errorf("subPath %q leads out of the volume", sub)
	}
	return real, nil
}
