package lab

import (
	"net/netip"
	"testing"
)

// TestServices checks the rules on plain kernel nodes, where the kernel's own forwarding does what Penstock will.
func TestServices(t *testing.T) {
	Require(t)
	l := New(t, Config{Roles: []Role{KernelVXLAN, KernelVXLAN}, Outside: true})
	a, b := l.Nodes[0], l.Nodes[1]
	client, near := a.AddPod(t, Veth), a.AddPod(t, Veth)
	far := b.AddPod(t, Veth)
	ctx := t.Context()
	for _, p := range []*Pod{near, far, client} {
		tcp, err := p.ServeTCP(8080)
		if err != nil {
			t.Fatal(err)
		}
		defer tcp.Close()
		udp, err := p.ServeUDP(8080)
		if err != nil {
			t.Fatal(err)
		}
		defer udp.Close()
	}
	for _, v6 := range []bool{false, true} {
		var backends []netip.AddrPort
		for _, p := range []*Pod{near, far, client} {
			backends = append(backends, netip.AddrPortFrom(p.Addr(v6), 8080))
		}
		address := netip.MustParseAddr("10.96.0.10")
		if v6 {
			address = netip.MustParseAddr("fd00:96::10")
		}
		var services []Service
		for _, proto := range []string{"tcp", "udp"} {
			services = append(services,
				Service{Address: address, Port: 80, Proto: proto, Backends: backends[:2], NodePort: 30080},
				Service{Address: address, Port: 81, Proto: proto, Backends: backends[2:]})
		}
		a.SetServices(t, services...)
		seen := map[string]int{}
		for range 4 {
			r, err := client.TCP(ctx, netip.AddrPortFrom(address, 80), 1<<20, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			seen[r.Server]++
			if r.SeenAs.Addr() != client.Addr(v6) {
				t.Errorf("a backend saw the pod as %v", r.SeenAs)
			}
		}
		if seen[near.Name] != 2 || seen[far.Name] != 2 {
			t.Errorf("backends were taken %v times", seen)
		}
		// To itself: masqueraded, or the answer would never leave the pod.
		r, err := client.TCP(ctx, netip.AddrPortFrom(address, 81), 1000, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if r.Server != client.Name || r.SeenAs.Addr() == client.Addr(v6) {
			t.Errorf("hairpin: %s saw %v", r.Server, r.SeenAs)
		}
		// From the node, and from outside by the NodePort.
		if _, err := a.TCP(ctx, netip.AddrPortFrom(address, 80), 1000, 1000); err != nil {
			t.Error(err)
		}
		for range 2 {
			if _, err := l.Outside.TCP(ctx, netip.AddrPortFrom(a.Addr(v6), 30080), 1<<20, 1<<20); err != nil {
				t.Error(err)
			}
			c, err := l.Outside.DialUDP(netip.AddrPortFrom(a.Addr(v6), 30080))
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := c.Who(ctx); err != nil {
				t.Error(err)
			}
			c.Close()
		}
		u, err := client.DialUDP(netip.AddrPortFrom(address, 80))
		if err != nil {
			t.Fatal(err)
		}
		if err := u.Echo(ctx, 3000); err != nil {
			t.Error(err)
		}
		u.Close()
	}
}
