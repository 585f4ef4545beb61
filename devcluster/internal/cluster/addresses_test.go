package cluster

import (
	"strings"
	"testing"
)

func TestRangesOfASlot(t *testing.T) {
	a := Addresses{Slot: 1}
	if a.ServiceCIDR() != "127.98.0.0/16" || a.PodCIDR() != "127.99.0.0/16" || a.KubernetesService() != "127.98.0.1" || a.Endpoint(PortAPI) != "127.99.255.1:6443" {
		t.Fatalf("%s %s %s %s", a.ServiceCIDR(), a.PodCIDR(), a.KubernetesService(), a.Endpoint(PortAPI))
	}
	last := Addresses{Slot: MaxSlots - 1}
	if last.PodCIDR() != "127.255.0.0/16" {
		t.Fatalf("the last slot leaves the loopback network: %s", last.PodCIDR())
	}
}

func TestClaimsLastAsLongAsTheCluster(t *testing.T) {
	folder := t.TempDir()
	free := func(int) bool { return false }
	newCluster := func() string { return t.TempDir() }
	take := func(dir string, mine int) int {
		t.Helper()
		slot, err := claimIn(folder, dir, mine, free)
		if err != nil {
			t.Fatal(err)
		}
		if err := (Layout{Dir: dir}).SaveConfig(&Config{Slot: slot}); err != nil {
			t.Fatal(err)
		}
		return slot
	}
	a, b := newCluster(), newCluster()
	if got := take(a, -1); got != 0 {
		t.Fatalf("first cluster: %d", got)
	}
	if got := take(b, -1); got != 1 {
		t.Fatalf("second cluster: %d", got)
	}
	if got := take(a, 0); got != 0 {
		t.Fatalf("a keeps its slot: %d", got)
	}
	if _, err := claimIn(folder, a, 1, free); err == nil || !strings.Contains(err.Error(), b) {
		t.Fatalf("another's slot: %v", err)
	}
	if _, err := claimIn(folder, a, 0, func(int) bool { return true }); err == nil || !strings.Contains(err.Error(), "127.97.255.1") {
		t.Fatalf("a's addresses are in use: %v", err)
	}
	// a was reset with another slot: its claim on 0 is void.
	if err := (Layout{Dir: a}).SaveConfig(&Config{Slot: 7}); err != nil {
		t.Fatal(err)
	}
	if got := take(newCluster(), -1); got != 0 {
		t.Fatalf("a void claim is not honoured: %d", got)
	}
	if got, err := claimIn(folder, newCluster(), -1, func(slot int) bool { return slot < 5 }); err != nil || got != 5 {
		t.Fatalf("busy addresses are skipped: %d, %v", got, err)
	}
}
