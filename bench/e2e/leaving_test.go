package e2e

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestInTheNodesName: a process without capabilities, and a foreign container behind a masquerade, both of which leave by a node's
// address, are not that node to its peers; who is routed through the node under its own address passes, and is nobody to them.
func TestInTheNodesName(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	from, to := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &from.Host, &to.Host)
	guest := foreignGuest(t, a)
	heard, err := listenUDP(&to.Host, netip.AddrPortFrom(to.IP4, 9000))
	if err != nil {
		t.Fatal(err)
	}
	defer heard.Close()
	vxlan := append(append([]byte{0x08, 0, 0, 0, 0, 0, 1, 0}, b.VTEPMAC...), a.VTEPMAC...)
	vxlan = append(binary.BigEndian.AppendUint16(vxlan, unix.ETH_P_IP), fixIP(ipPacket(from.IP4, to.IP4, unix.IPPROTO_UDP, 64, 0, nil, udpTo(from.IP4, to.IP4, 9000, []byte("forged"))))...)
	send := func(h *lab.NS, uid int) (err error) {
		return h.Do(func() error {
			was, _ := unix.SetfsuidRetUid(uid) // of this thread
			defer unix.SetfsuidRetUid(was)
			c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.IP4, 8472)))
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(vxlan)
			return err
		})
	}
	arrives := func(wait time.Duration) bool {
		heard.SetReadDeadline(time.Now().Add(wait))
		_, err := heard.Read(make([]byte, 100))
		return err == nil
	}
	const nobody, soon = 65534, 300 * time.Millisecond

	if err := send(a.NS, 0); err != nil || !arrives(patience) {
		t.Errorf("root's does not arrive, so that the rest says nothing: %v", err)
	}
	if err := send(a.NS, nobody); !errors.Is(err, unix.EPERM) || arrives(soon) {
		t.Errorf("nobody's datagram: %v", err)
	}
	unknown := func() uint64 { return b.Daemon.Metrics(t).Dropped()["unknown_peer"] }
	before := unknown()
	if err := send(guest, 0); err != nil || arrives(soon) {
		t.Errorf("a guest under its own address: %v", err)
	}
	for end := time.Now().Add(patience); unknown() == before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what a guest sends under its own address does not pass through the node")
		}
	}
	if err := a.Nftables(func(c *nftables.Conn) error {
		tb := c.AddTable(&nftables.Table{Name: "runtime", Family: nftables.TableFamilyIPv4})
		ch := c.AddChain(&nftables.Chain{Name: "post", Table: tb, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: tb, Chain: ch, Exprs: []expr.Any{&expr.Masq{}}})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	before = unknown()
	if err := send(guest, 0); err != nil || arrives(soon) || unknown() != before {
		t.Errorf("a masqueraded guest: %v, %d more of strangers", err, unknown()-before)
	}
	pingBoth(t, &from.Host, &to.Host)
}

// foreignGuest is a container of somebody else on the node, 198.51.100.2, whose packets the node forwards.
func foreignGuest(t *testing.T, n *lab.Node) *lab.NS {
	t.Helper()
	guest := lab.NewNS(t, "guest")
	n.Sysctl(t, "net.ipv4.ip_forward", "1")
	err := n.Netlink().LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "guest0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(guest.FD())})
	for _, end := range []struct {
		h            *netlink.Handle
		device, addr string
	}{{n.Netlink(), "guest0", "198.51.100.1/24"}, {guest.Netlink(), "eth0", "198.51.100.2/24"}} {
		l, e := end.h.LinkByName(end.device)
		if e == nil {
			addr, _ := netlink.ParseAddr(end.addr)
			e = errors.Join(end.h.AddrAdd(l, addr), end.h.LinkSetUp(l))
		}
		err = errors.Join(err, e)
	}
	if err = errors.Join(err, guest.Netlink().RouteAdd(&netlink.Route{Gw: net.IPv4(198, 51, 100, 1)})); err != nil {
		t.Fatal(err)
	}
	return guest
}
