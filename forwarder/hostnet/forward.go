package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	"github.com/coreos/go-iptables/iptables"
	"github.com/google/nftables"
)

// Where FORWARD drops by default (Docker, kubeadm's hosts, many distributions' firewalls), packets of pods that cross
// the host need accepts. They must be iptables': an accept in another nft table ends that table only, and the drop
// still comes. They are appended, as flannel does it, so that whoever drops on purpose is asked before.

// lockWait is how long iptables may wait for its lock, in seconds.
const lockWait = 10

const jumpComment = "penstock forward"

func jumpRule() []string {
	return []string{"-m", "comment", "--comment", jumpComment, "-j", ForwardChain}
}

func acceptRules(p netip.Prefix) [][]string {
	return [][]string{
		{"-s", p.String(), "-m", "comment", "--comment", "penstock pods", "-j", "ACCEPT"},
		{"-d", p.String(), "-m", "comment", "--comment", "penstock pods", "-j", "ACCEPT"},
	}
}

// applyForward makes PENSTOCK-FWD and the jump to it, or removes both when host.forward is off.
func applyForward(c *Config, r *Report) error {
	var errs []error
	for _, proto := range []iptables.Protocol{iptables.ProtocolIPv4, iptables.ProtocolIPv6} {
		var want [][]string
		for _, p := range c.routed() {
			if p.Addr().Is4() == (proto == iptables.ProtocolIPv4) {
				want = append(want, acceptRules(p)...)
			}
		}
		if !c.Forward {
			want = nil
		}
		switch err := applyChain(proto, want, r); {
		case err == nil:
		case c.Forward:
			errs = append(errs, err)
		default: // nothing was asked for, and most likely nothing is there
			r.find(Finding{Severity: Info, Subject: program(proto) + " FORWARD",
				Problem: fmt.Sprintf("whether an earlier host.forward left rules behind cannot be seen: %v", err)})
		}
	}
	if !c.Forward {
		// What our own removal just cleared the way for is still worth saying.
		r.find(forwardFindings(c)...)
	}
	return errors.Join(errs...)
}

func applyChain(proto iptables.Protocol, want [][]string, r *Report) error {
	if len(want) == 0 && skipFilter(proto) {
		return nil
	}
	name := program(proto)
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Timeout(lockWait))
	if errors.Is(err, exec.ErrNotFound) {
		if len(want) > 0 {
			r.find(withoutProgram(proto))
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s does not run: %w", name, err)
	}
	if len(want) == 0 {
		return removeChain(ipt, name, r)
	}
	exists, err := ipt.ChainExists("filter", ForwardChain)
	if err != nil {
		return forwardError(name, "look for "+ForwardChain, err)
	}
	if !exists {
		if err := ipt.NewChain("filter", ForwardChain); err != nil {
			return forwardError(name, "make "+ForwardChain, err)
		}
	}
	have, err := ipt.List("filter", ForwardChain)
	if err != nil {
		return forwardError(name, "list "+ForwardChain, err)
	}
	stale := make(map[string]int)
	for _, line := range have {
		if spec, ok := strings.CutPrefix(line, "-A "+ForwardChain+" "); ok {
			stale[strings.ReplaceAll(spec, `"`, "")]++
		}
	}
	for _, spec := range want {
		text := strings.Join(spec, " ")
		if stale[text] > 0 {
			stale[text]--
			continue
		}
		if err := ipt.Append("filter", ForwardChain, spec...); err != nil {
			return forwardError(name, "append to "+ForwardChain, err)
		}
		r.add("%s rule %s %s", name, ForwardChain, text)
	}
	// Backwards, so that the numbers of those still to go stay right. Rules are removed by number: what somebody else
	// has put into our chain may hold anything.
	rules := have[1:] // behind "-N PENSTOCK-FWD"
	for i := len(rules) - 1; i >= 0; i-- {
		spec := strings.ReplaceAll(strings.TrimPrefix(rules[i], "-A "+ForwardChain+" "), `"`, "")
		if stale[spec] == 0 {
			continue
		}
		stale[spec]--
		if err := ipt.DeleteById("filter", ForwardChain, i+1); err != nil {
			return forwardError(name, "remove a stale rule of "+ForwardChain, err)
		}
		r.remove("%s rule %s %s", name, ForwardChain, spec)
	}
	// The jump last: nothing runs through a half-made chain.
	ok, err := ipt.Exists("filter", "FORWARD", jumpRule()...)
	if err != nil {
		return forwardError(name, "look into FORWARD", err)
	}
	if !ok {
		if err := ipt.Append("filter", "FORWARD", jumpRule()...); err != nil {
			return forwardError(name, "append to FORWARD", err)
		}
		r.add("%s rule FORWARD -j %s", name, ForwardChain)
	}
	return nil
}

