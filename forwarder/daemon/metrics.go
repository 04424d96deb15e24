package daemon

import (
	"runtime"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock-net/penstock/forwarder/control"
)

// collector turns the forwarder's counters into metrics when somebody asks for them; between scrapes it costs nothing.
type collector struct {
	d *Daemon

	received, generated, forwardedPackets, forwardedBytes, dropped *prometheus.Desc
	sends, runs, writes, merged, segmented, widened                *prometheus.Desc
	peerPackets, peerBytes, peerDropped, peerMTU, peerSeen         *prometheus.Desc
	nativeOn, nativeUnits, nativeBytes                             *prometheus.Desc
	portPackets, portBytes, portDropped, portLost                  *prometheus.Desc
	buildInfo, ready, mtu, peers, ports, workers                   *prometheus.Desc
	flowsForgotten, flowsPreloaded, flowOverruns                   *prometheus.Desc
}

func newCollector(d *Daemon) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("penstock_"+name, help, labels, nil)
	}
	pod := []string{"container", "interface", "device"}
	return &collector{
		d:                d,
		received:         desc("received_packets_total", "Frames read, by where they came from: pod, host or wire. A superframe is one.", "direction"),
		generated:        desc("generated_packets_total", "Frames that the daemon made itself: icmp, arp, nd.", "kind"),
		forwardedPackets: desc("forwarded_packets_total", "Frames sent on, by where they went (pod, host or wire) and how they were encapsulated.", "direction", "encap"),
		forwardedBytes:   desc("forwarded_bytes_total", "Bytes of the inner IP packets sent on.", "direction", "encap"),
		dropped:          desc("dropped_packets_total", "Frames dropped, by reason. At rest, received + generated = forwarded + dropped.", "reason"),

		sends:     desc("sends_total", "Datagrams or runs handed to the tunnel sockets."),
		runs:      desc("send_runs_total", "Of these, runs of several datagrams in one (UDP_SEGMENT)."),
		writes:    desc("port_writes_total", "Writes to pods and the host."),
		merged:    desc("merged_packets_total", "Frames that reached a pod or the host in a write together with the one before."),
		widened:   desc("wide_rings_total", "Wide rings that were opened for busy pods."),
		segmented: desc("segmented_superframes_total", "Superframes that were cut in software."),

		peerPackets: desc("peer_packets_total", "Frames to (sent) and from (received) a peer.", "peer", "address", "way"),
		peerBytes:   desc("peer_bytes_total", "Bytes of inner IP packets to (sent) and from (received) a peer.", "peer", "address", "way"),
		peerDropped: desc("peer_dropped_packets_total", "Frames for or from a peer that were dropped.", "peer", "address"),
		peerMTU:     desc("peer_mtu_bytes", "Largest inner packet that reaches a peer in one piece.", "peer", "address"),
		nativeOn:    desc("native_carrier", "1 for the carrier by which frames go to a peer as the native stream, or none; absent while it is off.", "peer", "address", "carrier"),
		nativeUnits: desc("native_units_total", "The native stream to and from a peer: bursts and frames sent, pieces and frames received, parts of superframes that had lost a piece, pieces refused.", "peer", "address", "unit"),
		nativeBytes: desc("native_bytes_total", "Bytes of the native stream: saved against the encapsulation (sent), lost (received).", "peer", "address", "kind"),
		peerSeen:    desc("peer_last_seen_timestamp_seconds", "When a peer last sent something acceptable; 0 for never.", "peer", "address"),

		portPackets: desc("port_packets_total", "Frames from (received) and to (sent) a pod.", append(pod, "way")...),
		portBytes:   desc("port_bytes_total", "Bytes from (received) and to (sent) a pod.", append(pod, "way")...),
		portDropped: desc("port_dropped_packets_total", "Frames from or for a pod that were dropped.", pod...),
		portLost:    desc("port_unread_packets_total", "Frames from a pod for which the kernel had no room; they were never received.", pod...),

		buildInfo: desc("build_info", "Always 1; the labels say what runs.", "version", "goversion"),
		ready:     desc("ready", "1 if the daemon forwards and its underlay is there."),
		mtu:       desc("pod_mtu_bytes", "MTU of the pods."),
		peers:     desc("peers", "Other nodes known."),
		ports:     desc("ports", "Pods attached."),
		workers:   desc("workers", "Worker threads."),

		flowsPreloaded: desc("host_flows_preloaded_total", "Flows translated by the host that were read from conntrack."),
		flowsForgotten: desc("host_flows_forgotten_total", "Flows translated by the host that ended."),
		flowOverruns:   desc("host_flow_overruns_total", "Times that conntrack's events came faster than they were read; an audit followed."),
	}
}

