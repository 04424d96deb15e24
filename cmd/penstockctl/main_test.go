package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/control/server"
)

// fake is a daemon that says what it is told to.
type fake struct {
	level    string
	err      error
	attached []control.AttachRequest
	probing  func() // not nil: a probe calls it, and lasts until it is broken off
}

func (f *fake) Status(context.Context) (control.Status, error) {
	return control.Status{Node: "node-a", Address: netip.MustParseAddr("192.0.2.1"), VTEPMAC: "02:01:dd:0b:1c:70", Encap: "vxlan", Port: 8472, VNI: 1, MTU: 1450,
		Ready: true, UptimeSeconds: 3700, Version: "v9", Capabilities: []control.Capability{{Name: "tunnelGSO", Needs: "6.17", Detail: "refused"}}}, f.err
}
func (f *fake) Attach(_ context.Context, r control.AttachRequest) (control.Port, error) {
	f.attached = append(f.attached, r)
	return control.Port{Container: r.Container, Interface: r.Interface, Attach: r.Attach, Device: r.Device, Addresses: r.Addresses, MTU: 1450}, f.err
}
func (f *fake) Detach(context.Context, control.DetachRequest) error { return f.err }
func (f *fake) Ports(context.Context) ([]control.Port, error) {
	return []control.Port{{Container: strings.Repeat("0123456789abcdef", 4), Interface: "eth0", Device: "ps0123456789a", Attach: "veth", MTU: 1450,
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2"), netip.MustParseAddr("fd00:10:244:1::2")}, Received: control.Traffic{Packets: 1234567}},
		{Container: "behind", Interface: "eth0", Attach: "routed", MTU: 1450, Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.9")}}}, f.err
}
func (f *fake) Peers(context.Context) ([]control.Peer, error) {
	seen := time.Now().Add(-90 * time.Second)
	return []control.Peer{{Name: "node-b", Address: netip.MustParseAddr("192.0.2.2"), Encap: "udp", Port: 8285, LastSeen: &seen}}, f.err
}
func (f *fake) Routes(context.Context) ([]control.Route, error) {
	return []control.Route{{Prefix: netip.MustParsePrefix("10.244.2.0/24"), Kind: control.RoutePeer, Via: "node-b 192.0.2.2"}}, f.err
}
func (f *fake) Drops(context.Context) ([]control.Drop, error) {
	return []control.Drop{{Reason: "spoofed", Packets: 5, Meaning: "a pod sent with a source that is not its address", Remedy: "look at that pod"}}, f.err
}
func (f *fake) Probe(ctx context.Context, r control.ProbeRequest) (control.Probe, error) {
	if f.probing != nil {
		f.probing()
		<-ctx.Done()
	}
	return control.Probe{Peer: r.Peer, Node: true, AnsweredBy: control.AnsweredByPenstock, MTU: 1450, Passes: 1450, Back: 1450}, f.err
}
func (f *fake) Bench(_ context.Context, r control.BenchRequest) (control.Bench, error) {
	return control.Bench{Peer: r.Peer, Latency: control.Latency{Sent: 10, P50: 123}, Bulk: control.BenchFlow{Size: 1450, Sent: 100, Delivered: 99, BitsSecond: 2.5e9}}, f.err
}
func (f *fake) Reload(context.Context) (control.Reloaded, error) {
	return control.Reloaded{Changed: []string{"peers"}}, f.err
}
func (f *fake) Allocate(context.Context, control.AllocateRequest) (control.Allocation, error) {
	return control.Allocation{}, f.err
}
func (f *fake) Check(context.Context, control.CheckRequest) (control.Port, error) {
	return control.Port{}, f.err
}
func (f *fake) GC(context.Context, control.GCRequest) (control.GCResult, error) {
	return control.GCResult{}, f.err
}
func (f *fake) Pods(context.Context) ([]control.Pod, error) {
	return []control.Pod{{Container: "c1", Interface: "eth0", Owner: "default/web-1", Network: "penstock", Phase: control.PhaseWaiting, Attach: "tun", MTU: 1450,
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Bandwidth: &control.Bandwidth{EgressRate: 8_000_000, EgressBurst: 1}, Problem: "waiting for adopt"}}, f.err
}
func (f *fake) IPAM(context.Context) (control.IPAM, error) {
	return control.IPAM{CIDRs: []control.IPAMCIDR{{Prefix: netip.MustParsePrefix("fd00::/64"), Source: "ipam", Size: 1<<64 - 1, Allocated: 2, Free: 1<<64 - 3}},
		Addresses: []control.IPAMAddress{{Address: netip.MustParseAddr("fd00::1"), State: control.AddressLeaked, Reason: "the file is damaged"}}}, f.err
}
func (f *fake) AttachQueue(_ context.Context, _ control.AttachRequest, fd int) (control.Attached, error) {
	return control.Attached{}, syscall.Close(fd)
}
func (f *fake) Adopt(_ context.Context, _ control.PodKey, fd int) error { return syscall.Close(fd) }
func (f *fake) LogLevel() string                                        { return f.level }
func (f *fake) SetLogLevel(l string) error {
	f.level = l
	return f.err
}

// serve starts a fake daemon and returns its socket.
func serve(t *testing.T, f server.Backend) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := server.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	s := server.New(f, slog.New(slog.NewTextHandler(io.Discard, nil)))
	done := make(chan struct{})
	go func() { defer close(done); s.Serve(l) }()
	t.Cleanup(func() { s.Shutdown(context.Background()); <-done; l.Release() })
	return socket
}

func ctl(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var o, e bytes.Buffer
	status = run(t.Context(), args, &o, &e)
	return status, o.String(), e.String()
}

func TestCommands(t *testing.T) {
	f := &fake{level: "info"}
	socket := serve(t, f)
	for _, test := range []struct{ args, want string }{
		{"status", "VTEP MAC 02:01:dd:0b:1c:70"},
		{"status", "up 1h1m"},
		{"status", "refused; needs 6.17"},
		{"ports", "10.244.1.2 fd00:10:244:1::2"},
		{"ports", "1.2M"},
		{"ports", "10.244.1.9                   1450  -     -      -   -      -        -\n"},
		{"pods", "default/web-1"},
		{"pods", "-/8.0M"},
		{"pods", "c1/eth0: waiting for adopt"},
		{"ipam", "2^64"},
		{"ipam", "the file is damaged"},
		{"peers", "1m30s ago"},
		{"peers", "udp:8285"},
		{"routes", "node-b 192.0.2.2"},
		{"drops", "look at that pod"},
		{"reload", "reloaded; changed: peers"},
		{"bench node-b", "bulk       1450   100   1%    2.5Gbit/s"},
		{"bench node-b --time 200ms", "p50 123µs"},
		{"__complete bench \"\"", "node-b"},
		{"loglevel", "info"},
		{"loglevel debug", "debug"},
		{"attach c1 eth0 --device ve1 --address 10.244.1.2,fd00::2 --address 10.244.1.3", "attached c1/eth0: veth ve1, 10.244.1.2 fd00::2 10.244.1.3, MTU 1450"},
		{"detach c1 eth0", ""},
		{"version", "v9"},
		{"--version", "penstockctl " + control.Version() + "\n"},
		{"top --help", "FROM is what comes from the pod or peer, TO what goes to it."},
		{"__complete detach \"\"", "0123456789abcdef"},
		{"--help", "penstockctl [command]"},
		{"config example", "podCIDRs"},
	} {
		status, out, stderr := ctl(t, append([]string{"--socket", socket}, strings.Fields(test.args)...)...)
		if status != 0 || !strings.Contains(out, test.want) || strings.HasPrefix(stderr, "penstockctl:") {
			t.Errorf("%s: %d %q %q, want %q", test.args, status, out, stderr, test.want)
		}
	}
	if len(f.attached) != 1 || len(f.attached[0].Addresses) != 3 {
		t.Errorf("attached %+v", f.attached)
	}
	for _, command := range []string{"status", "pods", "ipam", "ports", "peers", "routes", "drops", "reload", "loglevel", "version"} {
		status, out, _ := ctl(t, "--socket", socket, "-o", "json", command)
		var v map[string]any
		if err := json.Unmarshal([]byte(out), &v); status != 0 || err != nil || len(v) == 0 {
			t.Errorf("%s -o json: %d %q %v", command, status, out, err)
		}
	}
}

// TestConfigCheck: the number of mistakes is said in English, and a valid file is not said to fit the machine.
func TestConfigCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.yaml")
	for _, test := range []struct {
		yaml, want string
		status     int
	}{
		{"node: {podCidrs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", "has 1 mistake:\n", exitConfig},
		{"encap: {type: gre}\n", "has 3 mistakes:\n", exitConfig},
		{"node: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n", "whether the machine fits it", 0},
		{"node: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\npeers: []\n", "\nit lists no peers: this node is alone", 0},
		{"node: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\npeers: [{name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}]\n", "daemon starts or reloads\n", 0},
	} {
		if err := os.WriteFile(path, []byte(test.yaml), 0o600); err != nil {
			t.Fatal(err)
		}
		if status, out, stderr := ctl(t, "config", "check", path); status != test.status || !strings.Contains(out+stderr, test.want) ||
			strings.Contains(out, "alone") != (status == 0 && !strings.Contains(test.yaml, "name: b")) {
			t.Errorf("%s: %d %q %q, want %q", test.yaml, status, out, stderr, test.want)
		}
	}
}

func TestExitStatuses(t *testing.T) {
	f := &fake{}
	socket := serve(t, f)
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	os.WriteFile(good, []byte("node: {podCIDRs: [10.244.1.0/24]}\nnetwork: {cidrs: [10.244.0.0/16]}\n"), 0o600)
	os.WriteFile(bad, []byte("nod: {}\nencap: {type: gre}\n"), 0o600)
	for _, test := range []struct {
		args   string
		err    error
		status int
		say    string
	}{
		{"nonsense", nil, exitUsage, "nonsense"},
		{"staus", nil, exitUsage, `unknown command "staus" for "penstockctl": did you mean status?`},
		{"config chek", nil, exitUsage, `unknown command "chek" for "penstockctl config": did you mean check?`},
		{"config exampel", nil, exitUsage, "did you mean example?"},
		{"cni instal", nil, exitUsage, "did you mean install?"},
		{"completion foo", nil, exitUsage, `unknown command "foo" for "penstockctl completion": penstockctl completion --help lists`},
		{"help nosuch", nil, exitUsage, `unknown command "nosuch" for "penstockctl"`},
		{"help config chek", nil, exitUsage, "did you mean check?"},
		{"help config check", nil, 0, ""},
		{"help", nil, 0, ""},
		{"config", nil, 0, ""},
		{"cni", nil, 0, ""},
		{"completion bash", nil, 0, ""},
		{"status now", nil, exitUsage, "penstockctl status takes no argument, not 1; usage: penstockctl status"},
		{"-v", nil, exitUsage, "-v"},
		{"status --nonsense", nil, exitUsage, "nonsense"},
		{"status -o yaml", nil, exitUsage, "yaml"},
		{"detach c1", nil, exitUsage, "penstockctl detach takes 2 arguments, not 1; usage: penstockctl detach CONTAINER INTERFACE"},
		{"trace", nil, exitUsage, "takes 2 arguments, not 0; usage: penstockctl trace SRC DST"},
		{"bench a b", nil, exitUsage, "takes 1 argument, not 2; usage: penstockctl bench PEER"},
		{"config check a b", nil, exitUsage, "takes at most 1 argument, not 2; usage: penstockctl config check [PATH]"},
		{"completion bash now", nil, exitUsage, "takes no argument, not 1; usage: penstockctl completion bash"},
		{"attach c1 eth0", nil, exitUsage, "a pod needs an address: give --address, once for each; usage: penstockctl attach CONTAINER INTERFACE --address ADDRESS…"},
		{"--socket " + dir + "/none.sock status", nil, exitUnreachable, "no control socket"},
		{"status", errors.New("broken on purpose"), exitFailed, "broken on purpose"},
		{"reload", control.Errorf(control.InvalidConfig, "line 3"), exitConfig, "line 3"},
		{"reload", control.Errorf(control.RestartRequired, "workers"), exitConfig, "workers"},
		{"config check " + good, nil, 0, ""},
		{"config check " + bad, nil, exitConfig, "bad.yaml:2"},
		{"config check " + dir + "/none.yaml", nil, exitFailed, "penstockctl: " + dir + "/none.yaml does not exist: write it (penstockctl config example > " + dir + "/none.yaml), or name another: penstockctl config check PATH\n"},
		{"config check " + dir, nil, exitFailed, "penstockctl: " + dir + " is a directory: name the configuration file in it\n"},
	} {
		f.err = test.err
		status, _, stderr := ctl(t, append([]string{"--socket", socket}, strings.Fields(test.args)...)...)
		if status != test.status || !strings.Contains(stderr, test.say) {
			t.Errorf("%s: %d %q, want %d %q", test.args, status, stderr, test.status, test.say)
		}
	}
}

// TestUnwritten: who gets only a part of an answer is told, with whatever command; a reader that has gone wanted no more.
func TestUnwritten(t *testing.T) {
	socket := serve(t, &fake{level: "info"})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	reader, closed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	reader.Close()
	for _, args := range []string{"pods", "pods -o json", "status", "ipam", "ports", "peers", "routes", "drops", "trace a b", "bench node-b", "reload", "loglevel", "version",
		"--version", "--help", "help pods", "config example", "completion bash"} {
		all := append([]string{"--socket", socket}, strings.Fields(args)...)
		var stderr bytes.Buffer
		if status := run(t.Context(), all, full, &stderr); status != exitFailed || !strings.Contains(stderr.String(), "could not all be written") || !strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%s to a full disk: %d %q", args, status, stderr.String())
		}
		stderr.Reset()
		if status := run(t.Context(), all, closed, &stderr); status != 0 || stderr.Len() > 0 {
			t.Errorf("%s to nobody: %d %q", args, status, stderr.String())
		}
	}
}

