package config

import (
	"go.yaml.in/yaml/v3"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/table/feed"
)

// Bounds, and where they come from.
const (
	maxPort = 1<<16 - 1
	maxVNI  = 1<<24 - 1 // RFC 7348 section 5; 0 means "as ours" to the feeds

	minMTU  = 576  // what every IPv4 host takes (RFC 1122 section 3.3.2)
	minMTU6 = 1280 // what every IPv6 link carries (RFC 8200 section 5)

	maxWorkers     = 256 // a TUN device has no more queues (MAX_TAP_QUEUES)
	maxSourcePorts = 64  // a worker's; each is a socket

	minPodBuffer = 512 << 10 // the ring of 128 slots of 2 KiB, and superframes beside it
	maxPodBuffer = 1 << 30
	maxBuffers   = 1 << 40
)

// decode reads the file's keys into c, which holds the defaults.
func (c *Config) decode(root *yaml.Node) {
	var peers []feed.Peer
	c.src.value(root, "", mapping(
		field{"node", mapping(
			field{"name", text(&c.Node.Name)},
			field{"address", address(&c.Node.Address)},
			field{"podCIDRs", prefixes(&c.Node.PodCIDRs)},
		)},
		field{"network", mapping(
			field{"cidrs", prefixes(&c.Network.CIDRs)},
		)},
		field{"encap", mapping(
			field{"type", choice(&c.Encap.Type, kinds...)},
			field{"port", whole(&c.Encap.Port, 1, maxPort, "a UDP port")},
			field{"vni", whole(&c.Encap.VNI, 1, maxVNI, "a VNI")},
			field{"mtu", whole(&c.Encap.MTU, 0, maxPort, "an MTU")},
			field{"sourcePorts", whole(&c.Encap.SourcePorts, 0, maxSourcePorts, "the number of source ports a worker")},
			field{"copyDSCP", boolean(&c.Encap.CopyDSCP)},
			field{"clampMSS", boolean(&c.Encap.ClampMSS)},
		)},
		field{"peers", list(func(i int) reader {
			peers = append(peers, feed.Peer{})
			return peer(&peers[i])
		})},
		field{"host", mapping(
			field{"device", text(&c.Host.Device)},
			field{"masquerade", boolean(&c.Host.Masquerade)},
			field{"forward", boolean(&c.Host.Forward)},
		)},
		field{"limits", mapping(
			field{"podBuffer", size(&c.Limits.PodBuffer, minPodBuffer, maxPodBuffer)},
			field{"totalBuffer", size(&c.Limits.TotalBuffer, minPodBuffer, maxBuffers)},
		)},
		field{"workers", whole(&c.Workers, 0, maxWorkers, "the number of workers")},
		field{"priority", auto(&c.Priority)},
		field{"polling", auto(&c.Polling)},
		field{"native", mapping(
			field{"carrier", choice(&c.Native.Carrier, "auto", "tcp", "udp", "off")},
			field{"port", whole(&c.Native.Port, 1, maxPort, "a port")},
		)},
		field{"offload", mapping(
			field{"tunnelGSO", auto(&c.Offload.TunnelGSO)},
			field{"udpSegment", auto(&c.Offload.UDPSegment)},
			field{"udpGRO", auto(&c.Offload.UDPGRO)},
			field{"tunOffload", auto(&c.Offload.TUNOffload)},
			field{"tunBatch", auto(&c.Offload.TUNBatch)},
			field{"mergeWrites", auto(&c.Offload.MergeWrites)},
			field{"packetRing", choice(&c.Offload.PacketRing, "auto", "v2", "v3", "off")},
		)},
		field{"control", mapping(
			field{"socket", text(&c.Control.Socket)},
		)},
		field{"debug", mapping(
			field{"listen", text(&c.Debug.Listen)},
			field{"allowRemote", boolean(&c.Debug.AllowRemote)},
		)},
		field{"metrics", mapping(
			field{"listen", text(&c.Metrics.Listen)},
		)},
		field{"state", text(&c.State)},
	))
	c.Peers = peers
	if !c.src.has("encap.port") {
		c.Encap.Port = defaultPort(c.Encap.Type)
	}
	for i := range c.Peers {
		if p := &c.Peers[i]; p.Port == 0 && p.Encap != "" && p.Encap != c.Encap.Type {
			p.Port = defaultPort(p.Encap)
		}
	}
}

func peer(p *feed.Peer) reader {
	return mapping(
		field{"name", text(&p.Name)},
		field{"address", address(&p.Address)},
		field{"podCIDRs", prefixes(&p.PodCIDRs)},
		field{"mac", mac(&p.MAC)},
		field{"encap", choice(&p.Encap, kinds...)},
		field{"port", whole(&p.Port, 1, maxPort, "a UDP port")},
		field{"vni", whole(&p.VNI, 1, maxVNI, "a VNI")},
	)
}

var kinds = []string{encap.KindUDP.String(), encap.KindVXLAN.String(), encap.KindIPIP.String()}

// defaultPort is 0 for ipip, which has none, and for what is no encapsulation.
func defaultPort(name string) uint16 {
	kind, err := encap.ParseKind(name)
	if err != nil {
		return 0
	}
	return kind.DefaultPort()
}
