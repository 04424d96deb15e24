package torture

import (
	"fmt"
	"net/netip"
	"sync"
)

// ledger holds who has which address, as the runtime sees it: from the moment ADD has answered until DEL begins. It is the
// judge of "no address is given twice" and knows nothing of the daemon's own books.
type ledger struct {
	mu    sync.Mutex
	owner map[netip.Addr]string
	given int
	seen  map[netip.Addr]bool
	most  int // addresses in use at once
	twice func(a netip.Addr, owner, other string)
}

func newLedger(twice func(a netip.Addr, owner, other string)) *ledger {
	return &ledger{owner: map[netip.Addr]string{}, seen: map[netip.Addr]bool{}, twice: twice}
}

func (l *ledger) give(to string, addresses []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if o, taken := l.owner[a]; taken {
			l.twice(a, o, to)
		}
		l.owner[a], l.seen[a] = to, true
		l.given++
	}
	l.most = max(l.most, len(l.owner))
}

func (l *ledger) take(from string, addresses []netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, a := range addresses {
		if l.owner[a] == from {
			delete(l.owner, a)
		}
	}
}

func (l *ledger) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return fmt.Sprintf("%d given, %d different ones, %d at once at most", l.given, len(l.seen), l.most)
}
