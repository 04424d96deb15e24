package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestSoak: traffic while pods come and go, the configuration is reloaded and
// the daemon is killed, for LAB_SOAK (make soak). Memory, descriptors and
// goroutines stay flat, and the law holds at the end.
func TestSoak(t *testing.T) {
	length := 5 * time.Second // a smoke test of the soak itself
	if s := os.Getenv("LAB_SOAK"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatalf("LAB_SOAK is %q, it should be a duration such as 10m: %v", s, err)
		}
	}
	l, a, b := twoNodes(t, lab.Config{})
	pods := [2][]*lab.Pod{{a.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth)}, {b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)}}
	rnd := rand.New(rand.NewPCG(1, uint64(length)))
	var readings []usage
	transfers, churns, reloads, kills := 0, 0, 0, 0
	nextKill := time.Now().Add(length / 4)
	for end := time.Now().Add(length); time.Now().Before(end); {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		for i := range pods[0] {
			if _, err := lab.TransferTCP(ctx, &pods[0][i].Host, &pods[1][i].Host, i == 1, 16<<20, 16<<20); err != nil {
				t.Errorf("transfer %d: %v", transfers, err)
			}
			transfers++
		}
		cancel()
		guest := a.BarePod(t) // by the plugin, with an address of the daemon's: hours of it need each of them again
		if _, err := guest.Plug(a.List(nil, lab.Conf{"type": "penstock", "attach": []string{"veth", "tun"}[rnd.IntN(2)]})); err != nil {
			t.Fatalf("a new pod: %v", err)
		}
		if err := guest.Ping(pods[1][0].IP4); err != nil {
			t.Errorf("a new pod: %v", err)
		}
		guest.Remove(t)
		churns++
		b.Daemon.Reload(t, fmt.Sprintf("encap: {copyDSCP: %v}", churns%2 == 0))
		// A peer comes, has another prefix, and goes: on the node whose memory is read.
		a.Daemon.Reload(t, []string{"{}", ghost(b, "192.0.2.77", churns), ghost(b, "192.0.2.77", churns+1), ghost(b, "192.0.2.78", churns)}[churns%4])
		reloads += 2
		if time.Now().After(nextKill) { // node-b: the readings of node-a go on
			nextKill = time.Now().Add(length / 4)
			b.Daemon.AssertConserved(t)
			b.Daemon.Kill()
			b.Start(t)
			for _, p := range pods[1] {
				if p.Attach == lab.TUN { // its queue died with the daemon; penstock adopt is under test elsewhere
					p.Remove(t)
					continue
				}
				p.AttachAgain(t)
			}
			pods[1] = []*lab.Pod{pods[1][0], b.AddPod(t, lab.TUN)}
			kills++
		}
		readings = append(readings, read(t, a.Daemon))
	}
	for _, n := range l.Nodes {
		n.Daemon.AssertConserved(t)
	}
	quarter := max(1, len(readings)/4)
	first, last := middle(readings[:quarter]), middle(readings[len(readings)-quarter:])
	perMinute := slope(readings[len(readings)/4:])
	t.Logf("%s: %d transfers of 32 MiB, %d pods came and went, %d reloads, %d kills; first quarter %v, last %v; resident memory %+.0f KiB a minute; the law holds",
		length, transfers, churns, reloads, kills, first, last, perMinute)
	if length < time.Minute {
		return // too short to judge a slope
	}
	if last.rssKiB > first.rssKiB*6/5 || last.files > first.files+2 || last.goroutines > first.goroutines+4 {
		t.Errorf("not flat: %v, then %v", first, last)
	}
	// Ten minutes may add 4 MiB, an hour no more than that much sixfold: Go's heap breathes.
	if minutes := length.Minutes() * 3 / 4; perMinute*minutes > max(4<<10, 0.1*float64(first.rssKiB)) && last.rssKiB > first.rssKiB {
		t.Errorf("resident memory grows by %.0f KiB a minute", perMinute)
	}
}

// ghost is a peer list with one more peer, that is not there.
func ghost(b *lab.Node, address string, n int) string {
	return peersYAML(asPeer(b), peerYAML{"ghost", netip.MustParseAddr(address), []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.244.%d.0/24", 50+n%100))}})
}

// slope is by how much resident memory grows in a minute, KiB, by least squares.
func slope(us []usage) float64 {
	var n, sx, sy, sxx, sxy float64
	for _, u := range us {
		x, y := u.at.Sub(us[0].at).Minutes(), float64(u.rssKiB)
		n, sx, sy, sxx, sxy = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	if d := n*sxx - sx*sx; d > 0 {
		return (n*sxy - sx*sy) / d
	}
	return 0
}

// usage is what a daemon holds at one moment.
type usage struct {
	rssKiB, files, goroutines int
	at                        time.Time
}

func (u usage) String() string {
	return fmt.Sprintf("%d KiB resident, %d descriptors, %d goroutines", u.rssKiB, u.files, u.goroutines)
}

func read(t *testing.T, d *lab.Daemon) (u usage) {
	t.Helper()
	pid := d.Process.Pid()
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))))) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmRSS:" {
			u.rssKiB = must(strconv.Atoi(f[1]))
		}
	}
	u.files = len(must(os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))))
	_, body, err := d.Get("/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Sscanf(string(body), "goroutine profile: total %d", &u.goroutines)
	u.at = time.Now()
	return u
}

// middle is the median of each.
func middle(us []usage) usage {
	of := func(f func(usage) int) int {
		var ns []int
		for _, u := range us {
			ns = append(ns, f(u))
		}
		slices.Sort(ns)
		return ns[len(ns)/2]
	}
	return usage{rssKiB: of(func(u usage) int { return u.rssKiB }), files: of(func(u usage) int { return u.files }), goroutines: of(func(u usage) int { return u.goroutines })}
}
