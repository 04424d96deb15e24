package probe

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"sync"
)

// Prober asks and answers for one node. Its methods may be called from any goroutine.
type Prober struct {
	device   string
	answerer answerer

	mu        sync.Mutex
	listeners map[netip.Addr]*listener
	benching  sync.Mutex // one bench at a time: two would measure each other
}

// New makes a Prober whose packets go by device, the node's TUN. It answers nobody before Set.
func New(device string) *Prober {
	return &Prober{device: device, listeners: map[netip.Addr]*listener{}}
}

// Set says on which addresses to answer, and whom. A listener that cannot be opened does not stop the others.
func (p *Prober) Set(own, peers []netip.Addr) error {
	p.answerer.allow(peers)
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, l := range p.listeners {
		if !slices.Contains(own, a) {
			l.close()
			delete(p.listeners, a)
		}
	}
	var errs []error
	for _, a := range own {
		if p.listeners[a] != nil {
			continue
		}
		l, err := p.listen(a)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.listeners[a] = l
	}
	return errors.Join(errs...)
}

// Close ends the listeners.
func (p *Prober) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range slices.Collect(maps.Keys(p.listeners)) {
		p.listeners[a].close()
		delete(p.listeners, a)
	}
	return nil
}
