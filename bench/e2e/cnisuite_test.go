package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/bench/lab"
	"github.com/penstock-net/penstock/forwarder/control"
)

// The suite calls the plugins as a runtime does, by environment and standard input and nothing between, so that it can also call
// them as no library would: without what they are owed.

// TestCNISuite: what DEL may be called with.
func TestCNISuite(t *testing.T) {
	t.Parallel()
	everyWay(t, func(t *testing.T, c *caller) {
		each := func(name string, fn func()) {
			t.Run(name, func(t *testing.T) {
				outer := c.t
				c.t = t
				defer func() { c.t = outer }()
				fn()
			})
		}
		dels := 0
		inTurn := func(name string, fn func()) {
			if c.turn(dels) {
				each(name, fn)
			}
			dels++
		}
		each("life", func() {
			p, r := c.add()
			if c.version != "0.3.1" {
				c.must("CHECK", p, asked{previous: r})
			}
			if c.version == "1.1.0" {
				c.must("STATUS", p, asked{})
				c.must("GC", p, asked{conf: lab.Conf{"cni.dev/valid-attachments": []any{lab.Conf{"containerID": p.Container, "ifname": "eth0"}}}})
				c.must("CHECK", p, asked{previous: r})
			}
			if _, err := c.plugin("penstock", "ADD", p, asked{previous: nil}); err == nil {
				t.Error("a second ADD went through")
			}
			for range 3 {
				c.must("DEL", p, asked{previous: r})
			}
			c.after(p, nil)
			c.gone(p)
		})
		inTurn("DEL without CNI_NETNS", func() {
			p, r := c.add()
			c.must("DEL", p, asked{netns: ref(""), previous: r})
			c.after(p, nil)
			nothingLeft(t, c.n)
		})
		inTurn("DEL behind the namespace", func() {
			p, r := c.add()
			p.NS.Close()
			c.must("DEL", p, asked{netns: ref("/run/no/such/namespace"), previous: r})
			c.after(p, ref(""))
			nothingLeft(t, c.n)
		})
		inTurn("DEL without prevResult", func() { // the runtime's cache is empty
			p, _ := c.add()
			c.must("DEL", p, asked{})
			c.after(p, nil)
			c.gone(p)
		})
		inTurn("DEL with nothing but the socket", func() { // the configuration has changed since
			p, _ := c.add()
			c.must("DEL", p, asked{netns: ref(""), conf: lab.Conf{"attach": "something", "mtu": 20, "ipam": lab.Conf{}}})
			c.after(p, nil)
			nothingLeft(t, c.n)
		})
		inTurn("DEL of nobody", func() {
			p := c.n.BarePod(t)
			c.must("DEL", p, asked{})
			c.must("DEL", p, asked{netns: ref("/no/such/file")})
			c.gone(p)
		})
		if c.version == "1.1.0" {
			each("GC", func() {
				p, _ := c.add()
				c.must("GC", p, asked{})
				if pods, err := c.n.Daemon.Control().Pods(t.Context()); err != nil || len(pods) != 0 {
					t.Errorf("GC left %+v, %v", pods, err)
				}
				c.must("DEL", p, asked{})
				c.after(p, nil)
				c.gone(p)
			})
		}
	})
}

