// Package ipam decides which of a node's addresses a pod gets. It knows no files, no kernel and no pods: an owner is a string.
//
//	pod CIDR 10.244.1.0/24
//	  .0          .1 … .254                            .255
//	  the host's  ├─ owned ─┼─ waiting ─┼─ free ──────┤ broadcast: never
//	              └─────────────▲──────────────────────┘
//	                            cursor: the search goes on from here, round and round
//
// The search takes the next free address after the last one given, so an address comes back only when all others have had
// their turn. A released address waits besides, for at least [Wait]; only when nothing else is free the one that has waited
// longest is taken before its time: a peer may still hold a connection or a neighbour entry of its last owner.
package ipam

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Wait is how long a released address is not given again while there are others.
const Wait = time.Minute

// ErrFull is wrapped when a CIDR has no address left.
var ErrFull = errors.New("no address is free")

// TakenError says who has the address that was asked for.
type TakenError struct {
	Address netip.Addr
	Owner   string
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("address %s is in use by %s", e.Address, e.Owner)
}

// Allocator hands out addresses. It is safe for concurrent use.
type Allocator struct {
	now func() time.Time

	mu      sync.Mutex
	owned   map[netip.Addr]string
	owners  map[string][]netip.Addr
	waiting []Waiting // oldest first, an address once, and none that is owned
	pools   map[netip.Prefix]*pool
}

// Waiting is a released address and since when.
type Waiting struct {
	Address netip.Addr
	Since   time.Time
}

// New makes an allocator without owners. now is time.Now outside tests.
func New(now func() time.Time) *Allocator {
	return &Allocator{now: now, owned: map[netip.Addr]string{}, owners: map[string][]netip.Addr{}, pools: map[netip.Prefix]*pool{}}
}

// Usable reports whether a pod may have the address: it lies in the CIDR, is not the first, which is the host's, and not the
// broadcast address of an IPv4 network.
func Usable(cidr netip.Prefix, a netip.Addr) bool {
	cidr = cidr.Masked()
	if !cidr.Contains(a) || a == cidr.Addr() {
		return false
	}
	return !a.Is4() || cidr.Bits() >= 31 || a != last(cidr)
}

// Request asks for addresses.
type Request struct {
	Owner     string
	CIDRs     []netip.Prefix // of the node; those of one family are tried in turn
	Families  []int          // 4, 6: one address of each that no requested one covers
	Requested []netip.Addr   // exactly these
}

