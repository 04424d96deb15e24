package e2e

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestInteropPathMTU: who sends too big with DF gets an ICMP error with the MTU that fits, whoever on the way knows
// it; what may be fragmented arrives nevertheless; and TCP goes on when the path shrinks under it.
func TestInteropPathMTU(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, c := range []lab.Config{{Kind: lab.Whole}, {Kind: lab.Cut}, {Kind: lab.Whole, Outer6: true}, {Kind: lab.Cut, Outer6: true}} {
		if c.Kind == lab.Cut && c.Outer6 && !matrix() {
			continue
		}
		t.Run(c.Kind.String()+" outer "+family(c.Outer6), func(t *testing.T) {
			c.Roles, c.Wiring = []lab.Role{lab.Penstock, lab.KernelVXLAN}, lab.Routed
			l := lab.New(t, c)
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			kp := b.AddPod(t, lab.Plain)
			pods := []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)}
			mtu := a.PodMTU()
			for _, p := range pods {
				pingBoth(t, &p.Host, &kp.Host)
			}

			t.Run("sender's device is larger than the tunnel", func(t *testing.T) {
				for _, p := range pods {
					setMTU(t, p, 4000)
					for _, v6 := range []bool{false, true} {
						tooBig(t, &p.Host, &kp.Host, v6, mtu, a.HostAddr(v6))
						transfer(t, &p.Host, &kp.Host, v6, 1<<20, 1<<20)
					}
					// With DF clear a node's router fragments.
					for _, size := range []int{mtu + 1, 2000, 3900} {
						r, err := p.PingWith(kp.IP4, lab.Echo{Size: size - 28, Timeout: patience})
						if err != nil || r.Received != 1 {
							t.Errorf("%s: fragmented ping of %d bytes: %+v %v", p.Name, size, r, err)
						}
					}
					forgetPaths(t, p)
					setMTU(t, p, mtu)
				}
			})

			t.Run("receiver is smaller than the tunnel", func(t *testing.T) {
				const small = 1300
				for _, p := range pods {
					p.Detach(t)
					p.MTU = small
					p.AttachAgain(t)
					if p.Attach == lab.Veth {
						setMTU(t, p, small)
					}
					for _, v6 := range []bool{false, true} {
						if err := kp.Ping(p.Addr(v6)); err != nil {
							t.Error(err)
						}
						tooBig(t, &kp.Host, &p.Host, v6, small, a.HostAddr(v6))
						transfer(t, &kp.Host, &p.Host, v6, 1<<20, 1<<20)
						echoes(t, &kp.Host, &p.Host, v6, lab.FragmentBorders(small, v6, 4000)) // the sender has learned
						forgetPaths(t, kp)
					}
					for _, size := range []int{small + 1, 1400, mtu, 3000} { // DF clear
						r, err := kp.PingWith(p.IP4, lab.Echo{Size: size - 28, Timeout: patience})
						if err != nil || r.Received != 1 {
							t.Errorf("%s: ping of %d bytes to a pod with MTU %d: %+v %v", p.Name, size, small, r, err)
						}
					}
					p.Detach(t)
					p.MTU = mtu
					p.AttachAgain(t)
					setMTU(t, p, mtu)
				}
			})

			t.Run("the path shrinks", func(t *testing.T) {
				// A little more each time, as what has been learned holds for ten minutes.
				outer := 1500
				for _, p := range pods {
					for _, v6 := range []bool{false, true} {
						outer -= 24
						inner := mtu - 1500 + outer
						forgetPaths(t, p)
						forgetPaths(t, kp)
						during(t, &p.Host, &kp.Host, v6, func() { pathMTU(t, l, outer) })
						transfer(t, &p.Host, &kp.Host, v6, 2<<20, 0)
						// The path is learned now: the next that is too big hears it from us.
						forgetPaths(t, p)
						tooBig(t, &p.Host, &kp.Host, v6, inner, a.HostAddr(v6))
						sizes := lab.FragmentBorders(inner, v6, 3000)
						messages(t, &p.Host, &kp.Host, v6, lab.Stream{Sizes: sizes, Count: len(sizes)})
						if !c.Outer6 { // what is too big is cut outside by the router, and put together by our kernel
							transfer(t, &kp.Host, &p.Host, v6, 2<<20, 2<<20)
							echoes(t, &kp.Host, &p.Host, v6, sizes)
						} // a kernel vxlan device over IPv6 loses it and tells nobody (ip6_fragment without ignore_df)
						forgetPaths(t, p)
					}
				}
			})
			conserved(t, l)
		})
	}
}

