//go:build linux

package ring

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Unblock repairs a V2 ring that the kernel has blocked: see v2.go. The worker
// calls it about once a second while nothing is lent, that is after Release. It
// tells whether the ring was blocked, and made again. What arrives meanwhile
// was lost anyway, and is counted as dropped until it happens.
//
// A ring is blocked if it was empty at two calls in a row and between them
// frames were dropped and none received: only a full ring drops, and it must
// have received to be full.
//
// While there is a wide ring it is the one that frames come to.
func (s *PacketSocket) Unblock() (bool, error) {
	if s.wide != nil {
		return s.wide.Unblock()
	}
	if s.ring != RingV2 || s.v2.lent > 0 || s.mapped == nil { // nil: an earlier repair has failed
		return false, nil
	}
	s.statsMu.Lock()
	now, err := s.count()
	s.statsMu.Unlock()
	if err != nil {
		return false, err
	}
	r := &s.v2
	wasIdle, was := r.idle, r.was
	r.idle = loadShared(s.mapped[r.next*r.size+v2Status:])&unix.TP_STATUS_USER == 0
	r.was = now
	if !r.idle || !wasIdle || now.Received != was.Received || now.Dropped == was.Dropped {
		return false, nil
	}
	return true, s.remake()
}

// remake makes the ring again; the kernel empties ring and queue (packet_set_ring).
func (s *PacketSocket) remake() error {
	fail := func(err error) error {
		return setup(err, "detach and attach the pod", "make the blocked ring of device %d again", s.index)
	}
	size := len(s.mapped)
	if err := unix.Munmap(s.mapped); err != nil { // a mapped ring cannot be changed
		return fail(err)
	}
	s.mapped = nil
	var none [16]byte
	if errno := sysSetsockoptBytes(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, none[:]); errno != 0 {
		return fail(fmt.Errorf("free it: %w", errno))
	}
	// Between the two the socket has no ring and would queue frames; what is
	// there is thrown away with the next one.
	if err := s.mapRing(s.v2.req[:], size); err != nil {
		return fail(err)
	}
	s.v2 = slotRing{slots: s.v2.slots, size: s.v2.size, req: s.v2.req, crowd: s.v2.crowd}
	return nil
}
