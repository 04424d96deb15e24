package e2e

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
	"golang.org/x/sys/unix"
)

// badAnswer is the ICMP error that a case expects at its sender.
type badAnswer struct {
	kind, code byte
	mtu        int
	from       netip.Addr
}

// The answers of a router, in both families.
func netUnreachable(v6 bool, from netip.Addr) *badAnswer {
	if v6 {
		return &badAnswer{1, 0, 0, from}
	}
	return &badAnswer{3, 0, 0, from}
}

func hostUnreachable(v6 bool, from netip.Addr) *badAnswer {
	if v6 {
		return &badAnswer{1, 3, 0, from}
	}
	return &badAnswer{3, 1, 0, from}
}

func timeExceeded(v6 bool, from netip.Addr) *badAnswer {
	if v6 {
		return &badAnswer{3, 0, 0, from}
	}
	return &badAnswer{11, 0, 0, from}
}

func packetTooBig(v6 bool, from netip.Addr, mtu int) *badAnswer {
	if v6 {
		return &badAnswer{2, 0, mtu, from}
	}
	return &badAnswer{3, 4, mtu, from}
}

// badCase is one packet that goes in and how it must end.
type badCase struct {
	name   string
	packet []byte                      // as its sender sends it; an ICMP error quotes it
	send   func(packet []byte) error   // nil: the suite's
	drops  map[*lab.Node]string        // who drops it, as what
	count  uint64                      // frames dropped; 0: one
	answer *badAnswer                  // what its sender must hear; nil: nothing
	at     *lab.Host                   // who that is, if not the suite's
	comes  *lab.Host                   // who must receive it instead (no drop)
	as     func(got, sent []byte) bool // how it must look there; nil: as it was sent, but for TTL and IPv4 header checksum
}

// badSuite sends bad packets and keeps the account of them.
type badSuite struct {
	t        *testing.T
	l        *lab.Lab
	watch    []*watched
	before   map[*lab.Node]lab.Metrics
	want     map[*lab.Node]map[string]uint64
	answers  map[*lab.Node]uint64
	expected map[[2]any]bool // case and host: who may have captured what
	arrived  map[int]*lab.Host
	first    int // smallest number of a case of this suite: reassembly gives up earlier ones' fragments much later
}

// watched is a host whose device is captured.
type watched struct {
	host    *lab.Host
	capture *lab.Capture
}

// badNoise are drops that go on by themselves: kernels speak neighbour and multicast listener discovery.
var badNoise = []string{"multicast", "answered"}

// newBadSuite watches hosts: whatever carries the marker is recorded on each of their devices.
func newBadSuite(t *testing.T, l *lab.Lab, hosts ...*lab.Host) *badSuite {
	s := &badSuite{t: t, l: l, before: map[*lab.Node]lab.Metrics{}, want: map[*lab.Node]map[string]uint64{}, answers: map[*lab.Node]uint64{}, expected: map[[2]any]bool{}, arrived: map[int]*lab.Host{}, first: int(caseNumber.Load()) + 1}
	for _, h := range hosts {
		s.add(h, h.Device)
	}
	for _, n := range l.Nodes {
		if n.Daemon != nil {
			s.before[n] = n.Daemon.AtRest(t)
			s.want[n] = map[string]uint64{}
		}
	}
	return s
}

func (s *badSuite) add(h *lab.Host, device string) {
	c, err := h.Capture(device, func(frame []byte) bool { return idOf(frame) >= 0 })
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	s.watch = append(s.watch, &watched{h, c})
}

func (s *badSuite) of(h *lab.Host) *watched {
	for _, w := range s.watch {
		if w.host == h {
			return w
		}
	}
	s.t.Fatalf("nobody watches %s", h.Name)
	return nil
}

// ipOf is the IP packet in a captured frame.
func (w *watched) ipOf(frame []byte) []byte {
	if w.host.Device == "eth0" && len(frame) > 14 {
		if kind := binary.BigEndian.Uint16(frame[12:]); kind == unix.ETH_P_IP && frame[14]>>4 == 4 || kind == unix.ETH_P_IPV6 && frame[14]>>4 == 6 {
			return frame[14:]
		}
	}
	return lab.IPPayload(frame)
}

// run sends each case and waits until it has ended as it must. sender hears the answers; id of case i is base+i.
func (s *badSuite) run(sender *lab.Host, send func([]byte) error, cases []badCase) {
	s.t.Helper()
	for _, c := range cases {
		s.one(sender, send, c)
	}
}

