package e2e

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/bench/lab"
)

// someEncaps is the one that is tested always, and all of them if all combinations are wanted.
func someEncaps(usual string) []string {
	if matrix() || loadFull() {
		return []string{"vxlan", "udp", "ipip"}
	}
	return []string{usual}
}

// uplink is eth0 of a node.
func uplink(t *testing.T, n *lab.Node) netlink.Link {
	t.Helper()
	l, err := n.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ready asks the daemon whether it is, and why not.
func ready(t *testing.T, d *lab.Daemon) (bool, string) {
	t.Helper()
	code, body, err := d.Get("/readyz")
	if err != nil {
		t.Fatal(err)
	}
	return code == 200, string(body)
}

// TestUplinkDown: when the uplink goes down, or its address goes, the daemon says so once, is not ready, and recovers by itself.
func TestUplinkDown(t *testing.T) {
	lab.Require(t)
	for _, encap := range someEncaps("vxlan") {
		t.Run(encap, func(t *testing.T) {
			l := lab.New(t, lab.Config{Encap: encap, YAML: []string{"workers: 2"}})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			av, at, bv := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth)
			talk, local := converse(t, &av.Host, &bv.Host, false), converse(t, &av.Host, &at.Host, true)
			address := &netlink.Addr{IPNet: prefixNet("192.0.2.0/24")}
			address.IP = a.IP4.AsSlice()
			for _, event := range []struct {
				name         string
				harm, heal   func() error
				says, healed string
			}{
				{"down", func() error { return a.Netlink().LinkSetDown(uplink(t, a)) }, func() error { return a.Netlink().LinkSetUp(uplink(t, a)) }, "the underlay device is down", "the underlay is back"},
				{"address gone", func() error { return a.Netlink().AddrDel(uplink(t, a), address) }, func() error { return a.Netlink().AddrAdd(uplink(t, a), address) }, "the underlay address is gone", "the underlay is back"},
			} {
				for round := 1; round <= 2; round++ {
					talk.goesOn(t, "before "+event.name)
					saidBefore, healedBefore := saying(t, a.Daemon.Process, event.says), saying(t, a.Daemon.Process, event.healed)
					if err := event.harm(); err != nil {
						t.Fatal(err)
					}
					await(t, "not ready after "+event.name, func() bool { ok, _ := ready(t, a.Daemon); return !ok })
					if _, why := ready(t, a.Daemon); !strings.Contains(why, "underlay") {
						t.Errorf("%s: /readyz says %q", event.name, why)
					}
					local.goesOn(t, "local pods while "+event.name)
					stands := talk.turns.Load()
					time.Sleep(300 * time.Millisecond) // the pod goes on trying: that must not make the log longer
					if now := talk.turns.Load(); now > stands+1 {
						t.Errorf("%s: the pods of two nodes talk on, %d turns", event.name, now-stands)
					}
					if n := saying(t, a.Daemon.Process, event.says) - saidBefore; n != 1 {
						t.Errorf("%s: said %d times, once is right:\n%s", event.name, n, a.Daemon.Process.Output())
					}
					if err := event.heal(); err != nil {
						t.Fatal(err)
					}
					await(t, "ready after the end of "+event.name, func() bool { ok, _ := ready(t, a.Daemon); return ok })
					talk.goesOn(t, "after "+event.name)
					if n := saying(t, a.Daemon.Process, event.healed) - healedBefore; n != 1 {
						t.Errorf("the end of %s: said %d times", event.name, n)
					}
				}
			}
			for _, v6 := range []bool{false, true} { // inner IPv6 needs no IPv6 underneath
				if err := bv.Ping(av.Addr(v6)); err != nil {
					t.Error(err)
				}
			}
			talk.close()
			local.close()
			for reason, n := range a.Daemon.AssertConserved(t).Dropped() {
				switch reason {
				case "underlay_unreachable", "multicast", "answered":
				case "port_full": // the kernel's queue of received packets is one a CPU, for all namespaces of the machine
				default:
					t.Errorf("%d drops %s: what an uplink that is down costs has another name", n, reason)
				}
			}
			conserved(t, l)
		})
	}
}

