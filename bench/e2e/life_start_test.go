package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// TestCleanup: --cleanup gives the namespace back as it was before the first daemon, whatever ran in it and however it
// ended; what others made stays.
func TestCleanup(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Masquerade: true, YAML: []string{"workers: 2"}})
	a, b := l.Nodes[0], l.Nodes[1]
	a.SetServices(t, lab.Service{Address: serviceAddress(1, false), Port: 80, Proto: "tcp", Backends: []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:80")}})
	foreign := &netlink.Route{Dst: prefixNet("10.99.0.0/16"), Scope: netlink.SCOPE_LINK, LinkIndex: linkIndex(t, a.NS, "eth0")}
	if err := a.Netlink().RouteAdd(foreign); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, a.NS)
	l.Start(t)
	av := a.AddPod(t, lab.Veth)
	at := a.AddPod(t, lab.TUN)
	bv := b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	pingBoth(t, &at.Host, &bv.Host)
	// A TUN that nobody has moved yet: it was attached by hand.
	if _, err := a.Daemon.Control().Attach(t.Context(), control.AttachRequest{Container: "halfway", Interface: "eth0", Attach: "tun",
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.200")}}); err != nil {
		t.Fatal(err)
	}
	a.Daemon.AssertConserved(t)
	running := settled(t, a)
	if out, err := cleanUp(t, a, a.Daemon.Config); err == nil || !strings.Contains(out, "another penstockd is running") {
		t.Errorf("--cleanup beside a living daemon: %v\n%s", err, out)
	}
	if d := difference(running, snapshot(t, a.NS)); d != "" {
		t.Errorf("a refused --cleanup changed:%s", d)
	}
	a.Daemon.Stop(t)
	if d := difference(running, snapshot(t, a.NS)); d != "" {
		t.Errorf("SIGTERM changed:%s", d)
	}
	for _, what := range []string{"link penstock0", "nft table 1 penstock", "nft table 5 penstock"} {
		if !strings.Contains(strings.Join(running, "\n"), what) {
			t.Errorf("%q is missing while the daemon runs", what)
		}
	}
	a.Daemon.Cleanup(t)
	pods := func() []string { // whether a pod's veth, which the plugin has made, stays is the plugin's business
		return slices.DeleteFunc(snapshot(t, a.NS), func(s string) bool { return strings.HasPrefix(s, "link "+av.HostDevice+": veth") })
	}
	if d := difference(before, pods()); d != "" {
		t.Errorf("--cleanup after SIGTERM:%s", d)
	}
	if out, err := cleanUp(t, a, a.Daemon.Config); err != nil { // where there is nothing
		t.Errorf("--cleanup twice: %v\n%s", err, out)
	}
	if left, _ := filepath.Glob(a.Daemon.Socket + "*"); left != nil {
		t.Errorf("--cleanup left %v", left)
	}

	forget(t, av)
	forget(t, at)
	a.Start(t)
	av = a.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	a.Daemon.Kill()
	a.Daemon.Cleanup(t)
	if d := difference(before, pods()); d != "" {
		t.Errorf("--cleanup after SIGKILL:%s", d)
	}
	forget(t, av)
	a.Start(t)
	av = a.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	conserved(t, l)
}

// forget ends a pod without telling a daemon.
func forget(t *testing.T, p *lab.Pod) {
	t.Helper()
	p.Node.Pods = slices.DeleteFunc(p.Node.Pods, func(o *lab.Pod) bool { return o == p })
	p.NS.Close()
	await(t, "the pod's device goes with its namespace", func() bool { return !slices.Contains(p.Node.LinkNames(), p.HostDevice) })
}

func cleanUp(t *testing.T, n *lab.Node, config string) (string, error) {
	t.Helper()
	p := launch(t, n, config, "--cleanup")
	err := p.Wait(patience)
	return p.Output(), err
}

func prefixNet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func linkIndex(t *testing.T, n *lab.NS, name string) int {
	t.Helper()
	l, err := n.Netlink().LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Attrs().Index
}

// TestStartFailures: a daemon that cannot start says why in one line that names the key or the thing, ends with 1, and undoes
// what it did. A predecessor's devices, routes and rules stay.
func TestStartFailures(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 2, YAML: []string{"workers: 2"}})
	a := l.Nodes[0]
	hold := func(network, address string) func(*testing.T) func() {
		return func(t *testing.T) func() {
			var c interface{ Close() error }
			if err := a.Do(func() (err error) {
				if network == "udp" {
					c, err = net.ListenPacket(network, address)
				} else {
					c, err = net.Listen(network, address)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return func() { c.Close() }
		}
	}
	device := func(link netlink.Link) func(*testing.T) func() {
		return func(t *testing.T) func() {
			if err := a.Do(func() error { return netlink.LinkAdd(link) }); err != nil { // a TUN is made where the thread is
				t.Fatal(err)
			}
			return func() { a.Netlink().LinkDel(link) }
		}
	}
	nothing := func(*testing.T) func() { return func() {} }
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s.sock")
	cases := []struct {
		name, yaml string
		prepare    func(*testing.T) func()
		want       []string
	}{
		{"tunnel port in use", "", hold("udp", "192.0.2.1:8472"), []string{"8472", "in use"}},
		{"tunnel port in use on all addresses", "", hold("udp", "0.0.0.0:8472"), []string{"8472", "in use"}},
		{"debug listener open to all", "debug: {listen: '0.0.0.0:9474'}", nothing, []string{"debug.listen", "loopback"}},
		{"debug listener on the underlay", "debug: {listen: '192.0.2.1:9474'}", nothing, []string{"debug.listen", "loopback"}},
		{"a file is in the socket's way", "control: {socket: " + filepath.Join(dir, "file") + "}", nothing, []string{"not a socket"}},
		{"the socket is somebody's", "control: {socket: " + socket + "}", hold("unix", socket), []string{socket, "another program"}},
		{"address of nobody", "node: {address: 192.0.2.200}", nothing, []string{"node.address", "192.0.2.200"}},
		{"a veth is in the TUN's way", "host: {device: mine0}", device(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mine0"}, PeerName: "mine1"}), []string{"host.device", "mine0", "veth"}},
		{"a TAP is in the TUN's way", "host: {device: mine0}", device(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "mine0"}, Mode: netlink.TUNTAP_MODE_TAP}), []string{"host.device", "mine0"}},
		{"somebody's route", "", func(t *testing.T) func() {
			r := &netlink.Route{Dst: prefixNet("10.244.0.0/16"), Scope: netlink.SCOPE_LINK, LinkIndex: linkIndex(t, a.NS, "eth0")}
			if err := a.Netlink().RouteAdd(r); err != nil {
				t.Fatal(err)
			}
			return func() { a.Netlink().RouteDel(r) }
		}, []string{"10.244.0.0/16", "somebody else"}},
		{"unknown key", "encap: {mtuu: 1}", nothing, []string{"penstock.yaml:", "mtuu"}},
		{"MTU too large", "encap: {mtu: 9000}", nothing, []string{"encap.mtu", "9000"}},
		{"ipip over IPv6", "encap: {type: ipip, port: null, vni: null}\nnode: {address: '2001:db8::1'}\npeers: []", nothing, []string{"ipip"}},
	}
	refused := func(t *testing.T, before []string, yaml string, want []string) {
		t.Helper()
		begin := time.Now()
		d, err := a.StartErr(yaml)
		if err == nil {
			d.Kill()
			t.Fatal("the daemon started")
		}
		var exit *exec.ExitError
		if werr := d.Process.Wait(patience); !errors.As(werr, &exit) || exit.ExitCode() != 1 {
			t.Errorf("it ended with %v, not with 1", werr)
		}
		lines := strings.Split(strings.TrimSpace(d.Process.Output()), "\n")
		last := lines[len(lines)-1]
		if !strings.HasPrefix(last, "penstockd: ") {
			t.Errorf("the last line is no sentence of penstockd's: %s", last)
		}
		for _, w := range want {
			if !strings.Contains(last, w) {
				t.Errorf("%q is not in: %s", w, last)
			}
		}
		if d := difference(before, snapshot(t, a.NS)); d != "" {
			t.Errorf("it left:%s", d)
		}
		if left, _ := filepath.Glob(d.Socket + "*"); left != nil {
			t.Errorf("it left %v", left)
		}
		if took := time.Since(begin); took > 30*time.Second {
			t.Errorf("it took %v to say: %s", took, last)
		}
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			defer c.prepare(t)()
			refused(t, snapshot(t, a.NS), c.yaml, c.want)
		})
	}
	// The same with what a predecessor left: it must outlive a successor that fails.
	l.Start(t)
	av, bv := a.AddPod(t, lab.Veth), l.Nodes[1].AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	a.Daemon.Stop(t)
	for _, c := range cases[:2] {
		t.Run("after a predecessor/"+c.name, func(t *testing.T) {
			defer c.prepare(t)()
			refused(t, snapshot(t, a.NS), c.yaml, c.want)
		})
	}
	a.Start(t)
	pingBoth(t, &av.Host, &bv.Host)
	conserved(t, l)
}

