package forwarder

import (
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/table/feed"
)

// Settings is all that a forwarder must know. New takes a copy.
type Settings struct {
	Address  netip.Addr     // this node's underlay address
	PodCIDRs []netip.Prefix // this node's; the first address of each is the host's (penstock0)
	Cluster  []netip.Prefix // all pods of the cluster

	Encap       encap.Kind
	Port        uint16 // UDP port of udp and vxlan
	VNI         uint32
	PodMTU      int // largest IP packet a pod sends; what the host's TUN has too
	UnderlayMTU int // largest IP packet between nodes
	Uplink      Uplink

	SourcePorts int // vxlan: outer source ports a worker; 0: DefaultSourcePorts
	CopyDSCP    bool
	ClampMSS    bool

	Workers    int    // 0: one for two cores
	Priority   bool   // workers may go before other threads; see priority.go
	Polling    bool   // workers may stay awake where packets come at short intervals; see wait.go
	HostDevice string // the node's TUN, made before New with Workers queues' worth of multi-queue

	Native      Native
	Offload     Offload
	PodBuffer   int64 // bytes a pod's ring and socket buffer may take together
	TotalBuffer int64 // the same for all pods
	Log         *slog.Logger
}

// Uplink is the underlay's device, for what leaves and arrives there by packet sockets.
type Uplink struct {
	Device   string
	Index    int  // 0: it is not an Ethernet device
	TSO, USO bool // it takes TCP superframes, or UDP ones, uncut
}

// Offload switches the mechanisms of docs/architecture.md on and off. True means: where the
// kernel has it.
type Offload struct {
	TunnelGSO   bool // hand whole encapsulated superframes to a TAP
	UDPSegment  bool // runs: many datagrams in one send
	UDPGRO      bool // many datagrams in one receive
	TUNOffload  bool // superframes and partial checksums on TUN devices
	TUNBatch    bool // many packets of a TUN in one system call
	MergeWrites bool // neighbouring segments of a flow in one write to the pod
	PacketRing  string
}

// DefaultSourcePorts is how many outer source ports a worker spreads vxlan
// flows over if not told: one makes the longest runs.
const DefaultSourcePorts = 1

const maxSourcePorts = 8

func (s *Settings) fill() error {
	if s.Workers <= 0 {
		s.Workers = max(1, runtime.NumCPU()/2)
	}
	if s.SourcePorts <= 0 {
		s.SourcePorts = DefaultSourcePorts
	}
	s.SourcePorts = min(s.SourcePorts, maxSourcePorts)
	if s.Log == nil {
		s.Log = slog.Default()
	}
	s.Address = s.Address.Unmap()
	if !s.Address.IsValid() {
		return fmt.Errorf("the forwarder has no underlay address: set node.address")
	}
	if s.Encap == encap.KindIPIP && s.Address.Is6() {
		return fmt.Errorf("ipip needs an IPv4 underlay, node.address is %s: use udp or vxlan", s.Address)
	}
	if s.PodMTU <= 0 {
		s.PodMTU = encap.PodMTU(s.UnderlayMTU, s.Encap, s.Address.Is6())
	}
	return nil
}

// hostAddresses are the first addresses of the pod CIDRs: this host's own among pods.
func (s *Settings) hostAddresses() []netip.Addr {
	var as []netip.Addr
	for _, c := range s.PodCIDRs {
		as = append(as, c.Masked().Addr())
	}
	return as
}

// Reconfigure changes what may change while packets flow; everything else
// must be as it is, or nothing changes and the error names the setting.
func (f *Forwarder) Reconfigure(next Settings) error {
	f.control.Lock()
	defer f.control.Unlock()
	return f.replace(next, f.feedPeers)
}

// Replace is Reconfigure and SetPeers in one step. Each is judged by the other,
// so that neither could go first always: a peer may lie in a network that is
// new, and a network may go together with its peers.
func (f *Forwarder) Replace(next Settings, peers []feed.Peer) error {
	f.control.Lock()
	defer f.control.Unlock()
	return f.replace(next, peers)
}

// replace is Replace; f.control is held.
func (f *Forwarder) replace(next Settings, peers []feed.Peer) error {
	if err := next.fill(); err != nil {
		return err
	}
	if f.stopped {
		return fmt.Errorf("the settings are as they were: the daemon is stopping")
	}
	old := f.settings
	for _, fixed := range []struct {
		key  string
		same bool
	}{
		{"node.address", next.Address == old.Address},
		{"encap.type", next.Encap == old.Encap},
		{"encap.port", next.Port == old.Port},
		{"encap.vni", next.VNI == old.VNI},
		{"encap.sourcePorts", next.SourcePorts == old.SourcePorts},
		{"workers", next.Workers == old.Workers},
		{"priority", next.Priority == old.Priority},
		{"polling", next.Polling == old.Polling},
		{"host.device", next.HostDevice == old.HostDevice},
		{"native", next.Native == old.Native},
		{"offload", next.Offload == old.Offload},
		{"limits", next.PodBuffer == old.PodBuffer && next.TotalBuffer == old.TotalBuffer},
	} {
		if !fixed.same {
			return fmt.Errorf("%s cannot change while the daemon runs: restart it", fixed.key)
		}
	}
	for _, p := range f.claimed() {
		for _, a := range p.addresses {
			if slices.Contains(next.hostAddresses(), a) {
				return fmt.Errorf("node.podCIDRs would make %s the host's own, which %s/%s has: detach the pod first", a, p.spec.Container, p.spec.Interface)
			}
			if !slices.ContainsFunc(next.PodCIDRs, func(c netip.Prefix) bool { return c.Contains(a) }) {
				return fmt.Errorf("node.podCIDRs would no longer contain %s of %s/%s: detach the pod first", a, p.spec.Container, p.spec.Interface)
			}
		}
	}
	next.Log = old.Log
	f.settings = next
	f.storeLive()
	if err := f.publish(peers); err != nil {
		f.settings = old
		f.storeLive()
		return err
	}
	if next.UnderlayMTU != old.UnderlayMTU { // what was learned may have been of the device as it was
		for _, p := range f.peers {
			p.state.pathMTU.Store(0)
			// A route that left by as much left by that device, most likely. Else pods would be told the old MTU, which they believe for ten
			// minutes, until the watcher of uplinks has looked; it then tells all routes anew (daemon.swap).
			p.state.routeMTU.CompareAndSwap(int64(old.UnderlayMTU), int64(next.UnderlayMTU))
		}
	}
	if n := f.native; n != nil {
		moved := next.Uplink.Index != old.Uplink.Index || next.Uplink.Device != old.Uplink.Device
		had := n.tcp != nil // f.control is held: nobody opens or closes it meanwhile
		if moved || !had {  // or it could not be opened when it was tried last
			n.openTCP(&next)
		}
		if moved || had != (n.tcp != nil) || next.UnderlayMTU != old.UnderlayMTU {
			n.renew(&next)
		}
		n.setPrefer(next.Uplink)
	}
	return nil
}
