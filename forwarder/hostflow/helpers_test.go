package hostflow

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

// memory is a Sink, and what workers write to.
type memory struct {
	mu      sync.Mutex
	flows   map[Tuple]bool
	log     []string
	onKnown func() // called when Known begins, without the lock
	local   func(netip.Addr) bool
}

func newMemory() *memory {
	return &memory{flows: map[Tuple]bool{}, local: func(netip.Addr) bool { return true }}
}

func (m *memory) note(s string, t Tuple) { m.log = append(m.log, s+" "+t.String()) }

func (m *memory) remember(t ...Tuple) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, k := range t {
		m.flows[k] = true
	}
}

func (m *memory) Preload(t Tuple) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.local(t.Dst) {
		m.flows[t] = true
		m.note("preload", t)
	}
}

func (m *memory) Has(t Tuple) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flows[t]
}

func (m *memory) Forget(t Tuple) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.flows, t)
	m.note("forget", t)
}

func (m *memory) Known(yield func(Tuple) bool) {
	m.mu.Lock()
	var all []Tuple
	for t := range m.flows {
		all = append(all, t)
	}
	hook := m.onKnown
	m.mu.Unlock()
	for _, t := range all {
		if !yield(t) {
			return
		}
	}
	if hook != nil {
		hook()
	}
}

func (m *memory) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for t := range m.flows {
		out = append(out, t.String())
	}
	slices.Sort(out)
	return out
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open makes a Tracker in ns. It is not running.
func open(t *testing.T, ns *nstest.NS, cfg Config) *Tracker {
	t.Helper()
	cfg.Log = slog.New(slog.NewTextHandler(io.Discard, nil))
	var tr *Tracker
	ns.Do(func() {
		var err error
		tr, err = Open(cfg)
		check(t, err)
	})
	t.Cleanup(func() { tr.Close() })
	return tr
}

// run runs tr until the test ends.
func run(t *testing.T, tr *Tracker) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error, 1)
	go func() { end <- tr.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-end:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("Run does not end")
		}
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s still not: %s", what)
		}
	}
}

// table writes conntrack entries directly.
type table struct {
	t    testing.TB
	conn *netlink.Conn
}

func newTable(t testing.TB, ns *nstest.NS) *table {
	t.Helper()
	tb := &table{t: t}
	ns.Do(func() {
		var err error
		tb.conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		check(t, err)
	})
	t.Cleanup(func() { tb.conn.Close() })
	return tb
}

const (
	newMessage    = unix.NFNL_SUBSYS_CTNETLINK << 8
	deleteMessage = unix.NFNL_SUBSYS_CTNETLINK<<8 | 2
)

func encodeTuple(c ctTuple) []byte {
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if c.src.Is6() {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	ip := attr(attr(nil, src, c.src.AsSlice()), dst, c.dst.AsSlice())
	proto := attr(nil, ctaProtoNum, []byte{c.proto})
	switch c.proto {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		id, typ, code := uint16(ctaProtoICMPID), uint16(ctaProtoICMPType), uint16(ctaProtoICMPCode)
		if c.proto == unix.IPPROTO_ICMPV6 {
			id, typ, code = ctaProtoICMPv6ID, ctaProtoICMPv6Type, ctaProtoICMPv6Code
		}
		proto = attr(attr(attr(proto, id, bytes16(c.icmpID)), typ, []byte{byte(c.icmpType)}), code, []byte{0})
	default:
		proto = attr(attr(proto, ctaProtoSrcPort, bytes16(c.srcPort)), ctaProtoDstPort, bytes16(c.dstPort))
	}
	return attr(attr(nil, ctaTupleIP|nested, ip), ctaTupleProto|nested, proto)
}

// add makes an entry that lives for a minute.
func (tb *table) add(e entry) Tuple {
	tb.t.Helper()
	family := byte(unix.AF_INET)
	if e.orig.src.Is6() {
		family = unix.AF_INET6
	}
	b := attr([]byte{family, 0, 0, 0}, ctaTupleOrig|nested, encodeTuple(e.orig))
	b = attr(b, ctaTupleReply|nested, encodeTuple(e.reply))
	b = attr(b, 7 /* CTA_TIMEOUT */, binary.BigEndian.AppendUint32(nil, 60))
	if e.zone != 0 {
		b = attr(b, ctaZone, bytes16(e.zone))
	}
	_, err := tb.conn.Execute(netlink.Message{Header: netlink.Header{Type: newMessage, Flags: netlink.Request | netlink.Create | netlink.Acknowledge}, Data: b})
	if err != nil {
		tb.t.Fatalf("cannot make the entry %+v: %v", e, err)
	}
	return e.reply.tuple()
}

func (tb *table) remove(k Tuple, zone uint16) {
	tb.t.Helper()
	_, err := tb.conn.Execute(netlink.Message{Header: netlink.Header{Type: deleteMessage, Flags: netlink.Request | netlink.Acknowledge}, Data: request(&k, zone)})
	if err != nil {
		tb.t.Fatalf("cannot remove the entry %v: %v", k, err)
	}
}

// service is the entry of pod 10.244.1.5:port → 10.96.0.1:80, translated to 10.244.2.5:8080.
func service(port uint16) entry {
	pod, svc, backend := netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("10.96.0.1"), netip.MustParseAddr("10.244.2.5")
	return entry{
		orig:  ctTuple{proto: unix.IPPROTO_UDP, src: pod, dst: svc, srcPort: port, dstPort: 80},
		reply: ctTuple{proto: unix.IPPROTO_UDP, src: backend, dst: pod, srcPort: 8080, dstPort: port},
	}
}

// plain is an entry that nobody translated.
func plain(port uint16) entry {
	e := service(port)
	e.reply.src, e.reply.srcPort = e.orig.dst, e.orig.dstPort
	return e
}

func key(e entry) Tuple { return e.reply.tuple() }