func (s *badSuite) one(sender *lab.Host, send func([]byte) error, c badCase) {
	s.t.Helper()
	if c.send != nil {
		send = c.send
	}
	if c.at != nil {
		sender = c.at
	}
	before := map[*lab.Node]lab.Metrics{}
	for n, reason := range c.drops {
		before[n] = n.Daemon.Metrics(s.t)
		s.want[n][reason] += max(c.count, 1)
	}
	id := idOf(c.packet)
	if err := send(c.packet); err != nil {
		s.t.Errorf("%s: %v", c.name, err)
		for n, reason := range c.drops {
			s.want[n][reason] -= max(c.count, 1)
		}
		return
	}
	s.awaitDrops(c, before)
	if c.answer != nil {
		s.answers[s.answerer(c)]++
		s.expected[[2]any{id, sender}] = true
		s.awaitAnswer(c, id, sender)
	}
	if c.comes != nil {
		s.expected[[2]any{id, c.comes}], s.arrived[id] = true, c.comes
		s.awaitArrival(c, id)
	}
}

// answerer is the node that drops the case and so answers it.
func (s *badSuite) answerer(c badCase) *lab.Node {
	for n := range c.drops {
		return n
	}
	s.t.Fatalf("%s: an answer to what nobody drops", c.name)
	return nil
}

// awaitDrops waits for the case's drops. A case that ends otherwise is reported here, by name, and then taken as it
// was, so that it does not spoil the account of the next.
func (s *badSuite) awaitDrops(c badCase, before map[*lab.Node]lab.Metrics) {
	s.t.Helper()
	for n, reason := range c.drops {
		noise := reason == "multicast" || reason == "answered"
		for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
			m := n.Daemon.Metrics(s.t)
			if noise {
				if m.Sub(before[n]).Dropped()[reason] >= max(c.count, 1) {
					break
				}
			} else if maps.Equal(s.quiet(m.Sub(s.before[n]).Dropped()), s.quiet(s.want[n])) {
				break
			}
			if time.Now().After(deadline) {
				got := s.quiet(m.Sub(before[n]).Dropped())
				s.t.Errorf("%s: %s dropped %v, and should have dropped %d as %s", c.name, n.Name, got, max(c.count, 1), reason)
				s.want[n] = s.quiet(m.Sub(s.before[n]).Dropped())
				break
			}
		}
	}
}

func (s *badSuite) quiet(m map[string]uint64) map[string]uint64 {
	m = maps.Clone(m)
	for _, r := range badNoise {
		delete(m, r)
	}
	maps.DeleteFunc(m, func(_ string, n uint64) bool { return n == 0 })
	return m
}

