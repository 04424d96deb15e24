package hostnet

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// sendAs sends a datagram from ns by a socket of a user; what the firewall drops is an error of the sender.
func sendAs(ns *nstest.NS, uid int, from, to string) (err error) {
	ns.Do(func() {
		was, _ := unix.SetfsuidRetUid(uid) // of this thread; a socket is whose it was when it was made
		defer unix.SetfsuidRetUid(was)
		var c *net.UDPConn
		if c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(from)), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))); err != nil {
			return
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
	})
	return err
}

// masqueradeOthers translates what is forwarded out of eth0 and is none of this node's, as a container runtime does.
func masqueradeOthers(t *testing.T, host *nstest.NS, out string) {
	host.Do(func() {
		conn, err := nftables.New()
		check(t, err)
		tb := conn.AddTable(&nftables.Table{Name: "runtime", Family: nftables.TableFamilyINet})
		ch := conn.AddChain(&nftables.Chain{Name: "post", Table: tb, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		conn.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: append(new(builder).oifname(out).exprs, &expr.Masq{})})
		check(t, conn.Flush())
	})
}

const nobody = 65534

// TestLeaving: in this node's name nobody but the daemon and the kernel speaks to a peer's tunnels, and whatever else leaves, leaves.
func TestLeaving(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		host, outside, _ := node(t)
		guest := nstest.New(t)
		nstest.Veth(t, host, "guest0", []string{"198.51.100.1/24", "2001:db8:1::1/64"}, guest, "eth0", []string{"198.51.100.2/24", "2001:db8:1::2/64"})
		guest.Route("192.0.2.0/24", "198.51.100.1")
		guest.Route("2001:db8::/64", "2001:db8:1::1")
		outside.Route("198.51.100.0/24", "192.0.2.1")
		outside.Route("2001:db8:1::/64", "2001:db8::1")

		self, peer, stranger, guestAddr, other := "192.0.2.1", "192.0.2.2", "192.0.2.3", "198.51.100.2", "10.244.1.0"
		bits := 24
		if v6 {
			self, peer, stranger, guestAddr, other = "2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8:1::2", "fd00:10:244:1::"
			bits = 64
		}
		at := net.JoinHostPort
		outside.Up("eth0", netip.PrefixFrom(netip.MustParseAddr(stranger), bits).String())
		cfg := testConfig()
		cfg.Address = netip.MustParseAddr(self)
		cfg.Tunnels = []Tunnel{{Proto: 4}, {Proto: 17, Port: 7471}, {Proto: 17, Port: 8472}, {Proto: 41}}
		cfg.Carrier = Carrier{Device: "eth0", Port: 7471}
		cfg.Peers = []netip.Addr{netip.MustParseAddr(peer), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("2001:db8::200")}
		for i := range 1500 { // more than one set's worth
			a := netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})
			if v6 {
				a = netip.AddrFrom16([16]byte{0xfd, 1, 14: byte(i >> 8), 15: byte(i)})
			}
			cfg.Peers = append(cfg.Peers, a)
		}
		apply(t, host, cfg)
		if again := apply(t, host, cfg); again.Changed() {
			t.Errorf("not stable: %+v", again)
		}

		for _, c := range []struct {
			name     string
			from     *nstest.NS
			uid      int
			src, dst string
			port     string
			arrives  bool
		}{
			{"nobody to the tunnel", host, nobody, self, peer, "8472", false},
			{"nobody to the native stream", host, nobody, self, peer, "7471", false},
			{"the daemon's user", host, 0, self, peer, "8472", true},
			{"nobody to another port", host, nobody, self, peer, "4789", true},
			{"nobody to who is no peer", host, nobody, self, stranger, "8472", true},
			{"nobody by another address", host, nobody, other, peer, "8472", true},
			{"a guest by its own address", guest, 0, guestAddr, peer, "8472", true},
		} {
			l := listenUDP(t, outside, at(c.dst, c.port))
			err := sendAs(c.from, c.uid, at(c.src, "0"), at(c.dst, c.port))
			wait := soon
			if !c.arrives {
				wait = 200 * time.Millisecond
			}
			if got := sender(l, wait).IsValid(); got != c.arrives || (err == nil) != c.arrives {
				t.Errorf("IPv6 %v: %s: arrives %v, sent with %v", v6, c.name, got, err)
			}
			l.Close()
		}

		// The same guest behind a masquerade. 198.51.100.2 is the node's address then.
		masqueradeOthers(t, host, "eth0")
		for port, arrives := range map[string]bool{"8472": false, "7471": false, "4789": true} {
			l := listenUDP(t, outside, at(peer, port))
			check(t, sendAs(guest, 0, at(guestAddr, "0"), at(peer, port)))
			wait := soon
			if !arrives {
				wait = 200 * time.Millisecond
			}
			if from := sender(l, wait); from.IsValid() != arrives || arrives && from.Addr() != cfg.Address {
				t.Errorf("IPv6 %v: a masqueraded guest to port %s: came from %v", v6, port, from)
			}
			l.Close()
		}
		// A process whose packets are translated to this node's address on their way out.
		l := listenUDP(t, outside, at(peer, "8472"))
		if err := sendAs(host, nobody, at(other, "0"), at(peer, "8472")); sender(l, 200*time.Millisecond).Addr() == cfg.Address {
			t.Errorf("IPv6 %v: nobody's packet was translated and passed: %v", v6, err)
		}
		l.Close()
		if !v6 {
			forwardedProtocols(t, guest, outside)
		}

		// Peers come and go.
		host.Do(func() {
			h, err := New(cfg)
			check(t, err)
			without := cfg
			without.Peers = cfg.Peers[1:]
			_, err = h.Reconfigure(context.Background(), without)
			check(t, err)
		})
		l = listenUDP(t, outside, at(peer, "8472"))
		check(t, sendAs(host, nobody, at(self, "0"), at(peer, "8472")))
		if !sender(l, soon).IsValid() {
			t.Errorf("IPv6 %v: what has ceased to be a peer is still closed", v6)
		}
		l.Close()
	}
}

