//go:build linux

package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tunSource is a TUN whose namespace sends numbered datagrams into it.
type tunSource struct {
	ns   *testNS
	q    *Queue
	u    *UDP
	d    *Datagrams
	to   Sockaddr // nobody's, behind the TUN
	mem  []byte
	sent uint32
}

func newTUNSource(t testing.TB) *tunSource {
	t.Helper()
	ns := newNS(t)
	s := &tunSource{ns: ns, q: createTUN(t, ns, TUNConfig{Name: "tp0"})[0], d: NewDatagrams(64, 64), mem: make([]byte, 64*20500)}
	if _, err := s.q.NegotiateOffload(); err != nil {
		t.Fatal(err)
	}
	ns.up("tp0")
	ns.address("tp0", "10.9.0.1/24")
	s.u = openUDP(t, ns, UDPConfig{Local: netip.MustParseAddrPort("10.9.0.1:0")})
	s.to = NewSockaddr(netip.MustParseAddrPort("10.9.0.9:9"))
	return s
}

// send sends n datagrams of size bytes, the number first; from 2,000 bytes on they are superframes.
func (s *tunSource) send(t testing.TB, n, size int) {
	t.Helper()
	segment := 0
	if size > 2000 {
		segment = 1000
	}
	for n > 0 {
		s.d.Reset()
		for i := range min(n, 64) {
			b := s.mem[i*size : (i+1)*size]
			binary.BigEndian.PutUint32(b, s.sent)
			s.d.Begin(&s.to, 0, segment)
			s.d.Append(b)
			s.sent++
		}
		k, err := s.u.Send(s.d, 0)
		if n -= k; k != s.d.Len() || err != nil {
			t.Fatal(k, err)
		}
	}
}

// numbers are those of the datagrams among fs, which may have IPv6's chatter between them.
func numbers(t testing.TB, fs []Frame) (list []uint32) {
	t.Helper()
	for i := range fs {
		b := fs[i].Bytes()
		if fs[i].Truncated || len(b) < 20 {
			t.Fatalf("a frame of %d bytes, truncated %v", len(b), fs[i].Truncated)
		}
		if b[0] == 0x45 && b[9] == unix.IPPROTO_UDP {
			if want := int(binary.BigEndian.Uint16(b[2:])); len(b) != want {
				t.Fatalf("a frame of %d bytes says that it has %d", len(b), want)
			}
			list = append(list, binary.BigEndian.Uint32(b[28:]))
		}
	}
	return list
}