// TestCNISuiteDead: DEL with the daemon dead, which the daemon finishes at its start, and ADD, which waits for one that starts and
// gives up on one that does not.
func TestCNISuiteDead(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	needs(t, "iptables")
	l := lab.New(t, lab.Config{})
	l.Start(t)
	var callers []*caller
	for _, version := range suiteVersions {
		for _, attach := range suiteAttachments {
			n := l.Nodes[0]
			if attach == "routed" {
				n = l.Nodes[1]
			}
			callers = append(callers, &caller{t, n, attach, version})
		}
	}
	type added struct {
		c *caller
		p *lab.Pod
		r json.RawMessage
	}
	var pods []added
	for _, c := range callers {
		p, r := c.add()
		pods = append(pods, added{c, p, r})
	}
	for _, n := range l.Nodes {
		n.Daemon.Kill()
	}
	for i, a := range pods {
		switch i % 3 {
		case 0:
			a.c.must("DEL", a.p, asked{previous: a.r})
		case 1:
			a.c.must("DEL", a.p, asked{netns: ref("")})
		default:
			a.c.must("DEL", a.p, asked{})
			a.c.must("DEL", a.p, asked{})
		}
		a.c.after(a.p, nil)
	}
	var all sync.WaitGroup
	for _, c := range callers[:3] { // nobody there
		p := c.n.BarePod(t)
		before := c.before(p)
		all.Go(func() {
			took, err := quickest(3, 10*time.Second, func() *types.Error {
				_, err := c.plugin("penstock", "ADD", p, asked{previous: before})
				return err
			})
			if err == nil || err.Code != types.ErrTryAgainLater || took > 10*time.Second {
				t.Errorf("ADD (%s) with a dead daemon: %v after %v, want code 11 within 10 s", c.attach, err, took)
			}
			c.after(p, nil)
			if names := p.LinkNames(); len(names) > 1 {
				t.Errorf("an ADD (%s) that failed left %v in the pod", c.attach, names)
			}
		})
	}
	all.Wait()
	for _, n := range l.Nodes {
		if left := slices.DeleteFunc(n.LinkNames(), func(name string) bool { return !deviceOfPod.MatchString(name) }); len(left) > 0 {
			t.Errorf("%s has %v before the daemon is back", n.Name, left)
		}
	}
	var starting []added
	var mu sync.Mutex
	for _, c := range callers { // somebody comes
		p := c.n.BarePod(t)
		before := c.before(p)
		all.Go(func() {
			r, err := c.plugin("penstock", "ADD", p, asked{previous: before})
			if err != nil {
				t.Errorf("ADD (%s, %s) while the daemon starts: %d %s", c.attach, c.version, err.Code, err.Msg)
			}
			mu.Lock()
			defer mu.Unlock()
			starting = append(starting, added{c, p, r})
		})
	}
	time.Sleep(200 * time.Millisecond) // not what is awaited: the daemons come late
	for _, n := range l.Nodes {
		if _, err := n.StartErr(); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	for _, n := range l.Nodes {
		known, err := n.Daemon.Control().Pods(t.Context())
		want := map[*lab.Node]int{l.Nodes[0]: 8, l.Nodes[1]: 4}[n]
		if err != nil || len(known) != want {
			t.Errorf("%s knows %d pods, want the %d new ones: %v", n.Name, len(known), want, err)
		}
	}
	for _, a := range starting {
		a.c.must("DEL", a.p, asked{previous: a.r})
		a.c.after(a.p, nil)
	}
	for _, n := range l.Nodes {
		nothingLeft(t, n)
		n.Daemon.AssertConserved(t)
	}
}

// TestCNISuiteHangs: STATUS answers within a second, whatever the daemon does.
func TestCNISuiteHangs(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	c := &caller{t, l.Nodes[0], "veth", "1.1.0"}
	p := c.n.BarePod(t)
	for _, state := range []struct {
		name string
		do   func()
	}{
		{"hangs", func() { c.n.Daemon.Process.Signal(syscall.SIGSTOP) }},
		{"is dead", func() { c.n.Daemon.Kill() }},
	} {
		c.must("STATUS", p, asked{})
		state.do()
		for range 3 {
			took, err := quickest(10, time.Second, func() *types.Error {
				_, err := c.plugin("penstock", "STATUS", p, asked{})
				return err
			})
			if err == nil || err.Code != types.ErrPluginNotAvailable || took > time.Second {
				t.Errorf("STATUS when the daemon %s: %v after %v, want code 50 within a second", state.name, err, took)
			}
		}
		c.n.Daemon.Process.Signal(syscall.SIGCONT)
	}
}

// TestCNISuiteRefuses: what cannot be has its code and its sentence, and leaves nothing.
func TestCNISuiteRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	everyWay(t, func(t *testing.T, c *caller) {
		for i, test := range []struct {
			name string
			code uint
			says string
			a    asked
			not  string // the attachment that it says nothing about
		}{
			{"name too long", types.ErrInvalidEnvironmentVariables, "too long", asked{ifname: ref("abcdefghijklmnop")}, ""},
			{"no name", types.ErrInvalidEnvironmentVariables, "CNI_IFNAME", asked{ifname: ref("")}, ""},
			{"slash in the name", types.ErrInvalidEnvironmentVariables, "", asked{ifname: ref("eth/0")}, ""},
			{"no container", types.ErrInvalidEnvironmentVariables, "CNI_CONTAINERID", asked{container: ref("")}, ""},
			{"bad container", types.ErrInvalidEnvironmentVariables, "", asked{container: ref("../../etc")}, ""},
			{"no namespace", types.ErrInvalidEnvironmentVariables, "CNI_NETNS", asked{netns: ref("")}, ""},
			{"namespace that is not there", types.ErrInvalidEnvironmentVariables, "does not exist", asked{netns: ref("/no/such/file")}, ""},
			{"file that is no namespace", types.ErrInvalidEnvironmentVariables, "not a network namespace", asked{netns: ref(file)}, ""},
			{"another kind of namespace", types.ErrInvalidEnvironmentVariables, "not a network namespace", asked{netns: ref("/proc/self/ns/uts")}, ""},
			{"the node's own namespace", types.ErrInvalidEnvironmentVariables, "host's own", asked{netns: ref("/proc/thread-self/ns/net")}, ""},
			{"unknown attach", types.ErrInvalidNetworkConfig, "macvlan", asked{conf: lab.Conf{"attach": "macvlan"}}, ""},
			{"MTU 20", types.ErrInvalidNetworkConfig, "20", asked{conf: lab.Conf{"mtu": 20}}, ""},
			{"MTU under IPv6's", types.ErrInvalidNetworkConfig, "1280", asked{conf: lab.Conf{"mtu": 1279}}, ""},
			{"MTU 70000", types.ErrInvalidNetworkConfig, "70000", asked{conf: lab.Conf{"mtu": 70000}}, ""},
			{"address in use", types.ErrInvalidNetworkConfig, "in use", asked{env: []string{"CNI_ARGS=IgnoreUnknown=1;IP=10.244.1.77"}}, "routed"},
			{"address of another node", types.ErrInvalidNetworkConfig, "10.244.9.9", asked{env: []string{"CNI_ARGS=IgnoreUnknown=1;IP=10.244.9.9"}}, "routed"},
			{"host's own address", types.ErrInvalidNetworkConfig, "10.244.1.0", asked{env: []string{"CNI_ARGS=IgnoreUnknown=1;IP=10.244.1.0"}}, "routed"},
			{"not an address", types.ErrInvalidNetworkConfig, "10.244.1", asked{conf: lab.Conf{"runtimeConfig": lab.Conf{"ips": []string{"10.244.1"}}}}, "routed"},
			{"relative socket", types.ErrInvalidNetworkConfig, "absolute", asked{conf: lab.Conf{"socket": "p.sock"}}, ""},
			{"nonsense", types.ErrDecodingFailure, "", asked{conf: lab.Conf{"mtu": "large"}}, ""},
		} {
			if test.not == c.attach || !c.turn(i) {
				continue
			}
			t.Run(test.name, func(t *testing.T) {
				c.t = t
				var holder *lab.Pod
				if test.name == "address in use" {
					holder = c.n.BarePod(t)
					if _, err := c.plugin("penstock", "ADD", holder, asked{env: test.a.env}); err != nil {
						t.Fatalf("%v", err)
					}
				}
				p := c.n.BarePod(t)
				was := p.LinkNames()
				test.a.previous = c.before(p)
				if c.attach == "routed" {
					was = p.LinkNames()
				}
				_, err := c.plugin("penstock", "ADD", p, test.a)
				if err == nil || err.Code != test.code || !strings.Contains(err.Msg+err.Details, test.says) {
					t.Errorf("%v, want code %d and %q", describe(err), test.code, test.says)
				}
				if is := p.LinkNames(); !slices.Equal(is, was) {
					t.Errorf("the pod had %v and has %v", was, is)
				}
				if holder != nil {
					c.must("DEL", holder, asked{})
				}
				nothingLeft(t, c.n) // without any DEL
				c.after(p, nil)
			})
		}
	})
}

