package daemon

import (
	"context"
	"runtime"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/penstock-net/penstock/forwarder"
	"github.com/penstock-net/penstock/forwarder/control"
)

// collector turns the forwarder's counters into metrics when somebody asks for them; between scrapes it costs nothing.
//
// How many series there are is bounded by what is attached and configured: 7 for each pod, 7 for each peer (16 with the native
// stream), 4 for each pod CIDR, 3 for each worker, and less than 200 besides. What is detached or removed takes its series along.
type collector struct {
	d     *Daemon
	descs []*prometheus.Desc

	received, generated, forwardedPackets, forwardedBytes, dropped                                   *prometheus.Desc
	sends, runs, writes, merged, segmented, whole, tunBatches, priorities, asking, widened, switched *prometheus.Desc
	batchSize, runSize                                                                               *prometheus.Desc
	peerPackets, peerBytes, peerDropped, peerMTU, peerSeen                                           *prometheus.Desc
	nativeOn, nativeUnits, nativeBytes                                                               *prometheus.Desc
	portPackets, portBytes, portDropped, portLost, portSeen                                          *prometheus.Desc
	buildInfo, ready, started, mtu, peers, ports, podsFailed, podsWaiting, routes, addresses         *prometheus.Desc
	workers, workerTurns, workerAsleep, workerCPU                                                    *prometheus.Desc
	found, used                                                                                      *prometheus.Desc
	reloads, reloaded, reloadedAt                                                                    *prometheus.Desc
	flowsForgotten, flowsPreloaded, flowOverruns                                                     *prometheus.Desc
}

