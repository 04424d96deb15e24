package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// TestPrefixMoves: a prefix moves to and fro between two peers, both of which have a pod with the same address, while
// numbered datagrams go to that address. Each arrives exactly once, at each pod in order, and what was sent after a move was
// done arrives at the new place only.
func TestPrefixMoves(t *testing.T) {
	lab.Require(t)
	moves := 60
	if matrix() || loadFull() {
		moves = 1000
	}
	l := lab.New(t, lab.Config{Nodes: 3, YAML: []string{"workers: 2"}})
	a, b, c := l.Nodes[0], l.Nodes[1], l.Nodes[2]
	moving, address := netip.MustParsePrefix("10.244.77.0/24"), netip.MustParseAddr("10.244.77.7")
	a.Start(t, peersYAML(asPeer(b, moving), asPeer(c)))
	places := []*place{}
	for _, n := range []*lab.Node{b, c} {
		n.Start(t, fmt.Sprintf("node:\n  podCIDRs: [%s, %s, %s]", n.PodCIDR4, n.PodCIDR6, moving))
		places = append(places, openPlace(t, n.AddPodWith(t, lab.Veth, address)))
	}
	from := a.AddPod(t, lab.Veth)
	if err := from.Ping(address); err != nil {
		t.Fatal(err)
	}
	before := a.Daemon.AtRest(t)

	var conn *net.UDPConn
	if err := from.Do(func() (err error) {
		conn, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(address, placePort)))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sent atomic.Uint64 // the numbers below it have been given to the kernel, or the next one is on its way there
	done := make(chan error, 1)
	go func() {
		message := make([]byte, 200)
		quiet := time.Now()
		for n, seen := uint64(0), uint64(0); ctx.Err() == nil; {
			if got := places[0].count.Load() + places[1].count.Load(); n-got >= onTheWay {
				if got != seen {
					seen, quiet = got, time.Now()
				} else if time.Since(quiet) > patience/4 {
					done <- fmt.Errorf("of %d datagrams %d have arrived, and no more come", n, got)
					return
				}
				time.Sleep(20 * time.Microsecond)
				continue
			}
			sent.Store(n + 1)
			binary.BigEndian.PutUint64(message, n)
			if _, err := conn.Write(message); err != nil {
				done <- err
				return
			}
			n, quiet = n+1, time.Now()
		}
		done <- nil
	}()

	peers := [2]string{peersYAML(asPeer(b, moving), asPeer(c)), peersYAML(asPeer(b), asPeer(c, moving))}
	var borders []border
	for i := range moves {
		begin := sent.Load()
		a.Daemon.Reload(t, peers[(i+1)%2])
		// What was sent just before may still wait in the pod's ring: as many as the flow control lets be on their way.
		borders = append(borders, border{begin - min(begin, onTheWay), sent.Load()})
		for now := sent.Load(); sent.Load() < now+100; time.Sleep(50 * time.Microsecond) { // let some go to the new place
			select {
			case err := <-done:
				t.Fatal(err)
			default:
			}
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	total := sent.Load()
	for end := time.Now().Add(patience); places[0].count.Load()+places[1].count.Load() < total && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	where := make([]int8, total) // 1, 2: the place it arrived at
	for i, p := range places {
		last := int64(-1)
		for _, n := range p.close() {
			switch {
			case n >= total:
				t.Fatalf("%s got number %d, which was never sent", p.pod.Name, n)
			case where[n] != 0:
				t.Errorf("number %d arrived twice", n)
			case int64(n) < last:
				t.Errorf("%s got %d after %d", p.pod.Name, n, last)
			}
			where[n], last = int8(i+1), int64(n)
		}
	}
	next, owner, atC := 0, int8(1), 0
	for n, at := range where {
		for next < len(borders) && uint64(n) >= borders[next].end {
			next, owner = next+1, 3-owner
		}
		moving := next < len(borders) && uint64(n) >= borders[next].begin
		switch {
		case at == 0:
			t.Errorf("number %d of %d is lost", n, total)
		case at != owner && !moving:
			t.Errorf("number %d went to place %d, and the prefix was at %d", n, at, owner)
		}
		if at == 2 {
			atC++
		}
	}
	if atC == 0 || atC == int(total) {
		t.Errorf("of %d datagrams %d went to the second place: the prefix did not move", total, atC)
	}
	t.Logf("%d datagrams, %d moves, %d to the second place", total, moves, atC)
	onlyOverflows(t, a.Daemon, before)

	// What the other place says in the address's name is not believed.
	inOffice := places[moves%2].pod
	impostor := places[1-moves%2].pod
	before = a.Daemon.AtRest(t)
	for _, p := range []*lab.Pod{inOffice, impostor} {
		if err := p.SendUDP(netip.AddrPortFrom(address, 1000), netip.AddrPortFrom(from.IP4, 1000), []byte("it is me")); err != nil {
			t.Fatal(err)
		}
	}
	awaitDrop(t, a.Daemon, before, "inner_source", 1)
	conserved(t, l)
}

// border is where a move lies among the numbers: those under begin may go to the old place, those from end on go to the new.
type border struct{ begin, end uint64 }

// awaitDrop waits until a reason has risen by n, exactly, since before.
func awaitDrop(t *testing.T, d *lab.Daemon, before lab.Metrics, reason string, n uint64) {
	t.Helper()
	for end := time.Now().Add(patience); d.Metrics(t).Sub(before).Dropped()[reason] < n && time.Now().Before(end); {
		time.Sleep(5 * time.Millisecond)
	}
	if got := d.AtRest(t).Sub(before).Dropped()[reason]; got != n {
		t.Errorf("%s on %s: %d drops, want %d", reason, d.Node.Name, got, n)
	}
}

const (
	placePort = 7777
	onTheWay  = 64 // datagrams at most
)

// place notes the numbers of the datagrams that arrive at a pod, in their order.
type place struct {
	pod     *lab.Pod
	conn    *net.UDPConn
	count   atomic.Uint64
	numbers []uint64
	ended   chan struct{}
}

func openPlace(t *testing.T, pod *lab.Pod) *place {
	t.Helper()
	p := &place{pod: pod, ended: make(chan struct{})}
	if err := pod.Do(func() (err error) {
		p.conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: placePort})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.conn.Close() })
	go func() {
		defer close(p.ended)
		b := make([]byte, 2048)
		for {
			n, err := p.conn.Read(b)
			if err != nil {
				return
			}
			if n >= 8 {
				p.numbers = append(p.numbers, binary.BigEndian.Uint64(b))
				p.count.Add(1)
			}
		}
	}()
	return p
}

// close returns what has arrived.
func (p *place) close() []uint64 {
	p.conn.Close()
	<-p.ended
	return p.numbers
}