// TestTUNBatchRead: whatever waits, few or many, short or long, is read once, in order, and a Read that is short of
// what it was given has emptied the queue or the slab.
func TestTUNBatchRead(t *testing.T) {
	for name, rooms := range map[string]int{"room for all": 64, "room for five": 5, "room for one": 1} {
		for _, batched := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " ", batched), func(t *testing.T) {
				s := newTUNSource(t)
				slab, fs := NewSlab(rooms*FrameRoom), make([]Frame, 64)
				if batched {
					slab.BatchReads(newUring(t))
				}
				next := uint32(0)
				for _, burst := range []struct{ n, size int }{{1, 20}, {2, 20}, {3, 20}, {4, 20}, {5, 900}, {64, 20}, {65, 20}, {3, 20}, {0, 20},
					{40, 1400}, {200, 20}, {130, 4}, {20, 20500}, {1, 1400}, {30, 20500}, {7, 20}, {64, 20}} {
					s.send(t, burst.n, burst.size)
					for next < s.sent {
						slab.Reset()
						n, err := s.q.Read(slab, fs)
						if err != nil || n == 0 {
							t.Fatalf("%d of %d: Read says %d, %v", next, s.sent, n, err)
						}
						for _, got := range numbers(t, fs[:n]) {
							if got != next {
								t.Fatalf("number %d came where %d was due", got, next)
							}
							next++
						}
						if n < len(fs) && n < rooms && next < s.sent && bytesOf(fs[:n]) < atOnce {
							t.Errorf("Read took %d frames with room for %d, and %d were left", n, rooms, s.sent-next)
						}
					}
					slab.Reset()
					if n, err := s.q.Read(slab, fs); len(numbers(t, fs[:n])) > 0 || err != nil {
						t.Fatalf("after all was read: %d frames, %v", n, err)
					}
				}
				if err := slab.uring.Err(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestTUNBatchWrite: of many messages each arrives once and in order, but those that the kernel refuses, which are
// named by their index.
func TestTUNBatchWrite(t *testing.T) {
	for _, batched := range []bool{false, true} {
		for _, count := range []int{1, 3, 4, 63, 64, 65, 200} {
			for _, bad := range []int{0, 1, 5} { // every bad-th is refused; 0: none
				t.Run(fmt.Sprint(batched, count, bad), func(t *testing.T) {
					p := NewPackets(count, 3*count)
					if batched {
						p.BatchWrites(newUring(t))
					}
					q, conn := tunSink(t)
					var want []byte
					for round := range 2 { // what became of the first must not be taken for the second
						p.Reset()
						for i := range count {
							v, frame := Virtio{}, udpFrame(8, byte(i+round))[14:]
							if bad > 0 && i%bad == bad-1 {
								v = Virtio{Flags: NeedsCsum, GSOType: 99, GSOSize: 1, CsumStart: 20, CsumOffset: 6}
							} else {
								want = append(want, byte(i+round))
							}
							p.Begin(v)
							p.Append(frame[:28])
							p.Append(frame[28:])
						}
						for at := 0; at < count; at++ {
							n, err := q.Write(p, at)
							if at += n; err == nil {
								if at != count {
									t.Fatalf("no error, and %d of %d written", at, count)
								}
								break
							}
							if !errors.Is(err, unix.EINVAL) || bad == 0 || at%bad != bad-1 {
								t.Fatalf("message %d: %v", at, err)
							}
						}
					}
					for i, w := range want {
						if got := heard(t, conn); got != w {
							t.Fatalf("datagram %d is %d, want %d", i, got, w)
						}
					}
					conn.SetReadDeadline(time.Now().Add(time.Millisecond))
					if n, err := conn.Read(make([]byte, 100)); err == nil {
						t.Errorf("one more of %d bytes", n)
					}
				})
			}
		}
	}
}

// TestTUNBatchCutShort: a message that the kernel refuses before it begins ends what one system call does; those behind it
// are written once all the same.
func TestTUNBatchCutShort(t *testing.T) {
	for _, bad := range []int{0, 1, 5, 8, 9} {
		p := NewPackets(10, 20)
		u := newUring(t)
		p.BatchWrites(u)
		q, conn := tunSink(t)
		for i := range 10 {
			p.Begin(Virtio{})
			p.Append(udpFrame(8, byte(i))[14:])
		}
		p.message(bad)[1].SetLen(math.MinInt)
		n, err := q.Write(p, 0)
		if n != bad || !errors.Is(err, unix.EINVAL) {
			t.Fatalf("Write says %d, %v, want %d, EINVAL", n, err, bad)
		}
		if bad < 9 {
			if n, err = q.Write(p, bad+1); n != 9-bad || err != nil {
				t.Fatalf("Write from %d says %d, %v", bad+1, n, err)
			}
		}
		for i := range 10 {
			if i == bad {
				continue
			}
			if got := heard(t, conn); got != byte(i) {
				t.Fatalf("message %d was refused, and %d came where %d was due", bad, got, i)
			}
		}
		conn.SetReadDeadline(time.Now().Add(time.Millisecond))
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("one more of %d bytes", n)
		}
		must(t, u.Err())
	}
}

// TestTUNBatchBytes: long messages are not written by one long system call, nor read without end.
func TestTUNBatchBytes(t *testing.T) {
	q, conn := tunSink(t)
	conn.Close()
	p, u := NewPackets(64, 128), newUring(t)
	p.BatchWrites(u)
	frame := udpFrame(40000, 1)[14:]
	for range 64 {
		p.Begin(Virtio{})
		p.Append(frame)
	}
	if n, err := q.Write(p, 0); n != 64 || err != nil {
		t.Fatal(n, err)
	}
	if calls := u.TakeCalls(); calls != 2 { // of 53 and 11
		t.Errorf("%d system calls", calls)
	}

	s, slab, fs := newTUNSource(t), NewSlab(64*FrameRoom), make([]Frame, 64)
	slab.BatchReads(u)
	s.send(t, 300, 20500)
	for left := 300; left > 0; {
		slab.Reset()
		n, err := s.q.Read(slab, fs)
		if err != nil || n == 0 || bytesOf(fs[:n]) > 2*atOnce {
			t.Fatalf("%d frames of %d bytes, %v", n, bytesOf(fs[:n]), err)
		}
		left -= len(numbers(t, fs[:n]))
	}
}

// TestTunnelBatch: a TAP takes several frames at once as it takes them one by one, and tells of each.
func TestTunnelBatch(t *testing.T) {
	for _, batched := range []bool{false, true} {
		t.Run(fmt.Sprint(batched), func(t *testing.T) {
			ns := newNS(t)
			var tap *Tunnel
			ns.do(func() {
				ts, err := OpenTunnel("tptap", 1)
				if err != nil {
					t.Skip("needs kernel 6.17: ", err)
				}
				tap = ts[0]
			})
			defer tap.Close()
			if batched {
				tap.BatchWrites(newUring(t))
			}
			var frames [][]byte
			for i := range 150 {
				size := 8
				if i%3 == 0 {
					size = 1400
				}
				frames = append(frames, append(make([]byte, TunnelHeaderLen), udpFrame(size, byte(i))...))
			}
			errs := make([]unix.Errno, len(frames))
			if n := tap.Write(frames, errs); n < 1 || errs[0] != unix.EIO {
				t.Errorf("down, Write says %d, %v", n, errs[0])
			}
			ns.up("tptap")
			var heard *PacketSocket
			ns.do(func() { heard = openPacket(t, PacketConfig{Device: "tptap", RecvBuffer: 32 << 20}) })
			frames[100] = frames[100][:TunnelHeaderLen+5] // shorter than an Ethernet header
			for at := 0; at < len(frames); {
				n := tap.Write(frames[at:], errs[at:])
				if n < 1 || !batched && n > 1 || batched && n > UringEntries {
					t.Fatalf("Write has tried %d", n)
				}
				at += n
			}
			for i, errno := range errs {
				if (errno != 0) != (i == 100) {
					t.Errorf("frame %d: %v", i, errno)
				}
			}
			for i, p := range collect(t, heard, 149, 64) {
				if i >= 100 {
					i++
				}
				if p.Data[42] != byte(i) {
					t.Fatalf("frame %d comes as number %d", p.Data[42], i)
				}
			}
		})
	}
}

// TestGather: what was read is put together from the places where it lies, whatever stands between.
func TestGather(t *testing.T) {
	const n = 6
	mem, fs := make([]byte, n*FrameRoom), make([]Frame, n)
	for i := range n {
		copy(mem[i*FrameRoom+Headroom:], []byte{byte(i), byte(i)})
	}
	full := int32(FrameRoom - readFront)
	got, end, errno := gather([]int32{VirtioLen + 2, -int32(unix.EAGAIN), full, -int32(unix.EIO), -int32(unix.EBADFD), VirtioLen + 1}, mem, fs)
	if got != 3 || end != 5*FrameRoom+Headroom+1 || errno != unix.EIO {
		t.Fatalf("%d frames, end %d, %v", got, end, errno)
	}
	for i, want := range []struct {
		first     byte
		length    int
		truncated bool
	}{{0, 2, false}, {2, int(full) - VirtioLen, true}, {5, 1, false}} {
		f := &fs[i]
		if b := f.Bytes(); b[0] != want.first || len(b) != want.length || f.Truncated != want.truncated || cap(f.Mem) != len(f.Mem) || f.Start != Headroom {
			t.Errorf("frame %d begins with %d, has %d bytes, truncated %v, room for %d behind it", i, b[0], len(b), f.Truncated, cap(f.Mem)-len(f.Mem))
		}
	}
}

// tunSink is a TUN, and a socket that hears what is written to it.
func tunSink(t testing.TB) (*Queue, *net.UDPConn) {
	t.Helper()
	ns := newNS(t)
	q := createTUN(t, ns, TUNConfig{Name: "tp0"})[0]
	ns.up("tp0")
	ns.address("tp0", "10.9.0.2/24")
	var conn *net.UDPConn
	ns.do(func() {
		var err error
		conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.9.0.2:2000")))
		must(t, err)
	})
	t.Cleanup(func() { conn.Close() })
	must(t, conn.SetReadBuffer(4<<20))
	return q, conn
}

func heard(t testing.TB, conn *net.UDPConn) byte {
	t.Helper()
	var b [100]byte
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if n, err := conn.Read(b[:]); err != nil || n != 8 {
		t.Fatalf("heard %d bytes, %v", n, err)
	}
	return b[0]
}

func TestTUNBatchAllocs(t *testing.T) {
	s := newTUNSource(t)
	q, conn := tunSink(t)
	conn.Close()
	u := newUring(t)
	slab, fs, p := NewSlab(64*FrameRoom), make([]Frame, 64), NewPackets(64, 128)
	slab.BatchReads(u)
	p.BatchWrites(u)
	frame := udpFrame(8, 1)[14:]
	noAllocs(t, "reading and writing 64 packets", func() {
		s.send(t, 64, 20)
		slab.Reset()
		if n, err := s.q.Read(slab, fs); n < 60 || err != nil {
			t.Fatal(n, err)
		}
		p.Reset()
		for range 64 {
			p.Begin(Virtio{})
			p.Append(frame)
		}
		if n, err := q.Write(p, 0); n != 64 || err != nil {
			t.Fatal(n, err)
		}
	})
	must(t, u.Err())
}
