package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// A numbered message says everything about itself, so that the receiver alone can judge order, borders and contents:
//
//	0       4       8              16      20      24       32
//	| magic | flow  | number       | length| CRC32 | stream | filling …
//
// CRC-32C is over the whole message with the field zero.
const (
	messageMagic  = 0x50736d67
	messageHeader = 32
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Stream describes numbered messages to send.
type Stream struct {
	Sizes      []int // of the messages, in turn; each at least 32; default one of 64
	Count      int   // messages altogether
	Segment    int   // >0: messages of this size, many to one UDP_SEGMENT send; Sizes is not used
	Burst      int   // messages in one go: with Segment, in one send (default: as many as fit); else between pauses
	Rate       int   // messages a second; 0: as fast as it goes. A sender that was held up does not catch up in one burst
	Sink       *Sink // who receives: then never more than Ahead messages are on their way, and every loss is a fault
	Ahead      int   // default 64 (a pod port holds 128 small frames), or one burst if that is more
	Flows      int   // sockets, used in turn; default 1
	NoChecksum bool  // outer UDP checksum zero (IPv4 only)
	TOS        int
}

var streamID atomic.Uint64

// SendStream sends numbered messages to a [Sink] and returns how many the kernel took.
func (h *Host) SendStream(ctx context.Context, to netip.AddrPort, s Stream) (sent int, err error) {
	fail := func(err error) (int, error) {
		return sent, fmt.Errorf("stream from %s to %v: %w", h.Name, to, err)
	}
	if len(s.Sizes) == 0 {
		s.Sizes = []int{64}
	}
	if s.Segment > 0 {
		s.Sizes = []int{s.Segment}
	}
	if slices.Min(s.Sizes) < messageHeader {
		return fail(fmt.Errorf("messages are at least %d bytes long", messageHeader))
	}
	conns := make([]*net.UDPConn, max(1, s.Flows))
	for i := range conns {
		c, err := h.DialUDP(to)
		if err != nil {
			return fail(err)
		}
		defer c.Close()
		conns[i] = c.conn
		if err := s.options(c.conn, to); err != nil {
			return fail(err)
		}
	}
	group := 64 // messages a system call
	if s.Burst > 0 {
		group = min(group, s.Burst)
	}
	if s.Segment > 0 {
		group = min(group, 65000/s.Segment)
	}
	out := &streamSender{stream: s, id: streamID.Add(1), numbers: make([]uint64, len(conns)), slots: make([][]byte, group)}
	out.batch = make([]ipv4.Message, group)
	out.pcs = make([]*ipv4.PacketConn, len(conns))
	for i := range out.slots {
		out.slots[i] = make([]byte, slices.Max(s.Sizes))
	}
	for i, c := range conns {
		out.pcs[i] = ipv4.NewPacketConn(c) // sendmmsg; of use for IPv6 sockets too
	}
	ahead := max(s.Ahead, group)
	if s.Ahead == 0 {
		ahead = max(64, group)
	}
	for turn, due := 0, time.Now(); sent < s.Count; turn++ {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		n := min(group, s.Count-sent)
		if s.Rate > 0 {
			if wait := time.Until(due); wait > 0 {
				time.Sleep(wait)
			} else if wait < -time.Millisecond {
				due = time.Now()
			}
			due = due.Add(time.Duration(n) * time.Second / time.Duration(s.Rate))
		}
		if s.Sink != nil {
			s.Sink.room(n, ahead)
		}
		flow := turn % len(conns)
		if err := out.send(conns[flow], flow, n); err != nil {
			return fail(err)
		}
		sent += n
	}
	return sent, nil
}

func (s Stream) options(c *net.UDPConn, to netip.AddrPort) error {
	var options [][3]int
	if s.Segment > 0 {
		options = append(options, [3]int{unix.SOL_UDP, unix.UDP_SEGMENT, s.Segment})
	}
	if s.NoChecksum {
		options = append(options, [3]int{unix.SOL_SOCKET, unix.SO_NO_CHECK, 1})
	}
	if s.TOS != 0 && to.Addr().Is4() {
		options = append(options, [3]int{unix.IPPROTO_IP, unix.IP_TOS, s.TOS})
	} else if s.TOS != 0 {
		options = append(options, [3]int{unix.IPPROTO_IPV6, unix.IPV6_TCLASS, s.TOS})
	}
	for _, o := range options {
		if err := setsockopt(c, o[0], o[1], o[2]); err != nil {
			return err
		}
	}
	return nil
}

type streamSender struct {
	stream  Stream
	id      uint64
	numbers []uint64 // next number by flow
	next    int      // next size
	slots   [][]byte
	batch   []ipv4.Message
	pcs     []*ipv4.PacketConn
	joined  []byte
}

// send sends n messages of one flow: as one send that the kernel cuts, or by sendmmsg.
func (o *streamSender) send(c *net.UDPConn, flow, n int) error {
	o.joined = o.joined[:0]
	for i := range n {
		m := o.slots[i][:o.stream.Sizes[o.next%len(o.stream.Sizes)]]
		o.next++
		putMessage(m, uint32(flow), o.numbers[flow], o.id)
		o.numbers[flow]++
		if o.stream.Segment > 0 {
			o.joined = append(o.joined, m...)
			continue
		}
		o.batch[i] = ipv4.Message{Buffers: [][]byte{m}}
	}
	if o.stream.Segment > 0 {
		_, err := c.Write(o.joined)
		return err
	}
	for rest := o.batch[:n]; len(rest) > 0; {
		done, err := o.pcs[flow].WriteBatch(rest, 0)
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
		rest = rest[max(done, 0):]
	}
	return nil
}

func putMessage(m []byte, flow uint32, number, stream uint64) {
	binary.BigEndian.PutUint32(m[0:], messageMagic)
	binary.BigEndian.PutUint32(m[4:], flow)
	binary.BigEndian.PutUint64(m[8:], number)
	binary.BigEndian.PutUint32(m[16:], uint32(len(m)))
	binary.BigEndian.PutUint32(m[20:], 0)
	binary.BigEndian.PutUint64(m[24:], stream)
	copy(m[messageHeader:], noise()[number%65536:])
	binary.BigEndian.PutUint32(m[20:], crc32.Checksum(m, castagnoli))
}

// SinkCounts is what a sink thinks of what it got.
type SinkCounts struct {
	Received, Bytes int // messages that were right
	Lost            int // numbers missing below the highest seen, over all flows
	Duplicated      int
	Reordered       int // arrived behind a higher number of their flow
	Corrupt         int // CRC wrong
	BadBorder       int // length is not that of the message: cut, or run together with others
	Strangers       int // not messages at all

	FirstReordered string // which message, behind which, and when: where to begin to look for the cause
}

// Perfect reports whether exactly n messages arrived, each once, whole and in order.
func (c SinkCounts) Perfect(n int) bool {
	return c.Received == n && c.Lost+c.Duplicated+c.Reordered+c.Corrupt+c.BadBorder+c.Strangers == 0
}

// Sink receives numbered messages on a plain socket.
type Sink struct {
	conns  []*net.UDPConn
	mu     sync.Mutex
	counts SinkCounts
	flows  map[flowKey]*flowState
	begun  time.Time // when the first message came
	last   time.Time

	promised int // messages that flow-controlled senders have sent, but for those given up

	running sync.WaitGroup
}

type flowKey struct {
	stream uint64
	flow   uint32
	from   netip.AddrPort
}

// flowState knows which of the last 1024 numbers of a flow have come.
type flowState struct {
	next uint64 // highest seen + 1
	seen [16]uint64
	got  uint64 // different ones
}

// ReceiveStream opens a sink for IPv4 and IPv6; port 0 picks one.
func (h *Host) ReceiveStream(port uint16) (*Sink, error) {
	s := &Sink{flows: map[flowKey]*flowState{}, last: time.Now()}
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		c, err := h.listenUDP(netip.AddrPortFrom(any, port))
		if err != nil {
			s.Close()
			return nil, err
		}
		forceBuffers(c, 64<<20)
		port = addrPort(c.LocalAddr()).Port()
		s.conns = append(s.conns, c)
		s.running.Go(func() { s.receive(c) })
	}
	return s, nil
}

