// Package config reads penstock.yaml: strictly, completely, and without
// touching the machine.
//
//	bytes ──parse──▶ yaml.Node ──decode──▶ Config ──check──▶ Config ──Complete──▶ Config
//	          │                    │                  │                    │
//	      no YAML            unknown, double     overlapping,         what needs our own
//	                         or mistyped key     impossible           underlay address
//	          └────────────────────┴────────┬─────────┴────────────────────┘
//	                                 Errors: all of them, by line
//
// Every mistake is one Problem: file, line, column, key, and a sentence that
// says what is wrong and what to do. A file with a mistake yields no Config at
// all, so a reload of one changes nothing.
//
// The package opens no socket and asks no netlink: what only the machine knows
// (the underlay address) is given to Complete by the daemon.
package config

import (
	_ "embed"
	"net/netip"
	"os"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/table/feed"
)

// What holds for keys that a file leaves out.
const (
	DefaultPath        = "/etc/penstock/penstock.yaml"
	DefaultSocket      = "/run/penstock/penstock.sock"
	DefaultState       = "/var/lib/penstock"
	DefaultHostDevice  = "penstock0"
	DefaultDebugListen = "127.0.0.1:9474"
)

// defaultNativePort is the native stream's; those of the encapsulations are
// flannel's.
const defaultNativePort = 7471

// Example is a commented file that states every key with its default. It parses.
//
//go:embed penstock.yaml
var Example []byte

// Config is a file that is right: its values have been checked, one by one and
// against each other.
type Config struct {
	Node    Node
	Network Network
	Encap   Encap
	// Peers is the static feed. Encap and Port are set where a peer differs from
	// us: a peer with another encapsulation and no port has the default port of
	// its encapsulation. Zero values mean "as ours".
	Peers    []feed.Peer
	Host     Host
	Limits   Limits
	Workers  int  // 0: one for two cores
	Priority bool // workers may go before other threads: true is auto
	Polling  bool // workers may stay awake while packets come at short intervals: true is auto
	Native   Native
	Offload  Offload
	Control  Control
	Debug    Debug
	Metrics  Metrics
	State    string // directory, absolute

	src source // where each key stands, for Complete
}

// Node is this node.
type Node struct {
	Name     string
	Address  netip.Addr // on the underlay; zero until Complete if the file leaves it out
	PodCIDRs []netip.Prefix
}

// Network is the cluster network.
type Network struct {
	CIDRs []netip.Prefix // those of all pods; they cover every node's PodCIDRs
}

// Encap is how packets travel to peers that say nothing else.
type Encap struct {
	Type        string // udp, vxlan or ipip
	Port        uint16 // 0 for ipip
	VNI         uint32
	MTU         int // of the pods; 0: computed
	SourcePorts int // vxlan: outer source ports a worker; 0: as measured best
	CopyDSCP    bool
	ClampMSS    bool
}

// Host is what the daemon owns in the host's stack.
type Host struct {
	Device     string // the node's TUN
	Masquerade bool
	Forward    bool
}

// Limits bound memory, in bytes.
type Limits struct {
	PodBuffer   int64 // a pod's packet ring and socket buffer together
	TotalBuffer int64 // all pods'
}

// Native is the stream between Penstock nodes.
type Native struct {
	Carrier string // auto, tcp, udp or off
	Port    uint16
}

func (n Native) mayTCP() bool { return n.Carrier == "auto" || n.Carrier == "tcp" }

// Offload switches mechanisms: true is auto (used where the probe finds it),
// false is off.
type Offload struct {
	TunnelGSO   bool
	UDPSegment  bool
	UDPGRO      bool
	TUNOffload  bool
	TUNBatch    bool
	MergeWrites bool
	PacketRing  string // auto, v2, v3 or off
}

// Control is the control API.
type Control struct {
	Socket string // absolute path
}

// Debug is the listener for metrics, health and profiles.
type Debug struct {
	Listen string // IP:port; empty: off
	// AllowRemote is the explicit word without which Listen must be a loopback
	// address: profiles show memory.
	AllowRemote bool
}

// Metrics is the listener for metrics and health alone.
type Metrics struct {
	Listen string // IP:port, or :port for all addresses; empty: off
}

// Default returns what a file means that says nothing but what must be said.
// Encap.Port and Node.Name are filled in for its encapsulation and this host.
func Default() *Config {
	name, _ := os.Hostname() // without one, node.name is asked for
	return &Config{
		Node:     Node{Name: name},
		Encap:    Encap{Type: "vxlan", Port: encap.KindVXLAN.DefaultPort(), VNI: 1},
		Host:     Host{Device: DefaultHostDevice},
		Limits:   Limits{PodBuffer: 8 << 20, TotalBuffer: 512 << 20},
		Priority: true,
		Polling:  true,
		Native:   Native{Carrier: "off", Port: defaultNativePort},
		Offload:  Offload{TunnelGSO: true, UDPSegment: true, UDPGRO: true, TUNOffload: true, TUNBatch: true, MergeWrites: true, PacketRing: "auto"},
		Control:  Control{Socket: DefaultSocket},
		Debug:    Debug{Listen: DefaultDebugListen},
		State:    DefaultState,
		src:      source{file: "defaults"},
	}
}