// TestUplinkMTU: the underlay's MTU shrinks and grows again under a connection. Pods keep theirs and learn the path's; new
// pods and penstock0 get the new one; it is said once.
func TestUplinkMTU(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk := converse(t, &av.Host, &bv.Host, false)
	talk6 := converse(t, &bv.Host, &av.Host, true)
	const says = "the underlay's MTU has changed"
	for round, mtu := range []int{1400, 1500, 1350} {
		for _, n := range []*lab.Node{a, b} {
			if err := n.Netlink().LinkSetMTU(uplink(t, n), mtu); err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []*lab.Node{a, b} {
			await(t, "the new MTU in status and on penstock0", func() bool {
				p, err := n.Netlink().LinkByName("penstock0")
				return n.Daemon.Status(t).MTU == mtu-50 && err == nil && p.Attrs().MTU == mtu-50 && mustPeers(t, n.Daemon)[0].MTU == mtu-50 &&
					saying(t, n.Daemon.Process, says) > round // it says so behind having done it
			})
			if s := saying(t, n.Daemon.Process, says); s != round+1 {
				t.Errorf("%s said %d times that the MTU has changed, and it changed %d times", n.Name, s, round+1)
			}
			if ok, why := ready(t, n.Daemon); !ok {
				t.Errorf("%s is not ready: %s", n.Name, why)
			}
		}
		talk.goesOn(t, "after a new MTU")
		talk6.goesOn(t, "after a new MTU")
		for _, v6 := range []bool{false, true} {
			transfer(t, &av.Host, &bv.Host, v6, 4<<20, 4<<20)
		}
		r, err := av.PingWith(bv.IP4, lab.Echo{Size: mtu - 50 - 28, DF: true})
		if err != nil || r.Received != 1 {
			t.Errorf("a packet of exactly the pods' MTU %d does not pass: %+v %v", mtu-50, r, err)
		}
	}
	talk.close()
	talk6.close()
	conserved(t, l)
}

// TestUnreachableStorm: a peer whose daemon is gone answers each datagram with an ICMP error, and strangers forge more of
// them, of every kind. Nothing that goes to other peers suffers, the log stays short, and the peer is back when its daemon is.
func TestUnreachableStorm(t *testing.T) {
	lab.Require(t)
	for _, encap := range someEncaps("ipip") {
		t.Run(encap, func(t *testing.T) {
			l := lab.New(t, lab.Config{Nodes: 3, Encap: encap, YAML: []string{"workers: 2"}})
			l.Start(t)
			a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
			av, bv, cv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth), c.AddPod(t, lab.Veth)
			shouter := a.AddPod(t, lab.Veth)
			pingBoth(t, &av.Host, &bv.Host)
			pingBoth(t, &av.Host, &cv.Host)
			b.Sysctl(t, "net.ipv4.icmp_ratemask", "0")
			b.Sysctl(t, "net.ipv4.icmp_msgs_per_sec", "1000000")
			b.Daemon.Stop(t)
			lines, before := len(logged(t, a.Daemon.Process)), a.Daemon.AtRest(t)
			load := startLoad(t, [][2]*lab.Host{{&av.Host, &cv.Host}}, nil)
			// One pod shouts at the dead peer, flat out; its node's kernel answers each with an error.
			for range 3 {
				if _, err := shouter.SendStream(within(t), netip.AddrPortFrom(bv.IP4, 9), lab.Stream{Sizes: []int{64, 900}, Count: 3000, Rate: 20000}); err != nil &&
					!strings.Contains(err.Error(), "refused") && !strings.Contains(err.Error(), "host") {
					t.Error(err)
				}
			}
			for code := range 16 {
				for range 50 {
					if err := b.SendIP(forgedError(t, b.IP4, a.IP4, c.IP4, encap, uint8(code))); err != nil {
						t.Fatal(err)
					}
				}
			}
			load.report(t, l, "while a peer is unreachable")
			if n := len(logged(t, a.Daemon.Process)) - lines; n > 3 {
				t.Errorf("the storm made %d lines of log:\n%s", n, a.Daemon.Process.Output())
			}
			if ok, why := ready(t, a.Daemon); !ok {
				t.Errorf("not ready, because of a peer: %s", why)
			}
			for reason, n := range a.Daemon.AssertConserved(t).Sub(before).Dropped() {
				switch reason {
				case "multicast", "answered", "underlay_unreachable":
				default:
					t.Errorf("%d drops %s", n, reason)
				}
			}
			b.Start(t)
			pingBoth(t, &av.Host, &bv.Host)
			pingBoth(t, &av.Host, &cv.Host)
			// Errors that quote nothing of ours must not have lowered anybody's MTU either.
			for _, peer := range mustPeers(t, a.Daemon) {
				if want := a.PodMTU(); peer.Name == c.Name && peer.MTU != want {
					t.Errorf("the MTU to %s is %d, want %d", peer.Name, peer.MTU, want)
				}
			}
			conserved(t, l)
		})
	}
}

// forgedError is an ICMP destination unreachable from somebody about a datagram that we never sent: a wrong port, or no port.
func forgedError(t *testing.T, from, to, about netip.Addr, encap string, code uint8) []byte {
	t.Helper()
	quoted := &layers.IPv4{Version: 4, IHL: 5, TTL: 60, Length: 120, Protocol: layers.IPProtocolUDP, SrcIP: to.AsSlice(), DstIP: about.AsSlice()}
	rest := []byte{0x12, 0x34, 0x21, 0x18, 0, 100, 0, 0}
	if encap == "ipip" {
		quoted.Protocol = layers.IPProtocolIPv4
		rest = []byte{0x45, 0, 0, 100, 0, 0, 0, 0}
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, quoted, gopacket.Payload(rest)); err != nil {
		t.Fatal(err)
	}
	inner := append([]byte{}, b.Bytes()...)
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, code), Seq: 600} // the next hop's MTU of code 4
	b = gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true, FixLengths: true}, ip, icmp, gopacket.Payload(inner)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
