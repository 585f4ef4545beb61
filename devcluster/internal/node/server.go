package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
	"github.com/virtual-kubelet/virtual-kubelet/node/api"
	corev1 "k8s.io/api/core/v1"
	utilexec "k8s.io/client-go/util/exec"

	"llmops.dev/devcluster/internal/cluster"
	"llmops.dev/devcluster/internal/container"
	"llmops.dev/devcluster/internal/logfile"
)

// idleTimeout is of exec and port-forward streams; people leave shells open.
const idleTimeout = 4 * time.Hour

// server is the node's API, which the API server calls for logs, exec, attach and
// port-forward.
type server struct {
	m *manager
	// ready says that the node knows its pods; until then it is not healthy.
	ready atomic.Bool
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !s.ready.Load() {
			http.Error(w, "the node is still starting", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	// Not the library's: it cannot tell --tail=0 from no --tail.
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", s.logs)
	mux.Handle("/", api.PodHandler(api.PodHandlerConfig{
		RunInContainer:    s.exec,
		AttachToContainer: s.attach,
		PortForward:       s.portForward,
		GetPods:           s.pods, GetPodsFromKubernetes: s.pods,
		StreamIdleTimeout: idleTimeout, StreamCreationTimeout: idleTimeout,
	}, true))
	return mux
}

// listen requires the components' client certificate: exec is not for everybody on
// this machine.
func (s *server) listen(layout cluster.Layout, address string) (*http.Server, error) {
	pair, err := tls.LoadX509KeyPair(layout.PKI(cluster.FileCert), layout.PKI(cluster.FileKey))
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(layout.PKI(cluster.FileCA))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for the API server's calls: %w", err)
	}
	srv := &http.Server{
		Handler: s.handler(), ReadHeaderTimeout: 30 * time.Second,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, NextProtos: []string{"http/1.1"}},
	}
	go func() {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			slog.Error("the node's API ended", "error", err)
		}
	}()
	return srv, nil
}

func (s *server) pods(context.Context) ([]*corev1.Pod, error) { return s.m.objects.pods(), nil }

func (s *server) logs(w http.ResponseWriter, r *http.Request) {
	namespace, name, containerName := r.PathValue("namespace"), r.PathValue("pod"), r.PathValue("container")
	opts, err := logfile.ParseOptions(r.URL.Query(), time.Now())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	pod, err := s.m.objects.factory.Core().V1().Pods().Lister().Pods(namespace).Get(name)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	path, err := logfile.Find(filepath.Join(s.m.podDir(pod.UID), "containers", containerName), opts.Previous)
	if err != nil {
		http.Error(w, fmt.Sprintf("container %q in pod %q: %v", containerName, name, err), http.StatusBadRequest)
		return
	}
	ended := closed
	if run, err := s.running(namespace, name, containerName); err == nil && !opts.Previous {
		ended = run.Done()
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	if err := logfile.Copy(r.Context(), &flusher{w, http.NewResponseController(w)}, path, opts, ended); err != nil && r.Context().Err() == nil {
		slog.Warn("a log could not be sent", "pod", name, "error", err)
	}
}

var closed = func() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

type flusher struct {
	io.Writer
	control *http.ResponseController
}

func (f *flusher) Write(p []byte) (int, error) {
	n, err := f.Writer.Write(p)
	if err == nil {
		_ = f.control.Flush()
	}
	return n, err
}

func (s *server) running(namespace, pod, name string) (*container.Container, error) {
	w := s.m.find(namespace, pod)
	if w == nil {
		return nil, errdefs.NotFoundf("pod %s/%s is not running on this node", namespace, pod)
	}
	w.lock.Lock()
	defer w.lock.Unlock()
	run, ok := w.live[name]
	if !ok {
		return nil, errdefs.InvalidInputf("container %q of pod %s/%s is not running", name, namespace, pod)
	}
	return run, nil
}

func (s *server) exec(ctx context.Context, namespace, pod, name string, argv []string, attach api.AttachIO) error {
	run, err := s.running(namespace, pod, name)
	if err != nil {
		return err
	}
	streams := container.Streams{TTY: attach.TTY()}
	// Interfaces that hold a nil pointer are not nil: copy only what is there.
	if in := attach.Stdin(); in != nil {
		streams.Stdin = in
	}
	if out := attach.Stdout(); out != nil {
		streams.Stdout = out
	}
	if errs := attach.Stderr(); errs != nil {
		streams.Stderr = errs
	}
	if attach.TTY() {
		resize := make(chan container.Size)
		streams.Resize = resize
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			for {
				select {
				case size, ok := <-attach.Resize():
					if !ok {
						return
					}
					select {
					case resize <- container.Size{Width: size.Width, Height: size.Height}:
					case <-ctx.Done():
						return
					}
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	code, err := run.Exec(ctx, argv, streams)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// attach shows the output from now on; containers have no standard input.
func (s *server) attach(ctx context.Context, namespace, pod, name string, io api.AttachIO) error {
	run, err := s.running(namespace, pod, name)
	if err != nil {
		return err
	}
	path, err := logfile.Find(filepath.Join(s.m.find(namespace, pod).containerDir(name)), false)
	if err != nil {
		return err
	}
	if io.Stdout() == nil {
		return nil
	}
	return logfile.Copy(ctx, io.Stdout(), path, logfile.Options{Tail: 0, Follow: true}, run.Done())
}

func (s *server) portForward(ctx context.Context, namespace, pod string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	w := s.m.find(namespace, pod)
	if w == nil || w.address() == "" {
		return fmt.Errorf("pod %s/%s is not running on this node", namespace, pod)
	}
	var d net.Dialer
	// Programs listen on the pod's address, or, when they were told so, on localhost.
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(w.address(), strconv.Itoa(int(port))))
	if err != nil {
		return fmt.Errorf("connect to %s port %d: %s (the program must listen on the pod's address, $(POD_IP))",
			w.address(), port, strings.TrimPrefix(err.Error(), "dial tcp "))
	}
	defer conn.Close()
	copied := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
		copied <- err
	}()
	go func() {
		_, err := io.Copy(stream, conn)
		copied <- err
		copied <- err // the pod's end of the answer ends the forwarding
	}()
	for range 2 {
		select {
		case err := <-copied:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}