// TestPathMTUForged: an ICMP error that quotes the tunnel lowers the path's MTU if it comes from a router of the underlay. From a pod, of this node or the
// other, the same one lowers nothing, nor from the other node, whose address its masqueraded pods have: it would for all pods of the node.
func TestPathMTUForged(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, v6 := range []bool{false, true} {
		t.Run("outer "+family(v6), func(t *testing.T) {
			const port = 8285 // of both ends: what pods have to guess of vxlan
			l := lab.New(t, lab.Config{Encap: "udp", Port: port, Outer6: v6, Masquerade: true})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			near, tun, far := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth)
			pingBoth(t, &near.Host, &far.Host)
			says := func(from netip.Addr, mtu uint16) []byte {
				udp := udpTo(a.Underlay(), b.Underlay(), port, nil)
				binary.BigEndian.PutUint16(udp, port)
				kind, code := byte(3), byte(4)
				if v6 {
					kind, code = 2, 0
				}
				l4 := append([]byte{kind, code, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}, ipPacket(a.Underlay(), b.Underlay(), unix.IPPROTO_UDP, 64, 0, nil, udp)...)
				return ipPacket(from, a.Underlay(), icmpProto(v6), 64, 0, nil, withSum(from, a.Underlay(), icmpProto(v6), l4, 2))
			}
			mtu := func() int {
				peers, err := a.Daemon.Control().Peers(t.Context())
				if err != nil || len(peers) != 1 {
					t.Fatalf("%v, %v", peers, err)
				}
				return peers[0].MTU
			}
			whole := mtu()
			for _, p := range []*lab.Pod{near, tun, far} {
				if err := p.InjectIP(says(p.Addr(v6), 1300)); err != nil {
					t.Fatal(err)
				}
				if err := p.Ping(a.Underlay()); err != nil { // behind it
					t.Error(err)
				}
			}
			if err := b.SendIP(says(b.Underlay(), 1300)); err != nil {
				t.Fatal(err)
			}
			pingBoth(t, &near.Host, &far.Host)
			if got := mtu(); got != whole {
				t.Fatalf("pods or their node have lowered the path's MTU from %d to %d", whole, got)
			}
			router := netip.MustParseAddr("192.0.2.99")
			if v6 {
				router = netip.MustParseAddr("2001:db8::99")
			}
			if err := b.SendIP(says(router, 1400)); err != nil {
				t.Fatal(err)
			}
			await(t, "the path's MTU is what the underlay says", func() bool { return mtu() == whole-100 })
			conserved(t, l)
		})
	}
}

// tooBig sends DF echoes one byte larger than mtu and expects an error with that MTU from a router; of mtu itself an
// answer.
func tooBig(t *testing.T, from, to *lab.Host, v6 bool, mtu int, router netip.Addr) {
	t.Helper()
	header := 28
	if v6 {
		header = 48
	}
	r, err := from.PingWith(to.Addr(v6), lab.Echo{Size: mtu - header, DF: true, Timeout: patience})
	if err != nil || r.Received != 1 {
		t.Errorf("%s → %s %s: DF ping of just the MTU %d: %+v %v", from.Name, to.Name, family(v6), mtu, r, err)
	}
	for _, size := range []int{mtu + 1, mtu + 20} {
		r, err := from.PingWith(to.Addr(v6), lab.Echo{Size: size - header, DF: true, Timeout: patience})
		if err != nil {
			t.Errorf("%s → %s %s: DF ping of %d bytes: %v", from.Name, to.Name, family(v6), size, err)
			continue
		}
		if len(r.Errors) != 1 {
			t.Errorf("%s → %s %s: DF ping of %d bytes: %d answers, errors %v; expected one error with MTU %d", from.Name, to.Name, family(v6), size, r.Received, r.Errors, mtu)
			continue
		}
		e := r.Errors[0]
		kind, code := 3, 4
		if v6 {
			kind, code = 2, 0
		}
		if e.Type != kind || e.Code != code || e.MTU != mtu || e.From != router {
			t.Errorf("%s → %s %s: DF ping of %d bytes: %v; expected type %d code %d MTU %d from %v", from.Name, to.Name, family(v6), size, e, kind, code, mtu, router)
		}
		// The error quotes what it is about, addresses first.
		q := e.Quoted
		if !v6 && (len(q) < 28 || netip.AddrFrom4([4]byte(q[16:20])) != to.IP4 || int(binary.BigEndian.Uint16(q[2:])) != size) ||
			v6 && (len(q) < 48 || netip.AddrFrom16([16]byte(q[24:40])) != to.IP6) {
			t.Errorf("%s → %s %s: the error quotes %x", from.Name, to.Name, family(v6), q)
		}
	}
}

