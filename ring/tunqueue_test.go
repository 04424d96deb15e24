//go:build linux

package ring

import "testing"

// TestTUNQueueLen: as many packets wait for a read as were asked for.
func TestTUNQueueLen(t *testing.T) {
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0", QueueLen: 7})[0]
	l, err := ns.h.LinkByName("tp0")
	must(t, err)
	if got := l.Attrs().TxQLen; got != 7 {
		t.Errorf("%d packets may wait in %s", got, q.Name())
	}
}
