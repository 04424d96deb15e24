package cni

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"github.com/agnivade/levenshtein"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/penstock-net/penstock/forwarder/control"
)

// netConf is the plugin's part of a CNI list, with what the runtime adds to it (specification, section 1).
type netConf struct {
	types.PluginConf
	Attach        string         `json:"attach"`
	Socket        string         `json:"socket"`
	MTU           *int           `json:"mtu"`
	Routes        []*types.Route `json:"routes"` // of the pod, besides the default route
	RuntimeConfig struct {
		IPs       []string           `json:"ips"`
		MAC       string             `json:"mac"`
		Bandwidth *control.Bandwidth `json:"bandwidth"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
	// A typo in the specification's text; runtimes send both (CNI issue 1101).
	Attachments []types.GCAttachment `json:"cni.dev/attachments"`
}

// request is what one call asks for, checked.
type request struct {
	*skel.CmdArgs
	conf      *netConf
	attach    string
	mtu       int // 0: the node's
	ipam      string
	requested []netip.Addr     // one of a family at most
	mac       net.HardwareAddr // nil: the kernel's choice
	owner     string           // namespace/name of the pod, for people
	previous  *current.Result  // of the plugin before this one
}

// readConf reads no more than every verb needs. DEL must get by with it.
func readConf(args *skel.CmdArgs) (*netConf, error) {
	c := &netConf{}
	if err := json.Unmarshal(args.StdinData, c); err != nil {
		return c, fail(types.ErrDecodingFailure, "the network configuration cannot be read: %v", inWords(err))
	}
	if c.Socket == "" {
		c.Socket = control.DefaultSocket
	}
	if !filepath.IsAbs(c.Socket) {
		return c, invalid("socket %q is not an absolute path", c.Socket)
	}
	return c, nil
}

// inWords says of a value of the wrong kind what it must be, without Go's types.
func inWords(err error) error {
	var e *json.UnmarshalTypeError
	if !errors.As(err, &e) || e.Field == "" {
		return err
	}
	is := map[string]string{"array": "a list", "object": "an object", "string": "a string", "bool": "true or false", "number": "a number"}[e.Value]
	must := map[reflect.Kind]string{reflect.String: "a string", reflect.Slice: "a list", reflect.Struct: "an object", reflect.Map: "an object", reflect.Bool: "true or false",
		reflect.Int: "a whole number", reflect.Uint64: "a whole number that is not negative"}[e.Type.Kind()]
	field := strings.TrimPrefix(e.Field, "PluginConf.") // which is embedded
	return fmt.Errorf("%s is %s and must be %s", field, cmp.Or(is, strings.TrimPrefix(e.Value, "number ")), cmp.Or(must, "something else"))
}

// checkSocket is not for DEL, which queues beside whatever was named.
func (c *netConf) checkSocket() error {
	if err := control.CheckSocket(c.Socket); err != nil {
		return invalid("socket %v", err)
	}
	return nil
}

// refuseList is about a list of plugins, which is the runtime's to take apart.
func refuseList(stdin []byte) error {
	var list struct{ Plugins any }
	if bytes.Contains(stdin, []byte(`"plugins"`)) && json.Unmarshal(stdin, &list) == nil && list.Plugins != nil {
		return invalid("this is a list of plugins, of which a runtime hands each plugin its own object: call a runtime or cnitool, or give penstock's object with the list's name and cniVersion in it")
	}
	return nil
}

// ownKeys are those of netConf that a person writes. mtu and args are too short to tell a slip from another word.
var ownKeys = [...]string{"attach", "socket", "routes", "ipam", "runtimeConfig"}

// checkKeys refuses a key that penstock does not have and that looks like one it has, as "attatch": the pod would come up otherwise than
// the configuration says. Others pass, as they may be the runtime's (CNI specification, section 1), and so do those that are put out of
// use by a mark before them. DEL must get by with any.
func checkKeys(stdin []byte) error {
	var keys map[string]json.RawMessage
	if json.Unmarshal(stdin, &keys) != nil {
		return nil // readConf has told
	}
	var wrong []string
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		for _, own := range ownKeys {
			if slip(key, own) {
				wrong = append(wrong, fmt.Sprintf("%q (did you mean %q?)", key, own))
			}
		}
	}
	if len(wrong) > 0 {
		return invalid("penstock has no key %s", strings.Join(wrong, ", and no key "))
	}
	return nil
}

// slip tells whether key is own but for a slip of the hand: a letter too many, too few or another, or two in the wrong order. The case of letters
// does not count, for encoding/json neither.
func slip(key, own string) bool {
	if len(key) > len(own)+1 || key == "" || !unicode.IsLetter(rune(key[0])) {
		return false
	}
	key, own = strings.ToLower(key), strings.ToLower(own)
	if levenshtein.ComputeDistance(key, own) == 1 {
		return true
	}
	for i := range len(own) - 1 {
		if key == own[:i]+own[i+1:i+2]+own[i:i+1]+own[i+2:] {
			return key != own
		}
	}
	return false
}

// checkStatic is what can be said of a configuration without a pod: STATUS has no more.
func (c *netConf) checkStatic() error {
	if err := c.checkSocket(); err != nil {
		return err
	}
	r := &request{conf: c, attach: c.Attach, ipam: c.delegated()}
	switch r.attach {
	case "", control.AttachVeth, control.AttachTUN, control.AttachRouted:
	default:
		return badAttach(r.attach)
	}
	for _, check := range []func() error{r.checkIPAM, r.readMTU, r.checkRoutes} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func badAttach(attach string) error {
	return invalid("attach %q is not one of veth, tun and routed", attach)
}

// delegated is the ipam plugin to call, "" for the daemon's own.
func (c *netConf) delegated() string {
	if c.IPAM.Type == "penstock" {
		return ""
	}
	return c.IPAM.Type
}

// read understands a call and refuses what cannot work.
func read(args *skel.CmdArgs) (*request, error) {
	c, err := readConf(args)
	if err != nil {
		return nil, err
	}
	if err := c.checkSocket(); err != nil {
		return nil, err
	}
	if err := refuseList(args.StdinData); err != nil {
		return nil, err
	}
	if err := checkKeys(args.StdinData); err != nil {
		return nil, err
	}
	r := &request{CmdArgs: args, conf: c, attach: c.Attach, ipam: c.delegated()}
	if r.previous, err = c.previousResult(); err != nil {
		return nil, err
	}
	if r.attach == "" {
		r.attach = control.AttachVeth
		if r.previous != nil {
			r.attach = control.AttachRouted
		}
	}
	for _, check := range []func() error{r.checkAttach, r.readMTU, r.readMAC, r.readAddresses, r.checkBandwidth, r.checkRoutes} {
		if err := check(); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// previousResult is nil also for a result in which nothing is.
func (c *netConf) previousResult() (*current.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil
	}
	dropNulls(c.RawPrevResult)
	if err := version.ParsePrevResult(&c.PluginConf); err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult cannot be read: %v", err)
	}
	p, err := current.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, fail(types.ErrDecodingFailure, "prevResult cannot be converted: %v", err)
	}
	if len(p.Interfaces) == 0 && len(p.IPs) == 0 {
		return nil, nil
	}
	return p, nil
}

func (r *request) checkAttach() error {
	switch r.attach {
	case control.AttachVeth, control.AttachTUN:
		if r.previous != nil {
			return invalid("attach %s makes the pod's interface itself and cannot follow another plugin that has made one: put penstock first in the list, or use attach routed", r.attach)
		}
	case control.AttachRouted:
		if r.previous == nil {
			return invalid("attach routed needs a plugin such as bridge or ptp before penstock in the list: there is no prevResult")
		}
	default:
		return badAttach(r.attach)
	}
	return r.checkIPAM()
}

func (r *request) checkIPAM() error {
	switch {
	case r.attach == control.AttachRouted && r.conf.IPAM.Type != "":
		return invalid("ipam %s cannot be used with attach routed: the plugin before penstock has the addresses", r.conf.IPAM.Type)
	case r.ipam == "dhcp":
		return invalid("ipam dhcp cannot work behind attach %s: no broadcast leaves the pod; let a bridge have the ipam and chain penstock behind it", cmp.Or(r.attach, control.AttachVeth))
	}
	return nil
}

// Bounds of a device's MTU: RFC 791, and the longest IP packet.
const minMTU, maxMTU = 68, 65535

func (r *request) readMTU() error {
	if r.conf.MTU == nil || *r.conf.MTU == 0 {
		return nil
	}
	r.mtu = *r.conf.MTU
	if r.mtu < minMTU || r.mtu > maxMTU {
		return invalid("mtu %d is not between %d and %d", r.mtu, minMTU, maxMTU)
	}
	return nil
}

// checkNodeMTU refuses an mtu that does not reach every node: it is a mistake, or has become one, and shows only in
// what is slow or hangs. STATUS does not ask: the kubelet would take the node NotReady whenever the underlay's MTU shrinks, for pods that still could be added without mtu.
func checkNodeMTU(mtu, node int) error {
	if node == 0 || mtu <= node {
		return nil
	}
	return invalid("mtu %d is more than %d, the most that this node's pods can send to all other nodes: take mtu out of the CNI configuration, and pods get %d", mtu, node, node)
}

func (r *request) readMAC() error {
	s := r.conf.RuntimeConfig.MAC
	switch {
	case s == "" || r.attach == control.AttachRouted: // that is for the plugin before
		return nil
	case r.attach == control.AttachTUN:
		return invalid("mac %s cannot be given to a tun: it has no MAC; use attach veth", s)
	}
	mac, err := net.ParseMAC(s)
	if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, make(net.HardwareAddr, 6)) {
		return invalid("mac %q is not the address of one Ethernet device", s)
	}
	r.mac = mac
	return nil
}

// readAddresses finds out which addresses the caller wants: by the capability ips, by args, or by CNI_ARGS. A delegated ipam
// reads all three itself, and behind another plugin the addresses are chosen already.
func (r *request) readAddresses() error {
	args := parseArgs(r.CmdArgs.Args)
	if name := args["K8S_POD_NAME"]; name != "" {
		r.owner = strings.Map(printable, args["K8S_POD_NAMESPACE"]+"/"+name)
	}
	if r.previous != nil || r.ipam != "" {
		return nil
	}
	list, where := r.conf.RuntimeConfig.IPs, "capability ips"
	if len(list) == 0 {
		list, where = r.conf.Args.CNI.IPs, "args.cni.ips"
	}
	if s := args["IP"]; len(list) == 0 && s != "" {
		list, where = strings.Split(s, ","), "CNI_ARGS IP"
	}
	for _, s := range list {
		a, err := parseAddress(s)
		if err != nil {
			return invalid("%s: %q is not an IP address", where, s)
		}
		for _, other := range r.requested {
			if other.Is4() == a.Is4() {
				return invalid("%s: %s and %s are of one family, and an interface has one address of each", where, other, a)
			}
		}
		r.requested = append(r.requested, a)
	}
	return nil
}

// printable keeps a terminal from what only it would read: what stands for the pod is shown to people.
func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return '?'
	}
	return r
}

// parseAddress takes an address with or without the length of its network, which is of no interest here.
func parseAddress(s string) (netip.Addr, error) {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "/")
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() != "" {
		err = fmt.Errorf("zone")
	}
	return a.Unmap(), err
}

// parseArgs splits CNI_ARGS, K=V pairs with semicolons between. What is not understood is somebody else's.
func parseArgs(s string) map[string]string {
	m := map[string]string{}
	for _, pair := range strings.Split(s, ";") {
		if key, value, ok := strings.Cut(pair, "="); ok {
			m[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return m
}

func (r *request) checkBandwidth() error {
	b := r.conf.RuntimeConfig.Bandwidth
	switch {
	case b == nil:
	case *b == (control.Bandwidth{}):
		r.conf.RuntimeConfig.Bandwidth = nil
	case r.attach == control.AttachRouted:
		return invalid("bandwidth cannot be bounded with attach routed, as the daemon reads none of the pod's packets: chain the plugin bandwidth behind bridge or ptp and give it the capability instead of penstock")
	case (b.IngressRate == 0) != (b.IngressBurst == 0):
		return invalid("bandwidth: ingressRate %d and ingressBurst %d go together: a limit needs both", b.IngressRate, b.IngressBurst)
	case (b.EgressRate == 0) != (b.EgressBurst == 0):
		return invalid("bandwidth: egressRate %d and egressBurst %d go together: a limit needs both", b.EgressRate, b.EgressBurst)
	}
	return nil
}

// checkRoutes: there is one neighbour behind a pod's interface, and that is the daemon.
func (r *request) checkRoutes() error {
	if len(r.conf.Routes) > 0 && r.attach == control.AttachRouted {
		return invalid("routes cannot be used with attach routed: the plugin before penstock configures the pod")
	}
	for _, route := range r.conf.Routes {
		if route == nil || prefixOf(route.Dst) == (netip.Prefix{}) {
			return invalid("routes: an entry has no dst")
		}
		gw, given := netip.AddrFromSlice(route.GW)
		if gw = gw.Unmap(); given && gw != control.Gateway4 && gw != control.Gateway6 {
			return invalid("routes: %s by %s cannot work: leave gw out, every packet of the pod goes to the daemon", prefixOf(route.Dst), gw)
		}
		if err := checkRoute(route); err != nil {
			return err
		}
	}
	return nil
}

// checkRoute looks at what would be cut off or left out on its way to the kernel.
func checkRoute(r *types.Route) error {
	if r.Scope != nil && *r.Scope != 0 {
		return invalid("routes: scope %d of %s cannot be: leave it out, every packet of the pod goes by the daemon", *r.Scope, prefixOf(r.Dst))
	}
	table := cmp.Or(r.Table, new(int))
	for _, field := range []struct {
		name  string
		value int
		max   int64
	}{{"mtu", r.MTU, maxMTU}, {"advmss", r.AdvMSS, maxMTU}, {"priority", r.Priority, math.MaxUint32}, {"table", *table, math.MaxUint32}} {
		if field.value < 0 || int64(field.value) > field.max {
			return invalid("routes: %s %d of %s is not between 0 and %d", field.name, field.value, prefixOf(r.Dst), field.max)
		}
	}
	return nil
}

// prefixOf is the zero prefix for what is none.
func prefixOf(n net.IPNet) netip.Prefix {
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok || n.Mask == nil {
		return netip.Prefix{}
	}
	ones, bits := n.Mask.Size()
	if a.Is4In6() {
		if bits == 128 {
			ones -= 96
		}
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, ones).Masked()
}

// netOf is the way back.
func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
