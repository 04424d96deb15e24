//go:build linux

package ring

import (
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A V2 socket can be given a second, wider ring while its pod sends faster than
// it is read: of V2, or of V3 for a flood of small packets. Both sockets are in one fanout group, and the group's program, a
// constant, chooses which of them the kernel fills:
//
//	            the group's program: ret 0 │ ret 1
//	pod ──veth──▶ the device ──────────────┤
//	                                       ├──▶ 0: the narrow socket ──┐
//	                                       └──▶ 1: the wide socket ────┴──▶ Read
//
// The kernel gives each frame to exactly one of them (fanout_demux_bpf,
// net/packet/af_packet.c), so none is lost or doubled by a change. That none is
// overtaken is Read's duty: it reads the ring that the kernel has left, *from*, to
// its end before the other one, *to*. A frame is in its ring before the kernel
// looks at the next of its flow; so if Read sees frames in *to* and only then
// finds *from* empty, nothing in front of those is left, and it reads no more than those
// until the choice is known to have been made everywhere.
//
// Opening:  OpenWide, Adopt (on the worker), Choose(true), Settled (on the worker).
// Giving back: Leave (on the worker), Choose(false), reads until Left, Shed (on the
// worker), Close.
//
// The members' numbers are those of their joining, also when the device was down
// (packet_notifier walks the sockets in the order of their opening since kernel 5.1).

const (
	fanoutKind = (unix.PACKET_FANOUT_CBPF | unix.PACKET_FANOUT_FLAG_IGNORE_OUTGOING) << 16

	// A ring is crowded when so many superframes waited at once.
	crowdedSpills = 8
)

// widening is what a V2 socket knows of the ring beside it.
type widening struct {
	grouped bool          // the socket is in a fanout group. Number 0 is a group as others are
	group   uint16        // its number in the network namespace
	wide    *PacketSocket // read beside this one; nil: none. Written under statsMu, by the worker
	leaving bool          // from wide to narrow; else from narrow to wide
	chosen  bool          // the kernel fills the wide ring only,
	settled bool          // and since then the narrow one was found empty
	shed    Stats         // of wide sockets that were given back
}

// joinGroup makes a group of one, with a number that nobody uses. A kernel that
// refuses leaves the socket as it is, without the possibility of a wide ring.
func (s *PacketSocket) joinGroup() {
	if unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT, fanoutKind|unix.PACKET_FANOUT_FLAG_UNIQUEID<<16) != nil {
		return
	}
	if v, err := unix.GetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT); err == nil {
		// With a program from the beginning every change of it waits for the frames on their way; the first
		// program of a group does not (__fanout_set_data_bpf).
		s.grouped, s.group = s.Choose(false) == nil, uint16(v)
	}
}

// incoming drops what the host sends out of the device: in a group the kernel
// looks at the group's flag, which older kernels do not know, and not at
// PACKET_IGNORE_OUTGOING.
func (s *PacketSocket) incoming() error {
	err := setFilter(s.fd, []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
		bpf.RetConstant{Val: 1<<32 - 1},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return fmt.Errorf("SO_ATTACH_FILTER: %w", err)
	}
	return nil
}

// CanWiden tells whether OpenWide may succeed.
func (s *PacketSocket) CanWiden() bool { return s.grouped }

// OpenWide opens a second socket on the same device with the Ring (V2 or V3),
// Slots, SlotSize and RecvBuffer of cfg. The kernel gives it no frame before
// Choose. Any goroutine may call it, in the device's network namespace, until Close.
func (s *PacketSocket) OpenWide(cfg PacketConfig) (*PacketSocket, error) {
	fail := func(err error) (*PacketSocket, error) {
		return nil, setup(err, "", "open a wide ring (%s) of %d slots on device %d", cfg.Ring, cfg.Slots, s.index)
	}
	if !s.grouped {
		return fail(unix.EOPNOTSUPP)
	}
	if cfg.Ring == RecvMMsg {
		return fail(unix.EINVAL) // it has no ring to find empty
	}
	fd, err := openBound(s.index)
	if err != nil {
		return fail(err)
	}
	w := &PacketSocket{fd: fd, index: s.index, ring: cfg.Ring}
	err = w.setUp(PacketConfig{Ring: cfg.Ring, Slots: cfg.Slots, SlotSize: cfg.SlotSize, BlockTimeout: cfg.BlockTimeout, RecvBuffer: cfg.RecvBuffer, NoBypass: true})
	if err == nil {
		if err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_FANOUT, fanoutKind|int(s.group)); err == nil {
			w.grouped = true
			err = w.accept(nil)
		}
	}
	if err != nil {
		_ = w.Close()
		return fail(err)
	}
	// Both are crowded by as many: the wide one stays while the narrow one would not do.
	w.v2.crowd = s.v2.crowd
	return w, nil
}

// Adopt makes Read read wide too, behind its own ring.
func (s *PacketSocket) Adopt(wide *PacketSocket) {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	s.wide, s.leaving, s.chosen, s.settled = wide, false, false, false
}

// Choose says which ring the kernel fills. When it returns no frame is on its way
// into the other one. It waits for the kernel, for milliseconds, and is not for a
// worker; any other goroutine may call it until Close.
func (s *PacketSocket) Choose(wide bool) error {
	ret := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	if wide {
		ret.K = 1
	}
	if err := unix.SetsockoptSockFprog(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT_DATA, &unix.SockFprog{Len: 1, Filter: &ret}); err != nil {
		return setup(err, "", "change the ring of device %d", s.index)
	}
	return nil
}

