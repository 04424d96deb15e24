package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/penstock-net/penstock/bench/lab"
)

var (
	suiteVersions    = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}
	suiteAttachments = []string{"veth", "tun", "routed"}
)

// caller calls plugins on one node with one way to attach and one version of the specification.
type caller struct {
	t               *testing.T
	n               *lab.Node
	attach, version string
}

// turn says whether the n-th of a list of cases is to be run now: each is once for every attachment, by one version after the
// other; with E2E_MATRIX=1 by every version.
func (c *caller) turn(n int) bool {
	return matrix() || (n+slices.Index(suiteAttachments, c.attach))%len(suiteVersions) == slices.Index(suiteVersions, c.version)
}

// asked is what may differ from call to call.
type asked struct {
	netns, container, ifname *string
	env                      []string
	conf                     lab.Conf
	previous                 json.RawMessage
}

func ref(s string) *string { return &s }

// plugin runs one plugin and returns what it printed, and its error.
func (c *caller) plugin(name, verb string, p *lab.Pod, a asked) (json.RawMessage, *types.Error) {
	c.t.Helper()
	conf := lab.Conf{"cniVersion": c.version, "name": "suite", "type": name}
	if name == "penstock" {
		conf["attach"], conf["socket"] = c.attach, c.n.Daemon.Socket
	}
	for k, v := range a.conf {
		conf[k] = v
	}
	if a.previous != nil {
		conf["prevResult"] = a.previous
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		c.t.Fatal(err)
	}
	dirs, err := lab.PluginPath("ptp", "host-local")
	if err != nil {
		c.t.Fatal(err)
	}
	program := filepath.Join(dirs[0], name)
	if _, err := os.Stat(program); err != nil {
		program = filepath.Join(dirs[1], name)
	}
	or := func(s *string, other string) string {
		if s != nil {
			return *s
		}
		return other
	}
	cmd := exec.Command(program)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + or(a.container, p.Container), "CNI_NETNS=" + or(a.netns, p.NetnsPath()),
		"CNI_IFNAME=" + or(a.ifname, "eth0"), "CNI_PATH=" + strings.Join(dirs, ":")}, a.env...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &errs
	err = c.n.Do(cmd.Run)
	if err == nil {
		return out.Bytes(), nil
	}
	var exit *exec.ExitError
	failure := &types.Error{}
	if !errors.As(err, &exit) || json.Unmarshal(out.Bytes(), failure) != nil || failure.Msg == "" {
		c.t.Fatalf("%s %s ended with %v and no error of CNI's:\n%s%s", name, verb, err, out.Bytes(), errs.Bytes())
	}
	return nil, failure
}

// ptp is the configuration of the plugin before a routed penstock.
func (c *caller) ptp() lab.Conf {
	return lab.Conf{"ipam": lab.Conf{"type": "host-local", "dataDir": filepath.Join(filepath.Dir(c.n.Daemon.Config), "suite-host-local"),
		"ranges": []any{[]any{lab.Conf{"subnet": c.n.PodCIDR4.String()}}, []any{lab.Conf{"subnet": c.n.PodCIDR6.String()}}},
		"routes": []any{lab.Conf{"dst": "0.0.0.0/0"}, lab.Conf{"dst": "::/0"}}}}
}

// before is what the plugin before penstock has made: nil unless attach is routed.
func (c *caller) before(p *lab.Pod) json.RawMessage {
	c.t.Helper()
	if c.attach != "routed" {
		return nil
	}
	r, err := c.plugin("ptp", "ADD", p, asked{conf: c.ptp()})
	if err != nil {
		c.t.Fatalf("ptp: %v", err)
	}
	return r
}

// after undoes before.
func (c *caller) after(p *lab.Pod, netns *string) {
	c.t.Helper()
	if c.attach == "routed" {
		if _, err := c.plugin("ptp", "DEL", p, asked{conf: c.ptp(), netns: netns}); err != nil {
			c.t.Errorf("ptp: %v", err)
		}
	}
}

// add makes a pod and returns the answer.
func (c *caller) add() (*lab.Pod, json.RawMessage) {
	c.t.Helper()
	p := c.n.BarePod(c.t)
	r, err := c.plugin("penstock", "ADD", p, asked{previous: c.before(p)})
	if err != nil {
		c.t.Fatalf("ADD: %d %s", err.Code, err.Msg)
	}
	var v struct {
		CNIVersion string `json:"cniVersion"`
		IPs        []struct{ Address string }
	}
	if e := json.Unmarshal(r, &v); e != nil || v.CNIVersion != c.version || len(v.IPs) != 2 {
		c.t.Errorf("ADD answered %s", r)
	}
	return p, r
}

func (c *caller) must(verb string, p *lab.Pod, a asked) {
	c.t.Helper()
	if _, err := c.plugin("penstock", verb, p, a); err != nil {
		c.t.Errorf("%s: %d %s", verb, err.Code, err.Msg)
	}
}

// gone checks that nothing of the pod is left, on the node and in its namespace.
func (c *caller) gone(p *lab.Pod) {
	c.t.Helper()
	nothingLeft(c.t, c.n)
	if names := p.LinkNames(); len(names) > 1 {
		c.t.Errorf("the pod still has %v", names)
	}
}

// everyWay runs fn for every version and attachment. Routed pods have a node of their own, as two IPAMs cannot share a CIDR.
func everyWay(t *testing.T, fn func(t *testing.T, c *caller)) {
	lab.Require(t)
	needs(t, "iptables") // ptp of the reference plugins calls it when it is told to masquerade, and looks for it in DEL
	l := lab.New(t, lab.Config{})
	l.Start(t)
	for _, version := range suiteVersions {
		for _, attach := range suiteAttachments {
			n := l.Nodes[0]
			if attach == "routed" {
				n = l.Nodes[1]
			}
			t.Run(version+"/"+attach, func(t *testing.T) { fn(t, &caller{t, n, attach, version}) })
		}
	}
}

// quickest repeats a call that took longer than it may: a busy machine can be slow to start any process, the plugin cannot be
// slow each time.
func quickest(tries int, limit time.Duration, call func() *types.Error) (took time.Duration, err *types.Error) {
	for range tries {
		began := time.Now()
		err = call()
		if took = time.Since(began); took <= limit {
			break
		}
	}
	return took, err
}

func describe(e *types.Error) string {
	if e == nil {
		return "success"
	}
	return fmt.Sprintf("code %d %s %s", e.Code, e.Msg, e.Details)
}
