package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// MaxSlots is how many clusters fit into the loopback network side by side.
const MaxSlots = 80

// Addresses are a cluster's own part of the loopback network: all of 127.0.0.0/8
// answers on the loopback device, so a pair of /16s needs no set-up and no rights.
type Addresses struct{ Slot int }

func (a Addresses) service(x, y int) string { return fmt.Sprintf("127.%d.%d.%d", 96+2*a.Slot, x, y) }
func (a Addresses) pod(x, y int) string     { return fmt.Sprintf("127.%d.%d.%d", 97+2*a.Slot, x, y) }

// ServiceCIDR is the range of ClusterIPs.
func (a Addresses) ServiceCIDR() string { return a.service(0, 0) + "/16" }

// PodCIDR is the range of pod addresses.
func (a Addresses) PodCIDR() string { return a.pod(0, 0) + "/16" }

// KubernetesService is the ClusterIP of the kubernetes service.
func (a Addresses) KubernetesService() string { return a.service(0, 1) }

// Infra is where the components listen. It is the cluster's alone, which spares
// choosing free ports; the pod allocator leaves 127.x.255.0/24 out.
func (a Addresses) Infra() string { return a.pod(255, 1) }

// Ports of the components on the Infra address.
const (
	PortAPI        = 6443
	PortEtcd       = 2379
	PortEtcdPeer   = 2380
	PortController = 10257
	PortScheduler  = 10259
	PortNode       = 10250
)

// Endpoint joins the Infra address and a port.
func (a Addresses) Endpoint(port int) string {
	return net.JoinHostPort(a.Infra(), strconv.Itoa(port))
}

// claim is what a slot's file says about its owner.
type claim struct {
	Dir string `json:"dir"`
}

// claimsFolder is the same for all users and whatever TMPDIR says: the addresses are
// the whole machine's.
const claimsFolder = "/tmp/llmops-devcluster"

// ClaimSlot takes the first free pair of ranges for dir, or the one it has already
// (mine >= 0). A claim lasts as long as the directory's settings name the slot, so
// that a stopped cluster finds its addresses free when it starts again.
func ClaimSlot(dir string, mine int) (int, error) {
	return claimIn(claimsFolder, dir, mine, inUse)
}

func claimIn(folder, dir string, mine int, busy func(slot int) bool) (int, error) {
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return 0, fmt.Errorf("create the folder of address claims: %w", err)
	}
	_ = os.Chmod(folder, 0o777) // shared by all users; the umask took bits away
	unlock, err := lockFolder(folder)
	if err != nil {
		return 0, err
	}
	defer unlock()
	if mine >= 0 {
		owner := slotOwner(folder, mine)
		if owner != "" && owner != dir {
			return 0, fmt.Errorf("the addresses of %s (127.%d.0.0/16) were taken by the cluster in %s: "+
				"`devcluster reset` gives this cluster others, or reset that one", dir, 96+2*mine, owner)
		}
		if busy(mine) {
			return 0, fmt.Errorf("something else listens on this cluster's address %s: see `ss -ltnp`, stop it, or `devcluster reset` this cluster", Addresses{Slot: mine}.Infra())
		}
		return mine, writeClaim(folder, mine, dir)
	}
	for slot := range MaxSlots {
		if slotOwner(folder, slot) != "" || busy(slot) {
			continue
		}
		return slot, writeClaim(folder, slot, dir)
	}
	return 0, fmt.Errorf("all %d address ranges are taken: remove clusters with `devcluster reset` (claims are in %s)", MaxSlots, folder)
}

// ReleaseSlot gives the claim up.
func ReleaseSlot(dir string, slot int) {
	folder := claimsFolder
	unlock, err := lockFolder(folder)
	if err != nil {
		return
	}
	defer unlock()
	if readClaim(folder, slot) == dir {
		_ = os.Remove(claimPath(folder, slot))
	}
}

func claimPath(folder string, slot int) string {
	return filepath.Join(folder, strconv.Itoa(slot)+".json")
}

func readClaim(folder string, slot int) string {
	data, err := os.ReadFile(claimPath(folder, slot))
	if err != nil {
		return ""
	}
	var c claim
	if json.Unmarshal(data, &c) != nil {
		return ""
	}
	return c.Dir
}

// slotOwner is the directory with a valid claim, or "".
func slotOwner(folder string, slot int) string {
	dir := readClaim(folder, slot)
	if dir == "" {
		return ""
	}
	c, err := Layout{Dir: dir}.LoadConfig()
	if errors.Is(err, os.ErrPermission) {
		return dir // another user's
	}
	if c == nil || c.Slot != slot {
		return ""
	}
	return dir
}

func writeClaim(folder string, slot int, dir string) error {
	data, err := json.Marshal(claim{Dir: dir})
	if err != nil {
		return err
	}
	if err := WriteFile(claimPath(folder, slot), data, 0o644); err != nil {
		return fmt.Errorf("claim an address range: %w", err)
	}
	return nil
}

func lockFolder(folder string) (func(), error) {
	path := filepath.Join(folder, "lock")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("open the lock of address claims: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock the address claims: %w", err)
	}
	return func() { f.Close() }, nil
}

// inUse tells whether something without a claim listens where this slot's API
// server or etcd would.
func inUse(slot int) bool {
	a := Addresses{Slot: slot}
	for _, port := range []int{PortAPI, PortEtcd, PortNode} {
		l, err := net.Listen("tcp", a.Endpoint(port))
		if err != nil {
			return true
		}
		l.Close()
	}
	return false
}
