package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// TestMain lets the test binary be the plugin, and an ipam plugin.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "penstock":
		if os.Getenv("TEST_WITHOUT_IPV6") != "" {
			hasIPv6 = func() bool { return false }
		}
		if os.Getenv("TEST_PANIC") != "" {
			asked := 0
			hasIPv6 = func() bool {
				if asked++; asked == 2 { // for routes, when the pod's interface is there
					panic("on purpose")
				}
				return true
			}
		}
		if d, err := time.ParseDuration(os.Getenv("TEST_PATIENCE")); err == nil {
			waitForDaemon, detachTimeout = d, d
		}
		skel.PluginMainFuncs(Funcs, Versions, "test")
		os.Exit(0)
	case "fakeipam", "dhcp":
		fakeIPAM()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fakeIPAM answers what FAKE_IPAM holds, and writes down what it was called with.
func fakeIPAM() {
	f, err := os.OpenFile(os.Getenv("FAKE_IPAM_LOG"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintln(f, os.Getenv("CNI_COMMAND"), os.Getenv("CNI_CONTAINERID"), os.Getenv("CNI_IFNAME"))
		f.Close()
	}
	if os.Getenv("CNI_COMMAND") == "ADD" && os.Getenv("FAKE_IPAM_HANGS") != "" {
		time.Sleep(time.Minute)
	}
	if answer := os.Getenv("FAKE_IPAM"); os.Getenv("CNI_COMMAND") == "ADD" {
		fmt.Print(answer)
		if strings.Contains(answer, `"code"`) {
			os.Exit(1)
		}
	}
}

// world is a node with a pretended daemon, and its pods.
type world struct {
	*fake
	t     *testing.T
	node  *nstest.NS
	bin   string
	env   []string
	lives map[string]bool // devices of pods that are to stay
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, node: nstest.New(t), bin: t.TempDir()}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"penstock", "fakeipam", "dhcp"} {
		if err := os.Symlink(self, filepath.Join(w.bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	w.env = []string{"PATH=" + os.Getenv("PATH"), "GORACE=" + os.Getenv("GORACE"), "TEST_PATIENCE=20s", "FAKE_IPAM_LOG=" + filepath.Join(w.bin, "ipam.log")}
	w.fake = &fake{socket: filepath.Join(t.TempDir(), "p.sock"), node: w.node, mtu: 1450, families: []int{4, 6}}
	w.fake.pods = map[control.PodKey]*control.Pod{}
	w.start()
	t.Cleanup(w.stop)
	return w
}

// patience is how long the plugin waits for the daemon: long, but where a test wants it to give up.
func (w *world) patience(d string) {
	w.env = slices.DeleteFunc(slices.Clone(w.env), func(s string) bool { return strings.HasPrefix(s, "TEST_PATIENCE=") })
	w.env = append(w.env, "TEST_PATIENCE="+d)
}

// pod is a namespace as a runtime makes one.
type pod struct {
	*nstest.NS
	path string
	id   string
}

var pods atomic.Int64 // of all worlds: some tests run beside each other

func (w *world) newPod() *pod {
	w.t.Helper()
	ns := nstest.New(w.t)
	return &pod{NS: ns, path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()), id: fmt.Sprintf("c%d", pods.Add(1))}
}

// call is one call of the plugin.
type call struct {
	verb, id, netns, ifname, args string
	version                       string
	conf                          map[string]any
}

func (w *world) conf(keys map[string]any) map[string]any {
	c := map[string]any{"name": "penstock", "type": "penstock", "socket": w.socket}
	for k, v := range keys {
		c[k] = v
	}
	return c
}

// answer is what the plugin printed.
type answer struct {
	code   uint // of the error, 0 for none
	msg    string
	out    []byte
	stderr string
	took   time.Duration
}

func (w *world) run(c call) answer {
	w.t.Helper()
	cmd, finish := w.command(context.Background(), c)
	begin := time.Now()
	err := cmd.start()
	if err == nil {
		err = cmd.Wait()
	}
	a := answer{took: time.Since(begin)}
	finish(&a)
	var e types.Error
	if err != nil {
		if json.Unmarshal(a.out, &e) != nil || e.Code == 0 || e.Msg == "" {
			w.t.Fatalf("%s failed without a CNI error: %v\n%s\n%s", c.verb, err, a.out, a.stderr)
		}
		a.code, a.msg = e.Code, e.Error()
	}
	return a
}

type command struct {
	*exec.Cmd
	node *nstest.NS
}

// start runs the plugin in the node's namespace: a child is in that of the thread that made it.
func (c command) start() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(c.node.FD(), unix.CLONE_NEWNET); err != nil {
			result <- err
			return
		}
		result <- c.Cmd.Start() // and the thread ends
	}()
	return <-result
}

func (w *world) command(ctx context.Context, c call) (command, func(*answer)) {
	w.t.Helper()
	if c.version == "" {
		c.version = "1.1.0"
	}
	if c.ifname == "" {
		c.ifname = "eth0"
	}
	conf := map[string]any{}
	for k, v := range c.conf {
		conf[k] = v
	}
	if conf["name"] == nil {
		conf = w.conf(c.conf)
	}
	conf["cniVersion"] = c.version
	stdin, err := json.Marshal(conf)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "penstock"))
	cmd.Env = append(slices.Clone(w.env), "CNI_COMMAND="+c.verb, "CNI_CONTAINERID="+c.id, "CNI_NETNS="+c.netns, "CNI_IFNAME="+c.ifname, "CNI_ARGS="+c.args, "CNI_PATH="+w.bin)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, &stderr
	return command{cmd, w.node}, func(a *answer) { a.out, a.stderr = stdout.Bytes(), stderr.String() }
}

func (w *world) add(p *pod, version string, conf map[string]any, args ...string) answer {
	w.t.Helper()
	return w.run(call{verb: "ADD", id: p.id, netns: p.path, version: version, conf: conf, args: strings.Join(args, ";")})
}

// mustAdd returns the result.
func (w *world) mustAdd(p *pod, version string, conf map[string]any, args ...string) map[string]any {
	w.t.Helper()
	a := w.add(p, version, conf, args...)
	if a.code != 0 {
		w.t.Fatalf("ADD: %d %s\n%s", a.code, a.msg, a.stderr)
	}
	return parseResult(w.t, a.out)
}

func parseResult(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var r map[string]any
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("result %s: %v", b, err)
	}
	return r
}

// clean fails the test if a trace of a pod is left.
func (w *world) clean(p *pod) {
	w.t.Helper()
	w.mu.Lock()
	for k, v := range w.pods {
		if k.Container == p.id {
			w.t.Errorf("the daemon still has %+v", v)
		}
	}
	w.mu.Unlock()
	for name, ns := range map[string]*nstest.NS{"node": w.node, "pod": p.NS} {
		ns.Do(func() {
			links, err := netlink.LinkList()
			if err != nil {
				w.t.Fatal(err)
			}
			for _, l := range links {
				if n := l.Attrs().Name; n != "lo" && !w.lives[n] && !strings.HasPrefix(n, "sit") && !strings.HasPrefix(n, "tunl") && !strings.HasPrefix(n, "ip6") {
					w.t.Errorf("%s: device %s (%s) is left", name, n, l.Type())
				}
			}
			for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
				rules, err := netlink.RuleList(f)
				if err != nil {
					w.t.Fatal(err)
				}
				for _, r := range rules {
					if r.Priority != 0 && r.Priority != 32766 && r.Priority != 32767 {
						w.t.Errorf("%s: rule %v is left", name, r)
					}
				}
			}
		})
	}
}
