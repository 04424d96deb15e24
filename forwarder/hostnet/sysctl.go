package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/penstock-net/penstock/forwarder/hostnet/advertised"
)

// A sysctl of the network namespace belongs, for the kernel, to whoever has CAP_NET_ADMIN there (net/sysctl_net.c,
// net_ctl_permissions): the daemon may set it unless /proc/sys is mounted read-only, as in a container or under
// systemd's ProtectKernelTunables.

// A setting is one wanted sysctl.
type setting struct {
	key      string // with dots; a device's name in it may have dots of its own, so the path is made from parts
	parts    []string
	ok       func(have int) bool
	want     int
	severity Severity
	problem  string
	global   bool // not ours alone: it stays after Cleanup, so setting it is worth a line
	optional bool // a kernel without it is fine
	leave    func() string
}

func is(n int) func(int) bool { return func(have int) bool { return have == n } }

// Sysctls are those of the host that the packets of our device need.
type Sysctls struct {
	Device     string
	Uplink     string // the device that holds the node's address; empty: none does
	IPv4, IPv6 bool   // the families of pods
	Fix        bool   // set what can be set and is safe to set
}

// Check compares them with what is needed. No findings: all is well.
func (c Sysctls) Check() []Finding {
	var out []Finding
	for _, s := range c.settings() {
		if f, ok := s.check(c.Fix); !ok {
			out = append(out, f)
		}
	}
	return out
}

func (c Sysctls) settings() []setting {
	device, uplink := c.Device, c.Uplink
	var list []setting
	add := func(s setting) {
		s.key = strings.Join(s.parts, ".")
		list = append(list, s)
	}
	if c.IPv4 {
		// Global ones first: net.ipv4.ip_forward writes every device's forwarding.
		add(setting{parts: []string{"net", "ipv4", "ip_forward"}, ok: is(1), want: 1, severity: Failure, global: true,
			problem: "the host does not forward IPv4, so pods reach neither Services nor the outside"})
		add(setting{parts: []string{"net", "ipv4", "conf", device, "forwarding"}, ok: is(1), want: 1, severity: Failure,
			problem: "the host does not forward what pods hand it"})
		if uplink != "" {
			add(setting{parts: []string{"net", "ipv4", "conf", uplink, "forwarding"}, ok: is(1), want: 1, severity: Warning, global: true,
				leave:   func() string { return "it was turned off for this device on purpose" },
				problem: "the host does not forward what arrives on the node's own device, so answers from the outside do not reach pods"})
		}
		// Loose where strict is on: a bridge of `routed` pods has a route more specific than ours, and the kernel would
		// then refuse the packets of this node's other pods from our device. The larger of all and device holds.
		all, _ := readSysctl("net", "ipv4", "conf", "all", "rp_filter")
		add(setting{parts: []string{"net", "ipv4", "conf", device, "rp_filter"}, want: 2, severity: Warning,
			ok:      func(have int) bool { return have == 2 || have == 0 && all != 1 },
			problem: "strict reverse path filtering drops packets of pods whose address another device's route covers"})
	}
	if c.IPv6 {
		add(setting{parts: []string{"net", "ipv6", "conf", device, "disable_ipv6"}, ok: is(0), want: 0, severity: Failure,
			problem: "IPv6 is off on the device, so it gets no address and no routes"})
		for _, s := range advertisements(device, uplink) { // before the host forwards
			add(s)
		}
		add(setting{parts: []string{"net", "ipv6", "conf", "all", "forwarding"}, ok: is(1), want: 1, severity: Failure, global: true,
			leave:   func() string { return untilAdvertised(device, uplink) },
			problem: "the host does not forward IPv6, so pods reach neither Services nor the outside"})
		add(setting{parts: []string{"net", "ipv6", "conf", device, "forwarding"}, ok: is(1), want: 1, severity: Failure,
			problem: "the host does not forward what pods hand it"})
		if uplink != "" {
			add(setting{parts: []string{"net", "ipv6", "conf", uplink, "forwarding"}, ok: is(1), want: 1, severity: Warning, global: true,
				leave:   func() string { return "it was turned off for this device on purpose" },
				problem: "the host does not forward what arrives on the node's own device, so answers from the outside do not reach pods"})
		}
		add(setting{parts: []string{"net", "ipv6", "conf", device, "accept_ra"}, ok: is(0), want: 0, severity: Warning,
			problem: "the host would believe router advertisements that come from pods"})
	}
	// 2 is "while somebody listens" (5.19 and newer), 1 always. Absent without conntrack.
	add(setting{parts: []string{"net", "netfilter", "nf_conntrack_events"}, want: 1, severity: Warning, global: true, optional: true,
		ok:      func(have int) bool { return have != 0 },
		problem: "conntrack does not tell when a flow ends, so answers may take the detour through the host up to a minute longer than they need"})
	return list
}