// forwardedProtocols: neither ipip nor the native stream's TCP gets through in the node's name from a guest with CAP_NET_RAW in its own namespace.
func forwardedProtocols(t *testing.T, guest, outside *nstest.NS) {
	buf := gopacket.NewSerializeBuffer()
	tcp := &layers.TCP{SrcPort: 40000, DstPort: 7471, ACK: true, Ack: 1}
	check(t, tcp.SetNetworkLayerForChecksum(&layers.IPv4{Protocol: 6, SrcIP: net.IPv4(198, 51, 100, 2), DstIP: net.IPv4(192, 0, 2, 2)}))
	check(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, tcp, gopacket.Payload("x"))) // else conntrack lets it through as it is
	for _, c := range []struct {
		proto   string
		b       []byte
		arrives bool
	}{{"4", udpPacket(t, "10.244.1.5", "10.244.2.5", 1, 2), false}, {"41", udpPacket(t, "fd00::1", "fd00::2", 1, 2), false}, {"6", buf.Bytes(), false}, {"47", make([]byte, 16), true}} {
		var in *net.IPConn
		outside.Do(func() {
			var err error
			in, err = net.ListenIP("ip4:"+c.proto, &net.IPAddr{IP: net.IPv4(192, 0, 2, 2)})
			check(t, err)
		})
		guest.Do(func() {
			out, err := net.DialIP("ip4:"+c.proto, nil, &net.IPAddr{IP: net.IPv4(192, 0, 2, 2)})
			check(t, err)
			defer out.Close()
			_, err = out.Write(c.b)
			check(t, err)
		})
		wait := 200 * time.Millisecond
		if c.arrives {
			wait = soon
		}
		in.SetReadDeadline(time.Now().Add(wait))
		_, from, err := in.ReadFromIP(make([]byte, 2048))
		if (err == nil) != c.arrives {
			t.Errorf("protocol %s from a masqueraded guest: from %v, %v", c.proto, from, err)
		}
		in.Close()
	}
}

// TestLeavingSparesTheKernel: an ipip device of the kernel itself may lead to a peer's node too. What it sends has that device as its
// iif, as has here what comes in by a TUN.
func TestLeavingSparesTheKernel(t *testing.T) {
	defer func(was []string) { kernelTunnels = was }(kernelTunnels)
	for _, arrives := range []bool{false, true} {
		if arrives {
			kernelTunnels = append(kernelTunnels, "tun")
		}
		host, outside, _ := node(t)
		cfg := testConfig()
		cfg.Tunnels = []Tunnel{{Proto: 4}, {Proto: 41}}
		cfg.Peers = []netip.Addr{netip.MustParseAddr("192.0.2.2")}
		apply(t, host, cfg)
		masqueradeOthers(t, host, "eth0")
		tun := host.TUN("like0")
		host.Up("like0", "198.18.0.1/24")
		var in *net.IPConn
		outside.Do(func() {
			var err error
			in, err = net.ListenIP("ip4:4", &net.IPAddr{IP: net.IPv4(192, 0, 2, 2)})
			check(t, err)
		})
		b := udpPacket(t, "198.18.0.2", "192.0.2.2", 1, 2)
		b[9] = 4
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^sum16(b[:20]))
		_, err := unix.Write(tun, b)
		check(t, err)
		wait := 200 * time.Millisecond
		if arrives {
			wait = soon
		}
		in.SetReadDeadline(time.Now().Add(wait))
		if _, _, err := in.ReadFromIP(make([]byte, 2048)); (err == nil) != arrives {
			t.Errorf("kernelTunnels %v: %v", kernelTunnels, err)
		}
		in.Close()
	}
}

func sum16(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}
