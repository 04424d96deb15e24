//go:build linux

package ring

import "golang.org/x/sys/unix"

// keepBypass is how many frames in a row may need the fallback before the
// socket stays without PACKET_QDISC_BYPASS: the device then always needs
// segments cut for it (its TSO or USO is off).
const keepBypass = 16

// Write sends by sendmmsg, past the device's qdisc. That path drops what the
// kernel would have to cut or linearise for the device (dev_direct_xmit,
// net/core/dev.c) and reports ENOBUFS; such a frame is sent again the ordinary
// way. ENOBUFS from here means that the queue behind that was full as well.
func (s *PacketSocket) Write(p *Packets, from int) (n int, err error) {
	for i := from; i < p.nmsg; {
		sent, errno := sysSendmmsg(s.fd, p.msgs[i:p.nmsg])
		if errno == unix.ENETDOWN {
			// It may be the socket's pending error, of an earlier time.
			s.pending = errno
			sent, errno = sysSendmmsg(s.fd, p.msgs[i:p.nmsg])
		}
		if errno == unix.ENOBUFS && s.bypass {
			sent, errno = s.writeQueued(p.msgs[i : i+1])
		} else if errno == 0 {
			s.fallback = 0
		}
		if errno != 0 {
			return i - from, errno
		}
		i += sent
	}
	return p.nmsg - from, nil
}

// writeQueued sends one frame through the device's qdisc.
func (s *PacketSocket) writeQueued(msg []mmsghdr) (int, unix.Errno) {
	if unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 0) != nil {
		return 0, unix.ENOBUFS
	}
	sent, errno := sysSendmmsg(s.fd, msg)
	if errno == 0 {
		s.fallback++
	}
	if s.fallback < keepBypass {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	} else {
		s.bypass = false
	}
	return sent, errno
}
