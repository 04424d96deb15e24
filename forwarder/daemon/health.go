package daemon

import (
	"maps"
	"slices"
	"strings"
	"sync"
)

// subject is something that may keep the daemon from being ready.
type subject string

const (
	phase        subject = "phase"    // starting, stopping
	underlayGone subject = "underlay" // the node's address or its device
	adoption     subject = "adoption" // tun pods whose queue must come back
	hostLacks    subject = "host"     // what is ours on the host and cannot be kept
	workersStuck subject = "workers"  // a worker that does not move
)

// health collects why the daemon is not ready; nobody waits for it.
type health struct {
	mu      sync.Mutex
	reasons map[subject]string
}

// set states a reason, or withdraws it with "". It says whether that was news.
func (h *health) set(s subject, reason string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reasons[s] == reason {
		return false
	}
	if h.reasons == nil {
		h.reasons = map[subject]string{}
	}
	if reason == "" {
		delete(h.reasons, s)
	} else {
		h.reasons[s] = reason
	}
	return true
}

// ready is true without any reason against it.
func (h *health) ready() (bool, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.reasons) == 0 {
		return true, ""
	}
	var all []string
	for _, s := range slices.Sorted(maps.Keys(h.reasons)) {
		all = append(all, h.reasons[s])
	}
	return false, strings.Join(all, "; ")
}

// running is false while the daemon starts or stops.
func (h *health) running() (bool, string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r, ok := h.reasons[phase]
	return !ok, r
}