// TestTwoDaemons: a second daemon in one namespace is refused, with the first one's file and with one whose socket, state and
// listeners are its own; the first one's packets do not notice.
func TestTwoDaemons(t *testing.T) {
	t.Parallel()
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	tcp := [][2]*lab.Host{{&a.AddPod(t, lab.Veth).Host, &b.AddPod(t, lab.TUN).Host}, {&a.Host, &b.AddPod(t, lab.Veth).Host}}
	pingBoth(t, &av.Host, &bv.Host)
	before, metrics := settled(t, a), a.Daemon.AtRest(t)
	load := startLoad(t, [][2]*lab.Host{{&av.Host, &bv.Host}}, tcp[:1])
	talk := converse(t, &a.Host, &bv.Host, false)
	file, err := os.ReadFile(a.Daemon.Config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	own := filepath.Join(dir, "own.yaml")
	text := strings.ReplaceAll(string(file), filepath.Dir(a.Daemon.Socket), dir)
	if err := os.WriteFile(own, []byte(text+"\ndebug: {listen: '127.0.0.1:9999'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(dir, "other.yaml")
	if err := os.WriteFile(other, []byte(strings.Replace(text, "host:", "host:\n    device: penstock1", 1)+"\ndebug: {listen: '127.0.0.1:9998'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, config := range []string{a.Daemon.Config, own, other} {
		for _, arguments := range [][]string{nil, {"--cleanup"}} {
			for range 3 {
				p := launch(t, a, config, arguments...)
				err := p.Wait(20 * time.Second)
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(p.Output(), "another penstockd is running") {
					t.Errorf("%s %v: %v\n%s", filepath.Base(config), arguments, err, p.Output())
					break
				}
			}
		}
	}
	talk.goesOn(t, "with refused daemons beside")
	talk.close()
	load.report(t, l, "refused daemons")
	if d := difference(before, snapshot(t, a.NS)); d != "" {
		t.Errorf("the refused daemons changed:%s", d)
	}
	onlyOverflows(t, a.Daemon, metrics)
	// A namespace of its own is another matter, and so is the first one's after its end.
	a.Daemon.Kill()
	a.Start(t)
	pingBoth(t, &av.Host, &bv.Host)
	conserved(t, l)
}

// TestPortsHeld: nobody who takes a port that pods do not depend on keeps the daemon down. It says what it lacks, and has it when it is free.
func TestPortsHeld(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 2, YAML: []string{"workers: 2", "native: {carrier: udp}", "metrics: {listen: '127.0.0.1:9475'}"}})
	a, b := l.Nodes[0], l.Nodes[1]
	var held []interface{ Close() error }
	if err := a.Do(func() error {
		for _, port := range []string{"9474", "9475"} {
			c, err := net.Listen("tcp", "127.0.0.1:"+port)
			if err != nil {
				return err
			}
			held = append(held, c)
		}
		c, err := net.ListenPacket("udp", "192.0.2.1:7471")
		held = append(held, c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l.Start(t)
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	lacks := a.Daemon.Status(t).Unopened
	for i, want := range []string{"debug.listen cannot be opened: listen tcp 127.0.0.1:9474", "metrics.listen cannot be opened: listen tcp 127.0.0.1:9475", "native.port 7471 cannot be opened"} {
		if len(lacks) != 3 || !strings.HasPrefix(lacks[i], want) || !strings.Contains(lacks[i], "address already in use") {
			t.Errorf("%q, want %q", lacks, want)
		}
	}
	for _, c := range held {
		c.Close()
	}
	deadline := time.Now().Add(patience)
	for ; len(a.Daemon.Status(t).Unopened) > 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		// Whatever moves makes the daemon look; by itself it looks every minute.
		r := &netlink.Route{Dst: prefixNet("203.0.113.99/32"), Scope: netlink.SCOPE_LINK, LinkIndex: linkIndex(t, a.NS, "eth0")}
		if err := a.Netlink().RouteAdd(r); err == nil {
			a.Netlink().RouteDel(r)
		}
	}
	if lacks = a.Daemon.Status(t).Unopened; len(lacks) > 0 {
		t.Fatalf("%q though all are free", lacks)
	}
	if code, _, err := a.Daemon.Get("/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("%d %v", code, err)
	}
	becomesNative(t, true, a, av, bv)
	becomesNative(t, true, b, bv, av)
	conserved(t, l)
}

// TestDebugListener: health, readiness, metrics and profiles, from loopback; a stop does not wait for a profile.
func TestDebugListener(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1, YAML: []string{"metrics: {listen: '192.0.2.1:9475'}"}})
	l.Start(t)
	n := l.Nodes[0]
	for path, want := range map[string]string{
		"/healthz": "ok", "/readyz": "ready", "/metrics": "penstock_build_info{", "/debug/pprof/": "goroutine",
		"/debug/pprof/goroutine?debug=1": "forwarder", "/debug/pprof/heap?debug=1": "heap profile", "/debug/pprof/cmdline": "penstockd",
		"/debug/pprof/profile?seconds=1": "", "/debug/pprof/trace?seconds=0.1": "go 1.", "/debug/pprof/allocs": "",
	} {
		code, body, err := n.Daemon.Get(path)
		if err != nil || code != http.StatusOK || !strings.Contains(string(body), want) || len(body) == 0 {
			t.Errorf("%s: %d, %v, %d bytes without %q", path, code, err, len(body), want)
		}
	}
	if code, _, err := n.Daemon.Get("/nothing"); err != nil || code != http.StatusNotFound {
		t.Errorf("/nothing: %d, %v", code, err)
	}
	// The debug listener hears nobody but loopback; metrics.listen has no profiles.
	debug := n.Daemon.Debug
	n.Daemon.Debug = netip.MustParseAddrPort("192.0.2.1:9474")
	if _, _, err := n.Daemon.Get("/healthz"); err == nil {
		t.Error("debug.listen answers on the underlay")
	}
	n.Daemon.Debug = netip.MustParseAddrPort("192.0.2.1:9475")
	for path, want := range map[string]int{"/metrics": 200, "/healthz": 200, "/readyz": 200, "/debug/pprof/": 404, "/debug/pprof/cmdline": 404} {
		if code, _, err := n.Daemon.Get(path); err != nil || code != want {
			t.Errorf("metrics.listen %s: %d, %v, want %d", path, code, err, want)
		}
	}
	n.Daemon.Debug = debug
	profiling := make(chan error, 1)
	go func() {
		_, _, err := n.Daemon.Get("/debug/pprof/profile?seconds=40")
		profiling <- err
	}()
	time.Sleep(300 * time.Millisecond) // it has begun; if not, the stop is all the easier
	begin := time.Now()
	n.Daemon.Stop(t)
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("with a profile under way the stop took %v", took)
	}
	if err := <-profiling; err == nil {
		t.Error("the profile came whole from a daemon that had ended")
	}
}

// TestLogFormat: JSON lines with time, level and message for collectors, text on a terminal, and a level that can be changed.
func TestLogFormat(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	n := l.Nodes[0]
	lines := logged(t, n.Daemon.Process)
	if got := strings.Count(n.Daemon.Process.Output(), "\n"); got != len(lines) || got == 0 {
		t.Errorf("%d of %d lines are JSON:\n%s", len(lines), got, n.Daemon.Process.Output())
	}
	for _, m := range lines {
		at, _ := m["time"].(string)
		if _, err := time.Parse(time.RFC3339Nano, at); err != nil || m["msg"] == "" || m["level"] == nil {
			t.Errorf("not a log line: %v", m)
		}
	}
	if err := n.Daemon.Control().SetLogLevel(t.Context(), "error"); err != nil {
		t.Fatal(err)
	}
	await(t, "the log tells of its new level", func() bool { return saying(t, n.Daemon.Process, "level was changed") == 1 })
	before := len(logged(t, n.Daemon.Process))
	n.Daemon.Reload(t, "encap: {copyDSCP: true}")
	if after := len(logged(t, n.Daemon.Process)); after != before {
		t.Errorf("at level error %d lines were logged about a reload", after-before)
	}
	n.Daemon.Stop(t)

	terminal, name := openTerminal(t)
	defer terminal.Close()
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	n.Start(t)
	cmd := exec.Command(daemonProgram(t, n), "--config", n.Daemon.Config)
	n.Daemon.Stop(t)
	// The lab captures what its processes print; this one's standard error is the terminal.
	cmd.Stderr = slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	var b [16 << 10]byte
	said := ""
	terminal.SetReadDeadline(time.Now().Add(patience))
	for !strings.Contains(said, "msg=forwarding") {
		c, err := terminal.Read(b[:])
		if said += string(b[:c]); err != nil {
			t.Errorf("%v; on the terminal:\n%s", err, said)
			break
		}
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if strings.Contains(said, "{\"") || !strings.Contains(said, "level=INFO") {
		t.Errorf("not text:\n%s", said)
	}
}

// openTerminal makes a pseudo terminal (ptmx(4)).
func openTerminal(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("this machine has no pseudo terminals: %v", err)
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	return f, fmt.Sprintf("/dev/pts/%d", n)
}