func newCollector(d *Daemon) *collector {
	c := &collector{d: d}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		n := prometheus.NewDesc("penstock_"+name, help, labels, nil)
		c.descs = append(c.descs, n)
		return n
	}
	pod := []string{"container", "interface", "device"}
	way := append(pod, "way")

	c.received = desc("received_packets_total", "Frames read, by where they came from: pod, host or wire. A superframe is one.", "direction")
	c.generated = desc("generated_packets_total", "Frames that the daemon made itself: icmp, arp, nd.", "kind")
	c.forwardedPackets = desc("forwarded_packets_total", "Frames sent on, by where they went (pod, host or wire) and how they were encapsulated.", "direction", "encap")
	c.forwardedBytes = desc("forwarded_bytes_total", "Bytes of the inner IP packets sent on.", "direction", "encap")
	c.dropped = desc("dropped_packets_total", "Frames dropped, by reason. At rest, received + generated = forwarded + dropped.", "reason")

	c.sends = desc("sends_total", "Datagrams or runs handed to the tunnel sockets.")
	c.runs = desc("send_runs_total", "Of penstock_sends_total, runs of several datagrams in one (UDP_SEGMENT).")
	c.writes = desc("port_writes_total", "Writes to pods and the host.")
	c.merged = desc("merged_packets_total", "Frames that reached a pod or the host in a write together with the one before.")
	c.segmented = desc("segmented_superframes_total", "Superframes that were cut in software.")
	c.whole = desc("whole_superframes_total", "Superframes that left encapsulated and uncut.")
	c.tunBatches = desc("tun_batches_total", "System calls of the io_uring, by which many packets of a TUN are read or written, and many superframes to the TAP.")
	c.priorities = desc("priority_changes_total", "Times that a worker changed its place among other threads: first, or as everyone in a flood.")
	c.asking = desc("polling_seconds_total", "Time in which workers looked for packets in vain instead of sleeping, because the last ones had come at short intervals; others may have had the core meanwhile.")
	c.widened = desc("wide_rings_total", "Wide rings that were opened for busy pods.")
	c.switched = desc("switched_off_total", "Times that the kernel refused a mechanism while packets flowed, so that it is done without: udpSegment for a peer, tunnelGSO for a kind of superframe, nativeTCP for the uplink, tunBatch for a worker (also when its ring cannot be made), priority for a worker.", "mechanism")
	c.batchSize = desc("batch_packets", "Frames that were read at once from one pod, the host or a tunnel socket.")
	c.runSize = desc("run_datagrams", "Datagrams that were handed to a tunnel socket at once.")

	c.peerPackets = desc("peer_packets_total", "Frames to (sent) and from (received) a peer.", "peer", "address", "way")
	c.peerBytes = desc("peer_bytes_total", "Bytes of inner IP packets to (sent) and from (received) a peer.", "peer", "address", "way")
	c.peerDropped = desc("peer_dropped_packets_total", "Frames for or from a peer that were dropped.", "peer", "address")
	c.peerMTU = desc("peer_mtu_bytes", "Largest inner packet that reaches a peer in one piece.", "peer", "address")
	c.nativeOn = desc("native_carrier", "1 for the carrier by which frames go to a peer as the native stream, or none; absent while it is off.", "peer", "address", "carrier")
	c.nativeUnits = desc("native_units_total", "The native stream to and from a peer: bursts and frames sent, pieces and frames received, parts of superframes that had lost a piece, pieces refused.", "peer", "address", "unit")
	c.nativeBytes = desc("native_bytes_total", "Bytes of the native stream: saved against the encapsulation (sent), lost (received).", "peer", "address", "kind")
	c.peerSeen = desc("peer_last_seen_timestamp_seconds", "When a peer last sent something acceptable; 0 for never.", "peer", "address")

	c.portPackets = desc("port_packets_total", "Frames from (received) and to (sent) a pod.", way...)
	c.portBytes = desc("port_bytes_total", "Bytes from (received) and to (sent) a pod.", way...)
	c.portDropped = desc("port_dropped_packets_total", "Frames from or for a pod that were dropped.", pod...)
	c.portLost = desc("port_unread_packets_total", "Frames from a pod for which the kernel had no room in the ring; they were never received.", pod...)
	c.portSeen = desc("port_last_seen_timestamp_seconds", "When a pod last sent something; 0 for never.", pod...)

	c.buildInfo = desc("build_info", "Always 1; the labels say what runs.", "version", "goversion")
	c.ready = desc("ready", "1 if the daemon forwards, its underlay and what is its own on the host are there, no pod waits for its queue and no worker is stuck.")
	c.started = desc("start_timestamp_seconds", "When the daemon was started.")
	c.mtu = desc("pod_mtu_bytes", "MTU of the pods.")
	c.peers = desc("peers", "Other nodes known.")
	c.ports = desc("ports", "Pods attached.")
	c.podsFailed = desc("pods_failed", "Pods on record as attached that have no network: no port could be opened for them, or theirs has lost its device. penstockctl pods says why. Those of damaged files are penstock_ipam_addresses{state=\"leaked\"}, those that wait for their queue penstock_pods_waiting.")
	c.podsWaiting = desc("pods_waiting", "Pods with a TUN whose queue has not come back behind a restart, and that have no network until penstock adopt brings it.")
	c.routes = desc("routes", "Prefixes in the table that packets are looked up in.")
	c.addresses = desc("ipam_addresses", "Addresses of a pod CIDR, by state: free, allocated, cooling (given back a short while ago), leaked (held by a damaged file).", "cidr", "state")

	c.workers = desc("workers", "Worker threads.")
	c.workerTurns = desc("worker_turns_total", "Turns of a worker's loop; one that neither turns nor sleeps is stuck.", "worker")
	c.workerAsleep = desc("worker_asleep", "1 if the worker waited for packets at this moment.", "worker")
	c.workerCPU = desc("worker_cpu_seconds_total", "Processor time of a worker, as of when it last slept or some milliseconds ago; that of a stuck one stands still.", "worker")
	c.found = desc("offload_found", "1 if the kernel has a mechanism.", "name")
	c.used = desc("offload_used", "1 if a mechanism is used.", "name")

	c.reloads = desc("config_reloads_total", "Reloads of the configuration, by result: ok or rejected.", "result")
	c.reloaded = desc("config_last_reload_successful", "1 unless the last reload was rejected.")
	c.reloadedAt = desc("config_last_reload_success_timestamp_seconds", "When the configuration that holds was read.")

	c.flowsPreloaded = desc("host_flows_preloaded_total", "Flows translated by the host that were read from conntrack.")
	c.flowsForgotten = desc("host_flows_forgotten_total", "Flows translated by the host that ended.")
	c.flowOverruns = desc("host_flow_overruns_total", "Times that conntrack's events came faster than they were read; an audit followed.")
	return c
}

