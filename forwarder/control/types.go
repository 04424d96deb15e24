package control

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"time"
)

// DefaultSocket is where the daemon listens if its configuration names nothing else.
const DefaultSocket = "/run/penstock/penstock.sock"

// Ways to attach a pod that the daemon reads; see AttachRouted.
const (
	AttachVeth = "veth" // an ordinary veth pair; the daemon reads and writes its host end
	AttachTUN  = "tun"  // a TUN in the pod: made there by the plugin, or made by the daemon and moved there by the caller
)

// Status answers GET /v1/status. Scripts rely on node, address, vtepMAC, encap, mtu, ready and capabilities.
type Status struct {
	Node          string         `json:"node"`
	Address       netip.Addr     `json:"address"` // on the underlay
	VTEPMAC       string         `json:"vtepMAC"` // inner destination MAC of vxlan frames for this node, in every mode
	Encap         string         `json:"encap"`
	Port          uint16         `json:"port,omitempty"`
	VNI           uint32         `json:"vni,omitempty"`
	MTU           int            `json:"mtu"`         // of the pods
	UnderlayMTU   int            `json:"underlayMTU"` // of the device that carries the underlay address
	Underlay      string         `json:"underlay"`    // that device
	Device        string         `json:"device"`      // the node's TUN
	Ready         bool           `json:"ready"`
	Reason        string         `json:"reason,omitempty"` // why not ready
	Capabilities  []Capability   `json:"capabilities"`
	Version       string         `json:"version"`
	Started       time.Time      `json:"started"`
	UptimeSeconds int64          `json:"uptime"`
	Workers       int            `json:"workers"`
	PodCIDRs      []netip.Prefix `json:"podCIDRs"`
	ClusterCIDRs  []netip.Prefix `json:"clusterCIDRs"`
	Peers         int            `json:"peers"`
	Ports         int            `json:"ports"`
	Failed        int            `json:"failed,omitempty"`   // pods on record as attached that have no network; their problem in pods says why
	Waiting       int            `json:"waiting,omitempty"`  // tun pods whose queue `penstock adopt` must bring
	State         *StateTrouble  `json:"state,omitempty"`    // why no pod can be added; readiness is about those that are there
	Unopened      []string       `json:"unopened,omitempty"` // what cannot be listened on and is tried again: debug.listen, metrics.listen, native.port
	Config        string         `json:"config"`             // path of the configuration file
	Rejected      string         `json:"rejected,omitempty"` // why the last reload of it was
	LogLevel      string         `json:"logLevel"`
	Traffic       TotalTraffic   `json:"traffic"`
}

// StateTrouble is that the state directory takes no record, so that no pod can be added.
type StateTrouble struct {
	Finding string `json:"finding"`
	Remedy  string `json:"remedy"`
}

func (s *StateTrouble) String() string { return s.Finding + ": " + s.Remedy }

// TotalTraffic counts the node's frames since the daemon began: received + generated = forwarded + dropped, at rest.
type TotalTraffic struct {
	Received  uint64  `json:"received"`
	Generated uint64  `json:"generated"`
	Forwarded Traffic `json:"forwarded"`
	Dropped   uint64  `json:"dropped"`
}

// FDBEntry is a VTEP of a vxlan peer.
type FDBEntry struct {
	MAC     string     `json:"mac"`
	VNI     uint32     `json:"vni"`
	Address netip.Addr `json:"address"` // on the underlay
	Port    uint16     `json:"port"`
	Peer    string     `json:"peer"`
}

// Capability is something the kernel may offer, and whether the daemon makes use of it.
type Capability struct {
	Name   string `json:"name"`
	Found  bool   `json:"found"`
	Used   bool   `json:"used"`
	Detail string `json:"detail,omitempty"` // what was probed, or why it is not used
	Needs  string `json:"needs,omitempty"`  // the kernel that brings it
}

// ClaimName is the abstract unix socket that a daemon holds in its network namespace. Nobody is answered there: it tells that a daemon
// runs, also where nobody can talk to it.
const ClaimName = "@penstockd"

// AttachRequest is the body of POST /v1/attach. A pod is known by (container, interface).
type AttachRequest struct {
	Container string       `json:"container"`
	Interface string       `json:"interface"`
	Attach    string       `json:"attach"`           // AttachVeth if empty
	Device    string       `json:"device,omitempty"` // veth: the host end, which exists; tun: the TUN to make, if it comes without its queue; empty: DeviceName
	MAC       string       `json:"mac,omitempty"`    // veth: the pod end's; empty: learned
	Addresses []netip.Addr `json:"addresses"`        // of the pod, all within the node's pod CIDRs
	MTU       int          `json:"mtu,omitempty"`    // of the pod; 0: the node's
	Network   string       `json:"network,omitempty"`
	Owner     string       `json:"owner,omitempty"`   // "namespace/name", for people
	Netns     string       `json:"netns,omitempty"`   // path
	NetnsID   string       `json:"netnsID,omitempty"` // as NetnsID makes it
	Bandwidth *Bandwidth   `json:"bandwidth,omitempty"`
}

