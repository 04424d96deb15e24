//go:build linux

package ring

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// inside fails unless f lies within mem: its headroom and its bytes, and no
// append can write behind it.
func inside(t *testing.T, f Frame, mem []byte) {
	t.Helper()
	if f.Mem == nil {
		if !f.Truncated || f.Start != 0 {
			t.Fatalf("an empty frame that is not flagged: %+v", f)
		}
		return
	}
	if f.Start != Headroom || len(f.Mem) < f.Start || cap(f.Mem) != len(f.Mem) {
		t.Fatalf("start %d, length %d, capacity %d", f.Start, len(f.Mem), cap(f.Mem))
	}
	at := bytesOffset(mem, f.Mem)
	if at < 0 || at+len(f.Mem) > len(mem) {
		t.Fatalf("frame at %d, %d long, in %d bytes", at, len(f.Mem), len(mem))
	}
}

// bytesOffset is where part starts in whole, found by writing.
func bytesOffset(whole, part []byte) int {
	if len(part) == 0 {
		return 0
	}
	saved := bytes.Clone(whole)
	defer copy(whole, saved)
	clear(whole)
	part[0] = 1
	return bytes.IndexByte(whole, 1)
}

func goodSlot() []byte {
	b := make([]byte, 512)
	binary.NativeEndian.PutUint32(b[v2Len:], 60)
	binary.NativeEndian.PutUint32(b[v2Snaplen:], 60)
	binary.NativeEndian.PutUint16(b[v2Mac:], 204)
	tcpSuper.Put(b[204-VirtioLen:])
	return b
}

func goodBlock() []byte {
	b := make([]byte, 4096)
	binary.NativeEndian.PutUint32(b[blockCount:], 2)
	binary.NativeEndian.PutUint32(b[blockFirst:], 48)
	binary.NativeEndian.PutUint32(b[blockLen:], 1000)
	for i, off := range []int{48, 400} {
		h := b[off:]
		if i == 0 {
			binary.NativeEndian.PutUint32(h[v3Next:], 352)
		}
		binary.NativeEndian.PutUint32(h[v3Snaplen:], uint32(60+i))
		binary.NativeEndian.PutUint32(h[v3Len:], uint32(60+i))
		binary.NativeEndian.PutUint16(h[v3Mac:], 220)
		binary.NativeEndian.PutUint32(h[v3Status:], unix.TP_STATUS_USER)
		tcpSuper.Put(h[220-VirtioLen:])
	}
	return b
}

