// Package node is the cluster's one node: it registers itself, runs the pods
// assigned to it as processes, and serves Services and volumes.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"time"

	vknode "github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"

	"llmops.dev/devcluster/internal/cluster"
	"llmops.dev/devcluster/internal/component"
	"llmops.dev/devcluster/internal/images"
	"llmops.dev/devcluster/internal/node/podip"
	"llmops.dev/devcluster/internal/provisioner"
	"llmops.dev/devcluster/internal/services"
	"llmops.dev/devcluster/internal/supervisor"
)

// NodeName is the node's name.
const NodeName = supervisor.NodeName

// shutdownPatience is how long pods may take to end when the cluster stops.
const shutdownPatience = 5 * time.Second

// Run is the node's process.
func Run(ctx context.Context, layout cluster.Layout) error {
	config, err := layout.LoadConfig()
	if err != nil {
		return err
	}
	if config == nil {
		return errors.New("the cluster has no settings")
	}
	client, err := connect(layout)
	if err != nil {
		return err
	}
	// Pods outlive the signal until they have been ended in order.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	addresses := cluster.Addresses{Slot: config.Slot}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: client.CoreV1().Events("")})
	defer broadcaster.Shutdown()
	events := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "devcluster-node", Host: NodeName})

	if err := retry(ctx, func() error { return provisioner.EnsureClass(ctx, client) }); err != nil {
		return fmt.Errorf("create the StorageClass: %w", err)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(stripManagedFields))
	provision := provisioner.New(client, factory, events, layout.Volumes())
	objs := &objects{client: client, factory: factory}
	m := &manager{
		ctx: life, client: client, objects: objs, events: events, layout: layout, hostIP: addresses.Infra(),
		images: images.NewTable(config.Images), apiHost: addresses.Infra(), apiPort: strconv.Itoa(cluster.PortAPI),
	}
	m.workers = map[types.UID]*worker{}
	if cluster.Privileged() {
		m.apiHost, m.apiPort = addresses.KubernetesService(), "443"
	}
	if m.ips, err = podip.NewPool(addresses.PodCIDR()); err != nil {
		return err
	}
	api := &server{m: m}
	listener, err := api.listen(layout, addresses.Endpoint(cluster.PortNode))
	if err != nil {
		return err
	}
	defer listener.Close()
	registered, err := register(ctx, client, config, addresses)
	if err != nil {
		return err
	}
	if config.Pods == cluster.PodsFake {
		err = startFake(life, client, factory)
	} else {
		err = startProcess(life, m, addresses)
	}
	if err != nil {
		return err
	}
	go provision.Run(life)
	api.ready.Store(true)
	select {
	case <-ctx.Done():
	case <-registered.Done():
		return fmt.Errorf("the node's registration ended: %w", registered.Err())
	}
	m.close(shutdownPatience)
	return nil
}

func connect(layout cluster.Layout) (kubernetes.Interface, error) {
	rest, err := clientcmd.BuildConfigFromFlags("", layout.UserKubeconfig(cluster.UserNode))
	if err != nil {
		return nil, fmt.Errorf("load the node's credentials: %w", err)
	}
	rest.UserAgent, rest.QPS = "devcluster-node", -1
	rest.ContentType, rest.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	return kubernetes.NewForConfig(rest)
}

func retry(ctx context.Context, do func() error) error {
	for {
		err := do()
		if err == nil {
			return nil
		}
		slog.Warn("trying again", "error", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// startProcess connects the watches to what depends on them.
func startProcess(ctx context.Context, m *manager, addresses cluster.Addresses) error {
	go m.images.Watch(ctx.Done())
	network := newNetwork(m, addresses)
	core := m.objects.factory.Core().V1()
	watch := func(informer cache.SharedIndexInformer, reference func(obj any) (namespace, ref string)) {
		tell := func(obj any) {
			if namespace, ref := reference(obj); ref != "" {
				m.changed(namespace, ref)
			}
		}
		_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: tell, UpdateFunc: func(_, obj any) { tell(obj) }})
	}
	watch(core.ConfigMaps().Informer(), func(obj any) (string, string) {
		cm := obj.(*corev1.ConfigMap)
		return cm.Namespace, "configmap/" + cm.Name
	})
	watch(core.Secrets().Informer(), func(obj any) (string, string) {
		s := obj.(*corev1.Secret)
		return s.Namespace, "secret/" + s.Name
	})
	watch(core.PersistentVolumeClaims().Informer(), func(obj any) (string, string) {
		return obj.(*corev1.PersistentVolumeClaim).Namespace, "claims"
	})
	watch(core.PersistentVolumes().Informer(), func(any) (string, string) { return "", "claims" })
	poke := func(any) { network.poke() }
	onNetwork := cache.ResourceEventHandlerFuncs{AddFunc: poke, UpdateFunc: func(_, obj any) { poke(obj) }, DeleteFunc: poke}
	_, _ = core.Services().Informer().AddEventHandler(onNetwork)
	_, _ = core.Pods().Informer().AddEventHandler(onNetwork)
	m.objects.factory.Start(ctx.Done())
	for kind, synced := range m.objects.factory.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("the watch of %s did not start", kind)
		}
	}
	m.removeOrphans()
	network.sync()
	go network.run(ctx)
	// Last: pods start with everything they need in place.
	registration, err := core.Pods().Informer().AddEventHandler(m.handler())
	if err != nil {
		return err
	}
	if !cache.WaitForCacheSync(ctx.Done(), registration.HasSynced) {
		return ctx.Err()
	}
	m.awaitReports(5 * time.Second)
	return nil
}

