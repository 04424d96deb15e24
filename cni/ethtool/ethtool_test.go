package ethtool

import (
	"maps"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// bitset is one as the kernel writes it.
func bitset(noMask bool, bits map[string]bool) []byte {
	s := nl.NewRtAttr(ethtoolWanted, nil)
	if noMask {
		s.AddRtAttr(ethtoolBitsetNoMask, nil)
	}
	list := s.AddRtAttr(ethtoolBitsetBits|unix.NLA_F_NESTED, nil)
	for name, value := range bits {
		bit := list.AddRtAttr(ethtoolBit|unix.NLA_F_NESTED, nil)
		bit.AddRtAttr(ethtoolBitName, nl.ZeroTerminated(name))
		if value {
			bit.AddRtAttr(ethtoolBitValue, nil)
		}
	}
	return s.Serialize()[unix.SizeofRtAttr:]
}

func TestBits(t *testing.T) {
	given := map[string]bool{"tx-gso-list": true, "tx-checksum-sctp": false}
	for name, test := range map[string]struct {
		set  []byte
		want map[string]bool
	}{
		"with a mask a bit says its value":     {bitset(false, given), given},
		"without one, what is listed is on":    {bitset(true, map[string]bool{"tx-gso-list": false}), map[string]bool{"tx-gso-list": true}},
		"nothing is listed":                    {bitset(false, nil), map[string]bool{}},
		"no list":                              {nil, nil},
		"cut":                                  {bitset(false, given)[:24], nil},
		"cut where the library does not look":  {bitset(false, given)[:25], nil},
		"an attribute that says it is shorter": {[]byte{2, 0, ethtoolBitsetBits, 0}, nil},
	} {
		got, err := bits(test.set)
		if (err != nil) != (test.want == nil) || !maps.Equal(got, test.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// TestTurnOff: also where the kernel does not know one of the names, as an older one, and where the device may not change it.
func TestTurnOff(t *testing.T) {
	ns := nstest.New(t)
	ns.Device("eth0")
	ns.Do(func() {
		before, err := Features(0, "eth0")
		if err != nil || !before["tx-gso-list"] || !before["tx-tcp-segmentation"] {
			t.Fatalf("%v, %v", before, err)
		}
		if err := TurnOff(0, "eth0", "tx-gso-list", "tx-of-tomorrow", "tx-lockless"); err != nil {
			t.Fatal(err)
		}
		after, err := Features(0, "eth0")
		if err != nil || after["tx-gso-list"] || !after["tx-tcp-segmentation"] {
			t.Errorf("%v, %v", after, err)
		}
		if err := SetFeatures(0, "eth0", map[string]bool{"tx-lockless": false}); err == nil {
			t.Error("a feature that the device does not change was set")
		}
		if err := TurnOff(0, "eth9", "tx-gso-list"); err == nil {
			t.Error("there is no eth9")
		}
	})
	if err := TurnOff(ns.FD(), "eth0", "tx-gso-list"); err != nil {
		t.Errorf("from outside: %v", err)
	}
}
