package lab

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// Wiring is how the nodes are connected.
type Wiring int

const (
	Bridged Wiring = iota // one Ethernet segment, and a router on it
	Routed                // a router between every two nodes, each in a subnet of its own
	Direct                // one veth pair and nothing between: exactly two nodes, for measurements
)

// Role is what a node runs.
type Role int

const (
	Penstock     Role = iota // the real daemon
	KernelVXLAN              // a kernel vxlan device, set up as flannel does it
	FlannelUDP               // an independent endpoint that speaks the format of flannel's udp backend
	GopacketIPIP             // an independent IPIP endpoint that builds and parses with google/gopacket
	PlainRouting             // no tunnel: the underlay routes pod addresses
	BareRelay                // a yardstick: bench/tools/relay.c, one TUN pod a node and two nodes
)

// Config describes a laboratory; its zero value is two Penstock nodes on a bridge that speak VXLAN.
type Config struct {
	Nodes         int    // 0: two
	Roles         []Role // by node; those missing run Penstock
	Kind          Kind
	Wiring        Wiring
	MTU           int      // of the underlay; 0: 1500
	Encap         string   // "udp", "vxlan", "ipip"; "": vxlan
	VNI           uint32   // 0: 1
	Port          uint16   // 0: 8472 (vxlan), 8285 (udp)
	PodMTU        int      // 0: computed from MTU and Encap
	Outer6        bool     // nodes know each other by their IPv6 addresses
	OuterChecksum bool     // kernel vxlan nodes send outer UDP checksums
	Outside       bool     // one more host, beyond the fabric, that knows nothing of pods
	Masquerade    bool     // host.masquerade of every daemon
	Relay         string   // how each BareRelay does it: one, joined or bundled
	YAML          []string // merged over every daemon's configuration
}

// Cluster networks: node i (from 0) has the pods of 10.244.(i+1).0/24 and fd00:10:244:(i+1)::/64.
var (
	Cluster4 = netip.MustParsePrefix("10.244.0.0/16")
	Cluster6 = netip.MustParsePrefix("fd00:10:244::/48")
)

// Lab is one built network.
type Lab struct {
	Config  Config
	Nodes   []*Node
	Fabric  *NS   // bridge or router; nil with Direct
	Outside *Host // nil without Config.Outside

	dir  string // sockets, configuration and state of all daemons
	once sync.Once
}

// Host is somebody who sends and receives: a node, a pod, the outside. The traffic tools are its methods.
type Host struct {
	*NS
	IP4, IP6 netip.Addr
	Device   string
}

// Addr is the host's address of one family.
func (h *Host) Addr(v6 bool) netip.Addr {
	if v6 {
		return h.IP6
	}
	return h.IP4
}

// New builds the network. Kernel peers work when it returns; daemons are started by [Lab.Start].
func New(t TB, c Config) *Lab {
	t.Helper()
	if c.Nodes == 0 {
		c.Nodes = 2
	}
	if c.MTU == 0 {
		c.MTU = 1500
	}
	if c.Encap == "" {
		c.Encap = "vxlan"
	}
	if c.VNI == 0 {
		c.VNI = 1
	}
	if c.Port == 0 {
		c.Port = map[string]uint16{"vxlan": 8472, "udp": 8285}[c.Encap]
	}
	switch {
	case c.Nodes > 200:
		t.Fatalf("lab: %d nodes are more than the 200 there are addresses for", c.Nodes)
	case c.Wiring == Direct && (c.Nodes != 2 || c.Outside):
		t.Fatalf("lab: direct wiring is for exactly two nodes without an outside host")
	case c.Encap == "ipip" && c.Outer6:
		t.Fatalf("lab: ipip has IPv4 outside only")
	}
	l := &Lab{Config: c}
	t.Cleanup(l.Close)
	if err := l.build(t); err != nil {
		t.Fatalf("%v", err)
	}
	if os.Getenv("LAB_KEEP") != "" {
		t.Cleanup(func() { l.keep(t) }) // runs before Close
	}
	return l
}

func (l *Lab) build(t TB) error {
	dir, err := makeDir()
	if err != nil {
		return err
	}
	l.dir = dir
	for i := range l.Config.Nodes {
		n, err := l.newNode(i)
		if err != nil {
			return err
		}
		l.Nodes = append(l.Nodes, n)
	}
	if err := l.wire(); err != nil {
		return err
	}
	for _, n := range l.Nodes {
		if err := n.setUpPeers(); err != nil {
			return err
		}
	}
	return nil
}

// Start starts the daemon of every Penstock node and returns when all are ready. They start beside each other: most of a start
// is waiting for the kernel.
func (l *Lab) Start(t TB, yaml ...string) {
	t.Helper()
	var starting sync.WaitGroup
	slots := make(chan struct{}, 4)
	errs := make([]error, len(l.Nodes))
	for i, n := range l.Nodes {
		if n.Role != Penstock {
			continue
		}
		n.stopForStart(t)
		starting.Go(func() {
			slots <- struct{}{}
			_, errs[i] = n.StartErr(yaml...)
			<-slots
		})
	}
	starting.Wait()
	for i, n := range l.Nodes {
		if errs[i] != nil {
			t.Fatalf("%v", errs[i])
		}
		if n.Role == Penstock {
			n.afterStart(t)
		}
	}
}

