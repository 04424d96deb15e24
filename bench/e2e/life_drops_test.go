package e2e

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/doctor"
)

// TestNoPortNoHost: a veth pod that a restart does not bring back has no network, and least of all that of the host's stack, which would
// forward what it sends in whatever name, to other nodes' tunnel ports too. Doctor names it, and when its cause is gone so is its trouble.
func TestNoPortNoHost(t *testing.T) {
	lab.Require(t)
	const least = "limits: {podBuffer: 512KiB, totalBuffer: 512KiB}"
	record := func(n *lab.Node, p *lab.Pod) string {
		return filepath.Join(filepath.Dir(n.Daemon.Config), "state", "pods", p.HostDevice+".json")
	}
	damage := func(change func([]byte) []byte) func(*testing.T, *lab.Node, *lab.Pod) {
		return func(t *testing.T, n *lab.Node, p *lab.Pod) {
			b, err := os.ReadFile(record(n, p))
			if err == nil {
				err = os.WriteFile(record(n, p), change(b), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name    string
		pods    int
		yaml    string
		damage  func(*testing.T, *lab.Node, *lab.Pod)
		check   string
		finding string
	}{
		{name: "podCIDRs changed", pods: 1, yaml: "node: {podCIDRs: [10.244.77.0/24]}", check: "pods", finding: "in none of this node's pod CIDRs"},
		{name: "no buffer left", pods: 4, yaml: least, check: "pods", finding: "no packet buffer left"},
		{name: "record truncated", pods: 1, damage: damage(func(b []byte) []byte { return b[:len(b)/3] }), check: "leftovers", finding: "all that they send is dropped"},
		{name: "record of a later format", pods: 1, damage: damage(func(b []byte) []byte { return bytes.Replace(b, []byte("{"), []byte(`{"later": 1,`), 1) }),
			check: "leftovers", finding: "all that they send is dropped"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, a, b := twoNodes(t, lab.Config{})
			var pods []*lab.Pod
			for range c.pods {
				pods = append(pods, a.AddPodByPlugin(t, lab.Veth))
			}
			a.Daemon.Stop(t)
			if c.damage != nil {
				c.damage(t, a, pods[0])
			}
			if _, err := a.StartErr(c.yaml); err != nil {
				t.Fatal(err)
			}
			list, err := a.Daemon.Control().Pods(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(list, func(o control.Pod) bool { return o.Problem != "" })
			p := pods[0] // of a damaged file there is no record
			if c.damage == nil {
				if i < 0 || list[i].Phase != control.PhaseFailed {
					t.Fatalf("no pod has failed: %+v", list)
				}
				p = pods[slices.IndexFunc(pods, func(o *lab.Pod) bool { return o.Container == list[i].Container })]
			}

			wire, err := b.Capture("eth0", func(f []byte) bool { return bytes.Contains(f, []byte("past the daemon")) })
			if err != nil {
				t.Fatal(err)
			}
			defer wire.Close()
			send := func() {
				for _, from := range []netip.Addr{p.IP4, netip.MustParseAddr("192.0.2.7")} {
					packet, err := lab.UDPPacket(netip.AddrPortFrom(from, 5555), netip.AddrPortFrom(b.Underlay(), 8472), []byte("past the daemon"), true)
					if err == nil {
						err = p.InjectIP(packet)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			send()
			if n := len(wire.Frames()); n > 0 {
				t.Errorf("behind the start the host's stack has forwarded %d of the pod's packets", n)
			}
			if err := a.Nftables(func(c *nftables.Conn) error { c.FlushRuleset(); return c.Flush() }); err != nil {
				t.Fatal(err)
			}
			await(t, "the drop is back", func() bool { return slices.Contains(dropsOf(t, a), p.HostDevice) })
			for range 20 { // over the looks that try to open its port
				send()
				time.Sleep(50 * time.Millisecond)
			}
			if n := len(wire.Frames()); n > 0 {
				t.Errorf("the host's stack has forwarded %d of the pod's packets", n)
			}
			want(t, examine(t, a, 1, b.Name), c.check, doctor.Failure, c.finding)
			if n := saying(t, a.Daemon.Process, "made anew"); n > 0 {
				t.Errorf("a device was made anew, %d times", n)
			}

			a.Daemon.Stop(t)
			send()
			time.Sleep(50 * time.Millisecond)
			if n := len(wire.Frames()); n > 0 {
				t.Errorf("without a daemon it has forwarded %d", n)
			}
			if _, err := a.StartErr(); err != nil {
				t.Fatal(err)
			}
			if c.damage != nil {
				p.Remove(t)
				nothingLeft(t, a)
				if drops := dropsOf(t, a); slices.Contains(drops, p.HostDevice) {
					t.Errorf("the pod is deleted, and its drop stands: %v", drops)
				}
				return
			}
			if err := p.Ping(b.HostAddr(false)); err != nil {
				t.Errorf("when its cause is gone: %v", err)
			}
			a.Daemon.Stop(t)
			// What nobody drops would have been seen.
			if err := a.Nftables(func(c *nftables.Conn) error {
				c.DelTable(&nftables.Table{Name: "penstock", Family: nftables.TableFamilyNetdev})
				return c.Flush()
			}); err != nil {
				t.Fatal(err)
			}
			send()
			if len(wire.Wait(2, patience)) < 2 {
				t.Error("without the drop nothing is seen either: this test proves nothing")
			}
		})
	}
}

// dropsOf are the devices that have a drop.
func dropsOf(t *testing.T, n *lab.Node) (devices []string) {
	t.Helper()
	if err := n.Nftables(func(c *nftables.Conn) error {
		chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
		for _, ch := range chains {
			if ch.Table.Name == "penstock" && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
				devices = append(devices, ch.Name)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return devices
}
