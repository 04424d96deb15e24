package load

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of Linux, which x/sys/unix does not have.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// messages is an array of prepared messages. Everything that it points to lives as long as it does.
type messages struct {
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet4
}

func newMessages(n int) *messages {
	return &messages{hdrs: make([]mmsghdr, n), iovs: make([]unix.Iovec, n), names: make([]unix.RawSockaddrInet4, n)}
}

// set prepares message i: b to the socket's peer, or to name if it is not nil.
func (m *messages) set(i int, b []byte, name *unix.RawSockaddrInet4) {
	m.iovs[i].Base = unsafe.SliceData(b)
	m.iovs[i].SetLen(len(b))
	m.hdrs[i].hdr.Iov = &m.iovs[i]
	m.hdrs[i].hdr.SetIovlen(1)
	if name != nil {
		m.names[i] = *name
		m.hdrs[i].hdr.Name = (*byte)(unsafe.Pointer(&m.names[i]))
		m.hdrs[i].hdr.Namelen = unix.SizeofSockaddrInet4
	}
}

// send hands messages from..to to the kernel and returns how many it took.
func (m *messages) send(fd, from, to int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&m.hdrs[from])), uintptr(to-from), 0, 0, 0)
	return done(n, errno)
}

// receive fills messages from the first on; len of each is what came.
func (m *messages) receive(fd, flags int) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd),
		uintptr(unsafe.Pointer(&m.hdrs[0])), uintptr(len(m.hdrs)), uintptr(flags), 0, 0)
	return done(n, errno)
}
