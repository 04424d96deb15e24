package forwarder

import (
	"syscall"
	"time"

	"github.com/penstock-net/penstock/ring"
)

// drainErrors takes in the ICMP errors about our own datagrams. The kernel has
// matched each with a socket of ours by the packet that it quotes.
func (w *worker) drainErrors(s ring.Socket) {
	if w.view == nil {
		w.begin()
	}
	s.Errors(w.onError)
}

// socketError learns a path MTU; all other errors only tell that a peer is not
// there, which its silence tells as well.
func (w *worker) socketError(e *ring.SocketError) {
	h := w.view.Peer(e.Peer.Addr())
	if h == nil || e.Errno != syscall.EMSGSIZE || e.Origin == ring.OriginLocal || e.MTU <= 0 {
		return
	}
	if h.peer.state.learn(e.MTU, time.Unix(w.now, 0)) {
		w.f.log.Info("the path to a peer has a smaller MTU", "peer", h.peer.spec.Name, "underlayMTU", max(e.MTU, minLearnedMTU),
			"innerMTU", h.peer.innerMTU(w.now), "said", e.Offender, "for", learnedLifetime)
	}
}

// complain logs what happens per packet, at most once a minute and kind.
func (f *Forwarder) complain(msg, key, value string, err error) {
	now := time.Now().Unix()
	f.complaints.Lock()
	defer f.complaints.Unlock()
	if now-f.complaints.last[msg+value] < 60 {
		return
	}
	if len(f.complaints.last) > 1000 {
		clear(f.complaints.last)
	}
	f.complaints.last[msg+value] = now
	f.log.Warn(msg, key, value, "error", err)
}
