// Package provisioner serves the StorageClass `standard`: a PersistentVolume is a
// folder of the cluster's directory.
package provisioner

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
)

const (
	// ClassName is the default StorageClass.
	ClassName = "standard"
	// Name is the provisioner in the StorageClass.
	Name = "llmops.dev/devcluster"

	provisionedBy = "pv.kubernetes.io/provisioned-by"
)

// Provisioner creates and deletes folders and their PersistentVolumes.
type Provisioner struct {
	client   kubernetes.Interface
	informer informers.SharedInformerFactory
	events   record.EventRecorder
	folder   string
	wake     chan struct{}
}

// New registers with the informers, which the caller starts.
func New(client kubernetes.Interface, factory informers.SharedInformerFactory, events record.EventRecorder, folder string) *Provisioner {
	p := &Provisioner{client: client, informer: factory, events: events, folder: folder, wake: make(chan struct{}, 1)}
	poke := func(any) {
		select {
		case p.wake <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, n any) { poke(n) }, DeleteFunc: poke}
	_, _ = factory.Core().V1().PersistentVolumeClaims().Informer().AddEventHandler(handler)
	_, _ = factory.Core().V1().PersistentVolumes().Informer().AddEventHandler(handler)
	return p
}

// EnsureClass creates the StorageClass once; changed by someone, it stays changed.
func EnsureClass(ctx context.Context, client kubernetes.Interface) error {
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingImmediate
	_, err := client.StorageV1().StorageClasses().Create(ctx, &storagev1.StorageClass{
		ObjectMeta:  metav1.ObjectMeta{Name: ClassName, Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner: Name, ReclaimPolicy: &reclaim, VolumeBindingMode: &binding,
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// Run works until ctx ends.
func (p *Provisioner) Run(ctx context.Context) {
	for {
		wait := 30 * time.Second
		if err := p.sync(ctx); err != nil && ctx.Err() == nil {
			slog.Warn("volumes could not be provisioned; trying again", "error", err)
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-time.After(wait):
		}
	}
}

func (p *Provisioner) sync(ctx context.Context) error {
	claims, err := p.informer.Core().V1().PersistentVolumeClaims().Lister().List(labels.Everything())
	if err != nil {
		return err
	}
	volumes, err := p.informer.Core().V1().PersistentVolumes().Lister().List(labels.Everything())
	if err != nil {
		return err
	}
	var problems []error
	for _, c := range claims {
		if p.ours(c) {
			problems = append(problems, p.provision(ctx, c))
		}
	}
	for _, v := range volumes {
		if v.Status.Phase == corev1.VolumeReleased && v.DeletionTimestamp == nil && v.Annotations[provisionedBy] == Name &&
			v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete {
			problems = append(problems, p.remove(ctx, v))
		}
	}
	return errors.Join(problems...)
}

func (p *Provisioner) ours(c *corev1.PersistentVolumeClaim) bool {
	if c.Status.Phase != corev1.ClaimPending || c.Spec.VolumeName != "" || c.DeletionTimestamp != nil || c.Spec.StorageClassName == nil {
		return false
	}
	class, err := p.client.StorageV1().StorageClasses().Get(context.Background(), *c.Spec.StorageClassName, metav1.GetOptions{})
	return err == nil && class.Provisioner == Name
}

func volumeName(c *corev1.PersistentVolumeClaim) string { return "pvc-" + string(c.UID) }

func (p *Provisioner) provision(ctx context.Context, c *corev1.PersistentVolumeClaim) error {
	name := volumeName(c)
	if _, err := p.informer.Core().V1().PersistentVolumes().Lister().Get(name); err == nil {
		return nil // being bound
	}
	if c.Spec.VolumeMode != nil && *c.Spec.VolumeMode == corev1.PersistentVolumeBlock {
		p.events.Event(c, corev1.EventTypeWarning, "ProvisioningFailed", "devcluster has no block volumes; set volumeMode: Filesystem")
		return nil
	}
	path := filepath.Join(p.folder, name)
	if err := os.MkdirAll(path, 0o777); err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil {
		return err
	}
	kind := corev1.HostPathDirectory
	mode := corev1.PersistentVolumeFilesystem
	_, err := p.client.CoreV1().PersistentVolumes().Create(ctx, &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{provisionedBy: Name}},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: c.Spec.AccessModes, VolumeMode: &mode, StorageClassName: *c.Spec.StorageClassName,
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
			PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path, Type: &kind}},
			ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", APIVersion: "v1",
				Namespace: c.Namespace, Name: c.Name, UID: c.UID},
		},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create the volume of %s/%s: %w", c.Namespace, c.Name, err)
	}
	return nil
}

// remove deletes only folders that it made itself.
func (p *Provisioner) remove(ctx context.Context, v *corev1.PersistentVolume) error {
	if v.Spec.HostPath != nil && v.Spec.HostPath.Path == filepath.Join(p.folder, v.Name) {
		if err := os.RemoveAll(v.Spec.HostPath.Path); err != nil {
			return err
		}
	}
	err := p.client.CoreV1().PersistentVolumes().Delete(ctx, v.Name, metav1.DeleteOptions{Preconditions: metav1.NewUIDPreconditions(string(v.UID))})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