// Port is the sink's port.
func (s *Sink) Port() uint16 { return addrPort(s.conns[0].LocalAddr()).Port() }

// Close closes the sink.
func (s *Sink) Close() {
	for _, c := range s.conns {
		c.Close()
	}
	s.running.Wait()
}

func (s *Sink) receive(c *net.UDPConn) {
	p := ipv4.NewPacketConn(c) // recvmmsg
	batch := make([]ipv4.Message, 64)
	for i := range batch {
		batch[i].Buffers = [][]byte{make([]byte, 65536)}
	}
	for {
		n, err := p.ReadBatch(batch, 0)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if n <= 0 {
			continue
		}
		s.mu.Lock()
		for _, m := range batch[:n] {
			s.judge(m.Buffers[0][:m.N], addrPort(m.Addr))
		}
		s.last = time.Now()
		s.mu.Unlock()
	}
}

// judge counts one datagram; s.mu is held.
func (s *Sink) judge(m []byte, from netip.AddrPort) {
	if len(m) < messageHeader || binary.BigEndian.Uint32(m) != messageMagic {
		s.counts.Strangers++
		return
	}
	if int(binary.BigEndian.Uint32(m[16:])) != len(m) {
		s.counts.BadBorder++
		return
	}
	sum := binary.BigEndian.Uint32(m[20:])
	binary.BigEndian.PutUint32(m[20:], 0)
	if crc32.Checksum(m, castagnoli) != sum {
		s.counts.Corrupt++
		return
	}
	key := flowKey{binary.BigEndian.Uint64(m[24:]), binary.BigEndian.Uint32(m[4:]), from}
	f := s.flows[key]
	if f == nil {
		f = &flowState{}
		s.flows[key] = f
	}
	number := binary.BigEndian.Uint64(m[8:])
	if s.begun.IsZero() {
		s.begun = time.Now()
	}
	window := uint64(len(f.seen) * 64)
	slot, bit := number/64%uint64(len(f.seen)), uint64(1)<<(number%64)
	switch {
	case number >= f.next:
		for n := f.next; n <= number && n < f.next+window; n++ { // the ring goes on
			f.seen[n/64%uint64(len(f.seen))] &^= 1 << (n % 64)
		}
		f.next = number + 1
	case f.next-number > window:
		s.reordered(key.flow, number, f.next) // too late to know whether it is a copy
		return
	case f.seen[slot]&bit != 0:
		s.counts.Duplicated++
		return
	default:
		s.reordered(key.flow, number, f.next)
	}
	f.seen[slot] |= bit
	f.got++
	s.counts.Received++
	s.counts.Bytes += len(m)
}

