//go:build linux

package ring

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// A TUN queue by way of an io_uring, where it pays: for a lone packet a system
// call costs no more. Short packets gain what a system call costs, long ones that
// nobody takes the processor away between two of them.

const (
	// fewReads packets are read one by one before the ring is asked, which for a
	// lone packet costs more than a second read that finds nothing.
	fewReads = 2
	// fewWrites messages, or fewer, are written one by one.
	fewWrites = 1
	// atOnce is after how many bytes nothing more is read before it is handled, or
	// written in one system call, of which Go's scheduler does not know.
	atOnce = 2 << 20
)

// BatchReads lets u read TUN queues for this slab, into memory of its own; nil:
// none does. u must be closed after the last frame is done with.
func (s *Slab) BatchReads(u *Uring) {
	if s.uring, s.many = u, nil; u != nil {
		s.many = &Slab{mem: u.memory}
	}
}

// BatchWrites lets u write the messages to TUN queues; nil: none does.
func (p *Packets) BatchWrites(u *Uring) { p.uring = u }

// Read reads packets into the slab, until the queue is empty, fs or the slab
// full, or some 2 MiB read: the first few one by one, then by the slab's io_uring.
// The virtio header lands in the headroom. A device that was deleted shows as EBADFD.
func (q *Queue) Read(s *Slab, fs []Frame) (n int, err error) {
	if s.uring.works() {
		n, err = q.readBatched(s, fs)
		if q.expect = n; n > 0 {
			q.expect = min(n, n*atOnce/max(bytesOf(fs[:n]), 1))
		}
		return n, err
	}
	return q.readEach(s, fs)
}

func (q *Queue) readBatched(s *Slab, fs []Frame) (n int, err error) {
	// As many as last time are likely there again.
	if q.expect <= fewReads {
		few := min(len(fs), fewReads)
		if n, err = q.readEach(s, fs[:few]); n < few || err != nil {
			return n, err
		}
	}
	for asked := q.expect + fewReads; s.uring.works() && bytesOf(fs[:n]) < atOnce; asked *= 2 {
		want := min(asked, len(fs)-n, UringEntries, s.many.Left()/FrameRoom)
		if want == 0 {
			break
		}
		got, done, errno := q.readMany(s, fs[n:n+want])
		n += got
		if errno != 0 || done < want {
			break // what is wrong with the device, read(2) says: a ring may lack memory
		}
		if got < done {
			return n, nil // it is empty
		}
	}
	if n == len(fs) || n > 0 && s.uring.works() {
		return n, nil
	}
	got, err := q.readEach(s, fs[n:])
	if n > 0 {
		err = nil // comes again, or the slab is reset first
	}
	return n + got, err
}

func bytesOf(fs []Frame) (n int) {
	for i := range fs {
		n += len(fs[i].Bytes())
	}
	return n
}

// readMany reads len(fs) packets at most, for which the slab has room, in one
// system call: done reads gave n packets. errno is of the first that failed but
// for want of a packet.
func (q *Queue) readMany(s *Slab, fs []Frame) (n, done int, errno unix.Errno) {
	mem := s.many.Alloc(len(fs) * FrameRoom)
	for i := range fs {
		s.uring.add(uringRead, q.fd, addressOf(mem[i*FrameRoom+readFront:]), FrameRoom-readFront)
	}
	results := s.uring.submit()
	runtime.KeepAlive(mem)
	n, end, errno := gather(results, mem, fs)
	s.many.Trim(len(mem) - end)
	if errno == unix.EOPNOTSUPP && n == 0 {
		s.uring.fail(len(results), errno) // this kernel's TUN knows no RWF_NOWAIT
		return 0, 0, 0
	}
	return n, len(results), errno
}

// readFront is what stands before the virtio header.
const readFront = Headroom - VirtioLen

// gather makes frames of what was read into mem, FrameRoom apart. A packet that
// came while others were read may stand behind a read that found none.
func gather(results []int32, mem []byte, fs []Frame) (n, end int, errno unix.Errno) {
	for i, r := range results {
		if r < VirtioLen {
			if e := unix.Errno(-r); r < 0 && e != unix.EAGAIN && errno == 0 {
				errno = e
			}
			continue
		}
		at := i * FrameRoom
		end = at + readFront + int(r)
		f := &fs[n]
		f.Virtio, _ = ParseVirtio(mem[at+readFront:])
		f.Mem, f.Start = mem[at:end:end], Headroom
		// The kernel cuts silently to the buffer (tun_put_user).
		f.Truncated, f.VLAN = int(r) == FrameRoom-readFront, false
		n++
	}
	return n, end, errno
}

// Write hands the messages to the device. EIO: it is down. EINVAL: the virtio
// header does not fit the packet.
func (q *Queue) Write(p *Packets, from int) (n int, err error) {
	for i := from; i < p.nmsg; i++ {
		if i >= p.doneTo && p.nmsg-i > fewWrites && p.uring.works() {
			q.writeMany(p, i)
		}
		errno := unix.Errno(0)
		if i < p.doneTo {
			errno = unix.Errno(-min(p.done[i-p.doneFrom], 0))
		} else {
			_, errno = sysWritev(q.fd, p.message(i))
		}
		if errno != 0 {
			return i - from, errno
		}
	}
	return p.nmsg - from, nil
}

// writeMany writes messages from the given one on in one system call, and notes
// in p what became of each that was tried: one that fails does not keep back those
// behind it, of which the caller asks when it has been told of the failure.
func (q *Queue) writeMany(p *Packets, from int) {
	to, bytes := from, 0
	for to < min(p.nmsg, from+UringEntries) && bytes < atOnce {
		m := p.message(to)
		p.uring.add(uringWritev, q.fd, iovecsAt(m), len(m))
		bytes += p.Bytes(to)
		to++
	}
	results := p.uring.submit()
	runtime.KeepAlive(p)
	if len(results) > 0 && results[0] == -int32(unix.EOPNOTSUPP) {
		p.uring.fail(len(results), unix.EOPNOTSUPP)
		return
	}
	p.doneFrom, p.doneTo = from, from+copy(p.done[:], results)
}
