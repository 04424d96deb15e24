package control

import (
	"net/netip"
	"time"
)

// AttachRouted is for a pod behind another plugin's device (a bridge, a ptp veth): the host's own routes lead to it, the
// daemon only sees to it that its packets take them.
const AttachRouted = "routed"

// DeviceGroup marks the host end of a veth that the plugin has made (IFLA_GROUP, set by the message that creates it): devices
// of this group with a name as DeviceName makes it are the daemon's to collect when no state file claims them.
const DeviceGroup = 0x7073 // "ps"

// Phases of a pod's life.
const (
	PhaseReserved  = "reserved"  // it has addresses, and no port yet
	PhaseAttached  = "attached"  // it has a port
	PhaseWaiting   = "waiting"   // attached as tun, and the daemon was restarted: `penstock adopt` brings its queue back
	PhaseFailed    = "failed"    // it should have a port and could not be given one: Problem says why
	PhaseDetaching = "detaching" // DEL has begun
)

// Where a pod's addresses come from.
const (
	SourceIPAM    = "ipam"    // the daemon's own
	SourceForeign = "foreign" // a delegated IPAM plugin, or the plugin before us
	SourceManual  = "manual"  // somebody who attached by hand
)

// Bandwidth limits a pod as CNI's capability of that name does: bits a second, and bits. 0 is no limit; a rate has a burst.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"` // to the pod
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"` // from the pod
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// PodKey is what a pod is known by.
type PodKey struct {
	Container string `json:"container"`
	Interface string `json:"interface"`
}

func (k PodKey) String() string { return k.Container + "/" + k.Interface }

// AllocateRequest is the body of POST /v1/allocate: addresses for a pod, on disk before they are answered.
type AllocateRequest struct {
	Container string       `json:"container"`
	Interface string       `json:"interface"`
	Network   string       `json:"network"`             // name of the CNI network
	Netns     string       `json:"netns,omitempty"`     // path
	NetnsID   string       `json:"netnsID,omitempty"`   // as NetnsID makes it: the daemon may lack the right to look
	Attach    string       `json:"attach,omitempty"`    // AttachVeth if empty
	Families  []int        `json:"families,omitempty"`  // 4, 6; empty: every family of node.podCIDRs
	Requested []netip.Addr `json:"requested,omitempty"` // exactly these; a family without one gets one from the pool
	Addresses []netip.Addr `json:"addresses,omitempty"` // given by another IPAM: recorded, not chosen
	Owner     string       `json:"owner,omitempty"`     // "namespace/name", for people
	MTU       int          `json:"mtu,omitempty"`       // 0: the node's
}

// Allocation answers POST /v1/allocate.
type Allocation struct {
	Addresses  []netip.Addr   `json:"addresses"` // IPv4 first
	Foreign    bool           `json:"foreign,omitempty"`
	Gateway4   netip.Addr     `json:"gateway4,omitzero"` // absent without an IPv4 address
	Gateway6   netip.Addr     `json:"gateway6,omitzero"`
	GatewayMAC string         `json:"gatewayMAC"` // of the host end and of the permanent neighbour entries
	MTU        int            `json:"mtu"`
	NodeMTU    int            `json:"nodeMTU"` // what a pod gets that asks for none
	Device     string         `json:"device"`  // DeviceName
	Phase      string         `json:"phase"`   // PhaseReserved, or PhaseAttached if this ADD was done before
	PodCIDRs   []netip.Prefix `json:"podCIDRs"`
}

// CheckRequest is the body of POST /v1/check. What is empty is not compared.
type CheckRequest struct {
	Container string       `json:"container"`
	Interface string       `json:"interface"`
	Network   string       `json:"network,omitempty"`
	Attach    string       `json:"attach,omitempty"`
	Device    string       `json:"device,omitempty"`
	Netns     string       `json:"netns,omitempty"`
	NetnsID   string       `json:"netnsID,omitempty"`
	MAC       string       `json:"mac,omitempty"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	MTU       int          `json:"mtu,omitempty"`
}

// GCRequest is the body of POST /v1/gc: of this network only these attachments are valid.
type GCRequest struct {
	Network string   `json:"network"`
	Valid   []PodKey `json:"valid"`
}

// GCResult answers POST /v1/gc.
type GCResult struct {
	Removed []PodKey    `json:"removed"`
	Failed  []GCFailure `json:"failed"`
}

// GCFailure is a pod that could not be removed, and why.
type GCFailure struct {
	PodKey
	Error string `json:"error"`
}

// Pod is what the daemon has on record of a pod, as GET /v1/pods shows it.
type Pod struct {
	Container string       `json:"container"`
	Interface string       `json:"interface"`
	Network   string       `json:"network,omitempty"`
	Owner     string       `json:"owner,omitempty"`
	Netns     string       `json:"netns,omitempty"`
	NetnsID   string       `json:"netnsID,omitempty"`
	Attach    string       `json:"attach"`
	Device    string       `json:"device,omitempty"`
	MAC       string       `json:"mac,omitempty"`
	Addresses []netip.Addr `json:"addresses"`
	MTU       int          `json:"mtu"`
	Bandwidth *Bandwidth   `json:"bandwidth,omitempty"`
	Source    string       `json:"source"`
	Phase     string       `json:"phase"`
	Created   time.Time    `json:"created"`
	Problem   string       `json:"problem,omitempty"`
}

// IPAM answers GET /v1/ipam.
type IPAM struct {
	CIDRs     []IPAMCIDR    `json:"cidrs"`
	Addresses []IPAMAddress `json:"addresses"`
	Damaged   []string      `json:"damaged,omitempty"` // paths of state files that cannot be read: their pods have no network
}

// IPAMCIDR counts one pod CIDR of the node. Numbers stop at the largest uint64.
type IPAMCIDR struct {
	Prefix    netip.Prefix `json:"prefix"`
	Source    string       `json:"source,omitempty"` // SourceIPAM or SourceForeign: who gives its addresses; empty: nobody yet
	Size      uint64       `json:"size"`             // without the host's and the broadcast address
	Allocated uint64       `json:"allocated"`
	Waiting   uint64       `json:"waiting"`
	Leaked    uint64       `json:"leaked"`
	Free      uint64       `json:"free"`
}

// States of an address.
const (
	AddressAllocated = "allocated"
	AddressWaiting   = "waiting" // released a short while ago
	AddressLeaked    = "leaked"  // held by a state file that cannot be read
)

// IPAMAddress is an address that is not free.
type IPAMAddress struct {
	Address   netip.Addr `json:"address"`
	State     string     `json:"state"`
	Container string     `json:"container,omitempty"`
	Interface string     `json:"interface,omitempty"`
	Network   string     `json:"network,omitempty"`
	Owner     string     `json:"owner,omitempty"`
	Since     time.Time  `json:"since,omitzero"`
	Reason    string     `json:"reason,omitempty"` // why it is leaked
}