// Describe sends the descriptions of all metrics.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		ch <- d
	}
}

// sink is where one scrape goes.
type sink chan<- prometheus.Metric

func (s sink) counter(d *prometheus.Desc, v uint64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (s sink) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (s sink) truth(d *prometheus.Desc, v bool, labels ...string) {
	if v {
		s.gauge(d, 1, labels...)
	} else {
		s.gauge(d, 0, labels...)
	}
}

func (s sink) sizes(d *prometheus.Desc, n forwarder.Sizes) {
	buckets, sum := map[float64]uint64{}, uint64(0)
	for i, k := range n.UpTo {
		sum += k
		buckets[float64(uint64(1)<<i)] = sum
	}
	s <- prometheus.MustNewConstHistogram(d, n.Count, float64(n.Sum), buckets)
}

// Collect reads everything once.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	out := sink(ch)
	n := c.d.plane.Counters()
	c.traffic(out, n)
	c.ends(out, n)
	c.node(out, n)
}

func (c *collector) traffic(out sink, n forwarder.Counters) {
	for direction, v := range n.Received {
		out.counter(c.received, v, direction)
	}
	for kind, v := range n.Generated {
		out.counter(c.generated, v, kind)
	}
	for k, v := range n.Forwarded {
		out.counter(c.forwardedPackets, v.Packets, k.Direction, k.Encap)
		out.counter(c.forwardedBytes, v.Bytes, k.Direction, k.Encap)
	}
	for reason, v := range n.Dropped {
		out.counter(c.dropped, v, reason)
	}
	out.counter(c.sends, n.Sends)
	out.counter(c.runs, n.Runs)
	out.counter(c.writes, n.Writes)
	out.counter(c.merged, n.Merged)
	out.counter(c.segmented, n.Segmented)
	out.counter(c.whole, n.Whole)
	out.counter(c.tunBatches, n.TUNBatches)
	out.counter(c.priorities, n.Priorities)
	out <- prometheus.MustNewConstMetric(c.asking, prometheus.CounterValue, n.Asking.Seconds())
	out.counter(c.widened, n.Widened)
	for mechanism, v := range n.SwitchedOff {
		out.counter(c.switched, v, mechanism)
	}
	out.sizes(c.batchSize, n.Batches)
	out.sizes(c.runSize, n.RunSizes)
}

// ends are the peers and the pods.
func (c *collector) ends(out sink, n forwarder.Counters) {
	for _, p := range n.Peers {
		out.counter(c.peerPackets, p.Sent.Packets, p.Name, p.Address, "sent")
		out.counter(c.peerPackets, p.Got.Packets, p.Name, p.Address, "received")
		out.counter(c.peerBytes, p.Sent.Bytes, p.Name, p.Address, "sent")
		out.counter(c.peerBytes, p.Got.Bytes, p.Name, p.Address, "received")
		out.counter(c.peerDropped, p.Dropped, p.Name, p.Address)
		out.gauge(c.peerMTU, float64(p.MTU), p.Name, p.Address)
		out.gauge(c.peerSeen, float64(p.LastSeen), p.Name, p.Address)
		c.nativeStream(out, p.Native, p.Name, p.Address)
	}
	for _, p := range n.Ports {
		out.counter(c.portPackets, p.Sent.Packets, p.Container, p.Interface, p.Device, "received")
		out.counter(c.portPackets, p.Got.Packets, p.Container, p.Interface, p.Device, "sent")
		out.counter(c.portBytes, p.Sent.Bytes, p.Container, p.Interface, p.Device, "received")
		out.counter(c.portBytes, p.Got.Bytes, p.Container, p.Interface, p.Device, "sent")
		out.counter(c.portDropped, p.Dropped, p.Container, p.Interface, p.Device)
		out.counter(c.portLost, p.RingDrops, p.Container, p.Interface, p.Device)
		out.gauge(c.portSeen, float64(p.LastSeen), p.Container, p.Interface, p.Device)
	}
}

