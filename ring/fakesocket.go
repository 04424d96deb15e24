//go:build linux

package ring

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// FakeDatagram is a message in or out of a FakeSocket.
type FakeDatagram struct {
	Data      []byte
	Addr      netip.AddrPort // in: the sender; out: the receiver
	TOS       uint8
	Segment   int
	Truncated bool
}

// FakeSocket is a Socket in memory. Recv copies into the Inbox and poisons what
// that held before, as the next Recv ends the loan. Its descriptor is an
// eventfd that is readable while datagrams or errors wait. All but the Socket's
// own methods may be called from any goroutine.
type FakeSocket struct {
	local netip.AddrPort

	mu      sync.Mutex
	event   fakeEvent
	waiting []FakeDatagram
	errs    []SocketError
	sent    []FakeDatagram
	fails   fakeFailures
	onSend  func(FakeDatagram)
}

// NewFakeSocket makes a socket that says it is bound to local.
func NewFakeSocket(local netip.AddrPort) *FakeSocket {
	return &FakeSocket{local: local, event: newFakeEvent()}
}

// Inject appends copies of ds to what will be received.
func (s *FakeSocket) Inject(ds ...FakeDatagram) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range ds {
		d.Data = slices.Clone(d.Data)
		s.waiting = append(s.waiting, d)
	}
	s.update()
}

// InjectError appends to what Errors will report.
func (s *FakeSocket) InjectError(es ...SocketError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, es...)
	s.update()
}

func (s *FakeSocket) update() { s.event.set(len(s.waiting)+len(s.errs) > 0) }

// Sent returns what was sent since the last call, unless OnSend takes it.
func (s *FakeSocket) Sent() []FakeDatagram {
	s.mu.Lock()
	defer s.mu.Unlock()
	sent := s.sent
	s.sent = nil
	return sent
}

// OnSend hands each message to fn instead of keeping it for Sent: so two fakes
// make a network. fn runs without the socket's lock.
func (s *FakeSocket) OnSend(fn func(FakeDatagram)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onSend = fn
}

// Fail makes the at-th message sent from now on, counted from 0, fail once with
// err; trying it again succeeds.
func (s *FakeSocket) Fail(at int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails.add(at, err)
}

// Send takes copies.
func (s *FakeSocket) Send(d *Datagrams, from int) (n int, err error) {
	for i := from; i < d.Len(); i++ {
		s.mu.Lock()
		err := s.fails.next()
		fn := s.onSend
		var out FakeDatagram
		if err == nil {
			out = FakeDatagram{Data: make([]byte, d.Bytes(i)), Addr: d.To(i).AddrPort(), TOS: d.TOS(i), Segment: d.Segment(i)}
			d.CopyTo(i, out.Data)
			if fn == nil {
				s.sent = append(s.sent, out)
			}
		}
		s.mu.Unlock()
		if err != nil {
			return i - from, err
		}
		if fn != nil {
			fn(out)
		}
	}
	return d.Len() - from, nil
}

// Recv fills in as a real socket does, control messages and all.
func (s *FakeSocket) Recv(in *Inbox) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range in.n {
		for j := range in.bufs[i][:min(int(in.msgs[i].Len), len(in.bufs[i]))] {
			in.bufs[i][j] = FakePoison
		}
	}
	for ; n < len(in.msgs) && n < len(s.waiting); n++ {
		in.fill(n, &s.waiting[n])
	}
	in.n = n
	s.waiting = slices.Delete(s.waiting, 0, n)
	s.update()
	return n, nil
}

// fill writes message i as the kernel would.
func (in *Inbox) fill(i int, d *FakeDatagram) {
	in.arm(i)
	m, meta := &in.msgs[i], &in.meta[i]
	m.Len = uint32(copy(in.bufs[i], d.Data))
	if d.Truncated || int(m.Len) < len(d.Data) {
		m.Hdr.Flags = unix.MSG_TRUNC
	}
	from := NewSockaddr(d.Addr)
	meta.from = from.raw
	m.Hdr.Namelen = from.len
	rest := meta.control[:]
	data, rest := putControl(rest, unix.SOL_IP, unix.IP_TOS, 1)
	data[0] = d.TOS
	if d.Segment != 0 {
		data, rest = putControl(rest, unix.SOL_UDP, unix.UDP_GRO, 4)
		binary.NativeEndian.PutUint32(data, uint32(d.Segment))
	}
	m.Hdr.SetControllen(len(meta.control) - len(rest))
}

// Errors reports what InjectError has queued.
func (s *FakeSocket) Errors(fn func(*SocketError)) int {
	s.mu.Lock()
	errs := s.errs
	s.errs = nil
	s.update()
	s.mu.Unlock()
	for i := range errs {
		fn(&errs[i])
	}
	return len(errs)
}

// Local is what NewFakeSocket was given.
func (s *FakeSocket) Local() netip.AddrPort { return s.local }

// FD is the eventfd.
func (s *FakeSocket) FD() int { return s.event.fd }

// Close closes the eventfd.
func (s *FakeSocket) Close() error { return s.event.close() }
