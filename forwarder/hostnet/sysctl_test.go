package hostnet

import (
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func subjects(fs []Finding) (out []string) {
	for _, f := range fs {
		out = append(out, f.Subject)
	}
	slices.Sort(out)
	return out
}

func TestSysctls(t *testing.T) {
	host, _, _ := node(t)
	set := func(path, v string) { t.Helper(); host.Sysctl(path, v) }
	set("net/ipv4/ip_forward", "0")
	set("net/ipv6/conf/all/forwarding", "0")
	set("net/ipv4/conf/all/rp_filter", "1")
	set("net/ipv4/conf/penstock0/rp_filter", "1")
	set("net/ipv6/conf/penstock0/disable_ipv6", "1")
	set("net/ipv6/conf/penstock0/accept_ra", "1")
	want := []string{"net.ipv4.conf.eth0.forwarding", "net.ipv4.conf.penstock0.forwarding", "net.ipv4.conf.penstock0.rp_filter", "net.ipv4.ip_forward",
		"net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.accept_ra", "net.ipv6.conf.eth0.forwarding", "net.ipv6.conf.penstock0.accept_ra", "net.ipv6.conf.penstock0.disable_ipv6",
		"net.ipv6.conf.penstock0.forwarding"}
	host.Do(func() {
		found := Sysctls{Device: "penstock0", Uplink: "eth0", IPv4: true, IPv6: true}.Check()
		if got := subjects(found); !slices.Equal(got, want) {
			t.Errorf("found %q\nwant  %q", got, want)
		}
		for _, f := range found {
			if f.Fixed || !strings.HasPrefix(f.Remedy, "sysctl -w "+f.Subject+"=") || strings.ContainsAny(f.Problem, "\n") {
				t.Errorf("%+v", f)
			}
		}
		// With fix: what is global is told, what is our own device's is not worth a word.
		found = Sysctls{Device: "penstock0", Uplink: "eth0", IPv4: true, IPv6: true, Fix: true}.Check()
		if got := subjects(found); !slices.Equal(got, []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.accept_ra"}) {
			t.Errorf("fixed: %v", found)
		}
		for _, f := range found {
			if !f.Fixed || f.Severity != Info {
				t.Errorf("%+v", f)
			}
		}
		if found := (Sysctls{Device: "penstock0", Uplink: "eth0", IPv4: true, IPv6: true, Fix: true}).Check(); len(found) != 0 {
			t.Errorf("afterwards: %v", found)
		}
	})
	// One device that was taken out of forwarding on purpose stays so.
	set("net/ipv4/conf/eth0/forwarding", "0")
	host.Do(func() {
		found := Sysctls{Device: "penstock0", Uplink: "eth0", IPv4: true, IPv6: true, Fix: true}.Check()
		if len(found) != 1 || found[0].Subject != "net.ipv4.conf.eth0.forwarding" || found[0].Fixed || found[0].Severity != Warning {
			t.Errorf("found: %v", found)
		}
		if found := (Sysctls{Device: "nobody", IPv4: true, Fix: true}).Check(); len(found) != 2 || found[0].Severity != Failure {
			t.Errorf("a missing device: %v", found)
		}
	})
}

// A read-only /proc/sys, as in a container.
func TestSysctlsReadOnly(t *testing.T) {
	host := nstest.New(t)
	host.TUN("penstock0")
	host.Do(func() {
		// A mount namespace of this thread's own, which ends with it.
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Skipf("needs a mount namespace: %v", err)
		}
		check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		check(t, unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""))
		check(t, unix.Mount("", "/proc/sys", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		found := Sysctls{Device: "penstock0", IPv4: true, Fix: true}.Check()
		if got := subjects(found); !slices.Contains(got, "net.ipv4.ip_forward") {
			t.Errorf("found %q", got)
		}
		for _, f := range found {
			if f.Fixed || !strings.Contains(f.Problem, "the daemon cannot set it (read-only file system)") || f.Remedy == "" {
				t.Errorf("%v", f)
			}
		}
	})
}

// Where what a device has from a router would be lost, the host does not forward IPv6.
func TestForwardingWaitsForAdvertisements(t *testing.T) {
	host, _, _ := node(t)
	host.Sysctl("net/ipv6/conf/all/forwarding", "0")
	host.Sysctl("net/ipv6/conf/eth0/accept_ra", "1")
	host.Do(func() {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Skipf("needs a mount namespace: %v", err)
		}
		const key = "/proc/sys/net/ipv6/conf/eth0/accept_ra"
		check(t, unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
		check(t, unix.Mount(key, key, "", unix.MS_BIND, ""))
		check(t, unix.Mount("", key, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
		found := Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true, Fix: true}.Check()
		i := slices.IndexFunc(found, func(f Finding) bool { return f.Subject == "net.ipv6.conf.all.forwarding" })
		if i < 0 || found[i].Fixed || !strings.Contains(found[i].Problem, "the daemon does not set it, as accept_ra of eth0 is still 1") {
			t.Errorf("found: %v", found)
		}
		if have, err := readSysctl("net", "ipv6", "conf", "all", "forwarding"); err != nil || have != 0 {
			t.Errorf("forwarding is %d, %v", have, err)
		}
		check(t, unix.Unmount(key, 0))
		Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true, Fix: true}.Check()
		if have, err := readSysctl("net", "ipv6", "conf", "all", "forwarding"); err != nil || have != 1 {
			t.Errorf("forwarding is %d afterwards, %v", have, err)
		}
	})
}

// A host that forwards believes router advertisements only with accept_ra 2: what it has from them would expire.
func TestForwardingKeepsAdvertisements(t *testing.T) {
	host, _, _ := node(t)
	host.Sysctl("net/ipv6/conf/all/forwarding", "0")
	host.Sysctl("net/ipv6/conf/penstock0/accept_ra", "0")
	host.Sysctl("net/ipv6/conf/eth0/accept_ra", "1")
	host.Device("pod")
	host.Sysctl("net/ipv6/conf/pod/disable_ipv6", "1")
	host.Sysctl("net/ipv6/conf/pod.peer/accept_ra", "0")
	host.Device("other") // a bridge, or the host's end of another plugin's pod
	host.Up("other", "2001:db8:7::1/64")
	host.Do(func() {
		found := Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true}.Check()
		if len(found) != 4 || found[0].Subject != "net.ipv6.conf.eth0.accept_ra" || found[0].Remedy != "sysctl -w net.ipv6.conf.eth0.accept_ra=2" || found[1].Subject != "net.ipv6.conf.all.forwarding" {
			t.Errorf("found: %v", found)
		}
		found = Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true, Fix: true}.Check()
		if got := subjects(found); !slices.Equal(got, []string{"net.ipv6.conf.all.forwarding", "net.ipv6.conf.eth0.accept_ra"}) || !found[0].Fixed || !found[1].Fixed {
			t.Errorf("fixed: %v", found)
		}
		for device, want := range map[string]int{"eth0": 2, "default": 1, "pod": 1, "pod.peer": 0, "penstock0": 0, "other": 1, "other.peer": 1} {
			if have, err := readSysctl("net", "ipv6", "conf", device, "accept_ra"); err != nil || have != want {
				t.Errorf("accept_ra of %s is %d, %v; want %d", device, have, err, want)
			}
		}
	})
	// Where it forwards already that may be meant so: it is told, and only of an uplink that has something from a router.
	host.Sysctl("net/ipv6/conf/eth0/accept_ra", "1")
	host.Do(func() {
		if found := (Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true, Fix: true}).Check(); len(found) != 0 {
			t.Errorf("static: %v", found)
		}
		link, err := netlink.LinkByName("eth0")
		check(t, err)
		a, err := netlink.ParseAddr("2001:db8::77/64")
		check(t, err)
		a.ValidLft, a.PreferedLft = 1000, 1000
		check(t, netlink.AddrAdd(link, a))
		found := Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true, Fix: true}.Check()
		if len(found) != 1 || found[0].Fixed || found[0].Severity != Warning || found[0].Subject != "net.ipv6.conf.eth0.accept_ra" || !strings.Contains(found[0].Problem, "ignores the router advertisements from which eth0 has addresses") {
			t.Errorf("found: %v", found)
		}
		check(t, netlink.AddrDel(link, a))
		_, all, err := parseCIDR("::/0")
		check(t, err)
		check(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: all, Gw: []byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02"), Protocol: unix.RTPROT_RA}))
		if found := (Sysctls{Device: "penstock0", Uplink: "eth0", IPv6: true}).Check(); len(found) != 1 {
			t.Errorf("a route from a router: %v", found)
		}
	})
}
