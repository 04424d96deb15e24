package doctor

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/penstock-net/penstock/docs/pages"
	"github.com/penstock-net/penstock/forwarder/config"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestJudge: what each outcome of a probe is called, and that each that is not well has a remedy.
func TestJudge(t *testing.T) {
	peer := control.Peer{Name: "node-b", Address: netip.MustParseAddr("192.0.2.2"), Encap: "vxlan", Port: 8472, MTU: 1450}
	learned := peer
	learned.MTU = 1350
	narrow := peer
	narrow.MTU = 1230
	well := control.Probe{Node: true, AnsweredBy: control.AnsweredByPenstock, MTU: 1450, Passes: 1450, Back: 1450, RTT: 1234}
	with := func(f func(*control.Probe)) control.Probe { p := well; f(&p); return p }
	for _, c := range []struct {
		name    string
		o       outcome
		blocked bool
		result  Result
		say     string
	}{
		{"well", outcome{peer: peer, probe: well}, false, OK, "answers in 1.23ms; packets of 1450 bytes pass both ways"},
		{"kernel", outcome{peer: peer, probe: with(func(p *control.Probe) { p.AnsweredBy, p.Back = control.AnsweredByHost, 0 })}, false, OK, "its host answers"},
		{"error", outcome{peer: peer, err: control.Errorf(control.Unsupported, "no family")}, false, Warning, "no family"},
		{"gone", outcome{peer: peer, probe: with(func(p *control.Probe) { p.Node, p.AnsweredBy = false, "" })}, false, Failure, "down: neither the node"},
		{"daemon gone", outcome{peer: peer, probe: with(func(p *control.Probe) { p.AnsweredBy = "" })}, false, Failure, "the node 192.0.2.2 answers, but nobody"},
		{"no route", outcome{peer: peer, lost: true, probe: with(func(p *control.Probe) { p.Node, p.AnsweredBy = false, "" })}, true, Failure, "this node has no route to 192.0.2.2, so nothing leaves for node-b; it was never heard"},
		{"our firewall", outcome{peer: peer, probe: with(func(p *control.Probe) { p.AnsweredBy = "" })}, true, Failure, "a firewall of this node drops the tunnel"},
		{"our firewall, half", outcome{peer: peer, heard: true, probe: with(func(p *control.Probe) { p.AnsweredBy = "" })}, false, Warning, "packets from it arrive and are accepted"},
		{"small path", outcome{peer: peer, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1350, 1350 })}, false, Failure, "more than 1350 bytes are lost on the way (to node-b 1350, from node-b 1350), and"},
		{"small path, known", outcome{peer: learned, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1350, 1350 })}, false, Warning, "a router on the way says so"},
		{"small path, known, smaller back", outcome{peer: learned, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1350, 1346 })}, false, Failure, "more than 1346 bytes are lost on the way (to node-b 1350, from node-b 1346), and"},
		{"path too small for IPv6", outcome{peer: narrow, six: true, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1230, 1230 })}, false, Failure, "pods learn it by path MTU discovery; IPv6 needs 1280, so no transfer of pods by IPv6 can use this path"},
		{"the same without IPv6", outcome{peer: narrow, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1230, 1230 })}, false, Warning, "pods learn it by path MTU discovery"},
		{"small path back", outcome{peer: peer, probe: with(func(p *control.Probe) { p.Back = 1350 })}, false, Failure, "more than 1350 bytes are lost on the way (to node-b 1450, from node-b 1350)"},
		{"small path of a host", outcome{peer: peer, probe: with(func(p *control.Probe) { p.AnsweredBy, p.Passes, p.Back = control.AnsweredByHost, 1350, 0 })}, false, Failure, "lost on the way (1350 there and back)"},
		{"refused here", outcome{peer: peer, kept: []string{"send_no_buffers"}, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1374, 1370 })}, false, Failure, "to node-b 1374, from node-b 1370), and pods send up to 1450: small packets pass, transfers hang; to it they are not lost on the way, this node's own kernel refuses them (send_no_buffers)"},
	} {
		got := judge(c.o, c.blocked)
		if got.Name != "peer node-b" || got.Result != c.result || !strings.Contains(got.Finding, c.say) || (got.Remedy == "") != (got.Result == OK) {
			t.Errorf("%s: %+v", c.name, got)
		}
		if (got.Probe == nil) != (c.o.err != nil) || got.Probe != nil && *got.Probe != c.o.probe {
			t.Errorf("%s: what was measured is %+v", c.name, got.Probe)
		}
	}
	there := judge(outcome{peer: peer, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1374, 1370 })}, false)
	back := judge(outcome{peer: peer, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1370, 1374 })}, false)
	if there.Remedy != back.Remedy || !strings.Contains(there.Remedy, "encap.mtu: 1370 on all nodes") {
		t.Errorf("the two ends of a path are told different things: %q, %q", there.Remedy, back.Remedy)
	}
	six := judge(outcome{peer: peer, six: true, probe: with(func(p *control.Probe) { p.Passes, p.Back = 1230, 1240 })}, false)
	if want := "raise the MTU of the path by 220, or by at least 50 and set encap.mtu: 1280 on all nodes"; six.Remedy != want {
		t.Errorf("%q, want %q", six.Remedy, want)
	}
}

