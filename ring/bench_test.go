//go:build linux

package ring

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// BenchmarkPacketRead is the reading side alone: what a frame costs to be read
// and released, by each kind of ring, small ones and superframes.
func BenchmarkPacketRead(b *testing.B) {
	const batch = 32
	for _, ring := range allRings {
		for _, size := range []int{64, 60000} {
			b.Run(fmt.Sprintf("%v/%d", ring, size), func(b *testing.B) {
				tx, rx := packetPair(b, PacketConfig{Ring: ring, RecvBuffer: 32 << 20, Slots: map[PacketRing]int{RingV3: 16}[ring]})
				p := NewPackets(batch, 2*batch)
				frame, v := udpFrame(size, 1), Virtio{}
				if size > 1500 {
					frame, v = tcpFrame(size, 1), tcpSuper
				}
				for range batch {
					p.Begin(v)
					p.Append(frame)
				}
				slab, fs := NewSlab(batch*FrameRoom), make([]Frame, batch)
				var reading time.Duration
				read := 0
				b.ReportAllocs()
				b.ResetTimer()
				for b.Loop() {
					if n, err := tx.Write(p, 0); n != batch || err != nil {
						b.Fatal(n, err)
					}
					for got, start := 0, time.Now(); got < batch; {
						from := time.Now()
						n, err := rx.Read(slab, fs)
						if err != nil {
							b.Fatal(err)
						}
						rx.Release()
						slab.Reset()
						if n > 0 { // V3's empty reads while its timer runs are waiting, not work
							reading += time.Since(from)
						}
						if got += n; time.Since(start) > time.Second {
							b.Fatalf("%d of %d frames", got, batch)
						}
						read += n
					}
				}
				b.ReportMetric(float64(reading.Nanoseconds())/float64(read), "ns/frame")
			})
		}
	}
}

// BenchmarkSend is sendmmsg on UDP with so many messages a call, and the same
// datagrams as UDP_SEGMENT runs; the receiver takes part in the time, as the
// kernel delivers within the call.
func BenchmarkSend(b *testing.B) {
	for _, c := range []struct{ messages, segments int }{{1, 1}, {8, 1}, {64, 1}, {1, 8}, {1, 64}, {8, 8}} {
		b.Run(fmt.Sprintf("%dx%d", c.messages, c.segments), func(b *testing.B) {
			x, y := udpPair(b)
			tx := openUDP(b, x, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.1:0")})
			rx := openUDP(b, y, UDPConfig{Local: netip.MustParseAddrPort("10.8.0.2:9000"), SendOnly: true}) // drops
			to := NewSockaddr(rx.Local())
			d := NewDatagrams(c.messages, c.messages)
			payload := make([]byte, 114*c.segments)
			for range c.messages {
				d.Begin(&to, 0, 114)
				d.Append(payload)
			}
			b.ReportAllocs()
			for b.Loop() {
				if n, err := tx.Send(d, 0); n != c.messages || err != nil {
					b.Fatal(n, err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*c.messages*c.segments), "ns/datagram")
		})
	}
}

// BenchmarkPacketWrite is sendmmsg on a packet socket with so many frames a call.
func BenchmarkPacketWrite(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		for _, size := range []int{64, 60000} {
			b.Run(fmt.Sprintf("%dx%d", n, size), func(b *testing.B) {
				x, y := newNS(b), newNS(b)
				veth(b, x, "va", y, "vb", 1500)
				var tx *PacketSocket
				x.do(func() { tx = openPacket(b, PacketConfig{Device: "va"}) })
				p := NewPackets(n, 2*n)
				frame, v := udpFrame(size, 1), Virtio{}
				if size > 1500 {
					frame, v = tcpFrame(size, 1), tcpSuper
				}
				for range n {
					p.Begin(v)
					p.Append(frame)
				}
				b.ReportAllocs()
				for b.Loop() {
					if k, err := tx.Write(p, 0); k != n || err != nil {
						b.Fatal(k, err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/frame")
			})
		}
	}
}

// BenchmarkTUN is reading and writing packets of 64 bytes of a TUN, by a system call each and by an io_uring; only the
// reads and writes are in the time a packet.
func BenchmarkTUN(b *testing.B) {
	for _, n := range []int{1, 2, 3, 4, 16, 64} {
		for _, by := range []string{"each", "uring"} {
			var u *Uring
			if by == "uring" {
				u = newUring(b)
			}
			b.Run(fmt.Sprintf("read/%s/%d", by, n), func(b *testing.B) {
				s := newTUNSource(b)
				slab, fs := NewSlab(64*FrameRoom), make([]Frame, 64)
				slab.BatchReads(u)
				var reading time.Duration
				read := 0
				for b.Loop() {
					s.send(b, n, 64)
					from := time.Now()
					slab.Reset()
					k, err := s.q.Read(slab, fs)
					reading += time.Since(from)
					if read += k; k < n || err != nil {
						b.Fatal(k, err)
					}
				}
				b.ReportMetric(float64(reading.Nanoseconds())/float64(read), "ns/packet")
			})
			b.Run(fmt.Sprintf("write/%s/%d", by, n), func(b *testing.B) {
				q, conn := tunSink(b)
				conn.Close()
				p, frame := NewPackets(n, 2*n), udpFrame(64, 1)[14:]
				p.BatchWrites(u)
				for b.Loop() {
					p.Reset()
					for range n {
						p.Begin(Virtio{})
						p.Append(frame)
					}
					if k, err := q.Write(p, 0); k != n || err != nil {
						b.Fatal(k, err)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*n), "ns/packet")
			})
		}
	}
}