// TestCNISuiteNames: the longest name, and pods that share a container or a name.
func TestCNISuiteNames(t *testing.T) {
	t.Parallel()
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 1})
	l.Start(t)
	c := &caller{t, l.Nodes[0], "veth", "1.0.0"}
	p, q := c.n.BarePod(t), c.n.BarePod(t)
	long := "abcdefghijklmno" // IFNAMSIZ less one
	for _, call := range []struct {
		p    *lab.Pod
		name string
	}{{p, long}, {p, "eth1"}, {q, "eth1"}} {
		if _, err := c.plugin("penstock", "ADD", call.p, asked{ifname: ref(call.name)}); err != nil {
			t.Errorf("%s: %s", call.name, describe(err))
		}
	}
	if pods, err := c.n.Daemon.Control().Pods(t.Context()); err != nil || len(pods) != 3 {
		t.Errorf("%+v, %v", pods, err)
	}
	if _, err := c.n.Netlink().LinkByName(control.DeviceName(p.Container, long)); err != nil {
		t.Error(err)
	}
	c.must("DEL", p, asked{ifname: ref(long)})
	c.must("DEL", p, asked{ifname: ref("eth1")})
	c.must("DEL", q, asked{ifname: ref("eth1")})
	c.gone(p)
	c.gone(q)
}
