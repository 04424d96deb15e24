//go:build linux

package ring

import (
	"os"
	"testing"
)

// Probe says something of each capability, and leaves no device, no descriptor
// and no namespace behind.
func TestProbe(t *testing.T) {
	ns := newNS(t)
	count := func() (links, fds int) {
		l, err := ns.h.LinkList()
		must(t, err)
		d, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(l), len(d)
	}
	links, fds := count()
	var all []Capability
	ns.do(func() { all = Probe() })
	if l, f := count(); l != links || f != fds {
		t.Errorf("%d devices and %d descriptors, before %d and %d", l, f, links, fds)
	}
	for _, c := range all {
		t.Logf("%-22s %-5v needs %s: %s", c.Name, c.Found, c.Needs, c.Detail)
		if c.Name == "" || c.Needs == "" || c.Detail == "" {
			t.Errorf("incomplete: %+v", c)
		}
		if !c.Found && c.Name != CapTUNUSO && c.Name != CapTunnelGSO && c.Name != CapPriority {
			t.Errorf("%s is missing: %s", c.Name, c.Detail)
		}
	}
	if n := MaxSegments(); n != 64 && n != 128 {
		t.Errorf("MaxSegments: %d", n)
	}
}
