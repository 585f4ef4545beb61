package probes

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func handler(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/moved":
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	case r.URL.Path == "/host" && r.Host != "wanted.example", r.URL.Path == "/sick":
		http.Error(w, "not well", http.StatusInternalServerError)
	case !strings.HasPrefix(r.UserAgent(), "kube-probe/"):
		http.Error(w, "who are you", http.StatusForbidden)
	}
}

func TestHandlers(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(handler))
	defer web.Close()
	secure := httptest.NewTLSServer(http.HandlerFunc(handler))
	defer secure.Close()
	rpc := grpc.NewServer()
	state := health.NewServer()
	state.SetServingStatus("half", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(rpc, state)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = rpc.Serve(listener) }()
	defer rpc.Stop()
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	half := "half"
	target := Target{
		PodIP: "127.0.0.1", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port(web.Listener))}},
		Exec: func(_ context.Context, argv []string) (int, string, error) {
			if argv[0] == "lost" {
				return 0, "", errors.New("no such program")
			}
			code, _ := strconv.Atoi(argv[0])
			return code, "said", nil
		},
	}
	get := func(path string) corev1.ProbeHandler {
		return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web")}}
	}
	host := get("host")
	host.HTTPGet.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "wanted.example"}}
	unnamed := get("/")
	unnamed.HTTPGet.Port = intstr.FromString("nope")
	tls := get("/")
	tls.HTTPGet.Scheme, tls.HTTPGet.Port = corev1.URISchemeHTTPS, intstr.FromInt(port(secure.Listener))
	exec := func(argv string) corev1.ProbeHandler {
		return corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{argv}}}
	}
	for name, c := range map[string]struct {
		handler corev1.ProbeHandler
		want    string // part of the error; empty means success
	}{
		"http":               {get("/"), ""},
		"redirect elsewhere": {get("/moved"), ""},
		"host header":        {host, ""},
		"https unverified":   {tls, ""},
		"http 500":           {get("/sick"), "500: not well"},
		"unknown port name":  {unnamed, `"nope"`},
		"tcp":                {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}}, ""},
		"tcp refused":        {corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt(1)}}, "refused"},
		"exec":               {exec("0"), ""},
		"exec fails":         {exec("3"), "exited with 3: said"},
		"exec cannot":        {exec("lost"), "no such program"},
		"grpc":               {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port(listener))}}, ""},
		"grpc not serving":   {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(port(listener)), Service: &half}}, "NOT_SERVING"},
		"nothing":            {corev1.ProbeHandler{}, "no handler"},
	} {
		err := Run(context.Background(), &corev1.Probe{ProbeHandler: c.handler}, target)
		if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