// TestWrongUsage: what a command can see to be wrong by itself is wrong usage, found before the daemon is asked: here none is there.
func TestWrongUsage(t *testing.T) {
	dir := t.TempDir()
	cni := "cni --bin-dir " + dir + "/bin --conf-dir " + dir + "/net.d install "
	for args, say := range map[string]string{
		"attach c1 eth0 --address foo":                             `--address "foo" is not an IP address`,
		"attach c1 eth0 --address 10.244.1.2 --attach foo":         `--attach "foo" is none of veth, tun and routed`,
		"attach c1 eth0 --address 10.244.1.2 --mac zz":             `--mac "zz" is not a MAC address`,
		"attach c1 eth0 --address 10.244.1.2 --mac 02:00:00:00:00": "is not a MAC address",
		"attach c1 eth0 --address 10.244.1.2 --mtu -1":             "--mtu -1 is out of range",
		"top -n -1":                            "--iterations -1 is negative",
		"top -d 1ms":                           "--delay 1ms is too short",
		"capture -c -1":                        "--count -1 is negative",
		"capture -s -1":                        "--snaplen -1 is negative",
		"status --timeout -1s":                 "--timeout -1s leaves no time",
		"status --timeout 0":                   "--timeout 0s leaves no time",
		"status --wait -1s":                    "--wait -1s is negative",
		"loglevel foo":                         `level "foo" is none of debug, info, warn and error`,
		"trace a b --proto sctp":               `--proto "sctp" is none of tcp, udp and icmp`,
		"trace a b --size 1":                   "icmp packets have 28 to 65535 bytes",
		"trace a b --size 39 --proto tcp":      "tcp packets have 40 to 65535 bytes",
		"trace a b --ttl 256":                  "--ttl 256 is impossible",
		"bench node-b --time 1h":               "--time 1h0m0s is out of range: give 100ms to 24s",
		"bench node-b --time 0":                "--time 0s is out of range",
		"drops --delay 5s":                     "give --watch too",
		"drops -w --delay 5ms":                 "--delay 5ms is too short",
		cni + "--attach routed":                "give --chained instead",
		cni + "--attach routed --print":        "give --chained instead",
		cni + "--attach foo":                   `--attach "foo" is none of veth and tun`,
		cni + "--chained --attach tun":         "--attach tun does not go with --chained",
		cni + "--chained --attach tun --print": "--attach tun does not go with --chained",
	} {
		status, out, stderr := ctl(t, append([]string{"--socket", dir + "/none.sock"}, strings.Fields(args)...)...)
		if status != exitUsage || out != "" || !strings.Contains(stderr, say) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: %d %q %q, want %q", args, status, out, stderr, say)
		}
	}
	if status, _, stderr := ctl(t, "--socket", dir+"/none.sock", "trace", "a", "b", "--size", "28"); status != exitUnreachable {
		t.Errorf("the smallest packet: %d %s", status, stderr)
	}
}