// removeChain takes the jump and the chain away. It looks before it acts, as a look leaves nothing behind.
func removeChain(ipt *iptables.IPTables, name string, r *Report) error {
	exists, err := ipt.ChainExists("filter", ForwardChain)
	if err != nil {
		return forwardError(name, "look for "+ForwardChain, err)
	}
	if !exists {
		return nil
	}
	for {
		ok, err := ipt.Exists("filter", "FORWARD", jumpRule()...)
		if err != nil {
			return forwardError(name, "look into FORWARD", err)
		}
		if !ok {
			break
		}
		if err := ipt.Delete("filter", "FORWARD", jumpRule()...); err != nil {
			return forwardError(name, "remove the jump from FORWARD", err)
		}
		r.remove("%s rule FORWARD -j %s", name, ForwardChain)
	}
	if err := ipt.ClearAndDeleteChain("filter", ForwardChain); err != nil {
		return forwardError(name, "remove "+ForwardChain+" (does another chain jump to it?)", err)
	}
	r.remove("%s chain %s", name, ForwardChain)
	return nil
}

func forwardError(name, what string, err error) error {
	return fmt.Errorf("%s cannot %s: %w", name, what, err)
}

func program(proto iptables.Protocol) string {
	if proto == iptables.ProtocolIPv6 {
		return "ip6tables"
	}
	return "iptables"
}

// withoutProgram says what it means that host.forward is on and there is no iptables.
func withoutProgram(proto iptables.Protocol) Finding {
	name := program(proto)
	f := Finding{Severity: Info, Subject: name + " FORWARD",
		Problem: fmt.Sprintf("host.forward is on and there is no %s program, but nothing drops forwarded packets by default, so nothing is missing", name)}
	switch drops, known := forwardDrops(proto); {
	case len(drops) > 0:
		f.Severity = Failure
		f.Problem = fmt.Sprintf("%s drops forwarded packets by default, and there is no %s program to add accepts with: pods do not reach the outside", strings.Join(drops, ", "), name)
		f.Remedy = "install the package iptables and reload, or let that firewall accept network.cidrs"
	case !known:
		f.Severity = Warning
		f.Problem = fmt.Sprintf("host.forward is on, but there is no %s program, and whether legacy iptables drops forwarded packets cannot be seen without it", name)
		f.Remedy = "install the package iptables and reload, or turn host.forward off"
	}
	return f
}

// forwardFindings warns when host.forward is off on a host that seems to need it.
func forwardFindings(c *Config) []Finding {
	var out []Finding
	for _, proto := range []iptables.Protocol{iptables.ProtocolIPv4, iptables.ProtocolIPv6} {
		if proto == iptables.ProtocolIPv4 && !c.has4() || proto == iptables.ProtocolIPv6 && !c.has6() {
			continue
		}
		if drops, _ := forwardDrops(proto); len(drops) > 0 {
			out = append(out, Finding{Severity: Warning, Subject: program(proto) + " FORWARD",
				Problem: fmt.Sprintf("%s drops forwarded packets by default and host.forward is off: unless a rule there accepts them, pods do not reach the outside", strings.Join(drops, ", ")),
				Remedy:  "set host.forward: true, or let that firewall accept network.cidrs"})
		}
	}
	return out
}

// forwardDrops names the nft base chains of the forward hook whose policy is drop, iptables-nft's included. known is
// false when legacy iptables has a filter table as well, which only its own program can read.
func forwardDrops(proto iptables.Protocol) (drops []string, known bool) {
	family, famName := nftables.TableFamilyIPv4, "ip"
	if proto == iptables.ProtocolIPv6 {
		family, famName = nftables.TableFamilyIPv6, "ip6"
	}
	known = !hasLegacyFilter(proto)
	conn, err := OpenNFT()
	if err != nil {
		return nil, false
	}
	for _, fam := range []nftables.TableFamily{family, nftables.TableFamilyINet} {
		chains, err := conn.ListChainsOfTableFamily(fam)
		if err != nil {
			known = false
			continue
		}
		for _, ch := range chains {
			if ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
				n := famName
				if fam == nftables.TableFamilyINet {
					n = "inet"
				}
				drops = append(drops, fmt.Sprintf("chain %s of nft table %s %s", ch.Name, n, ch.Table.Name))
			}
		}
	}
	slices.Sort(drops)
	return drops, known
}
