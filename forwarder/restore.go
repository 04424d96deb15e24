package forwarder

import "fmt"

// A device of ours that somebody deletes takes its queues with it: their
// descriptors stay open and fail with EBADFD. What is lost meanwhile is drop
// port_down (penstock0), or is cut (the TAP).

// attached is what a queue knows of its device; fakes are always attached.
type attached interface{ Attached() bool }

func deviceGone(q any) bool {
	a, ok := q.(attached)
	return ok && !a.Attached()
}

// RestoreDevices makes the host's TUN and the TAP anew if somebody has deleted
// them, and returns their names. The devices are down and without addresses.
func (f *Forwarder) RestoreDevices() (made []string, err error) {
	f.control.Lock()
	defer f.control.Unlock()
	if f.stopped {
		return nil, nil
	}
	if deviceGone(f.hosts[0].io) {
		if err := f.reopenHost(); err != nil {
			return made, fmt.Errorf("%s was deleted and cannot be made anew: %w", f.settings.HostDevice, err)
		}
		made = append(made, f.settings.HostDevice)
	}
	if t := f.workers[0].tunnel; t != nil && deviceGone(t) {
		if err := f.reopenTunnels(); err != nil {
			return made, fmt.Errorf("%s was deleted and cannot be made anew, superframes are cut: %w", GSODevice, err)
		}
		made = append(made, GSODevice)
	}
	return made, nil
}

// reopenHost gives each worker a queue of a new penstock0. Workers read and
// write the old ones until their batch has ended.
func (f *Forwarder) reopenHost() error {
	old := f.hosts
	next, err := f.hostPorts()
	if err != nil {
		return err
	}
	for _, p := range old {
		f.fds.remove(p.io.FD())
	}
	f.hosts = next
	for i, p := range next {
		f.fds.add(fmt.Sprintf("host/%d", i), p.io.FD())
	}
	f.onAll(func(w *worker) {
		w.poller.Delete(w.host.io.FD()) // it may be gone from there already
		w.host = next[w.index]
		for i, b := range w.hostboxes {
			*b = outbox{port: next[i]}
		}
		if e := w.poller.Add(w.host.io.FD(), tokenHost); e != nil {
			err = fmt.Errorf("poll %s: %w", f.settings.HostDevice, e)
		}
	})
	for _, p := range old { // no worker knows them any more
		p.io.Close()
	}
	return err
}

func (f *Forwarder) reopenTunnels() error {
	ts, err := f.env.openTunnel(GSODevice, f.settings.Workers)
	if err != nil {
		return err
	}
	for _, w := range f.workers {
		old := w.tunnel
		w.do(func(w *worker) error {
			w.tunnel = ts[w.index]
			w.tunnel.BatchWrites(w.uring)
			return nil
		})
		f.fds.remove(old.FD())
		old.Close()
		f.fds.add(fmt.Sprintf("gso/%d", w.index), ts[w.index].FD())
	}
	return nil
}
