package probe

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// listener answers on one of our first addresses.
type listener struct {
	conn *net.UDPConn
	done chan struct{}
}

func (p *Prober) listen(a netip.Addr) (*listener, error) {
	conn, err := listenUDP(netip.AddrPortFrom(a, Port), options{device: p.device, free: true, gro: true})
	if err != nil {
		return nil, err
	}
	l := &listener{conn: conn, done: make(chan struct{})}
	go l.serve(&p.answerer)
	return l, nil
}

func (l *listener) close() {
	l.conn.Close()
	<-l.done
}

// serve reads until the socket is closed. Errors of a single read (an ICMP error that came back) are no reason to end.
func (l *listener) serve(r *answerer) {
	defer close(l.done)
	in, out, oob := make([]byte, 1<<16), make([]byte, 1<<16), make([]byte, 64)
	for {
		n, oobn, _, from, err := l.conn.ReadMsgUDPAddrPort(in, oob)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		source, now := from.Addr().Unmap(), time.Now()
		for _, d := range pieces(in[:n], segment(oob[:oobn])) {
			if k := r.answer(source, d, out, now); k > 0 {
				l.conn.WriteToUDPAddrPort(out[:k], from) // lost answers are what is being measured
			}
		}
	}
}

// segment is the length of the datagrams that the kernel has put together, 0 if there is but one.
func segment(oob []byte) int {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0
	}
	for _, c := range list {
		if c.Header.Level == unix.IPPROTO_UDP && c.Header.Type == unix.UDP_GRO && len(c.Data) >= 4 {
			return int(int32(binary.NativeEndian.Uint32(c.Data)))
		}
	}
	return 0
}

// pieces yields the datagrams of a buffer.
func pieces(b []byte, size int) func(func(int, []byte) bool) {
	return func(yield func(int, []byte) bool) {
		if size <= 0 || size > len(b) {
			size = len(b)
		}
		for i := 0; ; i++ {
			n := min(size, len(b))
			if !yield(i, b[:n]) {
				return
			}
			if b = b[n:]; len(b) == 0 {
				return
			}
		}
	}
}
