package e2e

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestTruncatedSuperframe: superframes that find a pod's buffer full, because nobody reads, are cut by the kernel or
// not kept at all. What was cut is dropped as truncated, what was not kept is counted as never read, and whatever is
// delivered is whole: each superframe that the pod sent is exactly one of the three.
func TestTruncatedSuperframe(t *testing.T) {
	lab.Require(t)
	for _, c := range []struct {
		ring, podBuffer string
		cuts, loses     bool // so it must cut some, and leave some unread
	}{
		{"auto", "8MiB", true, false}, // a wide ring has slots for all of them
		{"v2", "2MiB", true, true},
		{"v3", "8MiB", false, true},
		{"off", "8MiB", false, true},
	} {
		t.Run("packetRing "+c.ring+" "+c.podBuffer, func(t *testing.T) {
			l := lab.New(t, lab.Config{Nodes: 1, YAML: []string{"offload: {packetRing: " + c.ring + "}\nlimits: {podBuffer: " + c.podBuffer + "}"}})
			l.Start(t)
			a := l.Nodes[0]
			from, to := a.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth)
			for _, v6 := range []bool{false, true} {
				if err := from.Ping(to.Addr(v6)); err != nil {
					t.Fatal(err)
				}
				sink, err := to.ReceiveStream(0)
				if err != nil {
					t.Fatal(err)
				}
				// What the daemon finds when it goes on must not be more than the receiver's queues hold.
				const burst, size, superframes = 48, 1300, 200
				before := a.Daemon.AtRest(t)
				pause(t, a.Daemon, syscall.SIGSTOP)
				n, err := from.SendStream(within(t), netip.AddrPortFrom(to.Addr(v6), sink.Port()), lab.Stream{Segment: size, Burst: burst, Count: burst * superframes})
				pause(t, a.Daemon, syscall.SIGCONT)
				if err != nil || n != burst*superframes {
					t.Fatalf("sent %d messages: %v", n, err)
				}
				m := a.Daemon.AssertConserved(t).Sub(before)
				truncated := int(m.Dropped()["truncated"])
				unread := int(m.Sum("penstock_port_unread_packets_total"))
				whole := superframes - truncated - unread
				got := sink.WaitFor(burst*whole, patience)
				t.Logf("%s: of %d superframes %d truncated, %d unread, %d whole", family(v6), superframes, truncated, unread, whole)
				if truncated+unread == 0 || whole <= 0 || c.cuts && truncated == 0 || c.loses && unread == 0 {
					t.Errorf("%s: the buffer was not full, or took nothing at all", family(v6))
				}
				// Of the unread, a few may be the pod's own IPv6 chatter: then more of ours were whole.
				if noise := got.Received/burst - whole; noise < 0 || noise > 4 || got.Received%burst != 0 || got.Corrupt+got.BadBorder+got.Strangers+got.Duplicated+got.Reordered > 0 {
					t.Errorf("%s: %d superframes of %d messages were delivered, and received was %+v", family(v6), whole, burst, got)
				}
				a.Daemon.AssertDrops(t, before, nonZero(map[string]uint64{"truncated": uint64(truncated)}), badNoise...)
				sink.Close()

				// And then it works as before.
				messages(t, &from.Host, &to.Host, v6, lab.Stream{Segment: size, Count: 10 * burst})
			}
			conserved(t, l)
		})
	}
}

func nonZero(m map[string]uint64) map[string]uint64 {
	for k, v := range m {
		if v == 0 {
			delete(m, k)
		}
	}
	return m
}

// pause stops the daemon or lets it go on, and waits until that is so.
func pause(t *testing.T, d *lab.Daemon, how syscall.Signal) {
	t.Helper()
	if err := d.Process.Signal(how); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Process.Pid()))
		if err != nil {
			t.Fatal(err)
		}
		rest := string(b[bytes.LastIndex(b, []byte(") "))+2:]) // the process's name may hold anything
		if (rest[0] == 'T') == (how == syscall.SIGSTOP) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the daemon does not obey %v: %.40s", how, rest)
		}
	}
}
