package forwarder

import (
	"sort"
	"sync"
)

// registry knows every long-lived descriptor under a stable name
// ("vxlan/8472/listen/0", "host/1", "pod/<container>/<interface>"), so that a
// successor can be handed what it needs under the name it expects.
type registry struct {
	mu    sync.Mutex
	names map[int]string
}

func (r *registry) add(name string, fd int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.names == nil {
		r.names = map[int]string{}
	}
	r.names[fd] = name
}

func (r *registry) remove(fd int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.names, fd)
}

// Descriptor is one long-lived descriptor under its stable name.
type Descriptor struct {
	Name string
	FD   int
}

// Descriptors lists what is open now, by name.
func (f *Forwarder) Descriptors() []Descriptor {
	f.fds.mu.Lock()
	defer f.fds.mu.Unlock()
	var ds []Descriptor
	for fd, name := range f.fds.names {
		ds = append(ds, Descriptor{name, fd})
	}
	sort.Slice(ds, func(i, j int) bool { return ds[i].Name < ds[j].Name })
	return ds
}
