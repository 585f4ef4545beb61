package services

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Proxy listens on the ClusterIPs, which are loopback addresses of the cluster's
// own, and joins each connection to a pod's.
type Proxy struct {
	// APIServer is where default/kubernetes leads, which has no selector.
	APIServer string
	// Problem is told when a service's port cannot be listened on.
	Problem func(service *corev1.Service, err error)

	lock   sync.Mutex
	fronts map[string]*front
}

// front is one ClusterIP and port. It listens only while there is somebody to
// answer, so that others get "connection refused", as from a real cluster.
type front struct {
	address  string
	listener net.Listener
	backends atomic.Pointer[[]string]
	next     atomic.Uint64
	complain bool
}

// Sync makes the listeners fit; connections that exist are left alone. It returns
// true when a port could not be listened on and should be tried again.
func (p *Proxy) Sync(services []*corev1.Service, pods []*corev1.Pod) (again bool) {
	byPod := indexPods(pods)
	type wanted struct {
		service  *corev1.Service
		backends []string
	}
	want := map[string]wanted{}
	for _, s := range services {
		if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || s.Spec.Type == corev1.ServiceTypeExternalName {
			continue
		}
		serving := byPod.serving(s)
		for i := range s.Spec.Ports {
			port := &s.Spec.Ports[i]
			if port.Protocol != corev1.ProtocolTCP && port.Protocol != "" {
				continue
			}
			w := wanted{service: s}
			for _, pod := range serving {
				if t, ok := target(pod, port); ok {
					w.backends = append(w.backends, t)
				}
			}
			if s.Namespace == "default" && s.Name == "kubernetes" {
				w.backends = []string{p.APIServer}
			}
			want[net.JoinHostPort(s.Spec.ClusterIP, strconv.Itoa(int(port.Port)))] = w
		}
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.fronts == nil {
		p.fronts = map[string]*front{}
	}
	for address, f := range p.fronts {
		if len(want[address].backends) == 0 {
			f.close()
			delete(p.fronts, address)
		}
	}
	for address, w := range want {
		if len(w.backends) == 0 {
			continue
		}
		f := p.fronts[address]
		if f == nil {
			f = &front{address: address, complain: true}
			p.fronts[address] = f
		}
		f.backends.Store(&w.backends)
		if f.listener == nil {
			if err := f.listen(); err != nil {
				again = true
				if f.complain && p.Problem != nil {
					f.complain = false
					p.Problem(w.service, fmt.Errorf("listen on %s: %w", address, err))
				}
			}
		}
	}
	return again
}

// Close ends all listeners.
func (p *Proxy) Close() {
	p.lock.Lock()
	defer p.lock.Unlock()
	for _, f := range p.fronts {
		f.close()
	}
	p.fronts = nil
}

func (f *front) listen() error {
	l, err := net.Listen("tcp4", f.address)
	if err != nil {
		return err
	}
	f.listener = l
	go func() {
		for {
			conn, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // out of descriptors, say
				slog.Warn("accept failed", "address", f.address, "error", err)
				time.Sleep(50 * time.Millisecond)
				continue
			}
			go f.serve(conn.(*net.TCPConn))
		}
	}()
	return nil
}

func (f *front) close() {
	if f.listener != nil {
		f.listener.Close()
	}
}

func (f *front) serve(client *net.TCPConn) {
	defer client.Close()
	backend := f.dial()
	if backend == nil {
		_ = client.SetLinger(0) // a reset, so that the client does not take it for an answer
		return
	}
	defer backend.Close()
	join(client, backend)
}

// dial goes round the pods; one that refuses, because it is just ending, is passed over.
func (f *front) dial() *net.TCPConn {
	for attempt := range 3 {
		backends := *f.backends.Load() // may have changed since the last attempt
		first := f.next.Add(1)
		for i := range backends {
			conn, err := net.DialTimeout("tcp4", backends[(first+uint64(i))%uint64(len(backends))], 2*time.Second)
			if err == nil {
				return conn.(*net.TCPConn)
			}
		}
		if attempt < 2 {
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}

// join copies both ways until both are done. There is no idle timeout, and each
// direction ends by itself, so that half-closed connections work. Go switches
// Nagle's algorithm off on every TCP connection.
func join(a, b *net.TCPConn) {
	var both sync.WaitGroup
	for _, pair := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		both.Add(1)
		go func() {
			defer both.Done()
			if _, err := io.Copy(pair[0], pair[1]); err != nil {
				// A reset on one side is one on the other.
				_ = a.SetLinger(0)
				_ = b.SetLinger(0)
				a.Close()
				b.Close()
				return
			}
			_ = pair[0].CloseWrite()
		}()
	}
	both.Wait()
}