// check reads one setting and, asked to, sets it.
func (s setting) check(fix bool) (Finding, bool) {
	f := Finding{Severity: s.severity, Subject: s.key, Remedy: fmt.Sprintf("sysctl -w %s=%d", s.sysctlName(), s.want)}
	have, err := readSysctl(s.parts...)
	if err != nil {
		if s.optional && errors.Is(err, fs.ErrNotExist) {
			return Finding{}, true
		}
		f.Problem = fmt.Sprintf("cannot be read (%v), it has to be %d: otherwise %s", err, s.want, s.problem)
		if errors.Is(err, fs.ErrNotExist) {
			f.Problem = fmt.Sprintf("does not exist, so the kernel lacks a part or the device is missing: %s", s.problem)
			f.Remedy = ""
		}
		return f, false
	}
	if s.ok(have) {
		return Finding{}, true
	}
	f.Problem = fmt.Sprintf("it is %d: %s", have, s.problem)
	if !fix {
		return f, false
	}
	if s.leave != nil {
		if why := s.leave(); why != "" {
			f.Problem += "; the daemon does not set it, as " + why
			return f, false
		}
	}
	if err := writeSysctl(s.want, s.parts...); err != nil {
		f.Problem += fmt.Sprintf("; the daemon cannot set it (%v)", errors.Unwrap(err))
		return f, false
	}
	if !s.global {
		return Finding{}, true // the device is ours, nobody else needs to know
	}
	f.Severity, f.Fixed, f.Remedy = Info, true, ""
	f.Problem = fmt.Sprintf("it was %d and is now %d; it stays so after --cleanup", have, s.want)
	return f, false
}

// advertisements are the settings without which a device would stop to take router advertisements, and so lose its addresses and default
// route when they expire. Until the host forwards they are set, for whom package advertised says. Once it does, they may be ignored on
// purpose, and it is only told, of an uplink that lives by them.
func advertisements(own, uplink string) (list []setting) {
	forwarding, err := readSysctl("net", "ipv6", "conf", "all", "forwarding")
	if err != nil {
		return nil
	}
	add := func(device string, s setting) {
		s.parts, s.ok, s.want = []string{"net", "ipv6", "conf", device, "accept_ra"}, func(have int) bool { return have != 1 }, 2
		s.severity, s.global = Warning, true
		list = append(list, s)
	}
	if forwarding == 1 {
		if uplink != "" && advertised.Lives(uplink) {
			add(uplink, setting{leave: func() string { return "they may be ignored on purpose" },
				problem: fmt.Sprintf("as the host forwards IPv6 it ignores the router advertisements from which %s has addresses or routes, and they expire", uplink)})
		}
		return list
	}
	devices, _ := otherAdvertised(own, uplink) // an error holds forwarding back
	for _, device := range devices {
		add(device, setting{problem: "once the host forwards IPv6 it ignores router advertisements, and loses the addresses and routes that it has from them"})
	}
	return list
}

// untilAdvertised says why the host must not forward IPv6 yet, when advertisements have been set as far as they can be.
func untilAdvertised(own, uplink string) string {
	devices, err := otherAdvertised(own, uplink)
	switch {
	case err != nil:
		return fmt.Sprintf("it cannot see which devices live by router advertisements (%v)", err)
	case len(devices) > 0:
		return fmt.Sprintf("accept_ra of %s is still 1, and a host that forwards loses what it has from router advertisements then: set that to 2 first", strings.Join(devices, ", "))
	}
	return ""
}

// otherAdvertised leaves out our own device, which has 0.
func otherAdvertised(own, uplink string) ([]string, error) {
	devices, err := advertised.Devices(uplink)
	return slices.DeleteFunc(devices, func(d string) bool { return d == own }), err
}

// sysctlName is the key as the program sysctl wants it: a dot in a device's name is written as a slash.
func (s setting) sysctlName() string {
	parts := make([]string, len(s.parts))
	for i, p := range s.parts {
		parts[i] = strings.ReplaceAll(p, ".", "/")
	}
	return strings.Join(parts, ".")
}

func sysctlPath(parts []string) string {
	return filepath.Join(append([]string{"/proc/sys"}, parts...)...)
}

func readSysctl(parts ...string) (int, error) {
	b, err := os.ReadFile(sysctlPath(parts))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func writeSysctl(v int, parts ...string) error {
	return os.WriteFile(sysctlPath(parts), []byte(strconv.Itoa(v)), 0)
}
