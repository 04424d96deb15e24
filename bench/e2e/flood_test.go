package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/bench/lab"
)

// A flood goes on for floodTime, as fast as one thread sends it. What is left to a legitimate flow of a thousand messages a second
// meanwhile depends on how many other programs want the two cores; that it has its share shows in that floodShare of it arrives.
const (
	floodTime  = 800 * time.Millisecond
	floodShare = 0.5
)

// flood is one kind of bad packets, as frames for a device.
type flood struct {
	name    string
	from    *lab.Host
	device  string
	frames  [][]byte
	reasons []string // most of it ends as these
	answers bool     // ICMP errors, rationed, are right
}

// TestFloods: floods of packets that are malformed, spoofed, of a stranger, of a wrong network, or for nobody, from the wire and
// from a pod, cost nothing but the CPU that they take: nobody is answered but by rationed ICMP errors, neither memory, descriptors,
// goroutines nor the log grow, the law holds, and a legitimate flow goes on.
func TestFloods(t *testing.T) {
	lab.Require(t)
	l := lab.New(t, lab.Config{Nodes: 3, YAML: []string{"workers: 2"}})
	l.Start(t)
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	av, bv, cv, bad := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth), c.AddPod(t, lab.Veth), a.AddPod(t, lab.Veth)
	pingBoth(t, &av.Host, &bv.Host)
	pingBoth(t, &av.Host, &cv.Host)
	pingBoth(t, &bad.Host, &bv.Host)
	stranger := netip.MustParseAddr("192.0.2.77")
	answers, err := a.Capture("eth0", func(frame []byte) bool {
		ip := lab.IPPayload(frame)
		return len(ip) >= 20 && ip[0]>>4 == 4 && netip.AddrFrom4([4]byte(ip[16:20])) == stranger
	})
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	settled(t, a)
	first := read(t, a.Daemon)
	lines := len(logged(t, a.Daemon.Process))
	for _, f := range floods(t, a, c, av, cv, bad, stranger) {
		t.Run(f.name, func(t *testing.T) {
			before := a.Daemon.AtRest(t)
			sink, err := av.ReceiveStream(0)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			ctx, cancel := context.WithTimeout(t.Context(), floodTime)
			defer cancel()
			type result struct {
				n   uint64
				err error
			}
			flooded := make(chan result, 1)
			go func() {
				n, err := f.from.Flood(ctx, f.device, f.frames)
				flooded <- result{n, err}
			}()
			sent, err := bv.SendStream(ctx, netip.AddrPortFrom(av.IP4, sink.Port()), lab.Stream{Count: 1 << 30, Rate: 1000})
			if err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			r := <-flooded
			if r.err != nil {
				t.Fatal(r.err)
			}
			got := sink.WaitFor(sent, time.Second)
			drops := a.Daemon.AssertConserved(t).Sub(before)
			n := uint64(0)
			for _, reason := range f.reasons {
				n += drops.Dropped()[reason]
			}
			t.Logf("%d bad packets, of which %d were dropped as %v; %d of %d messages arrived; all drops: %v", r.n, n, f.reasons, got.Received, sent, nonZero(drops.Dropped()))
			if n < 100 || n < sum(drops.Dropped())/2 {
				t.Errorf("%d of %v", n, nonZero(drops.Dropped()))
			}
			if float64(got.Received) < floodShare*float64(sent) || got.Corrupt+got.Duplicated+got.Reordered > 0 {
				t.Errorf("of %d messages of a legitimate flow: %+v", sent, got)
			}
			icmp := drops.Sum("penstock_generated_packets_total", "kind", "icmp")
			most := 2 * (20 + 100*2*floodTime.Seconds()) // two workers, one source; the clock of a busy machine may run on
			if !f.answers {
				most = 0
			}
			if icmp > most {
				t.Errorf("%v ICMP errors, %v at most were right", icmp, most)
			}
		})
	}
	if frames := answers.Frames(); len(frames) > 0 {
		t.Errorf("%d frames to the stranger, the first % x", len(frames), frames[0])
	}
	if n := len(logged(t, a.Daemon.Process)) - lines; n > 4 {
		t.Errorf("the floods made %d lines of log:\n%s", n, a.Daemon.Process.Output())
	}
	last := read(t, a.Daemon)
	t.Logf("before: %v; after: %v", first, last)
	if last.files > first.files+2 || last.goroutines > first.goroutines+2 || !raced() && last.rssKiB > first.rssKiB+16<<10 {
		t.Errorf("grown: %v, then %v", first, last)
	}
	conserved(t, l)
}

func sum(m map[string]uint64) (all uint64) {
	for _, n := range m {
		all += n
	}
	return all
}