func TestTablesFitTheWindow(t *testing.T) {
	for _, width := range []int{40, 60, 80} {
		for _, wrap := range []bool{false, true} {
			var b bytes.Buffer
			x := &table{out: &b, head: []string{"NAME", "N", "TEXT"}, flexible: 2, wrap: wrap, width: width}
			x.row("some-name", "12345", strings.Repeat("wörds and more ", 12))
			x.row("x", "1", "short")
			x.print()
			lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
			for _, l := range lines {
				if n := utf8.RuneCountInString(l); n > width {
					t.Errorf("width %d, wrap %v: %d wide: %q", width, wrap, n, l)
				}
			}
			if wrap && strings.Count(b.String(), "wörds") != 12 {
				t.Errorf("width %d: wrapping lost words:\n%s", width, b.String())
			}
			if !wrap && (len(lines) != 3 || !strings.Contains(b.String(), "…")) {
				t.Errorf("width %d: not cut:\n%s", width, b.String())
			}
		}
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[uint64]string{0: "0", 99_999: "99999", 100_000: "100k", 1_234_567: "1.2M", 99_949_999: "99.9M", 99_950_000: "100M", 999_499_999: "999M", 999_500_000: "1.0G", 1 << 63: "9.2E"} {
		if got := count(n); got != want || len(got) > 5 {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}
