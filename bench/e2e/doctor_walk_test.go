package e2e

import (
	"testing"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestDebuggingWalkthrough injects the three faults of docs/debugging.md into a real network and does there what the page says,
// with penstockctl alone. What the page shows must be what is printed, but for numbers and times; UPDATE=1 writes it anew.
func TestDebuggingWalkthrough(t *testing.T) {
	lab.Require(t)
	w := newWalk(t, "debugging.md")
	l := lab.New(t, lab.Config{Nodes: 3})
	l.Start(t)
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	pod, other := a.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth)
	for _, n := range []*lab.Node{b, c} {
		pingBoth(t, &pod.Host, &n.AddPod(t, lab.Veth).Host)
	}

	w.run("healthy", a, 0, "doctor", "-q")("0 failures, 0 warnings")

	b.Daemon.Kill()
	w.run("down/doctor", a, 1, "doctor", "-q")("failure peer node-b node-b answers that nobody holds UDP 8472 there: penstockd is not running on it", "start penstockd")
	w.run("down/there", b, 3, "doctor", "-q")("failure daemon it cannot be reached", "penstockd has died", "journalctl -u penstockd")
	b.Start(t)
	w.run("down/mended", a, 0, "doctor", "-q", "node-b")("0 failures")

	link, err := l.Fabric.Netlink().LinkByName("n2") // the end of node-c's link, in a bridge that tells nobody what it loses
	if err == nil {
		err = l.Fabric.Netlink().LinkSetMTU(link, 1400)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.run("mtu/doctor", a, 1, "doctor", "-q")("failure peer node-c packets of more than 1350 bytes are lost on the way (to node-c 1350, from node-c 1354), and pods send up to 1450", "set encap.mtu: 1350 on all nodes")
	w.run("mtu/peers", a, 0, "peers")("node-c")
	for _, n := range l.Nodes {
		n.Daemon.Reload(t, "encap: {mtu: 1350}")
	}
	w.run("mtu/mended", a, 5, "doctor", "node-c")("packets of 1350 bytes pass both ways", "warning mtu pods get an MTU of 1350 now, and these have a larger one from before")
	for _, n := range l.Nodes {
		n.Daemon.Reload(t)
	}
	if err := l.Fabric.Netlink().LinkSetMTU(link, 1500); err != nil {
		t.Fatal(err)
	}

	stop := spoof(t, pod)
	w.run("spoof/doctor", a, 5, "doctor", "-q")("warning drops spoofed: N in", "a pod sent with a source that is not its address", short(pod)+"/eth0 10.244.1.2")
	w.run("spoof/ports", a, 0, "ports")(pod.HostDevice, other.HostDevice)
	w.run("spoof/drops", a, 0, "drops")("a pod sent with a source that is not its address")
	stop()
	w.finish()
	conserved(t, l)
}