// floods are the kinds. Each has some hundred packets that differ, so that nothing that caches can know them.
func floods(t *testing.T, a, c *lab.Node, av, cv, bad *lab.Pod, stranger netip.Addr) []flood {
	rnd := rand.New(rand.NewPCG(7, 7))
	ether := func(dst, src []byte, ip []byte) []byte {
		kind := uint16(unix.ETH_P_IP)
		if ip[0]>>4 == 6 {
			kind = unix.ETH_P_IPV6
		}
		return append(binary.BigEndian.AppendUint16(append(bytes.Clone(dst), src...), kind), ip...)
	}
	macA, macC := must(a.MAC("eth0")), must(c.MAC("eth0"))
	outer := func(from netip.Addr, vni uint32, inner []byte) []byte {
		b := []byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
		b = append(append(append(b, a.VTEPMAC...), c.VTEPMAC...), 8, 0)
		return ether(macA, macC, ipPacket(from, a.IP4, unix.IPPROTO_UDP, 64, 0, nil, udpTo(from, a.IP4, 8472, append(b, inner...))))
	}
	inner := func(src, dst netip.Addr, ttl byte) []byte {
		return ipPacket(src, dst, unix.IPPROTO_UDP, ttl, 0, nil, udpTo(src, dst, badPort, nextPayload(40+rnd.IntN(400))))
	}
	broken := func(ip []byte) []byte {
		ip = bytes.Clone(ip)
		switch rnd.IntN(4) {
		case 0:
			ip[0] = 0x40 | byte(rnd.IntN(5))
		case 1:
			binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+1+rnd.IntN(2000)))
		case 2:
			ip[10] ^= 0x55
		case 3:
			ip = ip[:20+rnd.IntN(7)]
			binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
			fixIP(ip)
		}
		return ip
	}
	many := func(make func(i int) []byte) (frames [][]byte) {
		for i := range 256 {
			frames = append(frames, make(i))
		}
		return frames
	}
	pod := func(ip []byte) []byte { return ether([]byte{0xee, 0xee, 0xee, 0xee, 0xee, 0xee}, bad.MAC, ip) }
	address := func(i int) netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(99 + i%2), byte(i), byte(rnd.IntN(250) + 1)})
	}
	malformed := []string{"bad_header_length", "bad_total_length", "bad_ip_checksum", "bad_l4", "short"}
	wire := func(name string, answers bool, frame func(i int) []byte, reasons ...string) flood {
		return flood{name, &c.Host, "eth0", many(frame), reasons, answers}
	}
	from := func(name string, answers bool, ip func(i int) []byte, reasons ...string) flood {
		return flood{name, &bad.Host, "eth0", many(func(i int) []byte { return pod(ip(i)) }), reasons, answers}
	}
	return []flood{
		wire("wire, unknown peer", false, func(int) []byte { return outer(stranger, 1, inner(cv.IP4, av.IP4, 64)) }, "unknown_peer"),
		wire("wire, wrong VNI", false, func(i int) []byte { return outer(c.IP4, uint32(i+2), inner(cv.IP4, av.IP4, 64)) }, "wrong_vni"),
		wire("wire, malformed", false, func(int) []byte { return outer(c.IP4, 1, broken(inner(cv.IP4, av.IP4, 64))) }, malformed...),
		wire("wire, spoofed", false, func(i int) []byte { return outer(c.IP4, 1, inner(address(i), av.IP4, 64)) }, "inner_source"),
		wire("wire, for pods that are not there", true, func(i int) []byte {
			return outer(c.IP4, 1, inner(cv.IP4, netip.AddrFrom4([4]byte{10, 244, 1, byte(100 + i%100)}), 64))
		}, "no_pod"),
		from("pod, spoofed", false, func(i int) []byte { return inner(address(i), cv.IP4, 64) }, "spoofed"),
		from("pod, malformed", false, func(int) []byte { return broken(inner(bad.IP4, cv.IP4, 64)) }, malformed...),
		from("pod, for the tunnel", false, func(int) []byte {
			return ipPacket(bad.IP4, c.IP4, unix.IPPROTO_UDP, 64, 0, nil, udpTo(bad.IP4, c.IP4, 8472, nextPayload(100)))
		}, "tunnel_loop"),
		from("pod, to nobody", true, func(i int) []byte {
			return inner(bad.IP4, netip.AddrFrom4([4]byte{10, 244, byte(100 + i%100), byte(i)}), 64)
		}, "no_route"),
		from("pod, dying", true, func(i int) []byte { return inner(bad.IP4, cv.IP4, byte(i%2)) }, "ttl_expired"),
	}
}
