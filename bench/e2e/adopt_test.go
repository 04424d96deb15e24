package e2e

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestAdopt: the daemon is stopped, and then killed, with pods of every kind on it. Its successor has them all again, with
// their addresses, before it is ready; connections that were open go on, and nothing was given twice.
func TestAdopt(t *testing.T) {
	t.Parallel()
	_, a, b := twoNodes(t, lab.Config{})
	veth, tun, other := a.AddPodByPlugin(t, lab.Veth), a.AddPodByPlugin(t, lab.TUN), b.AddPodByPlugin(t, lab.Veth)
	local := []*lab.Pod{veth, tun}

	type stream struct {
		pod    *lab.Pod
		server *lab.TCPServer
		done   chan error
	}
	for _, end := range []string{"stopped", "killed"} {
		t.Run(end, func(t *testing.T) {
			before := a.Daemon.Status(t)
			ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
			defer cancel()
			var streams []stream
			for _, p := range local {
				s, err := p.ServeTCP(0)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				st := stream{p, s, make(chan error, 1)}
				go func() {
					_, err := other.TCP(ctx, netip.AddrPortFrom(p.IP4, s.Port()), 128<<20, 128<<20)
					st.done <- err
				}()
				streams = append(streams, st)
			}
			time.Sleep(200 * time.Millisecond) // in full swing
			if end == "killed" {
				a.Daemon.Kill()
			} else {
				a.Daemon.Stop(t)
			}
			a.Start(t)
			for _, s := range streams {
				if err := <-s.done; err != nil {
					t.Errorf("a connection to %s (%s) did not survive: %v", s.pod.Name, s.pod.Attach, err)
				}
			}
			after := a.Daemon.Status(t)
			if after.Ports != 2 || after.Waiting != 0 || !after.Started.After(before.Started) {
				t.Errorf("%d ports, %d waiting", after.Ports, after.Waiting)
			}
			for _, p := range local {
				if err := p.Check(); err != nil {
					t.Errorf("CHECK of %s (%s): %v", p.Name, p.Attach, err)
				}
				for _, to := range append([]*lab.Pod{other}, local...) {
					if to == p {
						continue
					}
					for _, v6 := range []bool{false, true} {
						if err := p.Ping(to.Addr(v6)); err != nil {
							t.Errorf("%s → %s: %v", p.Name, to.Name, err)
						}
					}
				}
			}
			// A new pod gets addresses that nobody has.
			fresh := a.AddPodByPlugin(t, lab.Veth)
			if slices.ContainsFunc(local, func(p *lab.Pod) bool { return p.IP4 == fresh.IP4 || p.IP6 == fresh.IP6 }) {
				t.Errorf("%s and %s were given twice", fresh.IP4, fresh.IP6)
			}
			fresh.Remove(t)
			a.Daemon.AssertConserved(t)
		})
	}
	for _, p := range append(local, other) {
		p.Remove(t)
	}
	nothingLeft(t, a)
	nothingLeft(t, b)
}

// TestCollectAtStart: what went while no daemon ran is gone from its state when the next one is ready: a pod whose namespace
// died, a delete that was queued, a pod of another boot, a device that no pod has.
func TestCollectAtStart(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	n := l.Nodes[0]
	stays, queued, died, diedTUN := n.AddPodByPlugin(t, lab.Veth), n.AddPodByPlugin(t, lab.Veth), n.AddPodByPlugin(t, lab.Veth), n.AddPodByPlugin(t, lab.TUN)
	damaged := n.AddPodByPlugin(t, lab.Veth)
	n.Daemon.Kill()
	queued.Unplug(t) // DEL succeeds without a daemon
	died.NS.Close()
	diedTUN.NS.Close()
	var file string
	err := filepath.WalkDir(filepath.Dir(n.Daemon.Config), func(path string, _ os.DirEntry, err error) error {
		if filepath.Base(path) == control.DeviceName(damaged.Container, "eth0")+".json" {
			file = path
		}
		return err
	})
	if err != nil || file == "" {
		t.Fatalf("no state file: %v", err)
	}
	if err := os.Truncate(file, 300); err != nil {
		t.Fatal(err)
	}
	n.Start(t)
	pods, err := n.Daemon.Control().Pods(t.Context())
	if err != nil || len(pods) != 1 || pods[0].Container != stays.Container || pods[0].Phase != control.PhaseAttached {
		t.Errorf("%+v, %v", pods, err)
	}
	if err := n.Ping(stays.IP4); err != nil {
		t.Error(err)
	}
	ports, err := n.Daemon.Control().Ports(t.Context())
	if err != nil || len(ports) != 1 {
		t.Errorf("%+v, %v", ports, err)
	}
	damaged.Remove(t)
	stays.Remove(t)
	queued.Remove(t)
	nothingLeft(t, n)
}

// TestAdoptHalf: who attaches by hand moves the TUN into the pod, where it may still have the name it came with, and one whose pod
// has lost it leaves nothing; the next daemon is ready at once all the same.
func TestAdoptHalf(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	a := l.Nodes[0]
	half, lost := a.AddPodByPlugin(t, lab.TUN), a.AddPodByPlugin(t, lab.TUN)
	a.Daemon.Kill()
	link, err := half.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{half.Netlink().LinkSetDown(link), half.Netlink().LinkSetName(link, half.HostDevice)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if link, err = lost.Netlink().LinkByName("eth0"); err != nil {
		t.Fatal(err)
	}
	if err := lost.Netlink().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	a.Start(t)
	if took := time.Since(began); took > 25*time.Second {
		t.Errorf("the daemon was ready after %v", took)
	}
	pods, err := a.Daemon.Control().Pods(t.Context())
	slices.SortFunc(pods, func(a, b control.Pod) int { return strings.Compare(a.Phase, b.Phase) })
	if err != nil || len(pods) != 2 || pods[0].Container != half.Container || pods[0].Phase != control.PhaseAttached || pods[1].Phase != control.PhaseReserved {
		t.Errorf("%+v, %v", pods, err)
	}
	half.Remove(t)
	lost.Remove(t)
	nothingLeft(t, a)
}
