package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

type objects struct {
	config map[string]string
	claim  corev1.PersistentVolumeClaim
	volume corev1.PersistentVolume
	life   time.Duration
	tokens int
	broken bool
}

func notFound(name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: "things"}, name)
}

func (o *objects) ConfigMap(_, name string) (*corev1.ConfigMap, error) {
	if name != "config" {
		return nil, notFound(name)
	}
	return &corev1.ConfigMap{Data: o.config, BinaryData: map[string][]byte{"raw": {0, 1}}}, nil
}
func (o *objects) Secret(_, name string) (*corev1.Secret, error) { return nil, notFound(name) }
func (o *objects) ServicesIn(string) []*corev1.Service           { return nil }
func (o *objects) Claim(_, name string) (*corev1.PersistentVolumeClaim, error) {
	return &o.claim, nil
}
func (o *objects) Volume(string) (*corev1.PersistentVolume, error) { return &o.volume, nil }
func (o *objects) Token(context.Context, *corev1.Pod, string, int64) (string, time.Time, error) {
	if o.broken {
		return "", time.Time{}, errors.New("the API server is away")
	}
	o.tokens++
	return strings.Repeat("t", o.tokens), time.Now().Add(o.life), nil
}

func podWith(volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns"}, Spec: corev1.PodSpec{Volumes: volumes}}
}

func configVolume(items ...corev1.KeyToPath) corev1.Volume {
	return corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: "config"}, Items: items}}}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestConfigMapFollowsChanges(t *testing.T) {
	o := &objects{config: map[string]string{"a": "1", "b": "2"}}
	p := New(t.TempDir(), o)
	prepare := func() string {
		t.Helper()
		paths, err := p.Prepare(context.Background(), podWith(configVolume()), "", "")
		if err != nil {
			t.Fatal(err)
		}
		return paths["v"]
	}
	dir := prepare()
	if content(t, dir+"/a") != "1" || content(t, dir+"/raw") != "\x00\x01" {
		t.Error("first content")
	}
	o.config = map[string]string{"a": "changed"}
	prepare()
	if content(t, dir+"/a") != "changed" {
		t.Error("the change is not seen")
	}
	if _, err := os.Stat(dir + "/b"); err == nil {
		t.Error("a removed key is still there")
	}
}

func TestItemsAndMissingThings(t *testing.T) {
	o := &objects{config: map[string]string{"a": "1"}}
	mode := int32(0o400)
	yes := true
	prepare := func(v corev1.Volume) (string, error) {
		dir := t.TempDir()
		paths, err := New(dir, o).Prepare(context.Background(), podWith(v), "", "")
		return paths["v"], err
	}
	dir, err := prepare(configVolume(corev1.KeyToPath{Key: "a", Path: "deep/er", Mode: &mode}))
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(filepath.Join(dir, "deep/er")); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := prepare(configVolume(corev1.KeyToPath{Key: "no", Path: "x"})); err == nil || !strings.Contains(err.Error(), `"no"`) {
		t.Errorf("missing key: %v", err)
	}
	secret := corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "later"}}}
	if _, err := prepare(secret); err == nil || err.Error() != `volume "v": secret "later" not found` {
		t.Errorf("missing secret: %v", err)
	}
	secret.Secret.Optional = &yes
	if _, err := prepare(secret); err != nil {
		t.Errorf("optional secret: %v", err)
	}
	nfs := corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}}
	if _, err := prepare(nfs); err == nil || !strings.Contains(err.Error(), "not supported") {
		t.Errorf("nfs: %v", err)
	}
}

func TestTokensAreRenewedAndKept(t *testing.T) {
	o := &objects{life: time.Hour}
	volume := corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}}
	p := New(t.TempDir(), o)
	prepare := func() string {
		t.Helper()
		paths, err := p.Prepare(context.Background(), podWith(volume), "", "")
		if err != nil {
			t.Fatal(err)
		}
		return content(t, paths["v"]+"/token")
	}
	if prepare() != "t" || prepare() != "t" {
		t.Error("a fresh token was asked for again")
	}
	if due := time.Until(p.NextRefresh()); due < 47*time.Minute || due > 48*time.Minute {
		t.Errorf("renewal in %s, want four fifths of an hour", due)
	}
	o.life = -time.Second
	for key, tok := range p.tokens {
		tok.refresh = time.Now().Add(-time.Second)
		p.tokens[key] = tok
	}
	if prepare() != "tt" || prepare() != "ttt" {
		t.Error("an old token was not renewed")
	}
	o.broken = true
	if prepare() != "ttt" {
		t.Error("the last token must stay while the API server is away")
	}
}

func TestClaims(t *testing.T) {
	o := &objects{}
	disk := t.TempDir()
	pod := podWith(corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}})
	if _, err := New(t.TempDir(), o).Prepare(context.Background(), pod, "", ""); err == nil || !strings.Contains(err.Error(), "not bound") {
		t.Errorf("unbound: %v", err)
	}
	o.claim.Status.Phase, o.claim.Spec.VolumeName = corev1.ClaimBound, "pv"
	o.volume.Spec.HostPath = &corev1.HostPathVolumeSource{Path: disk}
	if paths, err := New(t.TempDir(), o).Prepare(context.Background(), pod, "", ""); err != nil || paths["v"] != disk {
		t.Errorf("bound: %v, %v", paths, err)
	}
}

func TestMounts(t *testing.T) {
	volume := t.TempDir()
	if err := os.WriteFile(volume+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", volume+"/out"); err != nil {
		t.Fatal(err)
	}
	pod := podWith(configVolume(), corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
	paths := map[string]string{"v": volume, "data": volume}
	mounts := func(m corev1.VolumeMount) (string, bool, error) {
		got, err := Mounts(&corev1.Container{VolumeMounts: []corev1.VolumeMount{m}}, pod, paths, map[string]string{"POD": "p-0"})
		if err != nil {
			return "", false, err
		}
		return got[0].Source, got[0].ReadOnly, nil
	}
	if source, ro, err := mounts(corev1.VolumeMount{Name: "v", MountPath: "/x"}); err != nil || source != volume || !ro {
		t.Errorf("a ConfigMap is read-only: %s, %v, %v", source, ro, err)
	}
	if source, ro, err := mounts(corev1.VolumeMount{Name: "data", MountPath: "/x", SubPathExpr: "logs/$(POD)"}); err != nil || source != volume+"/logs/p-0" || ro {
		t.Errorf("subPathExpr: %s, %v, %v", source, ro, err)
	}
	if _, _, err := mounts(corev1.VolumeMount{Name: "data", MountPath: "/x", SubPath: "out"}); err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Errorf("a link out of the volume: %v", err)
	}
	if _, _, err := mounts(corev1.VolumeMount{Name: "v", MountPath: "/x", SubPath: "none"}); err == nil {
		t.Error("a missing subPath of a ConfigMap")
	}
	if _, _, err := mounts(corev1.VolumeMount{Name: "nope", MountPath: "/x"}); err == nil {
		t.Error("a missing volume")
	}
}
