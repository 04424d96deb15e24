package e2e

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// vxlanCases are the ways in which a kernel vxlan node may speak. Without E2E_MATRIX=1 only some are run.
func vxlanCases() (cases []lab.Config) {
	for _, kind := range []lab.Kind{lab.Whole, lab.Cut, lab.TSO} {
		for _, outer6 := range []bool{false, true} {
			for _, checksum := range []bool{false, true} {
				usual := kind != lab.TSO && !(outer6 && checksum)
				if usual || matrix() {
					cases = append(cases, lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}, Kind: kind, Outer6: outer6, OuterChecksum: checksum})
				}
			}
		}
	}
	if matrix() {
		off := "offload: {tunnelGSO: off, udpSegment: off, udpGRO: off, tunOffload: off, tunBatch: off, mergeWrites: off, packetRing: off}"
		for _, kind := range []lab.Kind{lab.Whole, lab.Cut} {
			cases = append(cases,
				lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}, Kind: kind, YAML: []string{off}},
				lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}, Kind: kind, Wiring: lab.Routed},
				lab.Config{Roles: []lab.Role{lab.Penstock, lab.KernelVXLAN}, Kind: kind, VNI: 4242, Port: 4789})
		}
	}
	return cases
}

func vxlanName(c lab.Config) string {
	name := c.Kind.String() + " outer " + family(c.Outer6)
	if c.OuterChecksum {
		name += " checksum"
	}
	if c.Wiring == lab.Routed {
		name += " routed"
	}
	if len(c.YAML) > 0 {
		name += " all off"
	}
	if c.VNI != 0 {
		name += " VNI 4242 port 4789"
	}
	return name
}

// TestInteropKernelVXLAN: one node runs Penstock, the other nothing but a kernel vxlan device set up as flannel does
// it. Pods, and the nodes themselves, exchange pings, bulk with SHA-256 compared at both ends, and datagrams of every
// kind of length.
func TestInteropKernelVXLAN(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, c := range vxlanCases() {
		t.Run(vxlanName(c), func(t *testing.T) {
			l := lab.New(t, c)
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			kernel := b.AddPod(t, lab.Plain)
			outer, err := a.Capture("eth0", fromTunnel(b.Underlay(), l.Config.Port))
			if err != nil {
				t.Fatal(err)
			}
			pods := []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)}
			for _, v6 := range []bool{false, true} {
				// Probes of the nodes, from the first address of their pod CIDR.
				for _, to := range pods {
					if err := b.Ping(to.Addr(v6)); err != nil {
						t.Error(err)
					}
				}
				if err := a.Ping(kernel.Addr(v6)); err != nil {
					t.Error(err)
				}
				if err := a.Ping(b.HostAddr(v6)); err != nil {
					t.Error(err)
				}
				if err := b.Ping(a.HostAddr(v6)); err != nil {
					t.Error(err)
				}
			}
			// The peer is what it claims to be: the lab once was not.
			frames := outer.Wait(1, 5*time.Second)
			outer.Close()
			for _, f := range frames {
				ip := lab.IPPayload(f)
				udp := ip[20:]
				if c.Outer6 {
					udp = ip[40:]
				}
				if sum := binary.BigEndian.Uint16(udp[6:]); (sum != 0) != c.OuterChecksum {
					t.Fatalf("the kernel's node sends outer checksum %#04x", sum)
				}
			}
			if len(frames) == 0 {
				t.Error("nothing came from the kernel's node")
			}
			for _, p := range pods {
				pingBoth(t, &p.Host, &kernel.Host)
				for _, v6 := range []bool{false, true} {
					bulk(t, a, &p.Host, &kernel.Host, v6)
					sizes := lab.FragmentBorders(p.MTU, v6, 9000)
					if matrix() {
						sizes = append(lab.SizesTo(3000), lab.FragmentBorders(p.MTU, v6, 60000)...)
						slices.Sort(sizes)
						sizes = slices.Compact(sizes)
					}
					echoes(t, &p.Host, &kernel.Host, v6, sizes)
				}
			}
			conserved(t, l)
		})
	}
}

// fromTunnel picks the tunnel's packets from an address.
func fromTunnel(from netip.Addr, port uint16) func([]byte) bool {
	return func(frame []byte) bool {
		ip := lab.IPPayload(frame)
		switch {
		case len(ip) >= 28 && ip[0]>>4 == 4 && from.Is4():
			return ip[9] == 17 && netip.AddrFrom4([4]byte(ip[12:16])) == from && binary.BigEndian.Uint16(ip[22:]) == port
		case len(ip) >= 48 && ip[0]>>4 == 6 && from.Is6():
			return ip[6] == 17 && netip.AddrFrom16([16]byte(ip[8:24])) == from && binary.BigEndian.Uint16(ip[42:]) == port
		}
		return false
	}
}