// Settled says that Choose(true) has returned: once Read has found the narrow ring
// empty after this, a glance at its next slot will do.
func (s *PacketSocket) Settled() { s.chosen = s.wide != nil }

// Leave turns the order of reading round, before Choose(false). false: not yet, the
// narrow ring has frames that are older than those in the wide one; read them first.
func (s *PacketSocket) Leave() bool {
	if s.wide != nil && !s.settled && !s.empty() {
		return false
	}
	s.leaving, s.chosen, s.settled = s.wide != nil, false, false
	return true
}

// Left tells, after Choose(false), whether the wide ring is read to its end.
func (s *PacketSocket) Left() bool {
	return s.wide == nil || s.wide.lent() == 0 && s.wide.empty()
}

// Shed ends the reading of the wide socket, which the caller closes.
func (s *PacketSocket) Shed() {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	if s.wide != nil {
		st, _ := s.wide.Stats()
		s.shed.add(st)
	}
	s.wide, s.leaving, s.chosen, s.settled = nil, false, false, false
}

// Crowded tells whether since the last call a ring was found nearly full, or with
// several superframes waiting, or without room for one.
func (s *PacketSocket) Crowded() bool {
	was := s.v2.crowded
	s.v2.crowded = false
	if s.wide != nil {
		was = was || s.wide.v2.crowded
		s.wide.v2.crowded = false
	}
	return was
}

// readBoth is Read while there is a wide ring.
func (s *PacketSocket) readBoth(slab *Slab, fs []Frame) (n int, err error) {
	from, to := s, s.wide
	if s.leaving {
		from, to = to, from
	}
	most := len(fs)
	if s.settled {
		most = 1 // whether there is one will do
	}
	there := to.waiting(most) // before from is looked at: see above. What comes later may have one in from in front of it
	if from.mapped != nil {
		n, err = from.readRing(slab, fs)
	}
	switch {
	case err != nil || n == len(fs) || there == 0:
		return n, err
	case s.settled: // what comes to the narrow ring now is a frame that the going down of the device has led astray
		if from.waiting(1) > 0 {
			return n, nil
		}
		there = len(fs)
	case !from.empty():
		return n, nil
	default:
		s.settled = s.chosen
	}
	m, err := to.readRing(slab, fs[n:min(n+there, len(fs))])
	if n > 0 {
		err = nil // of the slab: it comes again
	}
	return n + m, err
}

// readRing reads this socket's own ring.
func (s *PacketSocket) readRing(slab *Slab, fs []Frame) (int, error) {
	if s.ring == RingV3 {
		return s.v3.read(s.mapped, fs), nil
	}
	return s.readV2(slab, fs)
}

// releaseRing gives this socket's own slots or blocks back.
func (s *PacketSocket) releaseRing() {
	if s.ring == RingV3 {
		s.v3.release(s.mapped)
		return
	}
	s.v2.release(s.mapped)
}

// waiting counts frames that are to be read, most at most.
func (s *PacketSocket) waiting(most int) int {
	if s.ring == RingV3 {
		return s.v3.waiting(s.mapped, most)
	}
	return s.v2.waiting(s.mapped, most)
}

// empty tells whether no frame is in the ring but those that are lent.
func (s *PacketSocket) empty() bool {
	if s.ring == RingV3 {
		return s.v3.empty(s.mapped)
	}
	return s.v2.empty(s.mapped)
}

// lent is how many slots or blocks are ours until they are released.
func (s *PacketSocket) lent() int { return s.v2.lent + s.v3.lent }

// waiting counts frames that are to be read, most at most.
func (r *slotRing) waiting(mapped []byte, most int) (n int) {
	if mapped == nil {
		return 0
	}
	for at := r.next; n < most && r.lent+n < r.slots && loadShared(mapped[at*r.size+v2Status:])&unix.TP_STATUS_USER != 0; n++ {
		if at++; at == r.slots {
			at = 0
		}
	}
	return n
}

// empty tells whether no slot but those that are lent is ours. The kernel takes
// slots in order, but several CPUs fill them at a time: one that is being filled
// hides those behind it from Read, not from this.
func (r *slotRing) empty(mapped []byte) bool {
	if mapped == nil {
		return true
	}
	for i, at := r.lent, r.next; i < r.slots; i++ {
		if loadShared(mapped[at*r.size+v2Status:])&unix.TP_STATUS_USER != 0 {
			return false
		}
		if at++; at == r.slots {
			at = 0
		}
	}
	return true
}

// notice keeps what Crowded tells, after a read of n frames with so many spilled
// ones; full says that there may be more.
func (r *slotRing) notice(mapped []byte, n, spilled int, full bool) {
	if n >= r.crowd || spilled >= crowdedSpills {
		r.crowded = true
		return
	}
	ahead := r.crowd - n - 1
	if !full || r.crowded || r.lent+ahead >= r.slots {
		return
	}
	at := r.next + ahead
	if at >= r.slots {
		at -= r.slots
	}
	r.crowded = loadShared(mapped[at*r.size+v2Status:])&unix.TP_STATUS_USER != 0
}
