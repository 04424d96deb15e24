//go:build linux

package ring

import (
	"errors"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	_ Port   = (*Queue)(nil)
	_ Port   = (*PacketSocket)(nil)
	_ Port   = (*FakeQueue)(nil)
	_ Socket = (*UDP)(nil)
	_ Socket = (*Raw)(nil)
	_ Socket = (*FakeSocket)(nil)
)

func TestFakeQueue(t *testing.T) {
	q := NewFakeQueue()
	defer q.Close()
	want := []FakePacket{{Data: []byte("one"), Virtio: tcpSuper}, {Data: []byte("two"), VLAN: true}, {Data: []byte("3"), Truncated: true}}
	q.Inject(want...)
	fs := make([]Frame, 2)
	n, err := q.Read(nil, fs)
	if n != 2 || err != nil || string(fs[0].Bytes()) != "one" || fs[0].Virtio != tcpSuper || !fs[1].VLAN || fs[0].Start != Headroom {
		t.Fatalf("%d, %v, %+v", n, err, fs)
	}
	p := NewPackets(4, 8)
	for _, f := range fs {
		p.Begin(f.Virtio)
		p.Append(f.Bytes())
	}
	p.Begin(Virtio{})
	p.Append([]byte("x"))
	q.Fail(1, unix.ENOBUFS)
	if n, err := q.Write(p, 0); n != 1 || !errors.Is(err, unix.ENOBUFS) {
		t.Fatalf("Write: %d, %v", n, err)
	}
	if n, err := q.Write(p, 1); n != 2 || err != nil {
		t.Fatalf("Write again: %d, %v", n, err)
	}
	q.Release()
	if fs[0].Bytes()[0] != FakePoison || fs[1].Mem[0] != FakePoison {
		t.Error("Release did not poison")
	}
	sent := q.Sent()
	if len(sent) != 3 || string(sent[0].Data) != "one" || sent[0].Virtio != tcpSuper || string(sent[2].Data) != "x" || q.Sent() != nil {
		t.Errorf("sent %+v", sent)
	}
	if n, _ := q.Read(nil, fs); n != 1 || !fs[0].Truncated {
		t.Error("the truncated frame")
	}
	q.SetError(unix.ENETDOWN)
	if !errors.Is(q.TakeError(), unix.ENETDOWN) || q.TakeError() != nil {
		t.Error("TakeError")
	}
}

func TestFakeSocket(t *testing.T) {
	a, b := NewFakeSocket(netip.MustParseAddrPort("192.0.2.1:8472")), NewFakeSocket(netip.MustParseAddrPort("[2001:db8::2]:8472"))
	defer a.Close()
	defer b.Close()
	a.OnSend(func(d FakeDatagram) { d.Addr = a.Local(); b.Inject(d) })
	poller, err := NewPoller()
	must(t, err)
	defer poller.Close()
	must(t, poller.Add(b.FD(), 1))
	to := NewSockaddr(b.Local())
	d := NewDatagrams(4, 8)
	for _, s := range []string{"aaaabbbb", "c"} {
		d.Begin(&to, 5, 4)
		d.Append([]byte(s))
	}
	a.Fail(1, unix.EAGAIN)
	if n, err := a.Send(d, 0); n != 1 || !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("Send: %d, %v", n, err)
	}
	if n, err := a.Send(d, 1); n != 1 || err != nil {
		t.Fatalf("Send again: %d, %v", n, err)
	}
	var ev [1]Event
	if n, _ := poller.Wait(ev[:], 0); n != 1 {
		t.Fatal("not readable")
	}
	in := NewInbox(4, 100)
	if n, err := b.Recv(in); n != 2 || err != nil {
		t.Fatalf("Recv: %d, %v", n, err)
	}
	g := in.Datagram(0)
	if string(g.Data) != "aaaabbbb" || g.TOS != 5 || g.Segment != 4 || g.From != a.Local() || g.Truncated {
		t.Errorf("%+v", g)
	}
	if n, _ := b.Recv(in); n != 0 || g.Data[0] != FakePoison {
		t.Error("the next Recv did not poison")
	}
	b.InjectError(SocketError{Errno: unix.ECONNREFUSED})
	if n, _ := poller.Wait(ev[:], 0); n != 1 {
		t.Fatal("not readable with an error")
	}
	if n := b.Errors(func(e *SocketError) {}); n != 1 {
		t.Error("the error")
	}
	if n, _ := poller.Wait(ev[:], 0); n != 0 {
		t.Error("still readable")
	}
	noAllocs(t, "Inbox.Datagram", func() { _ = in.Datagram(0) })
}
