//go:build linux

package ring

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Offload says what a TUN device may be handed and may hand us: TUN_F_* of
// linux/if_tun.h. It is a property of the device, not of a queue.
type Offload uint32

// The flags; USO needs kernel 6.2.
const (
	OffloadCSUM   Offload = unix.TUN_F_CSUM
	OffloadTSO4   Offload = unix.TUN_F_TSO4
	OffloadTSO6   Offload = unix.TUN_F_TSO6
	OffloadTSOECN Offload = unix.TUN_F_TSO_ECN // without it ECN flows lose TSO
	OffloadUSO4   Offload = unix.TUN_F_USO4
	OffloadUSO6   Offload = unix.TUN_F_USO6
)

var offloadNames = []struct {
	flag Offload
	name string
}{
	{OffloadCSUM, "csum"}, {OffloadTSO4, "tso4"}, {OffloadTSO6, "tso6"}, {OffloadTSOECN, "tso-ecn"},
	{OffloadUSO4, "uso4"}, {OffloadUSO6, "uso6"},
}

func (o Offload) String() string {
	var names []string
	for _, n := range offloadNames {
		if o&n.flag != 0 {
			names = append(names, n.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, "+")
}

// TUNConfig describes a device to create.
type TUNConfig struct {
	Name       string // at most 15 bytes; with %d the kernel numbers it; empty: tun%d or tap%d
	TAP        bool   // Ethernet frames; else IP packets
	Queues     int    // 0 is 1; with more than one the device is made multi-queue
	Persistent bool   // stays when the last queue is closed
	MTU        int    // 0: as it is
	QueueLen   int    // packets that wait for a read, in each queue; 0: as it is, which is 500 at first
}

const (
	tunFlags = unix.IFF_NO_PI | unix.IFF_VNET_HDR
	tunPath  = "/dev/net/tun"
)

// CreateTUN makes the device in the network namespace of the calling thread, or
// finds it if it is persistent, and attaches all its queues. It leaves the device
// down; offloads are not negotiated.
func CreateTUN(cfg TUNConfig) ([]*Queue, error) {
	queues := max(cfg.Queues, 1)
	if len(cfg.Name) >= unix.IFNAMSIZ {
		return nil, setup(unix.ENAMETOOLONG, "a device name has at most 15 bytes", "create TUN device %q", cfg.Name)
	}
	found := false
	if cfg.Name != "" {
		_, err := interfaceIndex(cfg.Name)
		found = err == nil
	}

	// water creates the device persistent, so that it outlives water's own
	// descriptor. That one must be gone before our queues attach: it would be a
	// queue that flows hash to and nobody reads, and Go's netpoller watches it.
	wc := water.Config{DeviceType: water.TUN}
	if cfg.TAP {
		wc.DeviceType = water.TAP
	}
	wc.Name, wc.Persist, wc.MultiQueue = cfg.Name, true, queues > 1
	made, err := water.New(wc)
	if err != nil {
		return nil, tunError(err, "create TUN device %q", cfg.Name)
	}
	name := made.Name()
	if err := made.Close(); err != nil {
		return nil, tunError(err, "close the creating descriptor of TUN device %q", name)
	}

	var qs []*Queue
	undo := func(err error) ([]*Queue, error) {
		if !found {
			if len(qs) == 0 {
				if q, e := attach(name, cfg.TAP, queues > 1, unix.IFF_NO_PI); e == nil {
					qs = append(qs, q)
				}
			}
			if len(qs) > 0 {
				_ = qs[0].SetPersist(false) // the close below removes it
			}
		}
		for _, q := range qs {
			_ = q.Close()
		}
		return nil, err
	}
	for range queues {
		q, err := OpenQueue(name, cfg.TAP, queues > 1)
		if err != nil {
			return undo(err)
		}
		qs = append(qs, q)
	}
	if cfg.MTU > 0 {
		if err := setMTU(name, cfg.MTU); err != nil {
			return undo(setup(err, "check that the MTU is between 68 and 65535", "set the MTU of %s to %d", name, cfg.MTU))
		}
	}
	if cfg.QueueLen > 0 {
		if err := setQueueLen(name, cfg.QueueLen); err != nil {
			return undo(setup(err, "", "let %d packets wait in %s", cfg.QueueLen, name))
		}
	}
	if !cfg.Persistent {
		if err := qs[0].SetPersist(false); err != nil {
			return undo(err)
		}
	}
	return qs, nil
}

// OpenQueue attaches one more queue to an existing device, in the network
// namespace of the calling thread. The kernel takes the device's header flags
// from whoever attached last (tun_set_iff, drivers/net/tun.c), so all queues
// must be opened here.
func OpenQueue(name string, tap, multi bool) (*Queue, error) {
	if _, err := interfaceIndex(name); err != nil {
		// TUNSETIFF would create it.
		return nil, setup(err, "create it first", "attach to TUN device %q", name)
	}
	return attach(name, tap, multi, tunFlags)
}

func attach(name string, tap, multi bool, flags uint16) (*Queue, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, tunError(err, "open %s", tunPath)
	}
	q := &Queue{fd: fd, tap: tap}
	req, err := unix.NewIfreq(name)
	if err == nil {
		flags |= unix.IFF_TUN
		if tap {
			flags ^= unix.IFF_TUN | unix.IFF_TAP
		}
		if multi {
			flags |= unix.IFF_MULTI_QUEUE
		}
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, tunError(err, "attach to TUN device %q", name)
	}
	q.name = req.Name()
	if err := q.setHeader(); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return q, nil
}

// setHeader fixes the virtio header's length: a persistent device remembers
// what an earlier owner has set.
func (q *Queue) setHeader() error {
	size := int32(VirtioLen)
	if errno := sysIoctlPtr(q.fd, unix.TUNSETVNETHDRSZ, &size); errno != 0 {
		return setup(errno, "delete the device and let the daemon make it", "set the virtio header of %s to %d bytes", q.name, VirtioLen)
	}
	return nil
}

// AdoptQueue takes over a descriptor that is attached already: from systemd's
// store or a unix socket. The queue owns fd, also when this fails.
func AdoptQueue(fd int) (*Queue, error) {
	q, err := adopt(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return q, nil
}

func adopt(fd int) (*Queue, error) {
	req, err := unix.NewIfreq("")
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, req); err != nil {
		return nil, setup(err, "check who passed it", "take over descriptor %d as a TUN queue", fd)
	}
	flags := req.Uint16()
	q := &Queue{fd: fd, name: req.Name(), tap: flags&unix.IFF_TAP != 0}
	if flags&unix.IFF_VNET_HDR == 0 || flags&unix.IFF_NO_PI == 0 {
		return nil, setup(unix.EINVAL, "it was opened without a virtio header; let the daemon open it",
			"take over descriptor %d as a queue of %s", fd, q.name)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, setup(err, "", "make the queue of %s non-blocking", q.name)
	}
	unix.CloseOnExec(fd)
	return q, q.setHeader()
}

// Queue is one queue of a TUN or TAP device. It is a Port.
type Queue struct {
	fd     int
	name   string
	tap    bool
	expect int // packets that the last Read found, but no more than make atOnce bytes
}

// Name is the device's name when the queue was attached.
func (q *Queue) Name() string { return q.name }

// TAP tells whether frames start with an Ethernet header.
func (q *Queue) TAP() bool { return q.tap }

// FD is the descriptor.
func (q *Queue) FD() int { return q.fd }

// Attached is false once somebody has deleted the device.
func (q *Queue) Attached() bool {
	req, err := unix.NewIfreq("")
	return err != nil || unix.IoctlIfreq(q.fd, unix.TUNGETIFF, req) == nil
}

// Close detaches the queue. A device that is not persistent goes with its last.
func (q *Queue) Close() error { return closeOnce(&q.fd) }

// SetOffload sets what the device may hand us whole.
func (q *Queue) SetOffload(o Offload) error {
	if errno := sysIoctlVal(q.fd, unix.TUNSETOFFLOAD, uintptr(o)); errno != 0 {
		return setup(errno, "this kernel is older than it needs; leave the offload out", "set the offloads of %s to %v", q.name, o)
	}
	return nil
}

// NegotiateOffload sets the best the kernel takes and returns it.
func (q *Queue) NegotiateOffload() (Offload, error) {
	const tso = OffloadCSUM | OffloadTSO4 | OffloadTSO6 | OffloadTSOECN
	var err error
	for _, o := range []Offload{tso | OffloadUSO4 | OffloadUSO6, tso, OffloadCSUM, 0} {
		if err = q.SetOffload(o); err == nil {
			return o, nil
		}
		if !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return 0, err
}

// SetPersist says whether the device outlives its last queue.
func (q *Queue) SetPersist(on bool) error {
	var v uintptr
	if on {
		v = 1
	}
	if errno := sysIoctlVal(q.fd, unix.TUNSETPERSIST, v); errno != 0 {
		return setup(errno, "", "set whether %s is persistent", q.name)
	}
	return nil
}

// readEach is Read by a system call a packet.
func (q *Queue) readEach(s *Slab, fs []Frame) (n int, err error) {
	for n < len(fs) {
		mem := s.Alloc(FrameRoom)
		if mem == nil {
			if n == 0 {
				err = ErrNoRoom
			}
			return n, err
		}
		buf := mem[Headroom-VirtioLen:]
		got, errno := sysRead(q.fd, buf)
		if errno != 0 || got < VirtioLen {
			s.Trim(FrameRoom)
			if n == 0 && errno != 0 && errno != unix.EAGAIN {
				return 0, errno
			}
			return n, nil
		}
		s.Trim(len(buf) - got)
		f := &fs[n]
		f.Virtio, _ = ParseVirtio(buf)
		f.Mem, f.Start = mem[:Headroom-VirtioLen+got:Headroom-VirtioLen+got], Headroom
		// The kernel cuts silently to the buffer (tun_put_user).
		f.Truncated, f.VLAN = got == len(buf), false
		n++
	}
	return n, nil
}

// Release does nothing: all frames are in the slab.
func (q *Queue) Release() {}

// TakeError is always nil: errors of a queue come from Read and Write.
func (q *Queue) TakeError() error { return nil }

// tunError adds what to do about the usual failures.
func tunError(err error, format string, args ...any) error {
	advice := ""
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, fs.ErrPermission):
		advice = "run as root or with CAP_NET_ADMIN"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		advice = "load the tun module, or give the container " + tunPath
	case errors.Is(err, unix.EBUSY):
		advice = "another process holds it; stop that, or use another name"
	case errors.Is(err, unix.EINVAL):
		advice = "a device of that name exists with another type or number of queues; delete it"
	case errors.Is(err, unix.E2BIG):
		advice = "all its queues are taken; stop the process that holds them"
	}
	return setup(err, advice, format, args...)
}

// interfaceIndex looks a device up in the calling thread's network namespace;
// ENODEV if there is none. net.InterfaceByName would list all devices.
func interfaceIndex(name string) (index int, err error) {
	err = withIfreq(name, func(fd int, req *unix.Ifreq) error {
		err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, req)
		index = int(req.Uint32())
		return err
	})
	return index, err
}

func setMTU(name string, mtu int) error {
	return withIfreq(name, func(fd int, req *unix.Ifreq) error {
		req.SetUint32(uint32(mtu))
		return unix.IoctlIfreq(fd, unix.SIOCSIFMTU, req)
	})
}

// setQueueLen resizes the rings of all queues (tun_queue_resize, drivers/net/tun.c).
func setQueueLen(name string, packets int) error {
	return withIfreq(name, func(fd int, req *unix.Ifreq) error {
		req.SetUint32(uint32(packets))
		return unix.IoctlIfreq(fd, unix.SIOCSIFTXQLEN, req)
	})
}

func withIfreq(name string, do func(fd int, req *unix.Ifreq) error) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return do(fd, req)
}
