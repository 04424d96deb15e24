//go:build linux

package ring

import "golang.org/x/sys/unix"

// keepBypass is how many superframes in a row may need the fallback before the
// socket stays without PACKET_QDISC_BYPASS: the device then always needs
// segments cut for it (its TSO or USO is off).
const keepBypass = 16

// Write sends by sendmmsg, past the device's qdisc. That path drops a superframe
// that the kernel would have to cut for the device (dev_direct_xmit,
// net/core/dev.c) and reports ENOBUFS; it is sent again the ordinary way. ENOBUFS
// from here means that the device's queue is full.
func (s *PacketSocket) Write(p *Packets, from int) (n int, err error) {
	for i := from; i < p.nmsg; {
		direct := s.bypass.Load() // before the attempt: another worker may switch it for good behind ours
		sent, errno := sysSendmmsg(s.fd, p.msgs[i:p.nmsg])
		if errno == unix.ENETDOWN {
			// It may be the socket's pending error, of an earlier time.
			s.pending.Store(uint32(errno))
			sent, errno = sysSendmmsg(s.fd, p.msgs[i:p.nmsg])
		}
		switch {
		case errno == unix.ENOBUFS && p.super(i) && direct:
			sent, errno = s.writeQueued(p.msgs[i : i+1])
		case errno == 0 && s.fallback.Load() > 0:
			for k := i; k < i+sent; k++ {
				if p.super(k) {
					s.fallback.Store(0)
				}
			}
		}
		if errno != 0 {
			return i - from, errno
		}
		i += sent
	}
	return p.nmsg - from, nil
}

// super tells whether message i is to be cut by somebody.
func (p *Packets) super(i int) bool { return p.hdrs[i][1] != GSONone }

// writeQueued sends one superframe through the device's qdisc.
func (s *PacketSocket) writeQueued(msg []mmsghdr) (int, unix.Errno) {
	s.queuedMu.Lock()
	defer s.queuedMu.Unlock()
	if !s.bypass.Load() {
		return sysSendmmsg(s.fd, msg)
	}
	if unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 0) != nil {
		return 0, unix.ENOBUFS
	}
	sent, errno := sysSendmmsg(s.fd, msg)
	if errno == 0 {
		s.fallback.Add(1)
	}
	if s.fallback.Load() >= keepBypass {
		s.bypass.Store(false)
	} else {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	return sent, errno
}
