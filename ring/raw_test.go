//go:build linux

package ring

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

func openRaw(t testing.TB, ns *testNS, cfg RawConfig) *Raw {
	t.Helper()
	var r *Raw
	ns.do(func() {
		var err error
		r, err = OpenIPIP(cfg)
		must(t, err)
	})
	t.Cleanup(func() { r.Close() })
	return r
}

// innerPacket is the start of an inner packet of either version, as far as the
// share filter looks, and a number behind it.
func innerPacket(proto int, src, dst uint32, number int) []byte {
	if proto == unix.IPPROTO_IPIP {
		b := make([]byte, 24)
		b[0] = 0x45
		binary.BigEndian.PutUint32(b[12:], src)
		binary.BigEndian.PutUint32(b[16:], dst)
		binary.BigEndian.PutUint32(b[20:], uint32(number))
		return b
	}
	b := make([]byte, 44)
	b[0] = 0x60
	binary.BigEndian.PutUint32(b[20:], src)
	binary.BigEndian.PutUint32(b[36:], dst)
	binary.BigEndian.PutUint32(b[40:], uint32(number))
	return b
}

// Each packet reaches exactly one of N workers, both directions of a flow the
// same one, and what is too short for addresses the first.
func TestIPIPShare(t *testing.T) {
	for _, proto := range []int{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
		for _, workers := range []int{1, 2, 3, 8} {
			a, b := udpPair(t)
			local := netip.MustParseAddr("10.8.0.2")
			group := make([]*Raw, workers)
			for i := range group {
				group[i] = openRaw(t, b, RawConfig{Local: local, Proto: proto, Worker: i, Workers: workers, RecvBuffer: 8 << 20})
			}
			tx := openRaw(t, a, RawConfig{Local: netip.MustParseAddr("10.8.0.1"), Proto: proto, SendOnly: true, SendBuffer: 8 << 20})
			to := NewSockaddr(netip.AddrPortFrom(local, 0))
			const flows = 256
			d := NewDatagrams(2*flows+1, 2*flows+1)
			for i := range flows {
				src, dst := rand.Uint32(), rand.Uint32()
				d.Begin(&to, 0xb9, 0)
				d.Append(innerPacket(proto, src, dst, 2*i))
				d.Begin(&to, 0xb9, 0)
				d.Append(innerPacket(proto, dst, src, 2*i+1))
			}
			d.Begin(&to, 0xb9, 0)
			d.Append([]byte("short"))
			if n, err := tx.Send(d, 0); n != d.Len() || err != nil {
				t.Fatal(n, err)
			}
			owner := map[int]int{}
			in, total := NewInbox(32, 100), 0
			eventually(t, "all packets received", func() bool {
				for w, r := range group {
					n, err := r.Recv(in)
					must(t, err)
					total += n
					for i := range n {
						g := in.Datagram(i)
						if g.TOS != 0xb9 || g.From != netip.MustParseAddrPort("10.8.0.1:0") || g.Data[0] != 0x45 || int(g.Data[9]) != proto {
							t.Fatalf("TOS %#x from %v, outer header % x", g.TOS, g.From, g.Data[:20])
						}
						if g.Data[6]&0x40 == 0 {
							t.Fatal("DF is not set")
						}
						inner := g.Data[20:]
						if string(inner) == "short" {
							if w != 0 {
								t.Errorf("the short packet reached worker %d", w)
							}
							continue
						}
						number := int(binary.BigEndian.Uint32(inner[len(inner)-4:]))
						if was, twice := owner[number]; twice {
							t.Fatalf("packet %d reached workers %d and %d", number, was, w)
						}
						owner[number] = w
					}
				}
				return total >= d.Len()
			})
			share := make([]int, workers)
			for i := range flows {
				if owner[2*i] != owner[2*i+1] {
					t.Errorf("flow %d: one way to worker %d, the other to %d", i, owner[2*i], owner[2*i+1])
				}
				share[owner[2*i]]++
			}
			for w, n := range share {
				if n == 0 || n > 3*flows/workers {
					t.Errorf("protocol %d: worker %d of %d has %d of %d flows", proto, w, workers, n, flows)
				}
			}
		}
	}
}