func TestParseSlot(t *testing.T) {
	f := parseSlot(goodSlot(), unix.TP_STATUS_USER|unix.TP_STATUS_VLAN_VALID)
	if len(f.Bytes()) != 60 || f.Virtio != tcpSuper || f.Truncated || !f.VLAN {
		t.Errorf("%+v", f)
	}
	for name, change := range map[string]func(b []byte){
		"frame behind the slot": func(b []byte) { binary.NativeEndian.PutUint16(b[v2Mac:], 500) },
		"no headroom":           func(b []byte) { binary.NativeEndian.PutUint16(b[v2Mac:], 100) },
		"offset behind":         func(b []byte) { binary.NativeEndian.PutUint16(b[v2Mac:], 65535) },
		"huge length":           func(b []byte) { binary.NativeEndian.PutUint32(b[v2Snaplen:], 1<<32-1) },
	} {
		b := goodSlot()
		change(b)
		if f := parseSlot(b, unix.TP_STATUS_USER); !f.Truncated || f.Mem != nil {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func TestParseBlock(t *testing.T) {
	b := goodBlock()
	c := openBlock(b)
	for i := range 2 {
		if c.left == 0 {
			t.Fatal("a frame is missing")
		}
		if f, there := c.frame(b); !there || len(f.Bytes()) != 60+i || f.Virtio != tcpSuper || f.Truncated {
			t.Errorf("frame %d: %+v", i, f)
		}
	}
	if c.left != 0 {
		t.Error("there is more")
	}
	// A first frame that reaches into the second is not lent.
	binary.NativeEndian.PutUint32(b[48+v3Snaplen:], 200)
	c = openBlock(b)
	if f, _ := c.frame(b); !f.Truncated || f.Mem != nil {
		t.Errorf("overlapping: %+v", f)
	}
	// One that the kernel has dropped at the last moment is none.
	b = goodBlock()
	binary.NativeEndian.PutUint32(b[48+v3Status:], 0)
	c = openBlock(b)
	if _, there := c.frame(b); there {
		t.Error("a frame that was dropped is there")
	}
	if f, there := c.frame(b); !there || len(f.Bytes()) != 61 {
		t.Errorf("behind it: %+v, %v", f, there)
	}
}

func FuzzParseSlot(f *testing.F) {
	f.Add(goodSlot(), uint32(1))
	f.Add([]byte{}, uint32(3))
	f.Fuzz(func(t *testing.T, b []byte, status uint32) { inside(t, parseSlot(b, status), b) })
}

func FuzzParseBlock(f *testing.F) {
	f.Add(goodBlock())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		c := openBlock(b)
		n := 0
		for c.left > 0 {
			was := c.left
			f, _ := c.frame(b)
			inside(t, f, b)
			if n++; c.left >= was || n > len(b) {
				t.Fatalf("the walk does not end: %+v", c)
			}
		}
	})
}

func FuzzVirtio(f *testing.F) {
	f.Add([]byte{1, 1, 54, 0, 0, 5, 34, 0, 16, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		v, ok := ParseVirtio(b)
		if ok != (len(b) >= VirtioLen) {
			t.Fatalf("%d bytes: %v", len(b), ok)
		}
		if ok {
			var out [VirtioLen]byte
			v.Put(out[:])
			if !bytes.Equal(out[:], b[:VirtioLen]) {
				t.Fatalf("% x became % x", b[:VirtioLen], out)
			}
		}
	})
}

// controls is a buffer as the kernel makes it: TOS as one byte, then UDP_GRO.
func controls() []byte {
	b := make([]byte, 2*cmsgSpace4)
	data, rest := putControl(b, unix.SOL_IP, unix.IP_TOS, 1)
	data[0] = 7
	data, _ = putControl(rest, unix.SOL_UDP, unix.UDP_GRO, 4)
	binary.NativeEndian.PutUint32(data, 1400)
	return b
}

func errorControl() []byte {
	b := make([]byte, 128)
	data, rest := putControl(b, unix.SOL_IP, unix.IP_RECVERR, 32)
	binary.NativeEndian.PutUint32(data, uint32(unix.EMSGSIZE))
	data[4], data[5], data[6] = unix.SO_EE_ORIGIN_ICMP, 3, 4
	binary.NativeEndian.PutUint32(data[8:], 1400)
	sa := NewSockaddr(netip.MustParseAddrPort("192.0.2.7:0"))
	copy(data[16:], sa.raw[:16])
	return b[:len(b)-len(rest)]
}

// The messages are as x/sys/unix, an independent reader, sees them.
func TestControl(t *testing.T) {
	b := controls()
	all, err := unix.ParseSocketControlMessage(b)
	must(t, err)
	if len(all) != 2 || all[0].Header.Level != unix.SOL_IP || all[0].Header.Type != unix.IP_TOS || all[0].Data[0] != 7 ||
		all[1].Header.Type != unix.UDP_GRO || binary.NativeEndian.Uint32(all[1].Data) != 1400 {
		t.Errorf("%+v", all)
	}
	if tos, segment := parseInbox(b); tos != 7 || segment != 1400 {
		t.Errorf("TOS %d, segment %d", tos, segment)
	}
	var e SocketError
	if !parseError(errorControl(), &e) || e.MTU != 1400 || e.Offender != netip.MustParseAddr("192.0.2.7") || e.Type != 3 || e.Code != 4 {
		t.Errorf("%+v", e)
	}
}

func FuzzControl(f *testing.F) {
	f.Add(controls())
	f.Add(errorControl())
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		rest, n := b, 0
		for {
			c, next, ok := nextControl(rest)
			if !ok {
				break
			}
			if len(next) >= len(rest) || len(c.data) > len(rest) || cap(c.data) != len(c.data) {
				t.Fatalf("message %d: %d bytes of data, %d of %d left", n, len(c.data), len(next), len(rest))
			}
			rest = next
			n++
		}
		if _, segment := parseInbox(b); segment < 0 || segment > 65535 {
			t.Fatalf("segment %d", segment)
		}
		var e SocketError
		parseError(b, &e)
		auxStatus(b)
	})
}