// nativeStream is what went to and came from a peer by the native stream; nil while it is off.
func (c *collector) nativeStream(out sink, n *forwarder.NativeStatus, peer ...string) {
	if n == nil {
		return
	}
	out.gauge(c.nativeOn, 1, append(peer, n.Carrier)...)
	for unit, v := range map[string]uint64{"bursts_sent": n.Bursts, "frames_sent": n.Frames, "pieces_received": n.GotPieces,
		"frames_received": n.GotFrames, "parts": n.Parts, "refused": n.Refused} {
		out.counter(c.nativeUnits, v, append(peer, unit)...)
	}
	out.counter(c.nativeBytes, n.Saved, append(peer, "saved")...)
	out.counter(c.nativeBytes, n.LostBytes, append(peer, "lost")...)
}

func (c *collector) node(out sink, n forwarder.Counters) {
	s := c.d.state.Load()
	out.gauge(c.buildInfo, 1, control.Version(), runtime.Version())
	ready, _ := c.d.health.ready()
	out.truth(c.ready, ready)
	out.gauge(c.started, float64(c.d.started.Unix()))
	out.gauge(c.mtu, float64(s.podMTU))
	out.gauge(c.peers, float64(len(s.peers)))
	out.gauge(c.ports, float64(len(n.Ports)))
	out.gauge(c.podsFailed, float64(c.d.pods.failed()))
	out.gauge(c.podsWaiting, float64(c.d.pods.waiting()))
	if routes, err := c.d.Routes(context.Background()); err == nil {
		out.gauge(c.routes, float64(len(routes)))
	}
	if ipam, err := c.d.IPAM(context.Background()); err == nil {
		for _, p := range ipam.CIDRs {
			for state, v := range map[string]uint64{"free": p.Free, "allocated": p.Allocated, "cooling": p.Waiting, "leaked": p.Leaked} {
				out.gauge(c.addresses, float64(v), p.Prefix.String(), state)
			}
		}
	}

	out.gauge(c.workers, float64(c.d.workers))
	for i, w := range n.Workers {
		who := strconv.Itoa(i)
		out.counter(c.workerTurns, w.Turns, who)
		out.truth(c.workerAsleep, w.Asleep, who)
		out <- prometheus.MustNewConstMetric(c.workerCPU, prometheus.CounterValue, w.CPU.Seconds(), who)
	}
	for _, o := range c.d.capabilities() {
		out.truth(c.found, o.Found, o.Name)
		out.truth(c.used, o.Used, o.Name)
	}

	ok, rejected, last, failed := c.d.reloads.counts()
	out.counter(c.reloads, ok, "ok")
	out.counter(c.reloads, rejected, "rejected")
	out.truth(c.reloaded, !failed)
	if last.IsZero() {
		last = c.d.started
	}
	out.gauge(c.reloadedAt, float64(last.Unix()))

	if c.d.flows != nil {
		f := c.d.flows.Stats()
		out.counter(c.flowsPreloaded, f.Preloaded)
		out.counter(c.flowsForgotten, f.Forgotten)
		out.counter(c.flowOverruns, f.Overruns)
	}
}
