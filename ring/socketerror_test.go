//go:build linux

package ring

import (
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// One dead peer's port unreachable is reported by Errors and fails no send to
// another peer.
func TestUDPErrors(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			a, b := udpPair(t)
			for _, sendOnly := range []bool{false, true} {
				tx := openUDP(t, a, UDPConfig{Local: netip.AddrPortFrom(f.a, 0), Errors: true, SendOnly: sendOnly})
				rx := openUDP(t, b, UDPConfig{Local: netip.AddrPortFrom(f.b, 9000)})
				poller, err := NewPoller()
				must(t, err)
				defer poller.Close()
				must(t, poller.Add(tx.FD(), 3))
				dead := netip.AddrPortFrom(f.b, 9)
				toDead, to := NewSockaddr(dead), NewSockaddr(rx.Local())
				d := NewDatagrams(16, 16)
				d.Begin(&toDead, 0, 0)
				d.Append([]byte("nobody"))
				if n, err := tx.Send(d, 0); n != 1 || err != nil {
					t.Fatal(n, err)
				}
				var ev [1]Event
				if n, err := poller.Wait(ev[:], 2000); n != 1 || err != nil || !ev[0].Error() {
					t.Fatalf("Wait: %d, %v, %+v; want an error event", n, err, ev)
				}
				// The error is pending: the send must not see it.
				d.Reset()
				for range 4 {
					d.Begin(&to, 0, 0)
					d.Append([]byte("somebody"))
				}
				if n, err := tx.Send(d, 0); n != 4 || err != nil {
					t.Fatalf("Send with a pending error: %d, %v", n, err)
				}
				if n, err := tx.Recv(NewInbox(1, 100)); n != 0 || err != nil {
					t.Fatalf("Recv with a pending error: %d, %v", n, err)
				}
				n := tx.Errors(func(e *SocketError) {
					if e.Peer != dead || e.Offender != f.b || e.Errno != unix.ECONNREFUSED || string(e.Quoted) != "nobody" || e.Origin == OriginLocal {
						t.Errorf("error: %+v %q", e, e.Quoted)
					}
					if v4 := e.Origin == OriginICMP && e.Type == 3 && e.Code == 3; v4 != f.b.Is4() {
						t.Errorf("error: %v type %d code %d", e.Origin, e.Type, e.Code)
					}
				})
				if n != 1 {
					t.Errorf("%d errors, want 1", n)
				}
				if n, _ := poller.Wait(ev[:], 0); n != 0 {
					t.Errorf("the event stays after Errors: %+v", ev[0])
				}
				receive(t, rx, NewInbox(8, 100), 4)
				must(t, rx.Close())
			}
		})
	}
}

// A router's fragmentation needed is reported with its MTU; the socket itself
// does not learn it, and goes on with the device's.
func TestUDPFragNeeded(t *testing.T) {
	a, r, b := newNS(t), newNS(t), newNS(t)
	veth(t, a, "eth0", r, "ra", 1500)
	veth(t, r, "rb", b, "eth0", 1400)
	r.address("ra", "10.8.0.254/24")
	r.address("rb", "10.7.0.254/24")
	a.address("eth0", "10.8.0.1/24")
	b.address("eth0", "10.7.0.2/24")
	r.address("ra", "fd08::fe/64")
	r.address("rb", "fd07::fe/64")
	a.address("eth0", "fd08::1/64")
	b.address("eth0", "fd07::2/64")
	r.sysctl("net/ipv4/ip_forward", "1")
	r.sysctl("net/ipv6/conf/all/forwarding", "1")
	a.route("0.0.0.0/0", "10.8.0.254")
	b.route("0.0.0.0/0", "10.7.0.254")
	a.route("::/0", "fd08::fe")
	b.route("::/0", "fd07::fe")
	for _, f := range []struct{ from, router, to string }{{"10.8.0.1", "10.8.0.254", "10.7.0.2"}, {"fd08::1", "fd08::fe", "fd07::2"}} {
		from, to := netip.MustParseAddr(f.from), netip.AddrPortFrom(netip.MustParseAddr(f.to), 9000)
		tx := openUDP(t, a, UDPConfig{Local: netip.AddrPortFrom(from, 0), Errors: true})
		rx := openUDP(t, b, UDPConfig{Local: to})
		sa := NewSockaddr(to)
		d := NewDatagrams(1, 1)
		for range 2 { // the second would be EMSGSIZE if the MTU had been learned
			d.Reset()
			d.Begin(&sa, 0, 0)
			d.Append(make([]byte, 1420))
			if n, err := tx.Send(d, 0); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			var seen int
			eventually(t, "fragmentation needed", func() bool {
				tx.Errors(func(e *SocketError) {
					seen++
					if e.MTU != 1400 || e.Errno != unix.EMSGSIZE || e.Peer != to || e.Offender != netip.MustParseAddr(f.router) || e.Origin == OriginLocal {
						t.Errorf("error: %+v", e)
					}
				})
				return seen > 0
			})
		}
		d.Reset()
		d.Begin(&sa, 0, 0)
		d.Append(make([]byte, 1300))
		if n, err := tx.Send(d, 0); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		receive(t, rx, NewInbox(1, 2000), 1)
	}
}

func (ns *testNS) sysctl(name, value string) {
	ns.t.Helper()
	ns.do(func() { must(ns.t, os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)) })
}

func (ns *testNS) route(dst, via string) {
	ns.t.Helper()
	d, err := netlink.ParseIPNet(dst)
	must(ns.t, err)
	must(ns.t, ns.h.RouteAdd(&netlink.Route{Dst: d, Gw: netip.MustParseAddr(via).AsSlice()}))
}
