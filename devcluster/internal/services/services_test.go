package services

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(name, ip string, isReady bool, port int32) *corev1.Pod {
	status := corev1.ConditionFalse
	if isReady {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: map[string]string{"app": "x"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: port, Protocol: "TCP"}}}}},
		Status:     corev1.PodStatus{PodIP: ip, Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}},
	}
}

func service(name, ip string, port int32) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"},
		Spec: corev1.ServiceSpec{ClusterIP: ip, Selector: map[string]string{"app": "x"},
			Ports: []corev1.ServicePort{{Port: port, TargetPort: intstr.FromString("http"), Protocol: "TCP"}}},
	}
}

// echo answers each line with its name and the line; port 0 is chosen by the system.
func echo(t *testing.T, address, name string) int32 {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				for in := bufio.NewScanner(conn); in.Scan(); {
					fmt.Fprintf(conn, "%s %s\n", name, in.Text())
				}
			}()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

func ask(t *testing.T, conn net.Conn) string {
	t.Helper()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := fmt.Fprintln(conn, "hi"); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

func TestProxy(t *testing.T) {
	// One port number for the service and a pod: addresses keep them apart.
	port := echo(t, "127.0.0.1:0", "a")
	other := echo(t, "127.0.0.2:0", "b")
	const ip = "127.77.3.4"
	a, b, dead := pod("a", "127.0.0.1", true, port), pod("b", "127.0.0.2", true, other), pod("dead", "127.0.0.3", true, port)
	unready := pod("unready", "127.0.0.4", false, port)
	s := service("s", ip, port)
	address := net.JoinHostPort(ip, fmt.Sprint(port))
	p := &Proxy{Problem: func(_ *corev1.Service, err error) { t.Error(err) }}
	defer p.Close()
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	p.Sync([]*corev1.Service{s}, []*corev1.Pod{unready})
	if _, err := net.Dial("tcp", address); err == nil {
		t.Fatal("a service without ready pods accepted a connection")
	}
	p.Sync([]*corev1.Service{s}, []*corev1.Pod{a, b, dead, unready})
	count := map[string]int{}
	for range 30 {
		count[ask(t, dial())]++
	}
	if count["a hi"] == 0 || count["b hi"] == 0 || count["a hi"]+count["b hi"] != 30 {
		t.Fatalf("balance over live pods: %v", count)
	}
	p.Sync([]*corev1.Service{s}, []*corev1.Pod{a})
	kept := dial()
	if got := ask(t, kept); got != "a hi" {
		t.Fatal(got)
	}
	p.Sync([]*corev1.Service{s}, []*corev1.Pod{b})
	if got := ask(t, kept); got != "a hi" {
		t.Fatalf("an existing connection moved: %s", got)
	}
	if got := ask(t, dial()); got != "b hi" {
		t.Fatalf("a new connection went to a removed pod: %s", got)
	}
	now := metav1.Now()
	b.DeletionTimestamp = &now
	p.Sync([]*corev1.Service{s}, []*corev1.Pod{b})
	if got := ask(t, dial()); got != "b hi" {
		t.Fatalf("the last pod, being deleted but serving, was left out: %s", got)
	}
	p.Sync(nil, []*corev1.Pod{a, b})
	if _, err := net.Dial("tcp", address); err == nil {
		t.Fatal("a deleted service accepted a connection")
	}
	if got := ask(t, kept); got != "a hi" {
		t.Fatalf("deleting the service cut a connection: %s", got)
	}
}

func TestNames(t *testing.T) {
	headless := service("db", corev1.ClusterIPNone, 1)
	member := pod("db-0", "127.97.0.9", true, 1)
	member.Spec.Hostname, member.Spec.Subdomain = "db-0", "db"
	n := BuildNames([]*corev1.Service{service("web", "127.96.0.7", 80), headless}, []*corev1.Pod{member})
	inside, outside := n.For("ns"), n.For("other")
	for _, want := range []string{
		"127.96.0.7\tweb\n", "127.96.0.7\tweb.ns web.ns.svc web.ns.svc.cluster.local\n",
		"127.97.0.9\tdb\n", "127.97.0.9\tdb-0.db.ns db-0.db.ns.svc db-0.db.ns.svc.cluster.local\n",
	} {
		if !strings.Contains(inside, want) {
			t.Errorf("inside lacks %q:\n%s", want, inside)
		}
	}
	if strings.Contains(outside, "\tweb\n") || !strings.Contains(outside, "web.ns.svc") {
		t.Errorf("outside:\n%s", outside)
	}
}
