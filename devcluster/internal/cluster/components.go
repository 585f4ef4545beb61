package cluster

import (
	"fmt"
	"os"
	"strings"
)

// Names of the components, in the order in which they start.
const (
	Etcd       = "etcd"
	APIServer  = "kube-apiserver"
	Controller = "kube-controller-manager"
	Scheduler  = "kube-scheduler"
	Node       = "node"
)

// Components lists all names in start order.
var Components = []string{Etcd, APIServer, Controller, Scheduler, Node}

// Arguments are those of one component, as its upstream program takes them.
func (l Layout) Arguments(name string, c *Config) []string {
	a := Addresses{Slot: c.Slot}
	cert, key, ca := l.PKI(FileCert), l.PKI(FileKey), l.PKI(FileCA)
	switch name {
	case Etcd:
		client, peer := "https://"+a.Endpoint(PortEtcd), "https://"+a.Endpoint(PortEtcdPeer)
		return []string{
			"--name=devcluster", "--data-dir=" + l.Etcd(),
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=devcluster=" + peer,
			"--cert-file=" + cert, "--key-file=" + key, "--trusted-ca-file=" + ca, "--client-cert-auth",
			"--peer-cert-file=" + cert, "--peer-key-file=" + key, "--peer-trusted-ca-file=" + ca, "--peer-client-cert-auth",
			// A killed process loses nothing without it, only a power cut does.
			"--unsafe-no-fsync",
			"--auto-compaction-mode=periodic", "--auto-compaction-retention=10m",
			"--quota-backend-bytes=4294967296", "--log-level=warn",
		}
	case APIServer:
		return []string{
			"--etcd-servers=https://" + a.Endpoint(PortEtcd), "--etcd-cafile=" + ca, "--etcd-certfile=" + cert, "--etcd-keyfile=" + key,
			"--bind-address=" + a.Infra(), "--advertise-address=" + a.Infra(), fmt.Sprintf("--secure-port=%d", PortAPI),
			"--tls-cert-file=" + cert, "--tls-private-key-file=" + key,
			"--service-cluster-ip-range=" + a.ServiceCIDR(), "--endpoint-reconciler-type=none",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + l.PKI(FileServiceKey), "--service-account-signing-key-file=" + l.PKI(FileServiceKey),
			"--token-auth-file=" + l.PKI(FileTokens), "--authorization-mode=RBAC",
			"--kubelet-certificate-authority=" + ca, "--kubelet-client-certificate=" + cert, "--kubelet-client-key=" + key,
			"--kubelet-preferred-address-types=InternalIP",
			"--audit-policy-file=" + l.PKI(FileAudit), "--audit-log-path=" + l.AuditLog(), "--audit-log-maxsize=2048", "--audit-log-maxbackup=1",
			"--allow-privileged=true", "--profiling=false", "--max-requests-inflight=2000", "--max-mutating-requests-inflight=1000",
			"--shutdown-delay-duration=0s", "--v=1",
		}
	case Controller:
		controllers := "*"
		if c.Pods == PodsProcess {
			// Pods have loopback addresses, which Kubernetes refuses in endpoints: these
			// controllers could only fail, again and again.
			controllers += ",-endpoints-controller,-endpointslice-controller,-endpointslice-mirroring-controller"
		}
		return []string{
			"--kubeconfig=" + l.UserKubeconfig(UserController), "--controllers=" + controllers,
			"--bind-address=" + a.Infra(), fmt.Sprintf("--secure-port=%d", PortController), "--tls-cert-file=" + cert, "--tls-private-key-file=" + key,
			"--authentication-skip-lookup", "--leader-elect=false", "--profiling=false",
			"--root-ca-file=" + ca, "--service-account-private-key-file=" + l.PKI(FileServiceKey),
			"--kube-api-qps=2000", "--kube-api-burst=4000",
			"--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20", "--concurrent-service-endpoint-syncs=20", "--concurrent-job-syncs=20", "--concurrent-gc-syncs=40",
			"--endpoint-updates-batch-period=100ms", "--endpointslice-updates-batch-period=100ms",
			"--horizontal-pod-autoscaler-sync-period=5s", "--pvclaimbinder-sync-period=5s", "--v=1",
		}
	case Scheduler:
		return []string{
			"--kubeconfig=" + l.UserKubeconfig(UserScheduler),
			"--bind-address=" + a.Infra(), fmt.Sprintf("--secure-port=%d", PortScheduler), "--tls-cert-file=" + cert, "--tls-private-key-file=" + key,
			"--authentication-skip-lookup", "--leader-elect=false", "--profiling=false",
			"--kube-api-qps=2000", "--kube-api-burst=4000", "--v=1",
		}
	case Node:
		return []string{l.Dir}
	}
	return nil
}

// ParseCapacity reads NAME=QUANTITY pairs.
func ParseCapacity(pairs []string) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range pairs {
		name, quantity, ok := strings.Cut(p, "=")
		if !ok || name == "" || quantity == "" {
			return nil, fmt.Errorf("--capacity %q: write NAME=QUANTITY, for example nvidia.com/gpu=2", p)
		}
		out[name] = quantity
	}
	return out, nil
}

// Privileged tells whether ports below 1024 can be listened on.
func Privileged() bool { return os.Geteuid() == 0 }
