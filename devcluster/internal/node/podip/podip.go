// Package podip hands out pod addresses.
package podip

import (
	"fmt"
	"net/netip"
	"sync"

	"k8s.io/apimachinery/pkg/types"
)

// Pool hands out addresses of a /16, except x.y.255.0/24, which the components use.
type Pool struct {
	lock   sync.Mutex
	prefix netip.Prefix
	next   int
	byIP   map[netip.Addr]types.UID
}

// NewPool takes a prefix of 16 bits.
func NewPool(cidr string) (*Pool, error) {
	prefix, err := netip.ParsePrefix(cidr)
	if err != nil || prefix.Bits() != 16 {
		return nil, fmt.Errorf("pod network %q must be an IPv4 /16", cidr)
	}
	return &Pool{prefix: prefix, byIP: map[netip.Addr]types.UID{}}, nil
}

// size is 255 third bytes times the fourth bytes 1 to 254.
const size = 255 * 254

func (p *Pool) at(n int) netip.Addr {
	base := p.prefix.Addr().As4()
	return netip.AddrFrom4([4]byte{base[0], base[1], byte(n / 254), byte(n%254 + 1)})
}

// Allocate goes round, so that an address is not used again soon after.
func (p *Pool) Allocate(uid types.UID) (string, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	for range size {
		ip := p.at(p.next)
		p.next = (p.next + 1) % size
		if _, taken := p.byIP[ip]; !taken {
			p.byIP[ip] = uid
			return ip.String(), nil
		}
	}
	return "", fmt.Errorf("all %d pod addresses of %s are in use", size, p.prefix)
}

// Keep reserves the address that a pod had before a restart of the node. It is
// false when the address is not of this pool or another pod's.
func (p *Pool) Keep(uid types.UID, ip string) bool {
	addr, err := netip.ParseAddr(ip)
	if err != nil || !p.prefix.Contains(addr) {
		return false
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	if owner, taken := p.byIP[addr]; taken && owner != uid {
		return false
	}
	p.byIP[addr] = uid
	return true
}

// Release gives a pod's address back.
func (p *Pool) Release(uid types.UID, ip string) {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	if p.byIP[addr] == uid {
		delete(p.byIP, addr)
	}
}