// network keeps the proxy and the names in step with Services and Pods.
type network struct {
	m     *manager
	proxy *services.Proxy
	dirty chan struct{}
}

func newNetwork(m *manager, addresses cluster.Addresses) *network {
	return &network{m: m, dirty: make(chan struct{}, 1), proxy: &services.Proxy{
		APIServer: addresses.Endpoint(cluster.PortAPI),
		Problem: func(s *corev1.Service, err error) {
			hint := "; does a pod listen on all addresses? It must listen on its own, $(POD_IP)"
			if !cluster.Privileged() {
				hint = "; as an ordinary user choose ports from 1024 on"
			}
			slog.Warn("a service cannot be reached", "service", s.Namespace+"/"+s.Name, "error", err)
			m.events.Eventf(s, corev1.EventTypeWarning, "ProxyFailed", "%v%s", err, hint)
		},
	}}
}

func (n *network) poke() { poke(n.dirty) }

func (n *network) sync() (again bool) {
	svcs, pods := n.m.objects.services(), n.m.objects.pods()
	again = n.proxy.Sync(svcs, pods)
	n.m.setNames(services.BuildNames(svcs, pods))
	return again
}

func (n *network) run(ctx context.Context) {
	for {
		var again <-chan time.Time
		if n.sync() {
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			n.proxy.Close()
			return
		case <-n.dirty:
		case <-again:
		}
		time.Sleep(5 * time.Millisecond) // gathers a burst of changes
	}
}

// register creates the node object and keeps its lease.
func register(ctx context.Context, client kubernetes.Interface, config *cluster.Config, addresses cluster.Addresses) (*vknode.NodeController, error) {
	spec, err := nodeObject(config, addresses)
	if err != nil {
		return nil, err
	}
	controller, err := vknode.NewNodeController(vknode.NaiveNodeProvider{}, spec, client.CoreV1().Nodes(),
		vknode.WithNodeEnableLeaseV1(client.CoordinationV1().Leases(corev1.NamespaceNodeLease), vknode.DefaultLeaseDuration),
		vknode.WithNodeStatusUpdateErrorHandler(func(_ context.Context, err error) error {
			slog.Warn("the node's status could not be written", "error", err)
			if _, gone := client.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{}); gone == nil {
				return nil
			}
			spec, err := nodeObject(config, addresses)
			if err == nil {
				_, err = client.CoreV1().Nodes().Create(ctx, spec, metav1.CreateOptions{})
			}
			return err
		}))
	if err != nil {
		return nil, err
	}
	go func() {
		if err := controller.Run(ctx); err != nil && ctx.Err() == nil {
			slog.Error("the node's registration failed", "error", err)
		}
	}()
	return controller, nil
}

func nodeObject(config *cluster.Config, addresses cluster.Addresses) (*corev1.Node, error) {
	capacity := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"),
		corev1.ResourcePods: resource.MustParse("5000"), corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"),
	}
	if config.Pods == cluster.PodsFake {
		capacity[corev1.ResourceCPU], capacity[corev1.ResourceMemory] = resource.MustParse("100k"), resource.MustParse("1Pi")
		capacity[corev1.ResourcePods] = resource.MustParse("100k")
	}
	for name, text := range config.Capacity {
		q, err := resource.ParseQuantity(text)
		if err != nil {
			return nil, fmt.Errorf("--capacity %s=%s: %w", name, text, err)
		}
		capacity[corev1.ResourceName(name)] = q
	}
	now := metav1.Now()
	cond := func(t corev1.NodeConditionType, status corev1.ConditionStatus, reason string) corev1.NodeCondition {
		return corev1.NodeCondition{Type: t, Status: status, Reason: reason, LastHeartbeatTime: now, LastTransitionTime: now}
	}
	labels := map[string]string{
		corev1.LabelHostname: NodeName, corev1.LabelOSStable: "linux", corev1.LabelArchStable: runtime.GOARCH,
		"node-role.kubernetes.io/worker": "",
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: NodeName, Labels: labels},
		Spec:       corev1.NodeSpec{ProviderID: "devcluster://" + NodeName},
		Status: corev1.NodeStatus{
			Capacity: capacity, Allocatable: capacity,
			Addresses: []corev1.NodeAddress{
				{Type: corev1.NodeInternalIP, Address: addresses.Infra()}, {Type: corev1.NodeHostName, Address: NodeName}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: cluster.PortNode}},
			NodeInfo: corev1.NodeSystemInfo{KubeletVersion: component.Version(), OperatingSystem: "linux", Architecture: runtime.GOARCH,
				OSImage: "this machine", ContainerRuntimeVersion: "devcluster://" + string(config.Pods)},
			Conditions: []corev1.NodeCondition{
				cond(corev1.NodeReady, corev1.ConditionTrue, "NodeReady"),
				cond(corev1.NodeMemoryPressure, corev1.ConditionFalse, "Sufficient"), cond(corev1.NodeDiskPressure, corev1.ConditionFalse, "Sufficient"),
				cond(corev1.NodePIDPressure, corev1.ConditionFalse, "Sufficient"), cond(corev1.NodeNetworkUnavailable, corev1.ConditionFalse, "Loopback"),
			},
		},
	}, nil
}

// stripManagedFields saves memory; nothing here reads them.
func stripManagedFields(obj any) (any, error) {
	if o, err := meta.Accessor(obj); err == nil {
		o.SetManagedFields(nil)
	}
	return obj, nil
}
