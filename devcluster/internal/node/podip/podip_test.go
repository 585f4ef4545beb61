package podip

import "testing"

func TestPool(t *testing.T) {
	p, err := NewPool("127.97.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	if !p.Keep("old", "127.97.0.2") || p.Keep("other", "127.97.0.2") || p.Keep("x", "10.0.0.1") {
		t.Fatal("Keep")
	}
	a, _ := p.Allocate("a")
	b, _ := p.Allocate("b")
	if a != "127.97.0.1" || b != "127.97.0.3" {
		t.Fatalf("%s %s", a, b)
	}
	p.Release("someone else", a)
	if p.Keep("c", a) {
		t.Fatal("released for another owner")
	}
	p.Release("a", a)
	if c, _ := p.Allocate("c"); c != "127.97.0.4" {
		t.Fatalf("an address was reused at once: %s", c)
	}
	seen := map[string]bool{b: true, "127.97.0.4": true, "127.97.0.2": true}
	for {
		ip, err := p.Allocate("many")
		if err != nil {
			break
		}
		if seen[ip] {
			t.Fatalf("%s twice", ip)
		}
		seen[ip] = true
	}
	if len(seen) != 255*254 {
		t.Fatalf("%d addresses", len(seen))
	}
	if _, err := NewPool("127.0.0.0/8"); err == nil {
		t.Fatal("a /8 was accepted")
	}
}