// await polls the capture of h until pick likes a packet.
func (s *badSuite) await(h *lab.Host, pick func(ip []byte) bool) bool {
	w := s.of(h)
	for deadline, seen := time.Now().Add(patience), 0; ; time.Sleep(time.Millisecond) {
		frames := w.capture.Frames()
		for ; seen < len(frames); seen++ {
			if ip := w.ipOf(frames[seen]); ip != nil && pick(ip) {
				return true
			}
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

// icmpErrorTo is the ICMP error in a packet to a, and its checksum is right.
func icmpErrorTo(ip []byte, to netip.Addr) (kind, code byte, mtu int, from netip.Addr, quoted []byte, ok bool) {
	switch {
	case len(ip) >= 28 && ip[0]>>4 == 4 && ip[9] == unix.IPPROTO_ICMP:
		from = netip.AddrFrom4([4]byte(ip[12:16]))
		head := int(ip[0]&15) * 4 // a host echoes the options of the packet that it complains about
		if head < 20 || len(ip) < head+8 || netip.AddrFrom4([4]byte(ip[16:20])) != to ||
			int(binary.BigEndian.Uint16(ip[2:])) != len(ip) || onesSum(ip[:head], 0) != 0xffff || onesSum(ip[head:], 0) != 0xffff {
			return
		}
		m := ip[head:]
		if m[0] != 3 && m[0] != 11 && m[0] != 12 {
			return
		}
		return m[0], m[1], int(binary.BigEndian.Uint16(m[6:])), from, m[8:], true
	case len(ip) >= 48 && ip[0]>>4 == 6 && ip[6] == unix.IPPROTO_ICMPV6:
		from = netip.AddrFrom16([16]byte(ip[8:24]))
		if netip.AddrFrom16([16]byte(ip[24:40])) != to || ip[40] == 0 || ip[40] >= 128 || int(binary.BigEndian.Uint16(ip[4:])) != len(ip)-40 ||
			onesSum(ip[40:], uint32(onesSum(ip[8:40], unix.IPPROTO_ICMPV6+uint32(len(ip)-40)))) != 0xffff {
			return
		}
		return ip[40], ip[41], int(binary.BigEndian.Uint32(ip[44:])), from, ip[48:], true
	}
	return
}

// awaitAnswer checks every field of the ICMP error that the sender must hear.
func (s *badSuite) awaitAnswer(c badCase, id int, sender *lab.Host) {
	s.t.Helper()
	v6 := c.packet[0]>>4 == 6
	to := netip.Addr{}
	if v6 {
		to = netip.AddrFrom16([16]byte(c.packet[8:24]))
	} else {
		to = netip.AddrFrom4([4]byte(c.packet[12:16]))
	}
	ok := s.await(sender, func(ip []byte) bool {
		kind, code, mtu, from, quoted, ok := icmpErrorTo(ip, to)
		if !ok || idOf(quoted) != id {
			return false
		}
		limit := 576 - 28 // RFC 1812 4.3.2.3
		if v6 {
			limit = 1280 - 48 // RFC 4443 2.4(c)
		}
		want := c.packet[:min(len(c.packet), limit)]
		if kind != c.answer.kind || code != c.answer.code || mtu != c.answer.mtu || from != c.answer.from {
			s.t.Errorf("%s: answered by type %d code %d MTU %d from %s, want %+v", c.name, kind, code, mtu, from, *c.answer)
		}
		// As received, but for what forwarding has changed before the error was found (RFC 1812 4.3.2.3).
		if len(quoted) != len(want) || !sameButTTL(quoted, want) {
			s.t.Errorf("%s: the answer quotes %d bytes\n%.80x, want %d\n%.80x", c.name, len(quoted), quoted, len(want), want)
		}
		return true
	})
	if !ok {
		s.t.Errorf("%s: no answer to %s at %s, want %+v", c.name, to, sender.Name, *c.answer)
	}
}

// sameButTTL compares a packet with what was sent, but for what a router changes.
func sameButTTL(got, sent []byte) bool {
	got, sent = bytes.Clone(got), bytes.Clone(sent)
	for _, b := range [][]byte{got, sent} {
		if b[0]>>4 == 4 {
			if onesSum(b[:int(b[0]&15)*4], 0) != 0xffff {
				return false
			}
			b[8], b[10], b[11] = 0, 0, 0
		} else {
			b[7] = 0
		}
	}
	return bytes.Equal(got, sent)
}

func (s *badSuite) awaitArrival(c badCase, id int) {
	s.t.Helper()
	as := c.as
	if as == nil {
		as = sameButTTL
	}
	var last []byte
	if !s.await(c.comes, func(ip []byte) bool {
		if idOf(ip) != id {
			return false
		}
		last = ip
		return as(ip, c.packet)
	}) {
		s.t.Errorf("%s: did not arrive at %s as it should; sent\n%.100x\ncaptured\n%.100x", c.name, c.comes.Name, c.packet, last)
	}
}

// end checks the whole account: every drop, every answer, and that nothing was captured where it must not be.
func (s *badSuite) end() {
	s.t.Helper()
	for n, want := range s.want {
		n.Daemon.AssertDrops(s.t, s.before[n], s.quiet(want), badNoise...)
		m := n.Daemon.Metrics(s.t).Sub(s.before[n])
		if got := m.Sum("penstock_generated_packets_total", "kind", "icmp"); got != float64(s.answers[n]) {
			s.t.Errorf("%s answered %.0f times by ICMP, and should have answered %d times", n.Name, got, s.answers[n])
		}
	}
	for _, w := range s.watch {
		for _, frame := range w.capture.Frames() {
			id, ip := idOf(frame), w.ipOf(frame)
			if id < s.first || s.expected[[2]any{id, w.host}] || w.sentIt(frame, ip) || s.reaction(id, ip) {
				continue
			}
			s.t.Errorf("%s captured what must not come: case %d, frame %.100x", w.host.Name, id, frame)
		}
	}
}

// reaction reports an ICMP error of the host that a packet was for, and reached: nobody listens there.
func (s *badSuite) reaction(id int, ip []byte) bool {
	h := s.arrived[id]
	if h == nil {
		return false
	}
	for _, to := range s.watch {
		for _, a := range []netip.Addr{to.host.IP4, to.host.IP6} {
			if _, _, _, from, _, ok := icmpErrorTo(ip, a); ok && (from == h.IP4 || from == h.IP6) {
				return true
			}
		}
	}
	return false
}

// sentIt reports frames that the host's own device sent: captures see both directions. On a TUN they are known by
// what no case changes: nobody sends to himself.
func (w *watched) sentIt(frame, ip []byte) bool {
	if w.mac() != nil {
		return !bytes.Equal(frame[:6], w.mac()) && frame[0] != 0xff
	}
	for _, a := range []netip.Addr{w.host.IP4, w.host.IP6} {
		if !a.IsValid() {
			continue
		}
		if a.Is4() && len(ip) >= 20 && ip[0]>>4 == 4 && bytes.Equal(ip[16:20], a.AsSlice()) ||
			a.Is6() && len(ip) >= 40 && ip[0]>>4 == 6 && bytes.Equal(ip[24:40], a.AsSlice()) {
			return false
		}
	}
	return true
}

func (w *watched) mac() net.HardwareAddr {
	mac, err := w.host.MAC(w.host.Device)
	if err != nil || len(mac) == 0 {
		return nil
	}
	return mac
}

// named is the name of a case, with its family.
func named(v6 bool, format string, args ...any) string {
	return family(v6) + " " + fmt.Sprintf(format, args...)
}

// listenUDP opens a plain socket inside h.
func listenUDP(h *lab.Host, at netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return c, err
}