// TestRefusals: only what grew, and nothing if there is nothing to compare with.
func TestRefusals(t *testing.T) {
	before := sample{drops: map[string]uint64{"send_failed": 3, "spoofed": 1}}
	after := sample{drops: map[string]uint64{"send_failed": 3, "spoofed": 9, "send_no_buffers": 22}}
	if got := refusals(before, after); len(got) != 1 || got[0] != "send_no_buffers" {
		t.Error(got)
	}
	if got := refusals(sample{err: os.ErrDeadlineExceeded}, after); got != nil {
		t.Error(got)
	}
}

// TestConfigurationFinding: several mistakes are one line, and each kind of fault has the remedy that mends it.
func TestConfigurationFinding(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("nod: {}\nencap: {type: gre}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, remedy string
		finding      []string
	}{
		{bad, "config check " + bad + " names each mistake", []string{": " + bad + ":1:1: nod: ", "; " + bad + ":2:15: encap.type: "}},
		{filepath.Join(dir, "none.yaml"), "config check ", []string{"does not exist: write it"}},
		{dir, "let " + dir + " be a file", []string{"is a directory"}},
	} {
		for _, up := range []bool{false, true} {
			var x examination
			x.path, x.o.Config, x.up = c.path, c.path, up
			_, x.badConfig = config.Load(c.path)
			x.configuration()
			got := x.report.Checks[0]
			if got.Result == OK || strings.Contains(got.Finding, "\n") || !strings.Contains(got.Remedy, c.remedy) {
				t.Errorf("%s: %+v", c.path, got)
			}
			for _, want := range c.finding {
				if !strings.Contains(got.Finding, want) {
					t.Errorf("%s: %q lacks %q", c.path, got.Finding, want)
				}
			}
		}
	}
}

// TestNoFileAtTheDefault: that nothing is where nobody said it would be is not why the daemon has ended; where it was named, it is.
func TestNoFileAtTheDefault(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.yaml")
	for named, want := range map[string]Check{
		"":   {Name: "configuration", Result: Warning, Finding: "no file is at the default place " + none},
		none: {Name: "configuration", Result: Failure, Finding: "the daemon cannot start: " + none + " does not exist"},
	} {
		x := examination{o: Options{Config: named}}
		x.path = none
		_, x.badConfig = config.Load(none)
		x.configuration()
		got := x.report.Checks[0]
		if got.Result != want.Result || !strings.HasPrefix(got.Finding, want.Finding) || strings.Count(got.Finding+got.Remedy, "write it") > 1 || strings.Contains(got.Remedy, "--config PATH") != (named == "") {
			t.Errorf("named %q: %+v", named, got)
		}
	}
}

// TestRejectedReload: a file that is valid and all the same not what runs is a warning, with the daemon's reason.
func TestRejectedReload(t *testing.T) {
	for why, want := range map[string]Result{"": OK, "workers: 1 → 2 needs a restart\nencap.vni: 1 → 7 needs a restart": Warning} {
		var x examination
		x.up, x.path = true, "p.yaml"
		x.status.Rejected = why
		x.configuration()
		got := x.report.Checks[0]
		if got.Result != want || why != "" && !strings.HasSuffix(got.Finding, "workers: 1 → 2 needs a restart; encap.vni: 1 → 7 needs a restart") {
			t.Errorf("%q: %+v", why, got)
		}
	}
}

// TestUnopened: a port that somebody else holds is a warning, as pods do not depend on it.
func TestUnopened(t *testing.T) {
	var x examination
	x.up, x.status.Ready = true, true
	x.status.Unopened = []string{"native.port 7471 cannot be opened: address already in use"}
	x.daemon()
	if got := x.report.Checks[0]; got.Result != Warning || got.Finding != "it is ready, but native.port 7471 cannot be opened: address already in use" || got.Remedy == "" {
		t.Errorf("%+v", got)
	}
}

