package hostflow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/hostnet/nstest"
)

func TestLoadTakesTranslatedFlows(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	want := []string{tb.add(service(1)).String(), tb.add(service(2)).String()}
	tb.add(plain(3))
	// Another zone counts as well; an ICMP echo whose identifier was changed; IPv6.
	z := service(4)
	z.zone = 7
	want = append(want, tb.add(z).String())
	a, b := netip.MustParseAddr("fd00:10:244:1::5"), netip.MustParseAddr("fd00:10:96::1")
	e6 := entry{
		orig:  ctTuple{proto: unix.IPPROTO_ICMPV6, src: a, dst: b, icmpType: echoRequest6, icmpID: 9},
		reply: ctTuple{proto: unix.IPPROTO_ICMPV6, src: b, dst: a, icmpType: echoReply6, icmpID: 77},
	}
	tb.add(e6)
	want = append(want, "protocol 58 [fd00:10:96::1]:77 → [fd00:10:244:1::5]:77")
	slices.Sort(want)

	m := newMemory()
	tr := open(t, ns, Config{Sink: m})
	n, err := tr.Load(context.Background())
	check(t, err)
	if got := m.list(); !slices.Equal(got, want) || n != len(want) {
		t.Errorf("loaded %d: %q\nwant %q", n, got, want)
	}
	if s := tr.Stats(); s.Preloaded != uint64(n) || s.Malformed != 0 {
		t.Errorf("stats: %+v", s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := tr.Load(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled Load: %v", err)
	}
	if n, err := tr.Load(context.Background()); err != nil || n != len(want) {
		t.Errorf("a Load after that: %d, %v", n, err)
	}
}

func TestDestroyEvents(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	m := newMemory()
	tr := open(t, ns, Config{Sink: m, Audit: time.Hour})
	run(t, tr)
	z := service(4)
	z.zone = 7
	keys := []Tuple{tb.add(service(1)), tb.add(service(2)), tb.add(plain(3)), tb.add(z)}
	m.remember(keys...)
	tb.remove(keys[0], 0)
	tb.remove(keys[2], 0)
	tb.remove(keys[3], 7)
	eventually(t, "three flows forgotten", func() bool { return len(m.list()) == 1 })
	if !m.Has(keys[1]) {
		t.Errorf("a live flow was forgotten; known: %q", m.list())
	}
	// What the Sink does not have ends at Has. The last one tells that the one before was read.
	tb.remove(tb.add(service(50)), 0)
	tb.remove(keys[1], 0)
	eventually(t, "the last one forgotten", func() bool { return len(m.list()) == 0 })
	// Counted after the Sink was told.
	eventually(t, "four counted", func() bool { return tr.Stats() == Stats{Destroyed: 4, Forgotten: 4} })
}

// The tuple is used again before the event is read: the new flow must stay.
func TestReusedTupleIsKept(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	m := newMemory()
	tr := open(t, ns, Config{Sink: m, Audit: time.Hour})
	var keys []Tuple
	for port := range uint16(100) {
		k := tb.add(service(1000 + port))
		tb.remove(k, 0)
		tb.add(service(1000 + port))
		keys = append(keys, k)
	}
	m.remember(keys...)
	run(t, tr)
	eventually(t, "all events settled", func() bool { return tr.Stats().Kept == 100 })
	if s := tr.Stats(); s.Forgotten != 0 {
		t.Errorf("stats: %+v", s)
	}
	for _, l := range m.log {
		t.Errorf("the Sink was touched: %s", l)
	}
}

// The tuple is used again between the question and the Forget: it is put back.
func TestBornWhileForgotten(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	m := newMemory()
	tr := open(t, ns, Config{Sink: m, Audit: time.Hour})
	k := key(service(1))
	m.remember(k)
	tb.add(service(1))
	check(t, tr.forget([]question{{tuple: k}}))
	if !m.Has(k) || !slices.Equal(m.log, []string{"forget " + k.String(), "preload " + k.String()}) {
		t.Errorf("log: %q", m.log)
	}
	if s := tr.Stats(); s.Forgotten != 0 {
		t.Errorf("stats: %+v", s)
	}
}

// A flow the other way round, from the backend to the pod, is another flow: the look-up finds it by the same tuple.
func TestOtherDirectionIsNotTheFlow(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	e := service(1)
	tb.add(entry{orig: e.reply, reply: ctTuple{proto: e.reply.proto, src: e.reply.dst, dst: e.reply.src, srcPort: e.reply.dstPort, dstPort: e.reply.srcPort}})
	m := newMemory()
	m.remember(key(e))
	tr := open(t, ns, Config{Sink: m, Audit: time.Hour})
	_, err := tr.check(context.Background())
	check(t, err)
	if len(m.list()) != 0 {
		t.Errorf("still known: %q", m.list())
	}
}

// An entry older than the subscription sends no event where nf_conntrack_events=2; the audit finds it.
func TestAuditForgetsWhatEndsUnheard(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	gone, stays := tb.add(service(1)), tb.add(service(2))
	z := service(3)
	z.zone = 7
	zoned := tb.add(z)
	gre := entry{
		orig:  ctTuple{proto: unix.IPPROTO_GRE, src: service(1).orig.src, dst: service(1).orig.dst, srcPort: 5, dstPort: 6},
		reply: ctTuple{proto: unix.IPPROTO_GRE, src: service(1).reply.src, dst: service(1).reply.dst, srcPort: 6, dstPort: 5},
	}
	keyed := gre.reply.tuple() // no ports: the key is not a packet's port
	if keyed.SrcPort != 0 {
		t.Fatalf("GRE's key became a port: %v", keyed)
	}
	other := entry{orig: gre.orig, reply: gre.reply} // a protocol without anything like ports
	other.orig = ctTuple{proto: 50, src: gre.orig.src, dst: gre.orig.dst}
	other.reply = ctTuple{proto: 50, src: gre.reply.src, dst: gre.reply.dst}
	esp := tb.add(other)

	m := newMemory()
	tr := open(t, ns, Config{Sink: m, Audit: time.Hour})
	_, err := tr.Load(context.Background())
	check(t, err)
	if got := m.list(); len(got) != 4 {
		t.Fatalf("loaded %q", got)
	}
	tb.remove(gone, 0)
	// Born and remembered while the audit asks: not in its list, so not touched, though its entry is not there yet.
	born := key(service(9))
	m.onKnown = func() { m.remember(born) }
	_, err = tr.check(context.Background())
	check(t, err)
	if got, want := fmt.Sprint(m.Has(gone), m.Has(stays), m.Has(zoned), m.Has(esp), m.Has(born)), "false true true true true"; got != want {
		t.Errorf("gone, stays, zoned, esp, born: %s, want %s", got, want)
	}
	// And Run does that by itself.
	m.onKnown = nil
	tr.audit = 50 * time.Millisecond
	run(t, tr)
	tb.remove(stays, 0)
	eventually(t, "the rest forgotten", func() bool { return !m.Has(stays) && !m.Has(born) })
	if !m.Has(zoned) || !m.Has(esp) {
		t.Errorf("a live flow was forgotten: %q", m.list())
	}
}

// More events than the buffer holds: afterwards exactly the live flows are remembered, and those born meanwhile.
func TestOverrun(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	m := newMemory()
	tr := open(t, ns, Config{Sink: m, Audit: time.Hour, ReadBuffer: 8 << 10})
	var want []string
	var gone []Tuple
	for port := range uint16(2000) {
		k := tb.add(service(1 + port))
		m.remember(k)
		if port%4 == 0 {
			want = append(want, k.String())
		} else {
			gone = append(gone, k)
		}
	}
	for _, k := range gone {
		tb.remove(k, 0)
	}
	m.onKnown = func() {
		// During the resync a flow is born, as a worker sees it: entry first, then remembered.
		k := tb.add(service(50000))
		m.remember(k)
		m.mu.Lock()
		m.onKnown = nil
		m.mu.Unlock()
	}
	want = append(want, key(service(50000)).String())
	slices.Sort(want)
	run(t, tr)
	eventually(t, "an overrun and its audit", func() bool { s := tr.Stats(); return s.Overruns > 0 && s.Audits > 0 })
	eventually(t, "only live flows remembered", func() bool { return slices.Equal(m.list(), want) })
	t.Logf("%+v", tr.Stats())
	// And it still hears.
	k := key(service(1))
	tb.remove(k, 0)
	eventually(t, "the next event heard", func() bool { return !m.Has(k) })
}

func TestErrors(t *testing.T) {
	for err, none := range map[error]bool{unix.EINVAL: true, unix.EPROTONOSUPPORT: true, unix.EOPNOTSUPP: true, unix.EPERM: false, unix.EMFILE: false} {
		if got := errors.Is(openError(fmt.Errorf("receive: %w", err)), ErrNoConntrack); got != none {
			t.Errorf("%v means no conntrack: %v, want %v", err, got, none)
		}
	}
}

// What a node's audit costs.
func BenchmarkAsk(b *testing.B) {
	ns := nstest.New(b)
	tb := newTable(b, ns)
	var tr *Tracker
	m := newMemory()
	ns.Do(func() {
		var err error
		tr, err = Open(Config{Sink: m})
		check(b, err)
	})
	defer tr.Close()
	var ask []question
	for port := range uint16(10000) {
		ask = append(ask, question{tuple: tb.add(service(1 + port))})
	}
	for b.Loop() {
		missing, err := tr.missing(ask)
		if err != nil || len(missing) != 0 {
			b.Fatal(len(missing), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(ask)), "ns/flow")
}

// A question that went wrong, here one that a test abandoned, does not spoil the next.
func TestBrokenQuestion(t *testing.T) {
	ns := nstest.New(t)
	tb := newTable(t, ns)
	live, gone := tb.add(service(1)), key(service(2))
	m := newMemory()
	m.remember(live, gone)
	tr := open(t, ns, Config{Sink: m})
	check(t, tr.ready())
	_, err := tr.query.SendMessages([]netlink.Message{nobody, nobody, nobody}) // three answers that nobody reads
	check(t, err)
	ns.Do(func() {
		_, err := tr.check(context.Background())
		check(t, err)
	})
	if !m.Has(live) || m.Has(gone) {
		t.Errorf("known: %q", m.list())
	}
}
