//go:build linux

package ring

const (
	// Headroom is what a Reader leaves free in front of every frame, for the
	// outer headers of any encapsulation: the largest, Ethernet + IPv6 + UDP +
	// VXLAN + Ethernet, is 84 bytes.
	Headroom = 128

	// MaxFrame is the longest frame a Reader lends: GSO_LEGACY_MAX_SIZE
	// (65,536, include/linux/netdevice.h), an Ethernet header and two VLAN tags.
	MaxFrame = 65536 + 14 + 8

	// FrameRoom is what must be free in the slab to read one frame of unknown
	// length into it: Headroom and MaxFrame, rounded up to a cache line.
	FrameRoom = (Headroom + MaxFrame + cacheLine - 1) &^ (cacheLine - 1)

	cacheLine = 64
)

// Frame is one packet as it came over the border. A superframe is a Frame like
// any other.
type Frame struct {
	Mem       []byte // lent: Start bytes that may be overwritten, then the frame
	Start     int    // Headroom
	Virtio    Virtio
	Truncated bool // its end is missing: buffers were full; only fit for a drop
	VLAN      bool // it carried a VLAN tag that the kernel has taken out
}

// Bytes is the frame without its headroom.
func (f *Frame) Bytes() []byte { return f.Mem[f.Start:] }

// Slab is a worker's memory for one batch: a bump allocator that is taken back
// as a whole. Its pages become resident when they are first used.
type Slab struct {
	mem   []byte // starts on a cache line
	off   int    // end of what is allocated
	last  int    // start of the last allocation
	uring *Uring // that reads TUN queues; nil: none
	many  *Slab  // into which it reads; taken back with this one
}

// NewSlab makes a slab of size bytes, rounded up to a cache line.
func NewSlab(size int) *Slab {
	size = (size + cacheLine - 1) &^ (cacheLine - 1)
	mem := make([]byte, size+cacheLine)
	skip := misalignment(mem, cacheLine)
	return &Slab{mem: mem[skip : skip+size : skip+size]}
}

// Reset takes back everything that was allocated.
func (s *Slab) Reset() {
	if s.off, s.last = 0, 0; s.many != nil {
		s.many.Reset()
	}
}

// Alloc returns n bytes of unknown content that start on a cache line, or nil
// if they are not there. They are the caller's until Reset.
func (s *Slab) Alloc(n int) []byte {
	start := (s.off + cacheLine - 1) &^ (cacheLine - 1)
	if n < 0 || n > len(s.mem)-start {
		return nil
	}
	s.last, s.off = start, start+n
	return s.mem[start:s.off:s.off]
}

// Trim gives the last n bytes of the last allocation back: a reader allocates
// for the longest frame and keeps what was read.
func (s *Slab) Trim(n int) {
	if n > s.off-s.last {
		n = s.off - s.last
	}
	if n > 0 {
		s.off -= n
	}
}

// Left is the largest n for which Alloc(n) succeeds.
func (s *Slab) Left() int {
	return len(s.mem) - (s.off+cacheLine-1)&^(cacheLine-1)
}

// Size is what Left was at the beginning.
func (s *Slab) Size() int { return len(s.mem) }
