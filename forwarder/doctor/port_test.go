package doctor

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet"
	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// one is the only finding.
func one(t *testing.T, x *examination) Check {
	t.Helper()
	if len(x.report.Checks) != 1 {
		t.Fatalf("%+v, want one finding", x.report.Checks)
	}
	return x.report.Checks[0]
}

// TestTunnelPort: a kernel's vxlan device that is down holds no port, and cannot get the one that the daemon has.
func TestTunnelPort(t *testing.T) {
	nstest.New(t).Do(func() {
		device := &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "flannel.1"}, VxlanId: 1, Port: 8472, SrcAddr: []byte{127, 0, 0, 1}}
		if err := netlink.LinkAdd(device); err != nil {
			t.Skip("no vxlan in this kernel: ", err)
		}
		expect := func(up bool, r Result, says string) {
			t.Helper()
			x := &examination{}
			x.up, x.runs, x.tunnels = up, up, []tunnel{{hostnet.Tunnel{Proto: unix.IPPROTO_UDP, Port: 8472}, netip.MustParseAddr("192.0.2.2")}}
			x.port(t.Context())
			if got := one(t, x); got.Result != r || !strings.Contains(got.Finding, says) {
				t.Errorf("%+v, want %s: %s", got, r, says)
			}
		}
		expect(false, Warning, "flannel.1 is down, and would hold UDP port 8472")
		expect(true, OK, "the daemon holds it")
		if err := netlink.LinkSetUp(device); err != nil {
			t.Fatal(err)
		}
		expect(false, Failure, "flannel.1 holds UDP port 8472")
	})
}
