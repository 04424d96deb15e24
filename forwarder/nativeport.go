package forwarder

import (
	"fmt"
	"net/netip"

	"github.com/penstock-net/penstock/ring"
)

// The native stream's port is no tunnel's, and any process on the node may have taken it first. Then this node offers peers no
// carrier, its frames go by the encapsulation, and the port is asked for again.

// openPort gives each worker a socket of the port, or none. f.control is held, or nothing runs.
func (n *nativePlane) openPort(s *Settings) (err error) {
	f := n.f
	var socks []ring.Socket
	defer func() {
		why := ""
		if err != nil {
			why = fmt.Sprintf("native.port %d cannot be opened: %v", s.Native.Port, err)
		}
		n.mu.Lock()
		n.unopened = why
		n.mu.Unlock()
		if err == nil {
			return
		}
		for i, sock := range socks {
			if w := f.workers[i]; w.native.sock == sock {
				f.fds.remove(sock.FD())
				w.do(func(w *worker) error { w.native.sock = nil; return w.poller.Delete(sock.FD()) })
			}
			sock.Close()
		}
	}()
	for range f.workers {
		sock, err := f.env.openUDP(ring.UDPConfig{Local: netip.AddrPortFrom(s.Address, s.Native.Port), ReusePort: true, GRO: true, Errors: true, RecvBuffer: receiveBuffer, SendBuffer: sendBuffer})
		if err != nil {
			return err
		}
		socks = append(socks, sock)
	}
	for i, w := range f.workers {
		if err := w.do(func(w *worker) error {
			if err := w.poller.Add(socks[i].FD(), tokenNative); err != nil {
				return fmt.Errorf("poll: %w", err)
			}
			w.native.sock = socks[i]
			return nil
		}); err != nil {
			return err
		}
		f.fds.add(fmt.Sprintf("native/udp/%d", i), socks[i].FD())
	}
	return nil
}

// ReopenNative asks for the port again if somebody else had it.
func (f *Forwarder) ReopenNative() {
	f.control.Lock()
	defer f.control.Unlock()
	if f.stopped || f.NativeUnopened() == "" || f.native.openPort(&f.settings) != nil {
		return
	}
	f.native.renew(&f.settings)
	f.log.Info("the native stream has its port", "port", f.settings.Native.Port)
}

// NativeUnopened says why the native stream is wanted and its port is not ours; empty otherwise.
func (f *Forwarder) NativeUnopened() string {
	n := f.native
	if n == nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.unopened
}