func TestClocks(t *testing.T) {
	var x examination
	at := func(ms int64) outcome {
		return outcome{peer: control.Peer{Name: "node-b"}, probe: control.Probe{AnsweredBy: control.AnsweredByPenstock, Clock: ms}}
	}
	x.clocks([]outcome{{}, {err: control.Errorf(control.Internal, "x")}})
	x.clocks([]outcome{at(-9000), at(9000)})
	x.clocks([]outcome{at(3_600_000)})
	x.clocks([]outcome{at(-11_000)})
	for i, want := range []Result{Skipped, OK, Warning, Warning} {
		if x.report.Checks[i].Result != want {
			t.Errorf("%d: %+v", i, x.report.Checks[i])
		}
	}
}

// TestMTUs: each pod whose MTU is too large is named with what helps it.
func TestMTUs(t *testing.T) {
	pod := func(name, attach string, mtu int) control.Port {
		return control.Port{Container: name, Interface: "eth0", Attach: attach, MTU: mtu}
	}
	for _, c := range []struct {
		peer  int
		ports []control.Port
		want  []string
	}{
		{1450, []control.Port{pod("a", "veth", 1450), pod("b", "routed", 1400)}, []string{"ok: no pod's is larger"}},
		{1450, []control.Port{pod("a", "routed", 1500)}, []string{`warning: the plugin before penstock has made these pods' interfaces with a larger MTU than the overlay's 1450`}},
		{1400, []control.Port{pod("a", "veth", 1450), pod("b", "routed", 1450)}, []string{"warning: node-b takes packets of 1400 bytes, and these pods send larger ones"}},
		{1600, []control.Port{pod("a", "tun", 1500)}, []string{"warning: pods get an MTU of 1450 now"}},
	} {
		var x examination
		x.peers, x.ports = []control.Peer{{Name: "node-b", MTU: c.peer}}, c.ports
		x.status.MTU = 1450
		x.checkMTU()
		var got []string
		for _, r := range x.report.Checks {
			got = append(got, fmt.Sprint(r.Result, ": ", r.Finding))
		}
		if len(got) != len(c.want) || !strings.HasPrefix(got[0], c.want[0]) {
			t.Errorf("%+v: %q", c.ports, got)
		}
	}
}

func TestProcFiles(t *testing.T) {
	if c, ok := effective([]byte("Name:\tpenstockd\nCapEff:\t0000000000003000\n")); !ok || c != 0x3000 {
		t.Errorf("%x %v", c, ok)
	}
	for _, bad := range []string{"", "CapEff:", "CapEff:\tx\n"} {
		if _, ok := effective([]byte(bad)); ok {
			t.Errorf("%q was read", bad)
		}
	}
	const head = "Limit                     Soft Limit           Hard Limit           Units\n"
	for s, want := range map[string]uint64{"Max open files            1024                 4096                 files\n": 1024, "Max open files            unlimited            unlimited            files\n": 1 << 30} {
		if n, ok := openFiles([]byte(head + s)); !ok || n != want {
			t.Errorf("%q: %d %v", s, n, ok)
		}
	}
	for _, bad := range []string{"", "Max open files", "Max open files x"} {
		if _, ok := openFiles([]byte(bad)); ok {
			t.Errorf("%q was read", bad)
		}
	}
}

// TestDescriptors: few of few are a warning, the last tenth is one whatever the limit, and the end a failure.
func TestDescriptors(t *testing.T) {
	for _, c := range []struct {
		open, may uint64
		want      Result
		say       string
	}{
		{35, 65536, OK, "may open 65536"},
		{0, 65536, OK, "may open 65536"}, // nobody could look
		{35, 1024, Warning, "may open 1024"},
		{58982, 65536, OK, "may open 65536"},
		{58983, 65536, Warning, "has 58983 of the 65536"},
		{63, 64, Warning, "has 63 of the 64"},
		{64, 64, Failure, "has all of the 64"},
		{70, 64, Failure, "has all of the 64"}, // it was lowered
	} {
		var x examination
		x.descriptors(c.open, c.may)
		got := x.report.Checks[0]
		if got.Result != c.want || !strings.Contains(got.Finding, c.say) || (got.Remedy == "") != (c.want == OK) || c.want != OK && !strings.Contains(got.Remedy, "LimitNOFILE") {
			t.Errorf("%+v: %+v", c, got)
		}
	}
}