// DetachRequest is the body of POST /v1/detach.
type DetachRequest struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
	Network   string `json:"network,omitempty"` // for people: container and interface are the key
	// Lost is what penstock adopt says: not the pod is gone but its TUN, which is nowhere. A pod that waits for it goes back to
	// being reserved, so that an ADD that is under way attaches it by the one it has made; any other is left alone.
	Lost bool `json:"lost,omitempty"`
}

// Port is an attached pod, as POST /v1/attach and GET /v1/ports show it.
type Port struct {
	Container string       `json:"container"`
	Interface string       `json:"interface"`
	Attach    string       `json:"attach"`
	Device    string       `json:"device"`
	MAC       string       `json:"mac,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"`
	Network   string       `json:"network,omitempty"`
	Owner     string       `json:"owner,omitempty"`
	Bandwidth *Bandwidth   `json:"bandwidth,omitempty"`
	Phase     string       `json:"phase,omitempty"`    // PhaseAttached or PhaseWaiting
	Worker    int          `json:"worker"`             // the one that reads the port
	Received  Traffic      `json:"received"`           // from the pod
	Sent      Traffic      `json:"sent"`               // to the pod
	Dropped   uint64       `json:"dropped"`            // frames from or for the pod that ended in a drop
	LastSeen  *time.Time   `json:"lastSeen,omitempty"` // when the pod last sent something
	RingDrops uint64       `json:"ringDrops"`          // frames from the pod that the kernel had no room for: they were never received
}

// Traffic counts frames: a superframe is one.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// NamesPeer reports whether asked is a peer's name, or its address, however that is spelled.
func NamesPeer(asked, name string, address netip.Addr) bool {
	if asked == name {
		return true
	}
	a, err := netip.ParseAddr(asked)
	return err == nil && a.Unmap() == address.Unmap()
}

// Peer is another node.
type Peer struct {
	Name     string         `json:"name"`
	Address  netip.Addr     `json:"address"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
	Encap    string         `json:"encap"`
	Port     uint16         `json:"port,omitempty"`
	VNI      uint32         `json:"vni,omitempty"`
	MAC      string         `json:"mac,omitempty"` // vxlan: of its VTEP
	MTU      int            `json:"mtu"`           // largest inner packet that reaches it
	Received Traffic        `json:"received"`
	Sent     Traffic        `json:"sent"`
	Dropped  uint64         `json:"dropped"`            // frames for or from it that ended in a drop
	LastSeen *time.Time     `json:"lastSeen,omitempty"` // when it last sent something acceptable
	Rejected *Rejected      `json:"rejected,omitempty"` // absent if it never sent anything else
	// When its node last answered (ICMP port or protocol unreachable) that nobody there takes the tunnel's packets. A pod that the
	// node masquerades can forge it.
	NobodyListens *time.Time `json:"nobodyListens,omitempty"`
	Native        *Native    `json:"native,omitempty"` // absent while the native stream is off
}

// Rejected is what came from a peer and was not acceptable: of Received and of Dropped.
type Rejected struct {
	Packets uint64    `json:"packets"`
	Last    time.Time `json:"last"`
	Reason  string    `json:"reason"` // of the last, as in Drop
	Meaning string    `json:"meaning"`
	Remedy  string    `json:"remedy"`
}

// Native is the native stream to and from a peer.
type Native struct {
	Carrier   string `json:"carrier"` // none: packets go by the peer's encap
	Version   int    `json:"version,omitempty"`
	Why       string `json:"why,omitempty"` // it is none
	Bursts    uint64 `json:"bursts"`        // sent
	Frames    uint64 `json:"frames"`
	Saved     uint64 `json:"savedBytes"` // that encap would have cost more
	GotPieces uint64 `json:"receivedPieces"`
	GotFrames uint64 `json:"receivedFrames"`
	Lost      uint64 `json:"lostBytes"`     // of the peer's stream that did not come, or too late
	Parts     uint64 `json:"parts"`         // of superframes that had lost a piece
	Refused   uint64 `json:"refusedPieces"` // dropped by name
}

// Route is one entry of the table.
type Route struct {
	Prefix netip.Prefix `json:"prefix"`
	Kind   string       `json:"kind"` // RoutePeer, RoutePort, RouteHost or RouteNone
	Via    string       `json:"via"`  // the peer's name and address, the pod's container and interface, the node's TUN, or why there is none
}

// Kinds of routes.
const (
	RoutePeer = "peer"
	RoutePort = "port"
	RouteHost = "host"
	RouteNone = "unreachable"
)

// Drop is a reason for which frames were dropped, and how many.
type Drop struct {
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Meaning string `json:"meaning"`
	Remedy  string `json:"remedy,omitempty"` // what to do about it
}

// Reloaded answers POST /v1/reload.
type Reloaded struct {
	Changed []string `json:"changed"` // keys of the configuration that differ from what ran before
}

// LogLevel is what GET and PUT /v1/loglevel exchange: debug, info, warn or error.
type LogLevel struct {
	Level string `json:"level"`
}

// DeviceName is the name of a pod's device in the node's namespace: the same for the same pod on every run, and at most 15
// characters long, as the kernel wants it.
func DeviceName(container, iface string) string {
	sum := sha256.Sum256([]byte(container + "/" + iface))
	return "ps" + hex.EncodeToString(sum[:])[:11]
}
