package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/bench/lab"
)

const servicePort = 80

// serviceAddress is outside the cluster's pod network, as Service networks are.
func serviceAddress(n int, v6 bool) netip.Addr {
	if v6 {
		return netip.MustParseAddr(fmt.Sprintf("fd00:10:96::%d", n))
	}
	return netip.AddrFrom4([4]byte{10, 96, 0, byte(n)})
}

// servers makes pods answer TCP and UDP on a port.
func servers(t *testing.T, port uint16, pods ...*lab.Pod) {
	t.Helper()
	for _, p := range pods {
		tcp, err := p.ServeTCP(port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tcp.Close)
		udp, err := p.ServeUDP(port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(udp.Close)
	}
}

// TestServices: a pod, and the node, reach Services whose backends are a remote
// pod, a local pod, the client itself, and two in turn; the answer comes from
// the address that was asked, or the client's connected sockets would not take
// it. Transfers are large enough to travel as superframes, datagrams large
// enough to travel as fragments.
func TestServices(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	kinds := []lab.Attach{lab.Veth, lab.TUN}
	workers := []string{"workers: 2"}
	if matrix() {
		workers = append(workers, "workers: 1", "workers: 3")
	}
	for _, w := range workers {
		for _, kind := range kinds {
			t.Run(fmt.Sprintf("%s/%s", kind, w), func(t *testing.T) { testServices(t, kind, w) })
		}
	}
}

func testServices(t *testing.T, kind lab.Attach, yaml string) {
	l, a, b := twoNodes(t, lab.Config{YAML: []string{yaml}})
	client, local, remote := a.AddPod(t, kind), a.AddPod(t, kind), b.AddPod(t, kind)
	const port = 8080
	servers(t, port, client, local, remote)
	backends := map[string][]*lab.Pod{"remote": {remote}, "local": {local}, "itself": {client}, "two in turn": {local, remote}}
	names := []string{"remote", "local", "itself", "two in turn"}
	var services []lab.Service
	for i, name := range names {
		for _, v6 := range []bool{false, true} {
			for _, proto := range []string{"tcp", "udp"} {
				s := lab.Service{Address: serviceAddress(i+1, v6), Port: servicePort, Proto: proto}
				for _, p := range backends[name] {
					s.Backends = append(s.Backends, netip.AddrPortFrom(p.Addr(v6), port))
				}
				services = append(services, s)
			}
		}
	}
	a.SetServices(t, services...)

	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for i, name := range names {
		for _, v6 := range []bool{false, true} {
			to := netip.AddrPortFrom(serviceAddress(i+1, v6), servicePort)
			for _, from := range []*lab.Host{&client.Host, &a.Host} {
				seen := map[string]bool{}
				for range 4 {
					r, err := from.TCP(ctx, to, 2<<20, 2<<20)
					if err != nil {
						t.Errorf("TCP %s → %s (%s): %v", from.Name, to, name, err)
						break
					}
					seen[r.Server] = true
				}
				if name == "two in turn" && len(seen) != 2 {
					t.Errorf("TCP %s → %s: answered by %v, want both", from.Name, to, seen)
				}
				for range 4 {
					if err := udpService(ctx, from, to); err != nil {
						t.Errorf("UDP %s → %s (%s): %v", from.Name, to, name, err)
						break
					}
				}
			}
		}
	}
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
}

// udpService asks by datagrams that fit, and by ones that travel as fragments.
func udpService(ctx context.Context, from *lab.Host, to netip.AddrPort) error {
	c, err := from.DialUDP(to)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, _, err := c.Who(ctx); err != nil {
		return err
	}
	for _, size := range []int{64, 1400, 4000, 20000} {
		err := c.Echo(ctx, size)
		if errors.Is(err, syscall.EMSGSIZE) {
			err = c.Echo(ctx, size) // the first too big one over IPv6 only taught the sender the path's MTU
		}
		if err != nil {
			return fmt.Errorf("%d bytes: %w", size, err)
		}
	}
	return nil
}

// TestServiceSurvivesRestart: a connection through a Service goes on when the
// daemon is replaced: its flow is read back from conntrack.
func TestServiceSurvivesRestart(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	client, remote := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	to := netip.AddrPortFrom(serviceAddress(1, false), servicePort)
	a.SetServices(t, lab.Service{Address: to.Addr(), Port: to.Port(), Proto: "tcp", Backends: []netip.AddrPort{netip.AddrPortFrom(remote.IP4, 8081)}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	listener, err := remote.ListenTCP(netip.AddrPortFrom(remote.IP4, 8081))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	accepted := make(chan *net.TCPConn, 1)
	go func() {
		if c, err := listener.AcceptTCP(); err == nil {
			accepted <- c
		}
	}()
	c, err := client.DialTCP(ctx, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	server := <-accepted
	defer server.Close()
	a.Daemon.AssertConserved(t)
	a.Daemon.Stop(t)
	a.Start(t)
	client.AttachAgain(t)
	// The server speaks first: no packet of the client tells the new daemon of the flow.
	if _, err := server.Write([]byte("still there?")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b2 := make([]byte, 64)
	if n, err := c.Read(b2); err != nil || string(b2[:n]) != "still there?" {
		t.Errorf("after the restart the client reads %q: %v", b2[:n], err)
	}
	a.Daemon.AssertConserved(t)
}

// TestNodePort: a host outside reaches a pod by a node's address, on the node
// that has the pod and on one that has not.
func TestNodePort(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{Outside: true})
	pod := a.AddPod(t, lab.Veth)
	servers(t, 8080, pod)
	for _, n := range []*lab.Node{a, b} {
		var services []lab.Service
		for _, v6 := range []bool{false, true} {
			for _, proto := range []string{"tcp", "udp"} {
				services = append(services, lab.Service{Address: serviceAddress(1, v6), Port: servicePort, Proto: proto, NodePort: 30080,
					Backends: []netip.AddrPort{netip.AddrPortFrom(pod.Addr(v6), 8080)}})
			}
		}
		n.SetServices(t, services...)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for _, n := range []*lab.Node{a, b} {
		for _, v6 := range []bool{false, true} {
			to := netip.AddrPortFrom(n.Addr(v6), 30080)
			r, err := l.Outside.TCP(ctx, to, 1<<20, 1<<20)
			if err != nil {
				t.Errorf("TCP to %s: %v", to, err)
			} else if r.Server != pod.Name {
				t.Errorf("TCP to %s: answered by %s", to, r.Server)
			}
			if err := udpService(ctx, l.Outside, to); err != nil {
				t.Errorf("UDP to %s: %v", to, err)
			}
		}
	}
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
}

// TestOutside: pods reach a host outside; with masquerade it sees the node's
// address, without it the pod's, to which the fabric then needs routes.
func TestOutside(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	for _, masquerade := range []bool{false, true} {
		t.Run(fmt.Sprintf("masquerade=%v", masquerade), func(t *testing.T) {
			l := lab.New(t, lab.Config{Outside: true, Masquerade: masquerade})
			l.Start(t)
			a := l.Nodes[0]
			pods := []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN)}
			server, err := l.Outside.ServeTCP(9000)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			if !masquerade {
				routeBack(t, l, a)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			for _, p := range pods {
				for _, v6 := range []bool{false, true} {
					r, err := p.TCP(ctx, netip.AddrPortFrom(l.Outside.Addr(v6), server.Port()), 4<<20, 4<<20)
					if err != nil {
						t.Errorf("%s → outside (IPv6 %v): %v", p.Attach, v6, err)
						continue
					}
					want := p.Addr(v6)
					if masquerade {
						want = a.Addr(v6)
					}
					if r.SeenAs.Addr() != want {
						t.Errorf("%s: seen as %s, want %s", p.Attach, r.SeenAs.Addr(), want)
					}
				}
			}
			a.Daemon.AssertConserved(t)
		})
	}
}

// TestProbes: the node reaches every pod of the cluster, and each pod sees
// penstock0's address.
func TestProbes(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{})
	for _, p := range []*lab.Pod{a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)} {
		servers(t, 8080, p)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		for _, v6 := range []bool{false, true} {
			r, err := a.TCP(ctx, netip.AddrPortFrom(p.Addr(v6), 8080), 1<<20, 1<<20)
			if err != nil {
				t.Errorf("node-a → %s %s: %v", p.Attach, p.Addr(v6), err)
			} else if r.SeenAs.Addr() != a.HostAddr(v6) {
				t.Errorf("%s sees the node as %s, want %s", p.Addr(v6), r.SeenAs.Addr(), a.HostAddr(v6))
			}
		}
		cancel()
	}
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
}

// routeBack gives the fabric routes to node n's pods, as a cloud's route table would.
func routeBack(t *testing.T, l *lab.Lab, n *lab.Node) {
	t.Helper()
	for _, cidr := range []netip.Prefix{n.PodCIDR4, n.PodCIDR6} {
		gw := n.Addr(cidr.Addr().Is6())
		err := l.Fabric.Netlink().RouteAdd(&netlink.Route{Gw: gw.AsSlice(),
			Dst: &net.IPNet{IP: cidr.Addr().AsSlice(), Mask: net.CIDRMask(cidr.Bits(), cidr.Addr().BitLen())}})
		if err != nil {
			t.Fatalf("route %s via %s: %v", cidr, gw, err)
		}
	}
}
