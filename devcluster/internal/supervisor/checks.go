package supervisor

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"llmops.dev/devcluster/internal/cluster"
)

// NodeName is the one node's name.
const NodeName = "devcluster"

// checks asks the components whether they are ready.
type checks struct {
	addresses cluster.Addresses
	http      *http.Client
	kube      kubernetes.Interface
}

func newChecks(layout cluster.Layout, config *cluster.Config) (*checks, error) {
	ca, err := os.ReadFile(layout.PKI(cluster.FileCA))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	pair, err := tls.LoadX509KeyPair(layout.PKI(cluster.FileCert), layout.PKI(cluster.FileKey))
	if err != nil {
		return nil, fmt.Errorf("load the components' certificate: %w", err)
	}
	rest, err := clientcmd.BuildConfigFromFlags("", layout.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", layout.Kubeconfig(), err)
	}
	rest.UserAgent, rest.QPS = "devcluster-supervisor", -1
	kube, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return nil, err
	}
	return &checks{
		addresses: cluster.Addresses{Slot: config.Slot}, kube: kube,
		http: &http.Client{
			Timeout:   2 * time.Second,
			Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}, DisableKeepAlives: true},
		},
	}, nil
}

func (c *checks) get(ctx context.Context, port int, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+c.addresses.Endpoint(port)+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 2000))
		return fmt.Errorf("%s answers %s: %s", path, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

func (c *checks) etcd(ctx context.Context) error { return c.get(ctx, cluster.PortEtcd, "/health") }
func (c *checks) apiServer(ctx context.Context) error {
	return c.get(ctx, cluster.PortAPI, "/readyz")
}
func (c *checks) controllerManager(ctx context.Context) error {
	return c.get(ctx, cluster.PortController, "/healthz")
}
func (c *checks) scheduler(ctx context.Context) error {
	return c.get(ctx, cluster.PortScheduler, "/readyz")
}

func (c *checks) serviceAccount(ctx context.Context) error {
	_, err := c.kube.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
	return err
}

func (c *checks) node(ctx context.Context) error {
	node, err := c.kube.CoreV1().Nodes().Get(ctx, NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, cond := range node.Status.Conditions {
		// The heartbeat distinguishes this start from what the last one left in etcd.
		if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue && c.get(ctx, cluster.PortNode, "/healthz") == nil {
			return nil
		}
	}
	return errors.New("the node is not Ready")
}

// startTimeout is how long one step of the start may take on a busy machine.
const startTimeout = 3 * time.Minute

func waitFor(ctx context.Context, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("not ready after %s", startTimeout))
	defer cancel()
	for {
		err := check(ctx)
		if crash := (*crashError)(nil); err == nil || errors.As(err, &crash) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last answer: %w)", context.Cause(ctx), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
