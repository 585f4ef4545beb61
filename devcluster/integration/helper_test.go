package integration

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// helperVariable makes this test's binary a program for pods.
const helperVariable = "DEVCLUSTER_TEST_HELPER"

// helper modes:
//
//	serve PORT       answers with $ANSWER on $POD_IP; /ready follows /set?ready=…; ends
//	                 half a second after SIGTERM, as a well-behaved server does
//	allocate MIB     takes so much memory and keeps it
//	fail-until N DIR fails until it has been run N times, counting in DIR
func helper(args []string) int {
	switch args[0] {
	case "serve":
		return serve(args[1])
	case "allocate":
		n, _ := strconv.Atoi(args[1])
		hold := make([]byte, n<<20)
		for i := range hold {
			hold[i] = 1
		}
		time.Sleep(time.Hour)
		fmt.Println(len(hold))
	case "fail-until":
		n, _ := strconv.Atoi(args[1])
		f, err := os.OpenFile(args[2]+"/runs", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			fmt.Println(err)
			return 9
		}
		_, _ = f.WriteString("x")
		if info, err := f.Stat(); err != nil || info.Size() < int64(n) {
			return 1
		}
	default:
		fmt.Println("unknown mode", args)
		return 2
	}
	return 0
}

func serve(port string) int {
	var ready atomic.Bool
	ready.Store(true)
	flag := func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/ready", flag)
	mux.HandleFunc("/set", func(_ http.ResponseWriter, r *http.Request) { ready.Store(r.FormValue("ready") == "true") })
	mux.HandleFunc("/exit", func(_ http.ResponseWriter, r *http.Request) {
		code, _ := strconv.Atoi(r.FormValue("code"))
		os.Exit(code)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		host, _ := os.Hostname()
		fmt.Fprintf(w, "%s from %s", os.Getenv("ANSWER"), host)
	})
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		time.Sleep(500 * time.Millisecond)
		os.Exit(0)
	}()
	err := http.ListenAndServe(net.JoinHostPort(os.Getenv("POD_IP"), port), mux)
	fmt.Println(err)
	return 1
}