// TestSilentDaemonIsLookedAt: the process behind a socket on which nobody answers is known, and with it what it may lack.
func TestSilentDaemonIsLookedAt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() // and accept nothing, as without a descriptor for it
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var f facts
	f.gather(ctx, control.New(path), filepath.Join(t.TempDir(), "none.yaml"))
	if f.up || f.pid != os.Getpid() {
		t.Errorf("up %v, process %d, want %d", f.up, f.pid, os.Getpid())
	}
}

// TestCulprits: the pods whose drops grew are named, those that had some before are not.
func TestCulprits(t *testing.T) {
	port := func(name string, dropped uint64) control.Port {
		return control.Port{Owner: name, Dropped: dropped, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	}
	before := sample{ports: map[string]control.Port{"a": port("default/a", 5), "b": port("default/b", 7)}}
	after := sample{ports: map[string]control.Port{"a": port("default/a", 5), "b": port("default/b", 9), "c": port("default/c", 0)}}
	if got := culprits(before, after); got != "; drops grew at default/b 10.244.1.2 (2 frames)" {
		t.Errorf("%q", got)
	}
}

// TestWithoutDaemon: every check is there, those that need the daemon are skipped, and the daemon itself is a failure.
func TestWithoutDaemon(t *testing.T) {
	start := time.Now()
	r := Examine(t.Context(), Options{Socket: filepath.Join(t.TempDir(), "none.sock"), Config: filepath.Join(t.TempDir(), "none.yaml"), CNI: func() []Check { return []Check{{Name: "cni", Result: Skipped}} }})
	if r.Reachable || time.Since(start) > 5*time.Second {
		t.Errorf("reachable %v, took %v", r.Reachable, time.Since(start))
	}
	seen := map[string]Result{}
	for _, c := range r.Checks {
		seen[c.Name] = c.Result
		if (c.Result == Warning || c.Result == Failure) && c.Remedy == "" {
			t.Errorf("%+v has no remedy", c)
		}
	}
	for _, n := range Names {
		if _, ok := seen[n.Name]; !ok {
			t.Errorf("no check %s", n.Name)
		}
	}
	if seen["daemon"] != Failure || seen["configuration"] != Failure || seen["peer"] != Skipped {
		t.Errorf("%v", seen)
	}
}

// TestSurveyKeeps: what was found in a pod that has been deleted meanwhile is forgotten, and a pod is counted once.
func TestSurveyKeeps(t *testing.T) {
	a := control.Pod{Container: "a", Interface: "eth0", NetnsID: "4:1", Phase: control.PhaseAttached}
	b := control.Pod{Container: "b", Interface: "eth0", NetnsID: "4:2", Phase: control.PhaseAttached}
	down, lost := flaw{"down", "x"}, flaw{"lost", "y"}
	again, leaving := b, b
	again.NetnsID, leaving.Phase = "4:3", control.PhaseDetaching
	for name, c := range map[string]struct {
		now    []control.Pod
		flaws  string
		looked int
	}{
		"both there":      {[]control.Pod{a, b}, "[{down x} {lost y}]", 2},
		"one gone":        {[]control.Pod{a}, "[{down x}]", 1},
		"one made anew":   {[]control.Pod{a, again}, "[{down x}]", 1},
		"one on its way":  {[]control.Pod{a, leaving}, "[{down x}]", 1},
		"nobody is there": {nil, "[]", 0},
	} {
		s := survey{wanted: 2, looked: 2, whose: map[flaw][]control.Pod{}}
		s.note(&s.flaws, down, a)
		s.note(&s.flaws, down, b)
		s.note(&s.flaws, lost, b)
		if s.keep(c.now); fmt.Sprint(s.flaws) != c.flaws || s.looked != c.looked || s.wanted != c.looked {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestUnequal: the end of a veth is mended that is not as the plugin made it.
func TestUnequal(t *testing.T) {
	p := control.Pod{Device: "ps1", Interface: "eth0", MTU: 1450}
	for _, c := range []struct {
		pod, end int
		want     string
	}{
		{1450, 1000, "ip link set ps1 mtu 1450, on the node"},
		{9000, 1450, within("ip link set eth0 mtu 1450")},
		{9000, 1000, "ip link set ps1 mtu 1450, on the node; then " + within("ip link set eth0 mtu 1450")},
	} {
		if got := unequal(c.pod, c.end, p); got.remedy != c.want {
			t.Errorf("%+v: %q", c, got.remedy)
		}
	}
}

// TestOthers: what a pod must have a way to is a peer's, also where peers have single addresses.
func TestOthers(t *testing.T) {
	for _, c := range []struct{ cidrs, want string }{
		{"", "[]"},
		{"10.244.2.0/24 fd00:2::/64", "[10.244.2.1 fd00:2::1]"},
		{"fd00:2::/64", "[fd00:2::1]"},
		{"10.244.2.7/32", "[10.244.2.7]"},
		{"255.255.255.255/32 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128", "[255.255.255.255 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"},
		{"10.244.2.7/32 10.244.3.0/31 10.244.4.0/28 10.244.5.0/30", "[10.244.4.1]"},
		{"10.244.3.0/31", "[10.244.3.1]"},
	} {
		var peers []control.Peer
		for _, p := range strings.Fields(c.cidrs) {
			peers = append(peers, control.Peer{PodCIDRs: []netip.Prefix{netip.MustParsePrefix(p)}})
		}
		if got := fmt.Sprint(others(peers)); got != c.want {
			t.Errorf("%s: %s, want %s", c.cidrs, got, c.want)
		}
	}
}

// TestManual: the manual lists every check.
func TestManual(t *testing.T) {
	table := pages.NewTable("check", "what it looks at")
	for _, n := range Names {
		table.Row("`"+n.Name+"`", n.Looks)
	}
	pages.Open(t, "penstockctl.md").Keep("checks", table.String())
}

// TestNative: who does not take the native stream is named with the reason, and nobody is blamed.
func TestNative(t *testing.T) {
	peer := func(name string, n *control.Native) outcome {
		return outcome{peer: control.Peer{Name: name, Native: n}}
	}
	for want, results := range map[Check][]outcome{
		{Name: "native", Result: Skipped, Finding: "native.carrier is off"}: {peer("a", nil)},
		{Name: "native", Result: OK, Finding: "frames go as the native stream to every peer, by the carrier tcp or udp"}: {
			peer("a", &control.Native{Carrier: "udp"}), peer("b", &control.Native{Carrier: "tcp"})},
		{Name: "native", Result: OK, Finding: "frames go by the encapsulation, which costs throughput and nothing else, to b, c: deaf"}: {
			peer("a", &control.Native{Carrier: "udp"}), peer("b", &control.Native{Carrier: "none", Why: "deaf"}), peer("c", &control.Native{Carrier: "none", Why: "deaf"})},
	} {
		var x examination
		x.native(results)
		if len(x.report.Checks) != 1 || x.report.Checks[0] != want {
			t.Errorf("%+v, want %+v", x.report.Checks, want)
		}
	}
}

// TestPeersAlike: sixty dead peers are one finding, with a count and some names; a few are each their own, and JSON has all.
func TestPeersAlike(t *testing.T) {
	r := Report{Checks: []Check{{Name: "daemon", Result: OK}, {Name: "tun", Result: OK}}}
	for i := range 60 {
		r.Checks = append(r.Checks, judge(outcome{peer: control.Peer{Name: fmt.Sprintf("dead-%d", i)}}, false))
	}
	for i := range 2 {
		r.Checks = append(r.Checks, judge(outcome{peer: control.Peer{Name: fmt.Sprintf("well-%d", i)}, probe: control.Probe{AnsweredBy: control.AnsweredByPenstock}}, false))
	}
	m := r.Merged()
	if len(m) != 5 || len(r.Checks) != 64 || m[2].Name != "peer" || m[3].Name != "peer well-0" || m[2].Remedy != r.Checks[2].Remedy ||
		!strings.HasPrefix(m[2].Finding, "60 peers alike (dead-0, dead-1, dead-2, dead-3, dead-4 and 55 more); dead-0: down: neither") {
		t.Errorf("%+v", m)
	}
}

// TestProbesBrokenOff: peers that were not probed before the end are no fault of the daemon's, nor of theirs.
func TestProbesBrokenOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	told := 0
	x := &examination{o: Options{Socket: "none", Probing: time.Second, Progress: func(done, all int) { told = done*10 + all }}}
	x.up, x.client = true, control.New("/none.sock")
	x.peers = []control.Peer{{Name: "b"}, {Name: "c"}}
	x.probePeers(ctx)
	for _, c := range x.report.Checks {
		if c.Result == Warning || c.Result == Failure || strings.HasPrefix(c.Name, "peer ") {
			t.Errorf("%+v", c)
		}
	}
	if c := x.report.Checks[0]; c.Result != Skipped || !strings.HasPrefix(c.Finding, "2 of 2 peers were not probed") || told != 22 {
		t.Errorf("%+v, progress %d", c, told)
	}
}
