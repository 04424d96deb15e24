//go:build linux

package ring

import "golang.org/x/sys/unix"

// A TUN queue by way of an io_uring, where it pays: for lone packets, and for
// long ones, a system call each costs no more.

const (
	// fewReads packets are read one by one before the ring is asked, which for a
	// lone packet costs more than a second read that finds nothing.
	fewReads = 2
	// fewWrites messages are written one by one.
	fewWrites = 1
	// longPacket is from which average length, in bytes, on a system call is
	// nothing beside the copying.
	longPacket = 4096
)

// BatchReads lets u read TUN queues into this slab; nil: none does.
func (s *Slab) BatchReads(u *Uring) { s.uring = u }

// BatchWrites lets u write these messages to TUN queues; nil: none does.
func (p *Packets) BatchWrites(u *Uring) { p.uring = u }

// Read reads packets into the slab, until the queue is empty, fs or the slab
// full: the first few one by one, and all that may be there by the slab's io_uring.
// The virtio header lands in the headroom. A device that was deleted shows as EBADFD.
func (q *Queue) Read(s *Slab, fs []Frame) (n int, err error) {
	each := fs
	if s.uring.works() {
		// As many as last time are likely there again.
		if q.expect > fewReads {
			each = nil
		} else {
			each = fs[:min(len(fs), fewReads)]
		}
	}
	if n, err = q.readEach(s, each); err != nil || n < len(each) || n == len(fs) {
		q.expect = n
		return n, err
	}
	asked := q.expect + fewReads
	for n < len(fs) {
		want := min(asked, len(fs)-n, UringEntries, s.Left()/FrameRoom)
		if want == 0 {
			if n == 0 {
				err = ErrNoRoom
			}
			break
		}
		got, errno := q.readMany(s, fs[n:n+want])
		if n += got; got < want {
			if n == 0 && errno != 0 {
				err = errno
			}
			break
		}
		asked *= 2
	}
	q.expect = n
	if bytes := 0; n > 0 {
		for i := range fs[:n] {
			bytes += len(fs[i].Mem)
		}
		if bytes > n*longPacket {
			q.expect = 0
		}
	}
	return n, err
}

// readMany reads len(fs) packets at most, for which the slab has room, in one
// system call. errno is of the first read that failed but for want of a packet.
func (q *Queue) readMany(s *Slab, fs []Frame) (n int, errno unix.Errno) {
	const front = Headroom - VirtioLen
	mem := s.Alloc(len(fs) * FrameRoom)
	for i := range fs {
		s.uring.add(uringRead, q.fd, addressOf(mem[i*FrameRoom+front:]), FrameRoom-front)
	}
	end := 0
	for i, r := range s.uring.submit() {
		if r < VirtioLen {
			if e := unix.Errno(-r); r < 0 && e != unix.EAGAIN && errno == 0 {
				errno = e
			}
			continue // a packet that came meanwhile may stand behind it
		}
		at := i * FrameRoom
		end = at + front + int(r)
		f := &fs[n]
		f.Virtio, _ = ParseVirtio(mem[at+front:])
		f.Mem, f.Start = mem[at:end:end], Headroom
		// The kernel cuts silently to the buffer (tun_put_user).
		f.Truncated, f.VLAN = int(r) == FrameRoom-front, false
		n++
	}
	s.Trim(len(mem) - end)
	return n, s.uring.refused(errno)
}

// refused: a kernel whose TUN knows no RWF_NOWAIT says so by EOPNOTSUPP. The
// ring is not used again; what it has not done is not lost.
func (u *Uring) refused(errno unix.Errno) unix.Errno {
	if errno == unix.EOPNOTSUPP {
		u.fail(1, errno)
		return 0
	}
	return errno
}

// Write hands the messages to the device. EIO: it is down. EINVAL: the virtio
// header does not fit the packet.
func (q *Queue) Write(p *Packets, from int) (n int, err error) {
	i := from
	for ; i < p.nmsg; i++ {
		if i >= p.doneTo {
			if p.nmsg-i <= fewWrites || !p.uring.works() || !q.writeMany(p, i) {
				break
			}
		}
		if r := p.done[i-p.doneFrom]; r < 0 {
			return i - from, unix.Errno(-r)
		}
	}
	for ; i < p.nmsg; i++ {
		if _, errno := sysWritev(q.fd, p.message(i)); errno != 0 {
			return i - from, errno
		}
	}
	return i - from, nil
}

// writeMany writes messages from the given one on, UringEntries at most, in one
// system call, and notes in p what became of each: one that fails does not keep
// back those behind it, of which the caller asks when it has been told of the
// failure. false: none was written.
func (q *Queue) writeMany(p *Packets, from int) bool {
	for i := from; i < min(p.nmsg, from+UringEntries); i++ {
		m := p.message(i)
		p.uring.add(uringWritev, q.fd, iovecsAt(m), len(m))
	}
	results := p.uring.submit()
	if len(results) > 0 && p.uring.refused(unix.Errno(-min(results[0], 0))) == 0 && !p.uring.works() {
		return false
	}
	p.doneFrom, p.doneTo = from, from+copy(p.done[:], results)
	return len(results) > 0
}
