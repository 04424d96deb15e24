//go:build linux

package ring

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// PacketRing is how a packet socket is read.
type PacketRing uint8

// RecvMMsg copies every frame by recvmmsg. RingV2 is a mapped ring of one slot
// a frame that wakes per frame; superframes, too long for a slot, are spilled to
// the socket's queue. RingV3 is a mapped ring of blocks that holds superframes
// too, but wakes per block: for bulk, not for latency.
const (
	RecvMMsg PacketRing = iota
	RingV2
	RingV3
)

func (r PacketRing) String() string {
	switch r {
	case RecvMMsg:
		return "recvmmsg"
	case RingV2:
		return "v2"
	case RingV3:
		return "v3"
	}
	return fmt.Sprintf("PacketRing(%d)", uint8(r))
}

// PacketConfig describes a packet socket on one device.
type PacketConfig struct {
	Device string // in the calling thread's network namespace
	Index  int    // instead of Device
	Ring   PacketRing

	Slots    int // V2: slots, default 128; V3: blocks, default 4
	SlotSize int // V2: bytes a slot, default 2048; V3: bytes a block, default 256 KiB

	BlockTimeout time.Duration // V3: when a block that is not full is handed over; default and grain 1 ms

	// Bounds of the socket's queues as the kernel counts them, skb overhead
	// included; 0: the system's default. A spilled superframe needs about
	// 70 to 130 KiB while it waits.
	RecvBuffer, SendBuffer int

	NoBypass bool // never PACKET_QDISC_BYPASS: the device has a qdisc that counts
	Widen    bool // V2: make OpenWide possible, see widen.go

	TCP *TCPFilter // accept only this; nil: every frame. Not with Widen
}

// Stats counts since the socket was opened.
type Stats struct {
	Received uint64 // put into the ring or the queue, truncated ones too
	Dropped  uint64 // found it full, or could not be described by a virtio header
}

func (s *Stats) add(t Stats) {
	s.Received += t.Received
	s.Dropped += t.Dropped
}

// PacketSocket is an AF_PACKET socket bound to one device and ETH_P_ALL, with
// virtio headers. It is a Port; its frames start with an Ethernet header.
type PacketSocket struct {
	fd     int
	index  int
	ring   PacketRing
	mapped []byte // the ring, nil for RecvMMsg
	v2     slotRing
	v3     blockRing
	many   *manyReader // RecvMMsg
	spill  spillReader // V2
	widening

	// Several workers may write at a time, one of them also reads.
	pending  atomic.Uint32 // errno taken from the socket while reading or writing, for TakeError
	bypass   atomic.Bool   // PACKET_QDISC_BYPASS is on but for the moment of a writeQueued
	fallback atomic.Int32  // frames in a row that got through only without it
	queuedMu sync.Mutex    // one writeQueued at a time, or one would switch the bypass on under another

	statsMu sync.Mutex
	stats   Stats // of this socket alone
	closed  bool  // the descriptor may be another socket's by now
}

// OpenPacket opens, binds and sets up the socket. No frame is accepted before
// the ring is ready: until then a filter drops all, so that none waits in the
// plain queue, out of order with the ring.
func OpenPacket(cfg PacketConfig) (*PacketSocket, error) {
	index, name := cfg.Index, cfg.Device
	if index == 0 {
		var err error
		if index, err = interfaceIndex(name); err != nil {
			return nil, setup(err, "create it first", "open a packet socket on %q", name)
		}
	}
	if name == "" {
		name = fmt.Sprintf("index %d", index)
	}
	fd, err := openBound(index)
	if err != nil {
		return nil, setup(err, "run as root or with CAP_NET_RAW, and check that the device exists", "open a packet socket on %s", name)
	}
	s := &PacketSocket{fd: fd, index: index, ring: cfg.Ring}
	err = s.setUp(cfg)
	if err == nil {
		err = s.accept(cfg.TCP)
	}
	if err != nil {
		_ = s.Close()
		return nil, setup(err, "", "set up the packet socket on %s", name)
	}
	return s, nil
}

// openBound lets mdlayher/packet make a socket that accepts nothing yet and
// returns a duplicate that Go's netpoller does not know. Only a socket bound to
// ETH_P_ALL is a tap, which runs before the device's ingress hook; one bound to
// another protocol runs after it and would not see what is dropped there
// (__netif_receive_skb_core, net/core/dev.c).
func openBound(index int) (int, error) {
	none, err := bpf.Assemble([]bpf.Instruction{bpf.RetConstant{Val: 0}})
	if err != nil {
		return -1, err
	}
	conn, err := packet.Listen(&net.Interface{Index: index}, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: none})
	if err != nil {
		return -1, err
	}
	defer conn.Close() // the duplicate keeps the open file description
	raw, err := conn.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	err = raw.Control(func(from uintptr) {
		fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 3)
	})
	if err == nil {
		err = dupErr
	}
	if err == nil {
		// Resets the kernel's counters: what came before is not ours.
		if _, err = conn.Stats(); err != nil {
			_ = unix.Close(fd)
		}
	}
	return fd, err
}