// Describe sends the descriptions of all metrics.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.received, c.generated, c.forwardedPackets, c.forwardedBytes, c.dropped, c.sends, c.runs, c.writes, c.merged, c.segmented, c.widened,
		c.peerPackets, c.peerBytes, c.peerDropped, c.peerMTU, c.peerSeen, c.nativeOn, c.nativeUnits, c.nativeBytes, c.portPackets, c.portBytes, c.portDropped, c.portLost,
		c.buildInfo, c.ready, c.mtu, c.peers, c.ports, c.workers, c.flowsPreloaded, c.flowsForgotten, c.flowOverruns} {
		ch <- d
	}
}

// Collect reads everything once.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	n := c.d.plane.Counters()
	for direction, v := range n.Received {
		counter(c.received, v, direction)
	}
	for kind, v := range n.Generated {
		counter(c.generated, v, kind)
	}
	for k, v := range n.Forwarded {
		counter(c.forwardedPackets, v.Packets, k.Direction, k.Encap)
		counter(c.forwardedBytes, v.Bytes, k.Direction, k.Encap)
	}
	for reason, v := range n.Dropped {
		counter(c.dropped, v, reason)
	}
	counter(c.sends, n.Sends)
	counter(c.runs, n.Runs)
	counter(c.writes, n.Writes)
	counter(c.merged, n.Merged)
	counter(c.segmented, n.Segmented)
	counter(c.widened, n.Widened)
	for _, p := range n.Peers {
		counter(c.peerPackets, p.Sent.Packets, p.Name, p.Address, "sent")
		counter(c.peerPackets, p.Got.Packets, p.Name, p.Address, "received")
		counter(c.peerBytes, p.Sent.Bytes, p.Name, p.Address, "sent")
		counter(c.peerBytes, p.Got.Bytes, p.Name, p.Address, "received")
		counter(c.peerDropped, p.Dropped, p.Name, p.Address)
		gauge(c.peerMTU, float64(p.MTU), p.Name, p.Address)
		gauge(c.peerSeen, float64(p.LastSeen), p.Name, p.Address)
		if s := p.Native; s != nil {
			gauge(c.nativeOn, 1, p.Name, p.Address, s.Carrier)
			for unit, v := range map[string]uint64{"bursts_sent": s.Bursts, "frames_sent": s.Frames, "pieces_received": s.GotPieces,
				"frames_received": s.GotFrames, "parts": s.Parts, "refused": s.Refused} {
				counter(c.nativeUnits, v, p.Name, p.Address, unit)
			}
			counter(c.nativeBytes, s.Saved, p.Name, p.Address, "saved")
			counter(c.nativeBytes, s.LostBytes, p.Name, p.Address, "lost")
		}
	}
	for _, p := range n.Ports {
		counter(c.portPackets, p.Sent.Packets, p.Container, p.Interface, p.Device, "received")
		counter(c.portPackets, p.Got.Packets, p.Container, p.Interface, p.Device, "sent")
		counter(c.portBytes, p.Sent.Bytes, p.Container, p.Interface, p.Device, "received")
		counter(c.portBytes, p.Got.Bytes, p.Container, p.Interface, p.Device, "sent")
		counter(c.portDropped, p.Dropped, p.Container, p.Interface, p.Device)
		counter(c.portLost, p.RingDrops, p.Container, p.Interface, p.Device)
	}

	s := c.d.state.Load()
	gauge(c.buildInfo, 1, control.Version(), runtime.Version())
	ready := 0.0
	if ok, _ := c.d.health.ready(); ok {
		ready = 1
	}
	gauge(c.ready, ready)
	gauge(c.mtu, float64(s.podMTU))
	gauge(c.peers, float64(len(s.peers)))
	gauge(c.ports, float64(len(n.Ports)))
	gauge(c.workers, float64(c.d.workers))
	if c.d.flows != nil {
		f := c.d.flows.Stats()
		counter(c.flowsPreloaded, f.Preloaded)
		counter(c.flowsForgotten, f.Forgotten)
		counter(c.flowOverruns, f.Overruns)
	}
}
