package forwarder

import (
	"hash/maphash"
	"sync/atomic"
)

// All pods share the tables, so each has a share: it may have a quarter of what
// is free. One pod that opens flows without end takes a fifth of all, two take a
// third together, and whoever comes next finds room (as a switch shares its
// buffer among ports: Choudhury and Hahne, dynamic queue length thresholds).
// Pods are told apart by a hash of their address.

const (
	podShares   = 1 << 12
	flowPart    = 4 // of the free words, the part that one pod may have
	flowsATable = flowSets * flowWays
	pairsATable = pairSets * flowWays
)

// share is how many words one pod's flows have, in all tables.
type share struct{ flows, pairs atomic.Int32 }

// grow takes one more word of capacity, of which used are taken; false: the
// pod's share is used up.
func grow(own, used *atomic.Int32, capacity int) bool {
	all := used.Add(1)
	if own.Add(1) > (int32(capacity)-all)/flowPart+1 {
		shrink(own, used)
		return false
	}
	return true
}

func shrink(own, used *atomic.Int32) {
	own.Add(-1)
	used.Add(-1)
}

// shareOf is the share of the pod that a flow's answers go to.
func (m *flowMemory) shareOf(k *flowKey) *share {
	b := k.Dst.As16()
	return &m.shares[maphash.Bytes(m.seed, b[:])%podShares]
}
