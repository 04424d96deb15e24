//go:build linux

package ring

import "golang.org/x/sys/unix"

// batch is what Packets and Datagrams share: messages ready for sendmmsg, each
// a stretch of one array of iovecs. The arrays never move, so that a message
// can point into them; nothing is allocated after newBatch.
type batch struct {
	msgs  []mmsghdr
	iovs  []unix.Iovec
	first []int32 // msgs[i] owns iovs[first[i]:first[i+1]]
	bytes []int32 // sum of the appended lengths
	nmsg  int
	niov  int
}

func newBatch(messages, iovecs int) batch {
	messages, iovecs = max(messages, 1), max(iovecs, 2)
	return batch{
		msgs:  make([]mmsghdr, messages),
		iovs:  make([]unix.Iovec, iovecs),
		first: make([]int32, messages+1),
		bytes: make([]int32, messages),
	}
}

func (b *batch) reset() { b.nmsg, b.niov = 0, 0 }

// begin opens a message without iovecs; its header fields other than the
// iovecs are the caller's to set.
func (b *batch) begin() *unix.Msghdr {
	i := b.nmsg
	b.nmsg++
	b.bytes[i] = 0
	b.first[i] = int32(b.niov)
	b.first[i+1] = int32(b.niov)
	h := &b.msgs[i].Hdr
	h.Iov = &b.iovs[b.niov]
	h.Iovlen = 0
	return h
}

func (b *batch) append(p []byte) bool {
	if len(p) == 0 {
		return true
	}
	i := b.nmsg - 1
	// UIO_MAXIOV (1024) bounds a message, include/uapi/linux/uio.h.
	if b.niov == len(b.iovs) || b.niov-int(b.first[i]) == maxIovecs {
		return false
	}
	v := &b.iovs[b.niov]
	v.Base = &p[0]
	v.SetLen(len(p))
	b.niov++
	b.first[i+1] = int32(b.niov)
	b.bytes[i] += int32(len(p))
	b.msgs[i].Hdr.Iovlen++
	return true
}

const maxIovecs = 1024

func (b *batch) drop() {
	if b.nmsg == 0 {
		return
	}
	b.nmsg--
	b.niov = int(b.first[b.nmsg])
}

// message is the iovecs of message i.
func (b *batch) message(i int) []unix.Iovec {
	return b.iovs[b.first[i]:b.first[i+1]]
}

// copyTo gathers iovecs into dst and returns how many bytes fitted.
func copyTo(dst []byte, iovs []unix.Iovec) (n int) {
	for i := range iovs {
		n += copy(dst[n:], iovecBytes(&iovs[i]))
	}
	return n
}
