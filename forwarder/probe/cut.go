package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// cutter sends datagrams of an asker in fragments of at most size bytes, IP header included: the kernel would make them no smaller
// than the device's MTU, which is what has been found not to pass.
type cutter struct {
	size     int
	from, to netip.AddrPort
	fd       int // a raw socket, IPv4; -1: the kernel cuts, as it was told by IPV6_MTU
	conn     *net.UDPConn
	id       uint16
}

// leastIPv6 is the least that IPV6_MTU takes.
const leastIPv6 = 1280

// cutAt has what is larger than size leave in fragments.
func (p *Prober) cutAt(ctx context.Context, a *asker, t Target, size int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &cutter{size: size, conn: a.conn, fd: -1, to: netip.AddrPortFrom(t.Host, Port), id: uint16(rand.Uint32())}
	local, ok := a.conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return errors.New("the socket has no address")
	}
	c.from = netip.AddrPortFrom(t.HostFrom, uint16(local.Port))
	if t.Host.Is6() {
		if size < leastIPv6 {
			return fmt.Errorf("the kernel makes no IPv6 fragments of %d bytes", size)
		}
		if err := setOption(a.conn, unix.IPPROTO_IPV6, unix.IPV6_MTU, size); err != nil {
			return err
		}
		a.cut = c
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("a raw socket for fragments cannot be opened: %w", err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_NODEFRAG, 1) // else conntrack puts them together, and most kernels cut them as before
	if p.device != "" {
		if err := unix.BindToDevice(fd, p.device); err != nil {
			unix.Close(fd)
			return fmt.Errorf("a raw socket for fragments cannot be bound to %s: %w", p.device, err)
		}
	}
	c.fd = fd
	a.cut = c
	return nil
}

func setOption(conn syscall.Conn, level, name, value int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, name, value) })
	return errors.Join(err, failed)
}

func (c *cutter) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
	}
}

func (c *cutter) send(payload []byte) error {
	if c.fd < 0 {
		_, err := c.conn.Write(payload)
		return err
	}
	c.id++
	for _, f := range fragments(c.from, c.to, c.id, payload, c.size) {
		if err := unix.Sendto(c.fd, f, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Addr: c.to.Addr().As4()}); err != nil {
			return err
		}
	}
	return nil
}

// fragments are the IPv4 packets of a UDP datagram, of at most size bytes each. The kernel fills in their IP checksums; UDP has
// none, as IPv4 allows.
func fragments(from, to netip.AddrPort, id uint16, payload []byte, size int) (list [][]byte) {
	const header, more = 20, 0x2000
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	step := (size - header) &^ 7
	for at := 0; at < len(b); at += step {
		part, flags := b[at:], 0
		if len(part) > step {
			part, flags = part[:step], more
		}
		f := make([]byte, header, header+len(part))
		f[0], f[8], f[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(f[2:], uint16(header+len(part)))
		binary.BigEndian.PutUint16(f[4:], id)
		binary.BigEndian.PutUint16(f[6:], uint16(flags|at/8))
		copy(f[12:], from.Addr().AsSlice())
		copy(f[16:], to.Addr().AsSlice())
		list = append(list, append(f, part...))
	}
	return list
}