// The filters of a group partition whatever bytes come: checked in the package's
// own virtual machine, outer options included.
func TestShareFilterPartition(t *testing.T) {
	for _, proto := range []int{unix.IPPROTO_IPIP, unix.IPPROTO_IPV6} {
		const workers = 5
		var vms [workers]*bpf.VM
		for i := range vms {
			var err error
			vms[i], err = bpf.NewVM(shareFilter(proto, i, workers))
			must(t, err)
		}
		for range 2000 {
			ihl := 5 + rand.IntN(11)
			p := make([]byte, ihl*4+rand.IntN(60))
			for i := range p {
				p[i] = byte(rand.Uint32())
			}
			p[0] = 0x40 | byte(ihl)
			taken := 0
			for _, vm := range vms {
				n, err := vm.Run(p)
				must(t, err)
				if n != 0 && n < len(p) {
					t.Fatalf("a packet of %d bytes is cut to %d", len(p), n)
				}
				if n != 0 {
					taken++
				}
			}
			if taken != 1 {
				t.Fatalf("a packet of %d bytes with %d of outer header is taken by %d workers", len(p), ihl*4, taken)
			}
		}
	}
}

// Protocols do not mix, the error queue works, and too long is too long.
func TestIPIPErrors(t *testing.T) {
	a, b := udpPair(t)
	local, peer := netip.MustParseAddr("10.8.0.1"), netip.MustParseAddr("10.8.0.2")
	four := openRaw(t, a, RawConfig{Local: local, Proto: 4, Errors: true})
	six := openRaw(t, a, RawConfig{Local: local, Proto: 41})
	if four.Local() != netip.AddrPortFrom(local, 0) {
		t.Errorf("Local: %v", four.Local())
	}
	poller, err := NewPoller()
	must(t, err)
	defer poller.Close()
	must(t, poller.Add(four.FD(), 1))
	to := NewSockaddr(netip.AddrPortFrom(peer, 0))
	d := NewDatagrams(3, 3)
	inner := innerPacket(4, 1, 2, 3)
	d.Begin(&to, 0, 0) // nobody listens there: protocol unreachable
	d.Append(inner)
	d.Begin(&to, 0, 0)
	d.Append(make([]byte, 1490))
	if n, err := four.Send(d, 0); n != 1 || !errors.Is(err, unix.EMSGSIZE) {
		t.Fatalf("Send: %d, %v; want 1, EMSGSIZE", n, err)
	}
	var ev [1]Event
	if n, _ := poller.Wait(ev[:], 2000); n != 1 || !ev[0].Error() {
		t.Fatal("no error event")
	}
	var unreachable bool
	eventually(t, "protocol unreachable", func() bool {
		four.Errors(func(e *SocketError) {
			if e.Origin == OriginICMP && e.Type == 3 && e.Code == 2 && e.Peer.Addr() == peer && e.Offender == peer && bytes.Equal(e.Quoted, inner) {
				unreachable = true
			} else if e.Origin != OriginLocal || e.MTU != 1500 {
				t.Errorf("error: %+v", e)
			}
		})
		return unreachable
	})
	// From the other side, each protocol to its socket.
	other := openRaw(t, b, RawConfig{Local: peer, Proto: 41})
	back := NewSockaddr(netip.AddrPortFrom(local, 0))
	d.Reset()
	d.Begin(&back, 0, 0)
	d.Append(innerPacket(41, 1, 2, 3))
	if n, err := other.Send(d, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	receive(t, six, NewInbox(1, 100), 1)
	if n, err := four.Recv(NewInbox(1, 100)); n != 0 || err != nil {
		t.Errorf("protocol 4 received %d packets of protocol 41, %v", n, err)
	}
	for _, cfg := range []RawConfig{{Local: netip.IPv6Loopback(), Proto: 4}, {Local: local, Proto: 17}, {Local: local, Proto: 4, Worker: 2, Workers: 2}} {
		if r, err := OpenIPIP(cfg); err == nil {
			r.Close()
			t.Errorf("%+v: no error", cfg)
		}
	}
}

func TestIPIPAllocs(t *testing.T) {
	a, b := udpPair(t)
	tx := openRaw(t, a, RawConfig{Local: netip.MustParseAddr("10.8.0.1"), Proto: 4})
	rx := openRaw(t, b, RawConfig{Local: netip.MustParseAddr("10.8.0.2"), Proto: 4})
	to := NewSockaddr(netip.MustParseAddrPort("10.8.0.2:0"))
	d, in, inner := NewDatagrams(4, 8), NewInbox(8, 65535), innerPacket(4, 1, 2, 3)
	received := 0
	noAllocs(t, "IPIP send and receive", func() {
		d.Reset()
		for range 4 {
			d.Begin(&to, 1, 0)
			d.Append(inner)
		}
		if _, err := tx.Send(d, 0); err != nil {
			t.Fatal(err)
		}
		n, err := rx.Recv(in)
		if err != nil {
			t.Fatal(err)
		}
		received += n
	})
	if received < 100 {
		t.Errorf("only %d packets", received)
	}
}
