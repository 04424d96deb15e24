package native

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/penstock-net/penstock/encap"
)

// An honest sender's burst, of which the network loses and turns around what it likes.
func FuzzStream(f *testing.F) {
	f.Add(uint64(1), uint16(1400), []byte{0, 1, 2, 3})
	f.Add(uint64(2), uint16(8900), []byte{3, 2, 2, 0xff})
	f.Add(uint64(3), uint16(1024), []byte{})
	f.Fuzz(func(t *testing.T, seed uint64, size uint16, order []byte) {
		n := max(int(size), MinPiece)
		r := rand.New(rand.NewPCG(seed, 2))
		burst, frames := randomBurst(t, r, n)
		ps := cut(burst, n, 5, uint32(seed))
		s, pool := &Stream{Size: n}, NewBuffers(1)
		has := make([]bool, len(burst))
		seen := map[int]bool{}
		var out []got
		for _, o := range order {
			p := ps[int(o)%len(ps)]
			var v Verdict
			ended := len(seen) == len(ps)
			out, v = add(t, s, p, pool, out)
			if want := map[bool]Verdict{false: Added, true: Duplicate}[seen[p.Offset] || ended]; v != want {
				t.Fatalf("verdict %d, want %d", v, want)
			}
			seen[p.Offset] = true
			for i := range p.Data {
				has[p.Offset+i] = true
			}
		}
		s.Finish()
		out = drain(t, s, out)
		check(t, out, frames, burst, n, has)
	})
}

// A hostile sender: each piece is seven bytes of header and what it says of the rest. The first one says where in the stream it begins, near
// or, by its upper bits, far away, and whether the stream is to begin anew.
func FuzzHostile(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	burst, _ := randomBurst(f, r, 1024)
	var seed []byte
	for _, p := range cut(burst, 1024, 0, 0)[:3] {
		seed = binary.BigEndian.AppendUint16(append(seed, 0), uint16(p.Length))
		seed = binary.BigEndian.AppendUint16(seed, uint16(p.Offset))
		seed = append(binary.BigEndian.AppendUint16(seed, uint16(len(p.Data))), p.Data...)
	}
	f.Add(uint16(1024), seed)
	f.Add(uint16(1024), append(bytes.Clone(seed), bytes.ReplaceAll(seed, []byte{0, byte(len(burst) >> 8), byte(len(burst))}, []byte{0x40, byte(len(burst) >> 8), byte(len(burst))})...))
	f.Add(uint16(2000), []byte{1, 0, 40, 0, 0, 0, 40, 2, 0, 30, 5, 0x78})
	f.Fuzz(func(t *testing.T, size uint16, b []byte) {
		s, pool := &Stream{Size: int(size)}, NewBuffers(2)
		for len(b) >= 7 {
			if b[0] == 0xff && !s.Incomplete() {
				s.Renew()
			}
			p := Piece{Start: uint32(b[0]&31)*997 + uint32(b[0]>>5)<<29, Length: int(binary.BigEndian.Uint16(b[1:])), Offset: int(binary.BigEndian.Uint16(b[3:]))}
			n := min(int(binary.BigEndian.Uint16(b[5:])), len(b)-7)
			p.Data, b = bytes.Clone(b[7:7+n]), b[7+n:]
			if !p.fits() {
				continue
			}
			for v := Again; v == Again; {
				v = s.Add(p, pool)
				hostile(t, s)
				pool.Reclaim()
			}
		}
		s.Finish()
		hostile(t, s)
		pool.Reclaim()
		if s.Incomplete() || len(pool.free)+pool.left != 2 {
			t.Fatal("memory is not given back")
		}
	})
}

// hostile takes what Next gives as a forwarder does.
func hostile(t *testing.T, s *Stream) {
	var f Frame
	for n := 0; s.Next(&f); n++ {
		if n > MaxBurst/3 {
			t.Fatal("Next does not end")
		}
		var p encap.Packet
		if f.Kind == Lost || f.Kind == Bad || encap.Parse(f.IP, &p) != encap.OK {
			continue
		}
		v, ok := f.Virtio(&p)
		if !ok || v.Check(f.IP, &p) != encap.OK {
			continue
		}
		switch {
		case v.IsGSO():
			var cut encap.Segments
			if cut.Init(f.IP, &p, v) == encap.OK {
				h := make([]byte, cut.HeaderLen())
				for _, ok := cut.Next(h); ok; _, ok = cut.Next(h) {
				}
			}
		default:
			encap.Complete(f.IP, &p, &v)
		}
	}
}

// What the kernel's and NICs' segmentation leaves of a header says where its piece belongs.
func FuzzParseTCP(f *testing.F) {
	var h [TCPLen + 4]byte
	PutTCP(h[:], 0x8001, 7471, 0xfffffff0, 4000, 1000)
	f.Add(h[:])
	PutTCP(h[:], 0x8001, 7471, 9, 0, 0)
	f.Add(h[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := ParseTCP(b)
		if !ok {
			return
		}
		if p.Length > 0 && !p.fits() {
			t.Fatalf("%+v does not fit its burst", p)
		}
		var again [TCPLen]byte
		PutTCP(again[:], p.Tag, binary.BigEndian.Uint16(b[2:]), p.Start, p.Length, p.Offset)
		again[13] |= b[13] & 8
		copy(again[16:18], b[16:18])
		if !bytes.Equal(again[:], b[:TCPLen]) {
			t.Fatalf("%x is read as %+v, which is written %x", b[:TCPLen], p, again)
		}
	})
}

func FuzzParseUDP(f *testing.F) {
	var h [UDPLen + 4]byte
	PutUDP(h[:], 0x8001, 0xfffffff0, 4000, 1000)
	f.Add(h[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		p, ok := ParseUDP(b)
		switch {
		case !ok:
		case p.Length == 0:
			if len(p.Data) != len(b) {
				t.Fatal("a message is cut")
			}
		default:
			var again [UDPLen]byte
			PutUDP(again[:], p.Tag, p.Start, p.Length, p.Offset)
			if !p.fits() || !bytes.Equal(again[:], b[:UDPLen]) {
				t.Fatalf("%x is read as %+v", b[:UDPLen], p)
			}
		}
	})
}

func FuzzMessage(f *testing.F) {
	var b [MessageLen]byte
	m := Message{Kind: Hello, Carriers: TCP | UDP, MinVersion: 1, MaxVersion: 2, From: 1, Nonce: 3, FirstTag: 0x8000, Streams: 2, PieceTCP: 1460, PieceUDP: 1448, Network: 1}
	m.Put(b[:])
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := ParseMessage(b)
		if !ok {
			if m != (Message{}) {
				t.Fatal("half a message")
			}
			return
		}
		var again [MessageLen]byte
		m.Put(again[:])
		again[1] = b[1] // carriers that a later version knows are left out
		if !bytes.Equal(again[:], b[:MessageLen]) {
			t.Fatalf("%x is read as %+v", b[:MessageLen], m)
		}
	})
}
