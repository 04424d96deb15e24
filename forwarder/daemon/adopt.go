package daemon

import (
	"context"
	"net"
	"os"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
	"github.com/penstock-net/penstock/forwarder/podstate"
)

// A tun pod's device is in the pod's network namespace, where we cannot open it. So its queue must outlive us: systemd keeps a
// copy in its descriptor store under the device's name (FDNAME) and hands it to the next daemon. Where there is no systemd, or
// the copy is lost, `penstock adopt` opens the queue anew in the pod and passes it over the control socket.

// adoptPatience is how long the daemon is not ready because pods wait for their queue. The others shall not suffer for ever.
const adoptPatience = 30 * time.Second

// Adopt takes over a queue of a pod that waits. It owns fd.
func (d *Daemon) Adopt(ctx context.Context, k control.PodKey, fd int) error {
	q := &queue{fd}
	defer q.close()
	done, err := d.begin(ctx, k)
	if err != nil {
		return err
	}
	defer done()
	p := d.pods.get(k)
	switch {
	case p == nil:
		return control.Errorf(control.NotFound, "there is no pod %s", k)
	case p.phase() != control.PhaseWaiting:
		return control.Errorf(control.Conflict, "%s does not wait for a queue: it is %s as %s", k, p.phase(), p.rec.Attach)
	}
	err = d.openPort(p, func() error { _, err := d.plane.Adopt(specOf(p.rec), q.take()); return err })
	if err != nil {
		return control.Errorf(control.BadRequest, "the queue of %s cannot be taken over: %v", k, err)
	}
	d.log.Info("adopted", "pod", k.Container, "interface", k.Interface, "device", p.rec.Device)
	return nil
}

// queue is a descriptor of a TUN's queue that came to us, until the forwarder takes it.
type queue struct{ fd int }

func (q *queue) take() int {
	fd := q.fd
	q.fd = -1
	return fd
}

func (q *queue) close() {
	if q.fd >= 0 {
		closeFD(q.fd)
	}
}

// countWaiting keeps the daemon's readiness up with the pods that wait, as long as its patience lasts, and the forwarder from answering
// in their place. Those of a predecessor are counted when it is known what has become of all of them, and not at each.
func (d *Daemon) countWaiting() int {
	d.waitMu.Lock()
	defer d.waitMu.Unlock()
	if !d.restored {
		return 0
	}
	n, addresses := d.pods.awaited()
	if !slices.Equal(addresses, d.awaited) {
		if err := d.plane.Await(addresses); err != nil {
			d.log.Warn("who sends to pods that wait for their queue is told that they are not there", "error", err)
		} else {
			d.awaited = addresses
		}
	}
	if n == 0 || d.impatient {
		d.health.set(adoption, "")
	} else {
		d.health.set(adoption, control.AdoptReason(n))
	}
	return n
}

// waitForAdoption ends the waiting.
func (d *Daemon) waitForAdoption(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(adoptPatience):
	}
	d.waitMu.Lock()
	d.impatient = true
	d.waitMu.Unlock()
	if n := d.countWaiting(); n > 0 {
		d.log.Error("pods with a TUN still wait for their queue and have no network: run "+control.AdoptCommand(d.state.Load().cfg.Control.Socket)+" as root", "pods", n, "after", adoptPatience.String())
	}
	return nil
}

// storeQueue gives systemd a copy of a TUN's queue.
func (d *Daemon) storeQueue(rec *podstate.Record) {
	name := "pod/" + rec.Container + "/" + rec.Interface
	for _, f := range d.plane.Descriptors() {
		if f.Name == name {
			if err := d.machine.StoreQueue(rec.Device, f.FD); err != nil {
				d.log.Warn("systemd does not keep the queue of a TUN; after a restart penstock adopt must bring it", "pod", rec.Key(), "error", err)
			}
		}
	}
}

func (d *Daemon) forgetQueue(rec *podstate.Record) { d.machine.ForgetQueue(rec.Device) }

func closeFD(fd int) { unix.Close(fd) }

// StoreQueue passes a descriptor to systemd (sd_notify(3)). FDPOLL=0: a TUN that is down has EPOLLERR, for which systemd would
// throw it away. Without systemd it does nothing.
func (linux) StoreQueue(name string, fd int) error {
	return sdNotify("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, unix.UnixRights(fd))
}

// ForgetQueue lets systemd close its copy.
func (linux) ForgetQueue(name string) { sdNotify("FDSTOREREMOVE=1\nFDNAME="+name, nil) }

// StoredQueues are the descriptors that systemd has kept, by name; the caller owns them.
func (linux) StoredQueues() map[string]int {
	queues := map[string]int{}
	for _, f := range activation.Files(true) {
		if fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3); err == nil {
			if _, twice := queues[f.Name()]; twice {
				unix.Close(fd)
			} else {
				queues[f.Name()] = fd
			}
		}
		f.Close()
	}
	return queues
}

// sdNotify is SdNotify of go-systemd with descriptors, which that one cannot pass.
func sdNotify(state string, rights []byte) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var sent error // not by WriteMsgUnix, which refuses connected datagram sockets
	if err := raw.Control(func(at uintptr) { sent = unix.Sendmsg(int(at), []byte(state), rights, nil, unix.MSG_NOSIGNAL) }); err != nil {
		return err
	}
	return sent
}
