package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// knock asks for a TCP connection and says what became of it: "refused" is a reset, "silence" no answer at all.
func knock(t *testing.T, from *nstest.NS, to string, local int, patience time.Duration) (answer string) {
	t.Helper()
	from.Do(func() {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: local}}
		c, err := d.Dial("tcp", to)
		var late net.Error
		switch {
		case err == nil:
			c.Close()
			answer = "accepted"
		case errors.Is(err, unix.ECONNREFUSED):
			answer = "refused"
		case errors.As(err, &late) && late.Timeout():
			answer = "silence"
		default:
			t.Fatal(err)
		}
	})
	return answer
}

// tracked reports whether conntrack knows a TCP connection to a port.
func tracked(t *testing.T, ns *nstest.NS, port uint16) (found bool) {
	t.Helper()
	ns.Do(func() {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
			check(t, err)
			for _, f := range flows {
				found = found || f.Forward.Protocol == unix.IPPROTO_TCP && f.Forward.DstPort == port
			}
		}
	})
	return found
}

// TestCarrierDrop: the host's TCP and conntrack never see the carrier's port, by whatever device its packets come, and see all others. The
// drop follows the uplink, is put back and goes with Cleanup; those of pods' devices have nothing to do with it.
func TestCarrierDrop(t *testing.T) {
	for _, address := range []string{"192.0.2.1", "2001:db8::1"} {
		host, outside, _ := node(t)
		nstest.Veth(t, host, "eth1", []string{"198.51.100.1/24", "2001:db8:1::1/64"}, outside, "eth1", []string{"198.51.100.2/24", "2001:db8:1::2/64"})
		host.Device("ps1")
		cfg := testConfig()
		cfg.Address = netip.MustParseAddr(address)
		cfg.Masquerade = true // so that conntrack is at work
		port, other := net.JoinHostPort(address, "7471"), net.JoinHostPort(address, "7472")
		host.Do(func() {
			l, err := net.Listen("tcp", other)
			check(t, err)
			t.Cleanup(func() { l.Close() })
		})
		expect := func(when, want string) {
			t.Helper()
			patience := 5 * time.Second // an answer that a busy machine has held up
			if want == "silence" {
				patience = 300 * time.Millisecond
			}
			if got := knock(t, outside, port, 0, patience); got != want {
				t.Errorf("%s: %s: %s, want %s", address, when, got, want)
			}
			if got := knock(t, outside, other, 0, 5*time.Second); got != "accepted" {
				t.Errorf("%s: %s: another port: %s", address, when, got)
			}
		}
		apply(t, host, cfg)
		expect("without the carrier", "refused")
		cfg.Carrier = Carrier{"eth0", 7471}
		if r := apply(t, host, cfg); !slices.Contains(r.Added, "drop of TCP port 7471 at the ingress of eth0") {
			t.Errorf("added %q", r.Added)
		}
		if r := apply(t, host, cfg); r.Changed() {
			t.Errorf("a second Apply changed %+v", r)
		}
		expect("with it", "silence")
		if got := knock(t, outside, port, 20_000, 5*time.Second); got != "refused" {
			t.Errorf("%s: from a port that no burst has: %s: an answer to a masqueraded connection would be lost", address, got)
		}
		if tracked(t, host, 7471) || !tracked(t, host, 7472) {
			t.Errorf("%s: conntrack knows the carrier: %v, another port: %v", address, tracked(t, host, 7471), tracked(t, host, 7472))
		}
		chains := func() (names []string) {
			host.Do(func() {
				conn, err := OpenNFT()
				check(t, err)
				list, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
				check(t, err)
				for _, ch := range list {
					names = append(names, ch.Name)
				}
			})
			slices.Sort(names)
			return names
		}
		host.Do(func() {
			h, err := New(cfg)
			check(t, err)
			check(t, h.BlockIngress("ps1"))
			if b, err := h.Blocked(); err != nil || !slices.Equal(b, []string{"ps1"}) {
				t.Errorf("blocked: %q, %v", b, err)
			}
			r, err := h.ReconcileIngress(nil)
			if check(t, err); len(r.Removed) != 1 {
				t.Errorf("reconciled %+v", r)
			}
			check(t, h.BlockIngress("ps1"))
			// Somebody lets the pod's chain accept: it is no uplink's for that.
			conn, err := OpenNFT()
			check(t, err)
			accept := nftables.ChainPolicyAccept
			conn.AddChain(&nftables.Chain{Name: "ps1", Table: netdevTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress, Priority: ingressPriority, Policy: &accept, Device: "ps1"})
			check(t, conn.Flush())
			if r, err := h.Apply(context.Background()); err != nil || r.Changed() {
				t.Errorf("%+v, %v", r, err)
			}
			if again, err := h.KeepIngress([]string{"ps1"}); err != nil || len(again) != 1 {
				t.Errorf("kept %q, %v", again, err)
			}
			// Only the second line is left, and then the first is back.
			conn.DelChain(&nftables.Chain{Name: "eth0", Table: netdevTable})
			check(t, conn.Flush())
		})
		expect("by another device", "silence")
		if r := apply(t, host, cfg); !slices.Contains(r.Added, "drop of TCP port 7471 at the ingress of eth0") {
			t.Errorf("put back: %+v", r)
		}
		host.Do(func() { // and the first alone does
			conn, err := OpenNFT()
			check(t, err)
			conn.DelTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
			check(t, conn.Flush())
		})
		expect("at the ingress alone", "silence")
		cfg.Carrier.Device = "eth1"
		apply(t, host, cfg)
		if got := chains(); !slices.Equal(got, []string{"eth1", "ps1"}) {
			t.Errorf("chains after the uplink has changed: %q", got)
		}
		expect("after the uplink has changed", "silence")
		cfg.Carrier = Carrier{}
		if r := apply(t, host, cfg); !strings.Contains(strings.Join(r.Removed, ", "), "at the ingress of eth1") {
			t.Errorf("removed %q", r.Removed)
		}
		expect("without the carrier again", "refused")
		cfg.Carrier = Carrier{"eth0", 7471}
		apply(t, host, cfg)
		host.Do(func() {
			_, err := Cleanup(context.Background(), "penstock0")
			check(t, err)
		})
		expect("after the cleanup", "refused")
	}
}

// TestCarrierError: with the carrier off it is the removal that failed, and the device is the one that has the drop.
func TestCarrierError(t *testing.T) {
	for _, c := range []struct {
		wanted Carrier
		gone   []string
		begins string
	}{
		{Carrier{}, []string{"eth0", "eth1"}, "cannot remove the drop of the native stream's port at the ingress of eth0, eth1: "},
		{Carrier{"eth1", 7471}, []string{"eth0"}, "cannot keep TCP port 7471 from the host at the ingress of eth1: "},
	} {
		if err := carrierError(c.wanted, c.gone, unix.EPERM); !errors.Is(err, unix.EPERM) || !strings.HasPrefix(err.Error(), c.begins) {
			t.Errorf("%v", err)
		}
	}
}