func FuzzSockaddr(f *testing.F) {
	for _, s := range []string{"10.0.0.1:80", "[fd00::1]:8472"} {
		sa := NewSockaddr(netip.MustParseAddrPort(s))
		f.Add(sa.raw[:sa.len])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a := parseSockaddr(b)
		if a.IsValid() && !a.Addr().Is4In6() {
			sa := NewSockaddr(a)
			if sa.AddrPort() != a {
				t.Fatalf("%v became %v", a, sa.AddrPort())
			}
		}
	})
}

func TestSlab(t *testing.T) {
	s := NewSlab(1000)
	if s.Size() != 1024 || s.Left() != 1024 {
		t.Errorf("size %d, left %d", s.Size(), s.Left())
	}
	a := s.Alloc(100)
	b := s.Alloc(1)
	if misalignment(a, 64) != 0 || misalignment(b, 64) != 0 || len(a) != 100 || cap(a) != 100 || s.Left() != 1024-128-64 {
		t.Errorf("%d %d, left %d", len(a), len(b), s.Left())
	}
	c := s.Alloc(832)
	if c == nil || s.Alloc(1) != nil || s.Left() != 0 {
		t.Errorf("left %d", s.Left())
	}
	s.Trim(800)
	if s.Left() != 768 || s.Alloc(769) != nil || s.Alloc(-1) != nil || s.Alloc(math.MaxInt) != nil {
		t.Errorf("after Trim: left %d", s.Left())
	}
	s.Trim(1 << 30) // no more than the last one
	if s.Left() != 832 {
		t.Errorf("after Trim of too much: left %d", s.Left())
	}
	s.Reset()
	if s.Left() != 1024 || s.Alloc(0) == nil {
		t.Error("after Reset")
	}
}

func TestBatchLimits(t *testing.T) {
	p := NewPackets(2, 5)
	if !p.Begin(tcpSuper) || !p.Append([]byte("ab")) || !p.Append(nil) || !p.Append([]byte("c")) {
		t.Fatal("no room")
	}
	if !p.Begin(Virtio{}) || !p.Append([]byte("d")) || p.Append([]byte("e")) {
		t.Error("the fifth iovec was not the last")
	}
	if p.Begin(Virtio{}) {
		t.Error("a third of two messages")
	}
	buf := make([]byte, 10)
	if n := p.CopyTo(0, buf); string(buf[:n]) != "abc" || p.Bytes(0) != 3 || p.Virtio(0) != tcpSuper {
		t.Errorf("%q, %d bytes, %+v", buf[:n], p.Bytes(0), p.Virtio(0))
	}
	p.Drop()
	if p.Len() != 1 || !p.Begin(udpSuper) || !p.Append(nil) || p.Virtio(1) != udpSuper {
		t.Error("what was dropped left no room")
	}
	p.Drop()
	p.Drop()
	p.Drop()
	if p.Len() != 0 {
		t.Error("dropped below none")
	}

	// No message has more iovecs than the kernel takes.
	d := NewDatagrams(1, 2000)
	to := NewSockaddr(netip.MustParseAddrPort("127.0.0.1:9"))
	d.Begin(&to, 0, 0)
	n := 0
	for d.Append([]byte("x")) {
		n++
	}
	if n != maxIovecs {
		t.Errorf("%d iovecs, want %d", n, maxIovecs)
	}
}