// Close stops everything and leaves nothing. It runs by itself at the end of the test.
func (l *Lab) Close() {
	l.once.Do(func() {
		for _, n := range l.Nodes {
			n.close()
		}
		if l.Outside != nil {
			l.Outside.Close()
		}
		if l.Fabric != nil {
			l.Fabric.Close()
		}
		os.RemoveAll(l.dir)
	})
}

// keep holds the network for a look from outside.
func (l *Lab) keep(t TB) {
	var b strings.Builder
	line := func(n *NS) {
		fmt.Fprintf(&b, "  nsenter --net=/proc/%d/fd/%d   # %s\n", os.Getpid(), n.fd, n.Name)
	}
	if l.Fabric != nil {
		line(l.Fabric)
	}
	for _, n := range l.Nodes {
		line(n.NS)
		for _, p := range n.Pods {
			line(p.NS)
		}
		if n.Daemon != nil {
			fmt.Fprintf(&b, "  penstockctl --socket %s status\n", n.Daemon.Socket)
		}
	}
	if l.Outside != nil {
		line(l.Outside.NS)
	}
	fmt.Fprintf(os.Stderr, "%s: LAB_KEEP is set, the network stays until Ctrl-C:\n%s", t.Name(), b.String())
	c := make(chan os.Signal, 1)
	signal.Notify(c, syscall.SIGINT, syscall.SIGTERM)
	<-c
	signal.Stop(c)
}

// Node is one machine of the cluster. Its Host addresses are those on the underlay.
type Node struct {
	Host
	Index              int
	Role               Role
	PodCIDR4, PodCIDR6 netip.Prefix
	VTEPMAC            net.HardwareAddr
	Pods               []*Pod
	Daemon             *Daemon // nil before Start and on nodes of other roles
	Lab                *Lab

	// Wrap, if set, makes of the daemon's command what is started instead; the process must become the daemon.
	Wrap func(*exec.Cmd) *exec.Cmd

	gateway4, gateway6 netip.Addr // of the fabric
	uplinkPeer         string     // the uplink's other end in the fabric (Direct: in the other node)
	nextPod            int
	closers            []func() // endpoints of udp and ipip roles
	malformed          atomic.Uint64
}

func (l *Lab) newNode(i int) (*Node, error) {
	n := &Node{
		Index:    i,
		PodCIDR4: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24),
		PodCIDR6: netip.MustParsePrefix(fmt.Sprintf("fd00:10:244:%x::/64", i+1)),
		Lab:      l,
		nextPod:  2,
	}
	if i < len(l.Config.Roles) {
		n.Role = l.Config.Roles[i]
	}
	ns, err := newNS("node-" + nodeLetters(i))
	if err != nil {
		return nil, fmt.Errorf("lab: namespace of node %d: %w", i, err)
	}
	n.Host = Host{NS: ns, Device: "eth0"}
	if l.Config.Wiring == Routed {
		n.IP4 = netip.AddrFrom4([4]byte{198, 18, byte(i + 1), 2})
		n.IP6 = netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::2", i+1))
		n.gateway4 = netip.AddrFrom4([4]byte{198, 18, byte(i + 1), 1})
		n.gateway6 = netip.MustParseAddr(fmt.Sprintf("2001:db8:0:%x::1", i+1))
	} else {
		n.IP4 = netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)})
		n.IP6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1))
		n.gateway4 = netip.MustParseAddr("192.0.2.254")
		n.gateway6 = netip.MustParseAddr("2001:db8::fe")
	}
	n.VTEPMAC = vtepMAC(n.Underlay(), l.Config.VNI)
	if n.Role != Penstock {
		n.VTEPMAC = net.HardwareAddr{0x02, 0xbe, 0xef, 0, 0, byte(i + 1)}
	}
	// What an installer sets on a node.
	for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv6/conf/default/forwarding"} {
		if err := n.sysctl(key, "1"); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// nodeLetters counts a, b, … z, aa, ab, …
func nodeLetters(i int) string {
	if i < 26 {
		return string(rune('a' + i))
	}
	return nodeLetters(i/26-1) + string(rune('a'+i%26))
}

// Underlay is the address by which the other nodes know this one.
func (n *Node) Underlay() netip.Addr { return n.Addr(n.Lab.Config.Outer6) }

// HostAddr is the address of penstock0: the first of the pod CIDR.
func (n *Node) HostAddr(v6 bool) netip.Addr {
	if v6 {
		return n.PodCIDR6.Addr()
	}
	return n.PodCIDR4.Addr()
}

// PodMTU is what is left for a pod's packet under the encapsulation (design section 5).
func (n *Node) PodMTU() int {
	c := n.Lab.Config
	switch {
	case n.Role == PlainRouting:
		return c.MTU
	case c.PodMTU != 0:
		return c.PodMTU
	}
	overhead := map[string]int{"udp": 28, "vxlan": 50, "ipip": 20}[c.Encap]
	if c.Outer6 {
		overhead += 20
	}
	return c.MTU - overhead
}

// others are all nodes but this one.
func (n *Node) others() []*Node {
	var list []*Node
	for _, o := range n.Lab.Nodes {
		if o != n {
			list = append(list, o)
		}
	}
	return list
}

func (n *Node) close() {
	if n.Daemon != nil {
		n.Daemon.Kill()
	}
	for _, c := range n.closers {
		c()
	}
	for _, p := range n.Pods {
		p.NS.Close()
	}
	n.NS.Close()
}