// bulk is TCP each way alone, then both at once. Where the underlay is whole it must have travelled in superframes,
// both to the kernel and from it; where it is cut, in frames no longer than its MTU.
func bulk(t *testing.T, n *lab.Node, a, b *lab.Host, v6 bool) {
	t.Helper()
	size := int64(16 << 20)
	if matrix() {
		size *= 4
	}
	_, tx := averageFrame(t, n, func() { transfer(t, a, b, v6, size, 0) })
	rx, _ := averageFrame(t, n, func() { transfer(t, a, b, v6, 0, size) })
	transfer(t, a, b, v6, size/4, size/4)
	offloads := len(n.Lab.Config.YAML) == 0
	switch n.Lab.Config.Kind {
	case lab.Whole:
		if rx < 8000 || offloads && tx < 8000 {
			t.Errorf("%s ↔ %s %s: frames of %.0f bytes were received, of %.0f sent: no superframes", a.Name, b.Name, family(v6), rx, tx)
		}
	case lab.Cut:
		if limit := float64(n.Lab.Config.MTU + 14); rx > limit {
			t.Errorf("%s ↔ %s %s: frames of %.0f bytes came over the cut underlay", a.Name, b.Name, family(v6), rx)
		}
	}
}

// TestInteropMixedCluster: two Penstock nodes and a kernel vxlan node in one network; every pod talks to every other.
func TestInteropMixedCluster(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, kind := range []lab.Kind{lab.Whole, lab.Cut} {
		t.Run(kind.String(), func(t *testing.T) {
			l := lab.New(t, lab.Config{Nodes: 3, Roles: []lab.Role{lab.Penstock, lab.Penstock, lab.KernelVXLAN}, Kind: kind})
			l.Start(t)
			a, b, k := l.Nodes[0], l.Nodes[1], l.Nodes[2]
			pods := []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.TUN), k.AddPod(t, lab.Plain), k.AddPod(t, lab.Plain)}
			if matrix() {
				pods = append(pods, b.AddPod(t, lab.Veth))
			}
			for i, p := range pods {
				for _, o := range pods[i+1:] {
					pingBoth(t, &p.Host, &o.Host)
					if p.Node == k && o.Node == k {
						continue
					}
					for _, v6 := range []bool{false, true} {
						transfer(t, &p.Host, &o.Host, v6, 2<<20, 2<<20)
					}
					echoes(t, &p.Host, &o.Host, i&1 == 0, lab.FragmentBorders(p.MTU, i&1 == 0, 4000))
				}
			}
			conserved(t, l)
		})
	}
}

// TestInteropSegmentedSockets: pods whose sockets use UDP_SEGMENT, between Penstock nodes, and to and from a kernel
// vxlan node. Every message arrives once, whole, in order and with its borders.
func TestInteropSegmentedSockets(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, kind := range []lab.Kind{lab.Whole, lab.Cut} {
		for _, checksum := range []bool{false, true} {
			if checksum && kind == lab.Cut && !matrix() {
				continue
			}
			name := kind.String()
			if checksum {
				name += " checksum"
			}
			t.Run(name, func(t *testing.T) {
				l := lab.New(t, lab.Config{Nodes: 3, Roles: []lab.Role{lab.Penstock, lab.Penstock, lab.KernelVXLAN}, Kind: kind, OuterChecksum: checksum})
				l.Start(t)
				a, b, k := l.Nodes[0], l.Nodes[1], l.Nodes[2]
				av, at, bv, bt, kp := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN), k.AddPod(t, lab.Plain)
				for _, pair := range [][2]*lab.Pod{{av, bv}, {at, bt}, {av, bt}, {at, bv}, {av, kp}, {at, kp}, {kp, av}, {kp, at}, {av, at}, {at, av}} {
					for _, v6 := range []bool{false, true} {
						for _, segment := range []int{500, 1200} {
							messages(t, &pair[0].Host, &pair[1].Host, v6, lab.Stream{Segment: segment, Count: 400})
							if segment == 1200 {
								// Short sends, as a request/response protocol makes them.
								messages(t, &pair[0].Host, &pair[1].Host, v6, lab.Stream{Segment: segment, Burst: 7, Count: 175})
							}
						}
						// Without UDP_SEGMENT, lengths changing from message to message.
						messages(t, &pair[0].Host, &pair[1].Host, v6, lab.Stream{Sizes: []int{64, 1400, 1200, 1200, 64, 500, 32, 1300, 1300, 1300, 700}, Count: 192})
					}
				}
				conserved(t, l)
			})
		}
	}
}
