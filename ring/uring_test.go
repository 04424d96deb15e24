//go:build linux

package ring

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func newUring(t testing.TB) *Uring {
	t.Helper()
	u, err := NewUring()
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
		t.Skip(err)
	}
	must(t, err)
	t.Cleanup(func() { u.Close() })
	return u
}

// TestUringRefused: a descriptor that knows no RWF_NOWAIT, and a ring that is gone, cost nothing but the ring.
func TestUringRefused(t *testing.T) {
	t.Run("no RWF_NOWAIT", func(t *testing.T) {
		f, err := os.Open("/proc/version")
		must(t, err)
		defer f.Close()
		slab, fs := NewSlab(8*FrameRoom), make([]Frame, 8)
		slab.BatchReads(newUring(t))
		q := &Queue{fd: int(f.Fd()), expect: 8}
		if n, err := q.Read(slab, fs); n == 0 || err != nil {
			t.Errorf("Read says %d, %v", n, err)
		}
		if err := slab.uring.Err(); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("the ring says %v", err)
		}
	})
	t.Run("an error of the ring alone", func(t *testing.T) {
		s := newTUNSource(t)
		slab, fs := NewSlab(8*FrameRoom), make([]Frame, 64)
		slab.BatchReads(newUring(t))
		// Memory that cannot be written: each read of the ring says EFAULT, read(2), which has other memory, does not.
		none, err := unix.Mmap(-1, 0, UringEntries*FrameRoom, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		must(t, err)
		defer unix.Munmap(none)
		good := slab.many
		slab.many = &Slab{mem: none}
		s.send(t, 5, 20)
		s.q.expect = 10
		if n, err := s.q.Read(slab, fs); n != 0 || err != nil {
			t.Errorf("Read says %d, %v: a port that is well would be given up", n, err)
		}
		must(t, slab.uring.Err())
		slab.Reset()
		slab.many = good
		s.sent = 0
		s.send(t, 5, 20)
		if n, err := s.q.Read(slab, fs); len(numbers(t, fs[:n])) != 5 || err != nil {
			t.Errorf("then Read says %d, %v", n, err)
		}
	})
	t.Run("no RWF_NOWAIT to write", func(t *testing.T) {
		f, err := os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0)
		must(t, err)
		defer f.Close()
		p, q := NewPackets(8, 16), &Queue{fd: int(f.Fd())}
		p.BatchWrites(newUring(t))
		for range 8 {
			p.Begin(Virtio{})
			p.Append([]byte("0"))
		}
		// What is written there is nonsense, and the file says so; what matters is who does.
		if n, err := q.Write(p, 0); n != 0 || !errors.Is(err, unix.EINVAL) {
			t.Errorf("Write says %d, %v", n, err)
		}
		if err := p.uring.Err(); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("the ring says %v", err)
		}
	})
	t.Run("the device is deleted", func(t *testing.T) {
		s := newTUNSource(t)
		slab, fs := NewSlab(8*FrameRoom), make([]Frame, 64)
		slab.BatchReads(newUring(t))
		l, err := s.ns.h.LinkByName("tp0")
		must(t, err)
		must(t, s.ns.h.LinkDel(l))
		s.q.expect = 20
		if n, err := s.q.Read(slab, fs); n != 0 || !errors.Is(err, unix.EBADFD) {
			t.Errorf("Read says %d, %v; want EBADFD", n, err)
		}
		p := NewPackets(8, 16)
		p.BatchWrites(slab.uring)
		for range 8 {
			p.Begin(Virtio{})
			p.Append(udpFrame(8, 1)[14:])
		}
		for at := range 8 {
			if n, err := s.q.Write(p, at); n != 0 || !errors.Is(err, unix.EBADFD) {
				t.Errorf("Write from %d says %d, %v; want EBADFD", at, n, err)
			}
		}
		must(t, slab.uring.Err())
	})
	t.Run("gone while reading", func(t *testing.T) {
		s := newTUNSource(t)
		slab, fs := NewSlab(64*FrameRoom), make([]Frame, 64)
		u := newUring(t)
		slab.BatchReads(u)
		next := uint32(0)
		for round := range 3 {
			if round == 1 {
				spoil(t, u)
			}
			s.send(t, 100, 20)
			for tries := 0; next < s.sent; tries++ {
				if tries == 10 {
					t.Fatalf("%d of %d were read", next, s.sent)
				}
				slab.Reset()
				n, err := s.q.Read(slab, fs)
				must(t, err)
				for _, got := range numbers(t, fs[:n]) {
					if got != next {
						t.Fatalf("number %d came where %d was due", got, next)
					}
					next++
				}
			}
			if (u.Err() != nil) != (round > 0) {
				t.Errorf("round %d: %v", round, u.Err())
			}
		}
	})
	t.Run("gone while writing", func(t *testing.T) {
		q, conn := tunSink(t)
		u, p := newUring(t), NewPackets(100, 200)
		p.BatchWrites(u)
		for round := range 3 {
			if round == 1 {
				spoil(t, u)
			}
			p.Reset()
			for i := range 100 {
				p.Begin(Virtio{})
				p.Append(udpFrame(8, byte(i))[14:])
			}
			if n, err := q.Write(p, 0); n != 100 || err != nil {
				t.Fatalf("Write says %d, %v", n, err)
			}
			for i := range 100 {
				if got := heard(t, conn); got != byte(i) {
					t.Fatalf("datagram %d is %d", i, got)
				}
			}
			if (u.Err() != nil) != (round > 0) {
				t.Errorf("round %d: %v", round, u.Err())
			}
		}
	})
}

// spoil puts another file in the place of the ring's descriptor.
func spoil(t testing.TB, u *Uring) {
	t.Helper()
	f, err := os.Open("/dev/null")
	must(t, err)
	defer f.Close()
	must(t, unix.Dup3(int(f.Fd()), u.fd, unix.O_CLOEXEC))
}