// reordered counts a message that arrived when next was expected; s.mu is held.
func (s *Sink) reordered(flow uint32, number, next uint64) {
	if s.counts.Reordered++; s.counts.Reordered == 1 {
		s.counts.FirstReordered = fmt.Sprintf("number %d of flow %d, %d behind, %v after the first message", number, flow, next-number, time.Since(s.begun).Round(time.Microsecond))
	}
}

// Counts is the state so far.
func (s *Sink) Counts() SinkCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.counts
	for f := range maps.Values(s.flows) {
		c.Lost += int(f.next - f.got)
	}
	return c
}

// room waits until n more messages make at most ahead of them on their way. What has not come within half a
// second of silence is given up, so that a loss does not stop the rest.
func (s *Sink) room(n, ahead int) {
	begin := time.Now()
	for {
		s.mu.Lock()
		flying := s.promised - s.counts.Received
		if quiet := min(time.Since(s.last), time.Since(begin)); flying > 0 && quiet > 500*time.Millisecond {
			s.promised, flying = s.counts.Received, 0
		}
		if flying+n <= ahead {
			s.promised += n
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		time.Sleep(50 * time.Microsecond)
	}
}

// WaitFor returns when n messages have come, or nothing has for idle.
func (s *Sink) WaitFor(n int, idle time.Duration) SinkCounts {
	begin := time.Now()
	for {
		c := s.Counts()
		s.mu.Lock()
		quiet := time.Since(s.last)
		s.mu.Unlock()
		if c.Received >= n || min(quiet, time.Since(begin)) > idle {
			return c
		}
		time.Sleep(2 * time.Millisecond)
	}
}
