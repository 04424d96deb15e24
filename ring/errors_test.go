//go:build linux

package ring

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOutOfDescriptors: whatever cannot be opened for want of descriptors says so, and what to raise.
func TestOutOfDescriptors(t *testing.T) {
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := was
	none.Cur = 3
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	local := netip.MustParseAddr("127.0.0.1")
	errs := map[string]error{}
	_, errs["packet socket"] = OpenPacket(PacketConfig{Index: 1})
	_, errs["packet socket by name"] = OpenPacket(PacketConfig{Device: "lo"})
	_, errs["UDP socket"] = OpenUDP(UDPConfig{Local: netip.AddrPortFrom(local, 0)})
	_, errs["raw socket"] = OpenIPIP(RawConfig{Local: local, Proto: unix.IPPROTO_IPIP})
	_, errs["TUN"] = CreateTUN(TUNConfig{Name: "nosuch0"})
	_, errs["queue"] = OpenQueue("lo", false, false)
	_, errs["epoll set"] = NewPoller()
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	for what, err := range errs {
		if !errors.Is(err, unix.EMFILE) || !strings.HasSuffix(err.Error(), "raise LimitNOFILE of its unit (ulimit -n)") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := setup(unix.ENFILE, "anything else", "open"); !errors.Is(err, unix.ENFILE) || !strings.HasSuffix(err.Error(), "raise the sysctl fs.file-max") {
		t.Error(err)
	}
}
