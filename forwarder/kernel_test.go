package forwarder

import (
	"errors"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
	"github.com/penstock-net/penstock/ring"
)

// TestCreateTUNLeavesNothing: a TUN that could be made but not set up is gone again; one that was set up outlives its queue.
func TestCreateTUNLeavesNothing(t *testing.T) {
	ns := nstest.New(t)
	exists := func() bool { _, err := netlink.LinkByName("t0"); return err == nil }
	ns.Do(func() {
		there := false
		_, _, err := createTUN(ring.TUNConfig{Name: "t0"}, func(qs []*ring.Queue) ([]ring.Port, ring.Offload, error) {
			there = exists()
			qs[0].Close()
			return nil, 0, errors.New("no offloads")
		})
		if err == nil || !there || exists() {
			t.Errorf("%v; there meanwhile %v, afterwards %v", err, there, exists())
		}
		port, _, err := createTUN(ring.TUNConfig{Name: "t0"}, func(qs []*ring.Queue) ([]ring.Port, ring.Offload, error) {
			return setOffloads("t0", qs, true)
		})
		if err != nil {
			t.Fatal(err)
		}
		port.Close()
		if !exists() {
			t.Error("a TUN that was set up has not outlived its queue")
		}
	})
}
