package e2e

import (
	"encoding/json"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket/pcapgo"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// ctlOK runs penstockctl on a node and expects an exit status.
func ctlOK(t *testing.T, n *lab.Node, want int, args ...string) string {
	t.Helper()
	out, status, err := n.Ctl(args...)
	if err != nil || status != want {
		t.Errorf("penstockctl %q: exit status %d, want %d, %v\n%s", args, status, want, err, out)
	}
	t.Logf("$ penstockctl %s\n%s", strings.Join(args, " "), out)
	return out
}

// TestTraceTellsWhatHappens: what trace says of a packet is what then happens to one, and the trace itself moves no counter.
func TestTraceTellsWhatHappens(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{})
	here, local, there := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth)
	nowhere := netip.MustParseAddr("10.244.77.7")
	counted := func() (s control.Status) {
		out, _, err := a.Ctl("-o", "json", "status")
		if err != nil || json.Unmarshal([]byte(out), &s) != nil {
			t.Fatal(out, err)
		}
		return s
	}
	for _, c := range []struct {
		to      netip.Addr
		outcome string
		status  int
	}{
		{there.Addr(false), "to-peer", 0}, {there.Addr(true), "to-peer", 0}, {local.Addr(false), "to-pod", 0}, {nowhere, "dropped", 6},
	} {
		before := counted().Traffic
		out := ctlOK(t, a, c.status, "-o", "json", "trace", here.Addr(c.to.Is6()).String(), c.to.String())
		var got control.Trace
		if err := json.NewDecoder(strings.NewReader(out)).Decode(&got); err != nil || got.Outcome != c.outcome {
			t.Errorf("%s: %+v %v", c.to, got, err)
		}
		// Neighbour discovery may pass by, and is dropped as multicast.
		if after := counted().Traffic; after.Received-after.Dropped > before.Received-before.Dropped || after.Forwarded != before.Forwarded {
			t.Errorf("a trace moved counters: %+v became %+v", before, after)
		}
		if err := here.Ping(c.to); (err == nil) != (c.status == 0) {
			t.Errorf("trace says %s, and the ping: %v", c.outcome, err)
		}
	}
	ctlOK(t, a, 0, "trace", here.Addr(false).String(), there.Addr(false).String(), "--proto", "tcp", "--dport", "80")
	ctlOK(t, a, 6, "trace", there.Addr(false).String(), local.Addr(false).String(), "--from", here.Container+"/eth0")
	ctlOK(t, b, 0, "trace", here.Addr(false).String(), there.Addr(false).String())
	ctlOK(t, a, 6, "trace", here.Addr(false).String(), there.Addr(false).String(), "--proto", "udp", "--size", "1500", "--df")
	for _, args := range [][]string{{"status"}, {"peers"}, {"ports"}, {"routes"}, {"fdb"}, {"drops"}, {"top", "-n", "1"}, {"version"}} {
		ctlOK(t, a, 0, args...)
	}
	conserved(t, l)
}

// TestCaptureSeesThePath: a capture of a pod holds its packets where they came in and left, one by reason the drops alone; the
// files are whole for pcapgo, and for tshark where it is installed.
func TestCaptureSeesThePath(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{})
	here, there := a.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)
	nowhere := netip.MustParseAddr("10.244.77.7")
	if err := here.Ping(there.Addr(false)); err != nil {
		t.Fatal(err)
	}
	capture := func(do func(), args ...string) (stages []string) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "x.pcapng")
		done := make(chan string, 1)
		go func() {
			out, status, err := a.Ctl(append([]string{"capture", "-w", path}, args...)...)
			if err != nil || status != 0 {
				t.Errorf("%d %v", status, err)
			}
			done <- out
		}()
		for {
			select {
			case out := <-done:
				if !strings.Contains(out, "frames captured") || strings.Contains(out, "lost") {
					t.Errorf("%s", out)
				}
				file, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer file.Close()
				r, err := pcapgo.NewNgReader(file, pcapgo.NgReaderOptions{WantMixedLinkType: true})
				if err != nil {
					t.Fatal(err)
				}
				for {
					_, ci, err := r.ReadPacketData()
					if err == io.EOF {
						break
					}
					if err != nil {
						t.Fatal(err)
					}
					on, err := r.Interface(ci.InterfaceIndex)
					if err != nil {
						t.Fatal(err)
					}
					stages = append(stages, on.Name)
				}
				if tshark, err := exec.LookPath("tshark"); err == nil {
					text, err := exec.Command(tshark, "-r", path, "-T", "fields", "-e", "frame.interface_name", "-e", "_ws.col.Info").CombinedOutput()
					if err != nil || strings.Count(string(text), "ICMP")+strings.Count(string(text), "Echo") == 0 {
						t.Errorf("tshark: %v\n%s", err, text)
					}
					t.Logf("tshark:\n%s", text)
				}
				return stages
			default:
				do()
				time.Sleep(20 * time.Millisecond)
			}
		}
	}
	pod := here.Container + "/eth0"
	got := capture(func() { here.Ping(there.Addr(false)) }, "-c", "8", "--pod", pod, "--peer", "node-b")
	for _, want := range []string{"from-pod " + pod, "to-peer " + pod + " node-b", "from-peer node-b", "to-pod " + pod + " node-b"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	got = capture(func() { here.Silent(nowhere) }, "-c", "2", "--reason", "no_route", "-s", "60")
	if want := "dropped:no_route " + pod; len(got) != 2 || got[0] != want || got[1] != want {
		t.Errorf("%q", got)
	}
	conserved(t, l)
}
