// Package adopt is `penstock adopt`: it brings the queues of tun pods back to a daemon that was restarted.
//
//	penstockd (new) ──GET /v1/pods──▶ which pods wait
//	pod's namespace: /dev/net/tun, TUNSETIFF eth0 ──▶ queue
//	queue ──POST /v1/adopt, SCM_RIGHTS──▶ penstockd
//
// The kernel looks a TUN's name up in the namespace where /dev/net/tun was opened, and the daemon has no right to enter a pod.
// So this command does, which a service manager runs once with all rights behind the daemon's start (ExecStartPost=+), or a
// person by hand. Where systemd has kept the queues nothing waits, and it does nothing.
package adopt

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Run is the command. It returns its exit status: 0 when no pod waits any more, 1 when one still does, 2 for wrong usage.
func Run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("penstock adopt", flag.ContinueOnError)
	flags.SetOutput(stderr)
	socket := flags.String("socket", control.DefaultSocket, "control socket `PATH` of the daemon")
	timeout := flags.Duration("timeout", 30*time.Second, "how long to try")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "penstock adopt: unexpected argument %q\n", flags.Arg(0))
		return 2
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	client := control.New(*socket)
	var failed []string
	for round := range rounds {
		if round > 0 { // an ADD that was under way may have brought the queue meanwhile, or a DEL may have taken the pod
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
		}
		pods, err := client.Pods(ctx)
		if err != nil {
			failed = []string{err.Error()}
			break
		}
		failed = nil
		for _, p := range pods {
			if p.Phase != control.PhaseWaiting {
				continue
			}
			if err := bring(ctx, client, p); err != nil {
				failed = append(failed, fmt.Sprintf("%s/%s: %v", p.Container, p.Interface, err))
			} else {
				fmt.Fprintf(stdout, "adopted %s/%s\n", p.Container, p.Interface)
			}
		}
		if len(failed) == 0 {
			return 0
		}
	}
	for _, f := range failed {
		fmt.Fprintln(stderr, "penstock adopt:", f)
	}
	return 1
}

// How often what fails is tried, and how long apart.
const (
	rounds = 4
	pause  = 300 * time.Millisecond
)

// errLost is about a pod whose device is nowhere: not in the daemon's namespace, or it would not wait, and not in its own. That
// its namespace is not found says less: this command may run where it is not mounted.
var errLost = errors.New("its device is gone")

func bring(ctx context.Context, client *control.Client, p control.Pod) error {
	queue, err := open(p)
	if errors.Is(err, errLost) {
		if e := client.Detach(ctx, control.DetachRequest{Container: p.Container, Interface: p.Interface, Lost: true}); e != nil {
			err = fmt.Errorf("%w; and the daemon cannot be told: %w", err, e)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer queue.Close()
	return client.Adopt(ctx, control.PodKey{Container: p.Container, Interface: p.Interface}, queue)
}

// open attaches a queue to a pod's TUN.
func open(p control.Pod) (*os.File, error) {
	ns, err := control.OpenNetns(p.Netns, p.NetnsID)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	type result struct {
		queue *os.File
		err   error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine, as it is in the pod
		q, err := attach(ns, p.Interface, p.Device)
		done <- result{q, err}
	}()
	r := <-done
	return r.queue, r.err
}

// attach runs on a thread of its own. The TUN may have the name that the daemon gave it, when somebody attached the pod by hand and has moved it.
func attach(ns *os.File, name, cameAs string) (*os.File, error) {
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("its network namespace cannot be entered: %w", err)
	}
	device := name
	has, err := hasDevice(device)
	if err == nil && !has {
		device = cameAs
		has, err = hasDevice(device)
	}
	if err == nil && !has { // it may have been renamed between the two looks
		device = name
		has, err = hasDevice(device)
	}
	switch {
	case err != nil:
		return nil, err
	case !has:
		return nil, fmt.Errorf("%w: the pod has no %s any more", errLost, name)
	}
	queue, err := OpenQueue(device, false)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("the queue of %s is held by another process: is the daemon before this one still running?", device)
	}
	return queue, err
}

// OpenQueue attaches the one queue of a pod's TUN, as the daemon wants it, in the network namespace of the calling thread. With
// makes the device must not be there yet, and goes with its queue unless the daemon lets it last; else the caller has seen it.
func OpenQueue(device string, makes bool) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("/dev/net/tun cannot be opened: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err == nil {
		flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		if makes {
			flags |= unix.IFF_TUN_EXCL
		}
		req.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("no queue of %s can be attached: %w", device, err)
	}
	return os.NewFile(uintptr(fd), device), nil
}

// hasDevice looks before TUNSETIFF would make a device of its own.
func hasDevice(device string) (bool, error) {
	if device == "" {
		return false, nil
	}
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq(device)
	if err != nil {
		return false, err
	}
	switch err := unix.IoctlIfreq(s, unix.SIOCGIFINDEX, req); {
	case errors.Is(err, unix.ENODEV):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("device %s cannot be looked for: %w", device, err)
	}
	return true, nil
}
