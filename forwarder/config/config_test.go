package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/penstock-net/penstock/table/feed"
)

// needed is the least that a file must say. It has two lines.
const needed = `node: {name: node-a, address: 192.0.2.1, podCIDRs: [10.244.1.0/24]}
network: {cidrs: [10.244.0.0/16]}
`

func equal(a, b *Config) string {
	return cmp.Diff(a, b, cmpopts.IgnoreUnexported(Config{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmpopts.EquateEmpty())
}

func TestExampleIsDefault(t *testing.T) {
	c, err := Parse("penstock.yaml", Example)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")}
	want.Network.CIDRs = []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}
	if d := equal(want, c); d != "" {
		t.Error(d)
	}
}

// TestExampleTakesEveryType: who changes nothing but the encapsulation has a right file still.
func TestExampleTakesEveryType(t *testing.T) {
	for _, kind := range []string{"udp", "vxlan", "ipip"} {
		c, err := Parse("penstock.yaml", []byte(strings.Replace(string(Example), "type: vxlan ", "type: "+kind, 1)))
		if err != nil || c.Encap.Type != kind || c.Encap.Port != defaultPort(kind) {
			t.Errorf("%s: %+v, %v", kind, c, err)
		}
	}
}

// TestExampleStatesEveryKey also holds the (restart) marks to what Diff does.
func TestExampleStatesEveryKey(t *testing.T) {
	all := strings.ReplaceAll(string(Example), "  # name:", "  name:")
	all = strings.ReplaceAll(all, "  # address:", "  address:")
	all = strings.ReplaceAll(all, "  # port:", "  port:")
	c, err := Parse("penstock.yaml", []byte(all))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(all, "\n")
	for _, s := range settings {
		p, ok := c.src.places[s.key]
		if !ok {
			t.Errorf("%s is not in the example", s.key)
			continue
		}
		if s.key != "peers" && strings.Contains(lines[p.line-1], "(restart)") != s.restart {
			t.Errorf("%s: the example says otherwise than Diff whether it needs a restart", s.key)
		}
		delete(c.src.places, s.key)
	}
	for key := range c.src.places {
		inner := slices.ContainsFunc(settings, func(s setting) bool { return strings.HasPrefix(s.key, key+".") })
		if key != "" && !inner && !strings.Contains(key, "[") {
			t.Errorf("Diff does not know %s", key)
		}
	}
}

func TestEverythingGiven(t *testing.T) {
	c, err := Parse("x", []byte(`
node:
  name: node-a
  address: 2001:db8::1
  podCIDRs: [10.244.1.0/24, "fd00:10:244:1::/64"]
network:
  cidrs:
  - 10.244.0.0/16
  - fd00:10:244::/48
encap: {type: udp, port: 9000, vni: 42, mtu: 1400, copyDSCP: true, clampMSS: true, sourcePorts: 3}
peers:
- name: node-b
  address: 2001:db8::2
  podCIDRs: [10.244.2.0/24]
- name: node-c
  address: 2001:db8::3
  podCIDRs: [10.244.3.0/24, fd00:10:244:3::/64]
  mac: 02:00:00:00:00:03
  encap: vxlan
- {name: node-d, address: 2001:db8::4, podCIDRs: [10.244.4.0/24], encap: vxlan, port: 4789, vni: 7}
- {name: node-e, address: 2001:db8::5, podCIDRs: [10.244.5.0/24], encap: udp}
host: {device: pst0, masquerade: true, forward: true}
limits: {podBuffer: 1024KiB, totalBuffer: 1GiB}
workers: 4
priority: off
polling: off
native: {carrier: udp, port: 7000}
offload: {tunnelGSO: off, udpSegment: off, udpGRO: off, tunOffload: off, tunBatch: off, mergeWrites: off, packetRing: v3}
control: {socket: /tmp/p.sock}
debug: {listen: "0.0.0.0:1", allowRemote: true}
metrics: {listen: ":2"}
state: /tmp/state
`))
	if err != nil {
		t.Fatal(err)
	}
	pfx, addr := netip.MustParsePrefix, netip.MustParseAddr
	want := &Config{
		Node:    Node{"node-a", addr("2001:db8::1"), []netip.Prefix{pfx("10.244.1.0/24"), pfx("fd00:10:244:1::/64")}},
		Network: Network{[]netip.Prefix{pfx("10.244.0.0/16"), pfx("fd00:10:244::/48")}},
		Encap:   Encap{"udp", 9000, 42, 1400, 3, true, true},
		Peers: []feed.Peer{
			{Name: "node-b", Address: addr("2001:db8::2"), PodCIDRs: []netip.Prefix{pfx("10.244.2.0/24")}},
			{Name: "node-c", Address: addr("2001:db8::3"), PodCIDRs: []netip.Prefix{pfx("10.244.3.0/24"), pfx("fd00:10:244:3::/64")}, MAC: [6]byte{2, 0, 0, 0, 0, 3}, Encap: "vxlan", Port: 8472},
			{Name: "node-d", Address: addr("2001:db8::4"), PodCIDRs: []netip.Prefix{pfx("10.244.4.0/24")}, Encap: "vxlan", Port: 4789, VNI: 7},
			{Name: "node-e", Address: addr("2001:db8::5"), PodCIDRs: []netip.Prefix{pfx("10.244.5.0/24")}, Encap: "udp"},
		},
		Host:    Host{"pst0", true, true},
		Limits:  Limits{1 << 20, 1 << 30},
		Workers: 4,
		Native:  Native{"udp", 7000},
		Offload: Offload{PacketRing: "v3"},
		Control: Control{"/tmp/p.sock"},
		Debug:   Debug{"0.0.0.0:1", true},
		Metrics: Metrics{":2"},
		State:   "/tmp/state",
	}
	if d := equal(want, c); d != "" {
		t.Error(d)
	}
}

func TestDefaultPorts(t *testing.T) {
	for kind, want := range map[string]uint16{"udp": 8285, "vxlan": 8472, "ipip": 0} {
		c, err := Parse("x", []byte(needed+"encap: {type: "+kind+"}\n"))
		if err != nil || c.Encap.Port != want {
			t.Errorf("%s: port %d, want %d (%v)", kind, c.Encap.Port, want, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]int64{"524288": 1 << 19, "512KiB": 1 << 19, "3 MiB": 3 << 20, `"1GiB"`: 1 << 30} {
		c, err := Parse("x", []byte(needed+"limits: {totalBuffer: 4GiB, podBuffer: "+in+"}\n"))
		if err != nil || c.Limits.PodBuffer != want {
			t.Errorf("%s: %v, %v", in, c, err)
		}
	}
	for _, n := range []int64{0, 1, 1023, 1024, 3 << 20, 5 << 30} {
		if s := sizeString(n); n > 0 {
			c := Default()
			c.src = source{places: map[string]place{}}
			root := c.src.parse([]byte(s))
			if size(&c.Limits.PodBuffer, 0, 1<<40)(&c.src, root, ""); c.Limits.PodBuffer != n {
				t.Errorf("%d is written %s and read %d", n, s, c.Limits.PodBuffer)
			}
		}
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.yaml")
	dir := filepath.Dir(path)
	for _, x := range []struct {
		path, want string
		cause      error
	}{
		{path, path + " does not exist: write it (penstockctl config example > " + path + "), or name another", os.ErrNotExist},
		{dir, dir + " is a directory: name the configuration file in it", syscall.EISDIR},
		{"/dev/null/x", "the configuration file /dev/null/x cannot be read: not a directory; name one that can", syscall.ENOTDIR},
	} {
		for _, load := range []func(string) (*Config, error){Load, LoadRegular} {
			if _, err := load(x.path); err == nil || err.Error() != x.want || !errors.Is(err, x.cause) {
				t.Errorf("got  %v\nwant %s", err, x.want)
			}
		}
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRegular(fifo); err == nil || err.Error() != "the configuration file "+fifo+" cannot be read: it is no regular file; name one that can" {
		t.Error(err)
	}
	if err := (&Unreadable{"c", &os.PathError{Op: "open", Path: "c", Err: syscall.EACCES}}); err.Error() != "no permission to read the configuration file c: run as root, or as who owns it" {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte(needed+"workers: -1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	if want := path + ":3:10: workers: -1 is out of range: the number of workers goes from 0 to 256"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func TestNoConfigWithProblems(t *testing.T) {
	if c, err := Parse("x", []byte("workers: [")); c != nil || err == nil {
		t.Errorf("%v, %v", c, err)
	}
}

func TestComplete(t *testing.T) {
	never := func() (netip.Addr, error) { t.Error("underlay was asked for nothing"); return netip.Addr{}, nil }
	c, err := Parse("x", []byte(needed))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Complete(never); err != nil || c.Node.Address != netip.MustParseAddr("192.0.2.1") {
		t.Errorf("%v, %v", c.Node.Address, err)
	}

	const open = `node: {podCIDRs: [10.244.1.0/24], name: a}
network: {cidrs: [10.244.0.0/16]}
encap: {type: %s}
peers:
- {name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}
`
	for _, x := range []struct {
		kind, address string
		want          []string
	}{
		{"udp", "192.0.2.1", nil},
		{"udp", "::ffff:192.0.2.1", nil},
		{"udp", "192.0.2.2", []string{"5:22: peers[0].address: 192.0.2.2 is our own address (found on this machine, as the file leaves it out)"}},
		{"udp", "10.244.9.9", []string{"1:7: node.address: 10.244.9.9 (found on this machine, as the file leaves it out) lies in 10.244.0.0/16 (line 2)"}},
		{"ipip", "2001:db8::1", []string{"1:7: node.address: 2001:db8::1 (found", "5:22: peers[0].address: 192.0.2.2 and our own address 2001:db8::1"}},
	} {
		c, err := Parse("x", fmt.Appendf(nil, open, x.kind))
		if err != nil {
			t.Fatal(err)
		}
		err = c.Complete(func() (netip.Addr, error) { return netip.MustParseAddr(x.address), nil })
		expect(t, x.address, err, x.want)
		if err == nil && c.Node.Address != netip.MustParseAddr("192.0.2.1") {
			t.Errorf("the address is %v", c.Node.Address)
		}
	}

	// A Config that came from no file.
	c = Default()
	c.Network.CIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	err = c.Complete(func() (netip.Addr, error) { return netip.MustParseAddr("10.0.0.1"), nil })
	if err == nil || err.Error() != "defaults: node.address: 10.0.0.1 (found on this machine, as the file leaves it out) lies in 10.0.0.0/8: the underlay is outside the pods' network" {
		t.Errorf("%v", err)
	}

	c, _ = Parse("x", fmt.Appendf(nil, open, "udp"))
	none := errors.New("no default route")
	if err := c.Complete(func() (netip.Addr, error) { return netip.Addr{}, none }); !errors.Is(err, none) || !strings.Contains(err.Error(), "give it as node.address in x") {
		t.Errorf("%v", err)
	}
}

func TestDiff(t *testing.T) {
	old, err := Parse("x", []byte(needed))
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ more, live, want string }{
		{"", "", ""},
		{"encap: {port: 8473, mtu: 1400, copyDSCP: true, clampMSS: true}\nstate: /x\n", "encap.mtu encap.copyDSCP encap.clampMSS", "encap.port: 8472 → 8473 needs a restart; state: /var/lib/penstock → /x needs a restart that takes the directory along: stop the daemon, move its files, then start, or the pods that run are not known any more"},
		{"host: {masquerade: true, forward: true}\npeers: [{name: b, address: 192.0.2.2, podCIDRs: [10.244.2.0/24]}]\n", "peers host.masquerade host.forward", ""},
		{"offload: {udpGRO: off}\nmetrics: {listen: \":1\"}\nlimits: {podBuffer: 1MiB}\n", "", `limits.podBuffer: 8MiB → 1MiB needs a restart; offload.udpGRO: auto → off needs a restart; metrics.listen: "" → :1 needs a restart`},
	} {
		c, err := Parse("x", []byte(needed+x.more))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		live, restart := Diff(old, c)
		for _, d := range restart {
			got = append(got, d.String())
		}
		if l := strings.Join(live, " "); l != x.live {
			t.Errorf("%s\nlive %s\nwant %s", x.more, l, x.live)
		}
		if s := strings.Join(got, "; "); s != x.want {
			t.Errorf("%s\ngot  %s\nwant %s", x.more, s, x.want)
		}
	}

	larger, err := Parse("x", []byte(strings.Replace(needed, "[10.244.1.0/24]", "[10.244.1.0/24, 10.244.9.0/24]", 1)))
	if err != nil {
		t.Fatal(err)
	}
	if live, d := Diff(old, larger); d != nil || !slices.Equal(live, []string{"node.podCIDRs"}) {
		t.Errorf("a pod CIDR more: %q, %v", live, d)
	}
	if _, d := Diff(larger, old); len(d) != 1 || d[0].String() != "node.podCIDRs: [10.244.1.0/24, 10.244.9.0/24] → [10.244.1.0/24] needs a restart" {
		t.Errorf("a pod CIDR less: %v", d)
	}
	if n := len(RestartKeys()) + len(ReloadKeys()); n != len(settings) {
		t.Errorf("%d keys, want %d", n, len(settings))
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example)
	f.Add([]byte(needed))
	for _, x := range wrong {
		f.Add([]byte(x.file))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("x", data)
		if err == nil {
			if c == nil || len(c.Node.PodCIDRs) == 0 {
				t.Fatal("nothing parsed, and nothing wrong")
			}
			_ = c.Complete(func() (netip.Addr, error) { return netip.MustParseAddr("192.0.2.1"), nil })
			Diff(c, c)
			return
		}
		var all Errors
		if !errors.As(err, &all) || len(all) == 0 || c != nil {
			t.Fatalf("%T %v, config %v", err, err, c)
		}
		lines := strings.Count(string(data), "\n") + strings.Count(string(data), "\r") + strings.Count(string(data), "\u0085") +
			strings.Count(string(data), "\u2028") + strings.Count(string(data), "\u2029") + 1 // what YAML takes for line ends
		for i, p := range all {
			if p.Line < 1 || p.Line > lines+1 || p.Column < 1 || p.Message == "" || i > 0 && p.Line < all[i-1].Line {
				t.Fatalf("problem %d of %d lines: %+v", i, lines, p)
			}
		}
	})
}
