package hostnet

import (
	"context"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// dropPrivileges makes this thread what systemd makes of the daemon: nobody, with CAP_NET_ADMIN and CAP_NET_RAW, ambient.
// For a thread that ends with the test.
func dropPrivileges(t *testing.T) {
	t.Helper()
	const caps = 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW
	check(t, unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0))
	// The raw call is the thread's alone; unix.Setresuid would be the whole process's.
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
		t.Fatal(e)
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{{Effective: caps, Permitted: caps, Inheritable: caps}}
	check(t, unix.Capset(&hdr, &data[0]))
	for _, c := range []uintptr{unix.CAP_NET_ADMIN, unix.CAP_NET_RAW} {
		check(t, unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0))
	}
}

// applyUnprivileged sets the node up with the two capabilities alone.
func applyUnprivileged(t *testing.T, cfg Config) (*Host, Report) {
	t.Helper()
	dropPrivileges(t)
	h, err := New(cfg)
	check(t, err)
	r, err := h.Apply(context.Background())
	check(t, err)
	return h, r
}

func TestWithTheDaemonsCapabilities(t *testing.T) {
	host := nstest.New(t)
	host.TUN("penstock0")
	cfg := testConfig()
	cfg.Masquerade = true
	host.Do(func() {
		h, r := applyUnprivileged(t, cfg)
		for _, f := range r.Findings {
			if !f.Fixed && f.Severity != Info {
				t.Errorf("found %v", f)
			}
		}
		if !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Subject == "net.ipv4.ip_forward" && f.Fixed }) {
			t.Errorf("ip_forward was not set: %v", r.Findings)
		}
		check(t, h.BlockIngress("penstock0"))
		r, err := Cleanup(context.Background(), "penstock0")
		check(t, err)
		if !slices.Contains(r.Removed, "device penstock0") {
			t.Errorf("removed %q", r.Removed)
		}
	})
}

func TestForwardWithTheDaemonsCapabilities(t *testing.T) {
	useIPTables(t, "nft")
	host := nstest.New(t)
	host.TUN("penstock0")
	cfg := testConfig()
	cfg.Forward = true
	host.Do(func() {
		_, r := applyUnprivileged(t, cfg)
		if !strings.Contains(strings.Join(r.Added, ";"), "FORWARD -j PENSTOCK-FWD") {
			t.Errorf("added %q", r.Added)
		}
	})
}