// forgetPaths empties the pod's memory of path MTUs, as ten minutes would.
func forgetPaths(t *testing.T, p *lab.Pod) {
	t.Helper()
	p.Sysctl(t, "net.ipv4.route.flush", "1")
	p.Sysctl(t, "net.ipv6.route.flush", "1")
}

// pathMTU makes the router between the nodes behave as if its way to both had this MTU; 0: its devices'.
func pathMTU(t *testing.T, l *lab.Lab, mtu int) {
	t.Helper()
	h := l.Fabric.Netlink()
	for i, n := range l.Nodes {
		link, err := h.LinkByName([]string{"n0", "n1", "n2"}[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range []netip.Addr{n.IP4, n.IP6} {
			dst := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
			r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK, MTU: mtu, MTULock: mtu != 0}
			if a.Is6() {
				r.Scope = unix.RT_SCOPE_UNIVERSE
			}
			if mtu == 0 {
				h.RouteDel(r)
				continue
			}
			if err := h.RouteReplace(r); err != nil {
				t.Fatalf("route to %s with MTU %d: %v", n.Name, mtu, err)
			}
		}
	}
}

// during changes something while a transfer is under way: after its first megabyte has arrived.
func during(t *testing.T, from, to *lab.Host, v6 bool, change func()) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	at, err := to.ListenTCP(netip.AddrPortFrom(to.Addr(v6), 0))
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	out, err := from.DialTCP(ctx, netip.MustParseAddrPort(at.Addr().String()))
	if err != nil {
		t.Error(err)
		return
	}
	defer out.Close()
	in, err := at.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	deadline, _ := ctx.Deadline()
	in.SetDeadline(deadline)
	out.SetDeadline(deadline)
	const total, half = 8 << 20, 4 << 20
	sent := make(chan error, 1)
	allowed := make(chan struct{})
	go func() {
		b := make([]byte, 64<<10)
		for at := 0; at < total; at += len(b) {
			if at == half {
				<-allowed
			}
			for i := range b {
				b[i] = byte((at + i) >> 8)
			}
			if _, err := out.Write(b); err != nil {
				sent <- err
				return
			}
		}
		sent <- out.CloseWrite()
	}()
	b := make([]byte, 256<<10)
	begin := time.Now()
	for got := 0; got < total; {
		if got >= 1<<20 && change != nil {
			change()
			change = nil
			close(allowed)
		}
		n, err := in.Read(b)
		for i := range b[:n] {
			if b[i] != byte((got+i)>>8) {
				t.Errorf("tcp %s → %s %s: byte %d is wrong", from.Name, to.Name, family(v6), got+i)
				return
			}
		}
		if got += n; err != nil {
			t.Errorf("tcp %s → %s %s: after %d of %d bytes, %v: %v", from.Name, to.Name, family(v6), got, total, time.Since(begin), err)
			return
		}
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	t.Logf("tcp %s → %s %s: %d bytes across the change in %v", from.Name, to.Name, family(v6), total, time.Since(begin).Round(time.Millisecond))
}