func (s *PacketSocket) setUp(cfg PacketConfig) error {
	opt := func(name, value int, what string) error {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, name, value); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		return nil
	}
	if err := opt(unix.PACKET_VNET_HDR, 1, "PACKET_VNET_HDR"); err != nil {
		return err
	}
	// Kernel 4.20; without it we would read what we write.
	if err := opt(unix.PACKET_IGNORE_OUTGOING, 1, "PACKET_IGNORE_OUTGOING"); err != nil {
		return err
	}
	s.bypass.Store(!cfg.NoBypass && opt(unix.PACKET_QDISC_BYPASS, 1, "") == nil)
	if err := setBuffers(s.fd, cfg.RecvBuffer, cfg.SendBuffer); err != nil {
		return err
	}
	var err error
	switch cfg.Ring {
	case RecvMMsg:
		if err = opt(unix.PACKET_AUXDATA, 1, "PACKET_AUXDATA"); err == nil {
			s.many = newManyReader()
		}
	case RingV2:
		if err = s.setUpV2(cfg, opt); err == nil && cfg.Widen {
			s.joinGroup()
		}
	case RingV3:
		err = s.setUpV3(cfg, opt)
	default:
		err = fmt.Errorf("ring %v: %w", cfg.Ring, unix.EINVAL)
	}
	return err
}

// accept takes the filter of openBound away, or puts another in its place: from here on every frame that passes counts.
func (s *PacketSocket) accept(only *TCPFilter) error {
	if only != nil {
		if err := setFilter(s.fd, only.program()); err != nil {
			return fmt.Errorf("SO_ATTACH_FILTER: %w", err)
		}
	} else if s.grouped {
		if err := s.incoming(); err != nil {
			return err
		}
	} else if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0); err != nil {
		return fmt.Errorf("SO_DETACH_FILTER: %w", err)
	}
	// Binding to a device that is down leaves ENETDOWN; it will be heard when
	// it comes up (packet_notifier).
	_ = s.TakeError()
	return nil
}

func (s *PacketSocket) mapRing(req []byte, size int) error {
	if errno := sysSetsockoptBytes(s.fd, unix.SOL_PACKET, unix.PACKET_RX_RING, req); errno != 0 {
		return fmt.Errorf("a receive ring of %d bytes: %w", size, errno)
	}
	m, err := unix.Mmap(s.fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map a receive ring of %d bytes: %w", size, err)
	}
	s.mapped = m
	return nil
}

// setBuffers bounds a socket's queues; sizes are as the kernel counts, which is
// twice what the option is given.
func setBuffers(fd, recv, send int) error {
	for _, b := range []struct {
		size, force, plain int
		name               string
	}{
		{recv, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, "SO_RCVBUF"},
		{send, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, "SO_SNDBUF"},
	} {
		if b.size == 0 {
			continue
		}
		// The forced form passes net.core.rmem_max but needs CAP_NET_ADMIN.
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.force, b.size/2) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, b.plain, b.size/2); err != nil {
			return fmt.Errorf("%s %d: %w", b.name, b.size, err)
		}
	}
	return nil
}

// FD is the descriptor.
func (s *PacketSocket) FD() int { return s.fd }

// Index is the device's interface index.
func (s *PacketSocket) Index() int { return s.index }

// Ring is how it is read.
func (s *PacketSocket) Ring() PacketRing { return s.ring }

// Read reads as the Reader interface says.
func (s *PacketSocket) Read(slab *Slab, fs []Frame) (int, error) {
	switch {
	case s.ring == RecvMMsg:
		return s.readMany(slab, fs)
	case s.wide != nil:
		return s.readBoth(slab, fs)
	}
	return s.readRing(slab, fs)
}

// Release gives the ring's slots or blocks back to the kernel.
func (s *PacketSocket) Release() {
	if s.ring == RecvMMsg {
		return
	}
	s.releaseRing()
	if s.wide != nil {
		s.wide.releaseRing()
	}
}

// TakeError returns what Read has met or what is pending on the socket.
func (s *PacketSocket) TakeError() error {
	errno := unix.Errno(s.pending.Swap(0))
	if v, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_ERROR); err == nil && v != 0 && errno == 0 {
		errno = unix.Errno(v)
	}
	if s.wide != nil {
		if err := s.wide.TakeError(); err != nil && errno == 0 {
			return err
		}
	}
	if errno != 0 {
		return errno
	}
	return nil
}

// Stats may be called from any goroutine, also after Close: reading resets the
// kernel's counters, and the descriptor's number may be another pod's by then.
// What wide rings have counted is in it.
func (s *PacketSocket) Stats() (Stats, error) {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	sum, err := s.count()
	if s.wide != nil {
		wide, e := s.wide.Stats()
		sum.add(wide)
		err = errors.Join(err, e)
	}
	sum.add(s.shed)
	return sum, err
}

// count is Stats of this socket alone; statsMu is held.
func (s *PacketSocket) count() (Stats, error) {
	if s.closed {
		return s.stats, nil
	}
	// Reading resets; Packets counts the dropped as well (packet_getsockopt).
	// TPACKET_V3's structure starts with the same two fields.
	st, err := unix.GetsockoptTpacketStats(s.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return s.stats, setup(err, "", "read the statistics of the packet socket on device %d", s.index)
	}
	s.stats.Received += uint64(st.Packets - st.Drops)
	s.stats.Dropped += uint64(st.Drops)
	return s.stats, nil
}

// Close ends the loan of everything that was read, and closes the wide ring.
func (s *PacketSocket) Close() error {
	s.statsMu.Lock()
	defer s.statsMu.Unlock()
	if s.closed {
		return unix.EBADF
	}
	s.closed = true
	if s.wide != nil {
		_ = s.wide.Close()
	}
	if s.mapped != nil {
		_ = unix.Munmap(s.mapped)
		s.mapped = nil
	}
	return unix.Close(s.fd)
}
