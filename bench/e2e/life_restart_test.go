package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/penstock-net/penstock/bench/lab"
)

// conversation is one TCP connection that never rests: a question, its answer, the next question.
type conversation struct {
	conn  *net.TCPConn
	turns atomic.Int64
	err   error
	ended chan struct{}
}

// converse opens a conversation between two hosts.
func converse(t *testing.T, a, b *lab.Host, v6 bool) *conversation {
	t.Helper()
	l, err := b.ListenTCP(netip.AddrPortFrom(b.Addr(v6), 0))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		c, err := l.AcceptTCP()
		if err != nil {
			return
		}
		defer c.Close()
		io.Copy(c, c)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := a.DialTCP(ctx, netip.MustParseAddrPort(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	c := &conversation{conn: conn, ended: make(chan struct{})}
	t.Cleanup(c.close)
	go func() {
		defer close(c.ended)
		out, in := make([]byte, 3000), make([]byte, 3000)
		for n := byte(0); ; n++ {
			for i := range out {
				out[i] = byte(i) + n
			}
			if _, c.err = conn.Write(out); c.err != nil {
				return
			}
			if _, c.err = io.ReadFull(conn, in); c.err != nil {
				return
			}
			if string(in) != string(out) {
				c.err = errors.New("the answer is not the question")
				return
			}
			c.turns.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	return c
}

func (c *conversation) close() {
	c.conn.Close()
	<-c.ended
}

// goesOn waits until ten more turns are over.
func (c *conversation) goesOn(t *testing.T, when string) {
	t.Helper()
	begin := c.turns.Load()
	for end := time.Now().Add(patience); c.turns.Load() < begin+10; time.Sleep(time.Millisecond) {
		select {
		case <-c.ended:
			t.Fatalf("%s: the connection has ended: %v", when, c.err)
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%s: the connection stands still", when)
		}
	}
}

// TestRestart: SIGTERM leaves routes, devices, rules and the drops on pods' devices as they are, and a connection between
// pods outlives a second without each daemon in turn. The same when the daemon is killed.
func TestRestart(t *testing.T) {
	lab.Require(t)
	ends := map[string]func(*testing.T, *lab.Daemon){
		"SIGTERM": func(t *testing.T, d *lab.Daemon) { d.Stop(t) },
		"SIGKILL": func(t *testing.T, d *lab.Daemon) { d.Kill() },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			l := lab.New(t, lab.Config{Masquerade: true, YAML: []string{"workers: 2"}})
			l.Start(t)
			a, b := l.Nodes[0], l.Nodes[1]
			av, at, bv, bt := a.AddPod(t, lab.Veth), a.AddPod(t, lab.TUN), b.AddPod(t, lab.Veth), b.AddPod(t, lab.TUN)
			pingBoth(t, &av.Host, &bv.Host)
			pingBoth(t, &at.Host, &bt.Host)
			talks := []*conversation{converse(t, &av.Host, &bv.Host, false), converse(t, &av.Host, &bv.Host, true), converse(t, &a.Host, &bv.Host, false), converse(t, &at.Host, &bv.Host, false)}
			for _, n := range []*lab.Node{a, b} {
				for _, c := range talks {
					c.goesOn(t, "before the restart of "+n.Name)
				}
				before := settled(t, n)
				end(t, n.Daemon)
				if d := difference(before, snapshot(t, n.NS)); d != "" {
					t.Errorf("%s: what stood before and what stands now:%s", name, d)
				}
				// While nobody forwards, what pods send must not leave by the host's own routes.
				select {
				case <-time.After(time.Second):
				case <-talks[0].ended:
					t.Fatalf("the connection ended with its daemon: %v", talks[0].err)
				}
				n.Start(t)
				if d := difference(before, settled(t, n)); d != "" {
					t.Errorf("%s and a new start: what stood before and what stands now:%s", name, d)
				}
				for _, c := range talks {
					c.goesOn(t, "after the restart of "+n.Name)
				}
				pingBoth(t, &av.Host, &bv.Host)
				pingBoth(t, &at.Host, &bt.Host)
			}
			for _, c := range talks {
				c.close()
			}
			conserved(t, l)
		})
	}
}

// TestRestartWithOtherWorkers: a successor may have another number of workers, though the kernel does not attach several
// queues to a device that was made for one.
func TestRestartWithOtherWorkers(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{YAML: []string{"workers: 2"}})
	av, bv := a.AddPod(t, lab.Veth), b.AddPod(t, lab.Veth)
	talk, host := converse(t, &av.Host, &bv.Host, false), converse(t, &a.Host, &bv.Host, true)
	for _, workers := range []int{1, 1, 3, 2} {
		a.Start(t, fmt.Sprintf("workers: %d", workers))
		when := fmt.Sprintf("with %d workers", workers)
		talk.goesOn(t, when)
		host.goesOn(t, when)
		for _, v6 := range []bool{false, true} {
			if err := a.Ping(bv.Addr(v6)); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		}
		if s := a.Daemon.Status(t); s.Workers != workers {
			t.Errorf("%s: status says %d", when, s.Workers)
		}
	}
	talk.close()
	host.close()
	conserved(t, l)
}

// TestKilledAnywhere: kill -9 at any moment of the start leaves nothing that the next start stumbles over.
func TestKilledAnywhere(t *testing.T) {
	l, a, b := twoNodes(t, lab.Config{Nodes: 2, Masquerade: true})
	bv := b.AddPod(t, lab.Veth)
	want := settled(t, a)
	started := time.Now()
	a.Start(t)
	took := time.Since(started)
	kills := 6
	if matrix() || loadFull() {
		kills = 100
	}
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		a.Daemon.Stop(t)
		a.Daemon.Cleanup(t)
		for i := range kills {
			p := launch(t, a, a.Daemon.Config)
			time.Sleep(took * time.Duration(i) / time.Duration(kills)) // the moment is the point here
			p.Signal(signal)
			if err := p.Wait(patience); errors.Is(err, lab.ErrRunning) {
				t.Fatalf("%v after %d/%d of a start: it runs on\n%s", signal, i, kills, p.Output())
			} else if signal == syscall.SIGTERM && p.Output() != "" && err != nil {
				t.Errorf("%v after %d/%d of a start: %v\n%s", signal, i, kills, err, p.Output())
			}
		}
		a.Start(t)
		if d := difference(want, settled(t, a)); d != "" {
			t.Errorf("after %d starts that were ended by %v:%s", kills, signal, d)
		}
		av := a.AddPod(t, lab.Veth)
		pingBoth(t, &av.Host, &bv.Host)
		av.Remove(t)
	}
	conserved(t, l)
}
