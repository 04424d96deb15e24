//go:build linux

package ring

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// A flow's datagrams have the label of its superframes, which is 0 (encap.Whole), and not the kernel's.
func TestUDPFlowLabel(t *testing.T) {
	a, b := udpPair(t)
	f := families[1]
	const flowInfo = 11 // IPV6_FLOWINFO of linux/in6.h
	fd := -1
	b.do(func() {
		var err error
		fd, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		must(t, unix.SetsockoptInt(fd, unix.SOL_IPV6, flowInfo, 1))
		must(t, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}))
		must(t, unix.Bind(fd, &unix.SockaddrInet6{Port: 8472, Addr: f.b.As16()}))
	})
	defer unix.Close(fd)
	// labels of the next datagram: the kernel tells those that are not 0.
	labels := func() int {
		t.Helper()
		oob := make([]byte, 128)
		_, n, _, _, err := unix.Recvmsg(fd, make([]byte, 64), oob, 0)
		must(t, err)
		list, err := unix.ParseSocketControlMessage(oob[:n])
		must(t, err)
		return len(list)
	}
	a.do(func() {
		plain, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(plain)
		must(t, unix.Sendto(plain, []byte("plain"), 0, &unix.SockaddrInet6{Port: 8472, Addr: f.b.As16()}))
	})
	if labels() != 1 {
		t.Skip("this kernel gives no labels (net.ipv6.auto_flowlabels)")
	}
	tx := openUDP(t, a, UDPConfig{Local: netip.AddrPortFrom(f.a, 8472)})
	to := NewSockaddr(netip.AddrPortFrom(f.b, 8472))
	d := NewDatagrams(1, 1)
	d.Begin(&to, 0, 0)
	d.Append([]byte("ours"))
	if n, err := tx.Send(d, 0); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if labels() != 0 {
		t.Error("the datagram has a flow label")
	}
}
