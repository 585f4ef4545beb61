package probes

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Target is what probes and lifecycle hooks reach.
type Target struct {
	PodIP string
	// Ports resolves named ports.
	Ports []corev1.ContainerPort
	// Exec runs a command in the container and returns its exit code and output.
	Exec func(ctx context.Context, argv []string) (int, string, error)
}

// Port resolves a number or a name.
func (t Target) Port(p intstr.IntOrString) (int, error) {
	if p.Type == intstr.Int {
		return p.IntValue(), nil
	}
	for _, port := range t.Ports {
		if port.Name == p.StrVal {
			return int(port.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(p.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("the container has no port named %q", p.StrVal)
}

// Run performs one probe. A nil error is success.
func Run(ctx context.Context, probe *corev1.Probe, t Target) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(max(probe.TimeoutSeconds, 1))*time.Second)
	defer cancel()
	switch {
	case probe.HTTPGet != nil:
		return HTTPGet(ctx, probe.HTTPGet, t)
	case probe.TCPSocket != nil:
		return tcp(ctx, probe.TCPSocket, t)
	case probe.Exec != nil:
		return Exec(ctx, probe.Exec, t)
	case probe.GRPC != nil:
		return grpcHealth(ctx, probe.GRPC, t)
	}
	return errors.New("the probe has no handler")
}

// Exec succeeds when the command exits with 0.
func Exec(ctx context.Context, action *corev1.ExecAction, t Target) error {
	code, output, err := t.Exec(ctx, action.Command)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("command %q exited with %d: %s", strings.Join(action.Command, " "), code, strings.TrimSpace(output))
	}
	return nil
}

// client follows no redirects: they count as success, as for the kubelet when they leave the host.
var client = &http.Client{
	Transport: &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // probes do not verify, as documented by Kubernetes
		DisableKeepAlives: true,
		Proxy:             nil,
	},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

// HTTPGet succeeds on any status from 200 to 399.
func HTTPGet(ctx context.Context, action *corev1.HTTPGetAction, t Target) error {
	port, err := t.Port(action.Port)
	if err != nil {
		return err
	}
	host := action.Host
	if host == "" {
		host = t.PodIP
	}
	scheme := strings.ToLower(string(action.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	url := scheme + "://" + net.JoinHostPort(host, strconv.Itoa(port)) + "/" + strings.TrimPrefix(action.Path, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "kube-probe/1.37")
	req.Header.Set("Accept", "*/*")
	for _, h := range action.HTTPHeaders {
		if strings.EqualFold(h.Name, "Host") {
			req.Host = h.Value
		} else {
			req.Header.Set(h.Name, h.Value)
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return fmt.Errorf("HTTP probe failed with statuscode: %d: %s", resp.StatusCode, strings.TrimSpace(string(body)))
	}
	return nil
}

func tcp(ctx context.Context, action *corev1.TCPSocketAction, t Target) error {
	port, err := t.Port(action.Port)
	if err != nil {
		return err
	}
	host := action.Host
	if host == "" {
		host = t.PodIP
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return conn.Close()
}

func grpcHealth(ctx context.Context, action *corev1.GRPCAction, t Target) error {
	conn, err := grpc.NewClient("passthrough:///"+net.JoinHostPort(t.PodIP, strconv.Itoa(int(action.Port))), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	service := ""
	if action.Service != nil {
		service = *action.Service
	}
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	if err != nil {
		return err
	}
	if resp.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("service %q is %s", service, resp.GetStatus())
	}
	return nil
}

// Loop probes until ctx ends. report gets every result that is past its threshold;
// failed gets each single failure, for the pod's events.
func Loop(ctx context.Context, probe *corev1.Probe, t Target, tracker Tracker, report func(healthy bool, err error), failed func(error)) {
	tracker.SuccessThreshold, tracker.FailureThreshold = int(probe.SuccessThreshold), int(probe.FailureThreshold)
	if !sleep(ctx, time.Duration(probe.InitialDelaySeconds)*time.Second) {
		return
	}
	period := time.Duration(max(probe.PeriodSeconds, 1)) * time.Second
	for {
		err := Run(ctx, probe, t)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			failed(err)
		}
		if tracker.Observe(err == nil) {
			report(err == nil, err)
		}
		if !sleep(ctx, period) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