// Allocate gives an owner, who has none yet, all addresses of a request or none. IPv4 comes first.
func (al *Allocator) Allocate(r Request) ([]netip.Addr, error) {
	al.mu.Lock()
	defer al.mu.Unlock()
	if have := al.owners[r.Owner]; len(have) > 0 {
		return nil, fmt.Errorf("%s has %v already", r.Owner, have)
	}
	al.expire()
	got := slices.Clone(r.Requested)
	for i, a := range got {
		if o, taken := al.owned[a]; taken {
			return nil, &TakenError{a, o}
		}
		if slices.Contains(got[:i], a) {
			return nil, fmt.Errorf("address %s is requested twice", a)
		}
		if !slices.ContainsFunc(r.CIDRs, func(c netip.Prefix) bool { return Usable(c, a) }) {
			return nil, fmt.Errorf("address %s is not one that a pod of this node may have: its CIDRs are %v, without their first and broadcast addresses", a, r.CIDRs)
		}
	}
	for _, family := range r.Families {
		if slices.ContainsFunc(got, func(a netip.Addr) bool { return a.Is4() == (family == 4) }) {
			continue
		}
		a, err := al.find(r.CIDRs, family)
		if err != nil {
			return nil, err
		}
		got = append(got, a)
	}
	for _, a := range got {
		al.take(a, r.Owner)
	}
	slices.SortStableFunc(got, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return got, nil
}

// find looks for an address of a family: a free one of any CIDR, else the one that has waited longest.
func (al *Allocator) find(cidrs []netip.Prefix, family int) (netip.Addr, error) {
	var tried []netip.Prefix
	for _, c := range cidrs {
		c = c.Masked()
		if c.Addr().Is4() != (family == 4) {
			continue
		}
		tried = append(tried, c)
		if a, ok := al.pool(c).next(); ok {
			return a, nil
		}
	}
	if len(tried) == 0 {
		return netip.Addr{}, fmt.Errorf("this node has no IPv%d pod CIDR", family)
	}
	for _, w := range al.waiting {
		if slices.ContainsFunc(tried, func(c netip.Prefix) bool { return Usable(c, w.Address) }) {
			return w.Address, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%w in %v: all are given to pods", ErrFull, tried)
}

// Take gives an owner addresses that somebody else has chosen: a state file, another IPAM, a person. All or none.
func (al *Allocator) Take(owner string, addresses []netip.Addr) error {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, a := range addresses {
		if o, taken := al.owned[a]; taken && o != owner {
			return &TakenError{a, o}
		}
	}
	for _, a := range addresses {
		if _, mine := al.owned[a]; !mine {
			al.take(a, owner)
		}
	}
	return nil
}

// Release ends an ownership: its addresses wait from now on.
func (al *Allocator) Release(owner string) {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, a := range al.drop(owner) {
		al.wait(a, al.now())
	}
	al.expire()
}

// Cancel ends an ownership that nobody has learned of: its addresses are free at once.
func (al *Allocator) Cancel(owner string) {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, a := range al.drop(owner) {
		al.mark(a, false)
	}
}

// Resume lets addresses go on waiting that were released before this allocator was made, oldest first, and the search go on
// behind the last of them.
func (al *Allocator) Resume(released []Waiting) {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, w := range released {
		for _, p := range al.pools {
			p.moveBehind(w.Address)
		}
		if _, taken := al.owned[w.Address]; taken {
			continue
		}
		if al.now().Before(w.Since) {
			w.Since = al.now() // the clock was set back
		}
		al.wait(w.Address, w.Since)
	}
	al.expire()
}

// Prepare makes the pools of CIDRs known, so that Resume finds them.
func (al *Allocator) Prepare(cidrs []netip.Prefix) {
	al.mu.Lock()
	defer al.mu.Unlock()
	for _, c := range cidrs {
		al.pool(c.Masked())
	}
}

// Owner says who has an address.
func (al *Allocator) Owner(a netip.Addr) (string, bool) {
	al.mu.Lock()
	defer al.mu.Unlock()
	o, ok := al.owned[a]
	return o, ok
}

// Addresses are what an owner has.
func (al *Allocator) Addresses(owner string) []netip.Addr {
	al.mu.Lock()
	defer al.mu.Unlock()
	return slices.Clone(al.owners[owner])
}

// Usage of a CIDR. Size and Free stop at the largest uint64.
type Usage struct{ Size, Owned, Waiting, Free uint64 }

// Usage counts the addresses of a CIDR.
func (al *Allocator) Usage(cidr netip.Prefix) Usage {
	al.mu.Lock()
	defer al.mu.Unlock()
	al.expire()
	cidr = cidr.Masked()
	u := Usage{Size: size(cidr)}
	for a := range al.owned {
		if Usable(cidr, a) {
			u.Owned++
		}
	}
	for _, w := range al.waiting {
		if Usable(cidr, w.Address) {
			u.Waiting++
		}
	}
	u.Free = u.Size - min(u.Size, u.Owned+u.Waiting)
	return u
}

// Snapshot lists all owned addresses with their owners, and those that wait, oldest first.
func (al *Allocator) Snapshot() (owned map[netip.Addr]string, waiting []Waiting) {
	al.mu.Lock()
	defer al.mu.Unlock()
	al.expire()
	return maps.Clone(al.owned), slices.Clone(al.waiting)
}

// All below: al.mu is held.

func (al *Allocator) take(a netip.Addr, owner string) {
	al.unwait(a)
	al.owned[a] = owner
	al.owners[owner] = append(al.owners[owner], a)
	al.mark(a, true)
}

func (al *Allocator) drop(owner string) []netip.Addr {
	addresses := al.owners[owner]
	delete(al.owners, owner)
	for _, a := range addresses {
		delete(al.owned, a)
	}
	return addresses
}

// wait puts an address at the end of those that wait.
func (al *Allocator) wait(a netip.Addr, since time.Time) {
	al.unwait(a)
	al.waiting = append(al.waiting, Waiting{a, since})
	al.mark(a, true)
}

func (al *Allocator) unwait(a netip.Addr) {
	al.waiting = slices.DeleteFunc(al.waiting, func(w Waiting) bool { return w.Address == a })
}

// expire frees what has waited long enough.
func (al *Allocator) expire() {
	now, n := al.now(), 0
	for _, w := range al.waiting {
		if now.Sub(w.Since) < Wait {
			break
		}
		n++
		al.mark(w.Address, false)
	}
	if al.waiting = al.waiting[n:]; len(al.waiting) == 0 {
		al.waiting = nil
	}
}

func (al *Allocator) mark(a netip.Addr, busy bool) {
	for _, p := range al.pools {
		p.mark(a, busy)
	}
}

func (al *Allocator) pool(cidr netip.Prefix) *pool {
	p := al.pools[cidr]
	if p == nil {
		p = newPool(cidr)
		al.pools[cidr] = p
		for a := range al.owned {
			p.mark(a, true)
		}
		for _, w := range al.waiting {
			p.mark(w.Address, true)
		}
	}
	return p
}
