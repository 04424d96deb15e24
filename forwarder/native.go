package forwarder

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/encap/native"
	"github.com/penstock-net/penstock/ring"
)

// The native stream carries frames to peers that agree on it, in bursts that are
// cut without regard to frame borders; docs/native-stream.md specifies it.
//
//	toPeer ─▶ toNative ─▶ burst (nativesend.go) ─▶ socket ──▶ peer
//	             └ the way changes: hold, fence (nativehold.go)
//
//	peer ──▶ socket ─▶ pieces ─▶ native.Stream ─▶ accept (nativereceive.go)
//	             └ messages ─▶ nativePlane, which asks package agree (nativeagent.go)
//
// Workers read two words of a peer: by which way frames go, and what it sends.
// nativePlane alone writes them. While the stream is off, Forwarder.native and
// worker.native are nil and nothing of this runs.

// Native is how the stream is used.
type Native struct {
	UDP  bool // by the udp carrier
	Port uint16
}

// On reports whether there is a carrier to use.
func (n Native) On() bool { return n.UDP }

// nativeWay is how frames go to a peer as the native stream. Immutable.
type nativeWay struct {
	carrier native.Carrier
	piece   int // how bursts are cut
	to      ring.Sockaddr
	fence   bool           // what it replaces is alive: change in order
	me      native.Message // what we say of ourselves to this peer
}

// nativePeer is what a peer sends, as it has said. Immutable.
type nativePeer struct {
	first, streams uint16 // its tags
	size           int    // of its pieces
}

// nativePlane is what the workers have in common of the stream, and who decides.
type nativePlane struct {
	f     *Forwarder
	inbox chan nativeEvent
	poked chan struct{}
	stop  chan struct{}
	done  sync.WaitGroup
	sock  ring.Socket // sends messages
	out   *ring.Datagrams
	full  []byte // zeros behind a message

	mu    sync.Mutex
	self  native.Message // what is the same for all peers
	peers map[*peerState]*nativeAgreement
}

// nativeEvent is a message from a peer that a worker received.
type nativeEvent struct {
	peer *peer
	m    native.Message
	by   native.Carrier
}

// nativeInbox is how many events wait at most; more are lost, as datagrams are.
const nativeInbox = 256

// nativePieceMost bounds the pieces where the underlay's MTU does not: UDP_SEGMENT cuts 64 of them.
const nativePieceMost = 16 << 10

// openNative opens the stream's sockets. f.control is held, or nothing runs.
func (f *Forwarder) openNative() error {
	s := &f.settings
	if !s.Native.On() {
		return nil
	}
	if !f.use.udpSegment || !f.use.udpGRO {
		f.log.Warn("the native stream needs UDP_SEGMENT and UDP_GRO, which this kernel lacks or offload switches off: it stays off")
		return nil
	}
	local := netip.AddrPortFrom(s.Address, s.Native.Port)
	n := &nativePlane{f: f, inbox: make(chan nativeEvent, nativeInbox), poked: make(chan struct{}, 1), stop: make(chan struct{}),
		out: ring.NewDatagrams(1, 4), full: make([]byte, 1<<16), peers: map[*peerState]*nativeAgreement{}}
	var err error
	if n.sock, err = f.env.openUDP(ring.UDPConfig{Local: netip.AddrPortFrom(s.Address, 0), SendOnly: true, Errors: true}); err != nil {
		return fmt.Errorf("the native stream: %w", err)
	}
	f.fds.add("native/messages", n.sock.FD())
	f.native, f.tunnelPorts.native = n, s.Native.Port
	for i, w := range f.workers {
		sock, err := f.env.openUDP(ring.UDPConfig{Local: local, ReusePort: true, GRO: true, Errors: true, RecvBuffer: receiveBuffer, SendBuffer: sendBuffer})
		if err != nil {
			return fmt.Errorf("the native stream: %w", err)
		}
		f.fds.add(fmt.Sprintf("native/udp/%d", i), sock.FD())
		w.native = newNativeWorker(sock)
		if err := w.poller.Add(sock.FD(), tokenNative); err != nil {
			return fmt.Errorf("poll the native stream's socket: %w", err)
		}
	}
	n.renew(s)
	return nil
}

// renew makes all agreements anew, for example after the underlay's MTU has changed: to peers it is as if we had restarted.
func (n *nativePlane) renew(s *Settings) {
	n.mu.Lock()
	defer n.mu.Unlock()
	head := encap.IPv4Len
	if s.Address.Is6() {
		head = encap.IPv6Len
	}
	n.self = native.Message{Carriers: native.UDP, MinVersion: native.Version, MaxVersion: native.Version, Streams: uint8(min(len(n.f.workers), 255)), Network: s.VNI,
		PieceUDP: uint16(min(s.UnderlayMTU-head-udpLen-native.UDPLen, nativePieceMost)), PieceTCP: native.MinPiece}
	if s.UnderlayMTU-head-udpLen-native.UDPLen < native.MinPiece {
		n.self.Carriers = 0
	}
	for s := range n.peers {
		n.forget(s)
	}
}

func (f *Forwarder) closeNative() {
	n := f.native
	if n == nil {
		return
	}
	for _, w := range f.workers {
		if w.native != nil {
			f.fds.remove(w.native.sock.FD())
			w.native.sock.Close()
		}
	}
	f.fds.remove(n.sock.FD())
	n.sock.Close()
}

// poke lets the plane look at the peers.
func (n *nativePlane) poke() {
	select {
	case n.poked <- struct{}{}:
	default:
	}
}

// post hands a message over; it never waits.
func (n *nativePlane) post(e nativeEvent) {
	select {
	case n.inbox <- e:
	default:
	}
}

// nativeState is the part of a peer's state that belongs to the stream.
type nativeState struct {
	wanted atomic.Bool // there was something to send; the plane takes it back
	way    atomic.Pointer[nativeWay]
	from   atomic.Pointer[nativePeer]
	broken atomic.Bool // the route refused UDP_SEGMENT
	counts nativeCounts
}

// nativeCounts are a peer's, for people.
type nativeCounts struct {
	bursts, frames, saved atomic.Uint64 // sent; bytes that the standard encapsulation would have cost more
	gotPieces, gotFrames  atomic.Uint64
	lost, parts, refused  atomic.Uint64 // bytes of the stream, superframes handed on in parts, pieces dropped
}

// NativeStatus is what is to be said of one peer's stream.
type NativeStatus struct {
	Carrier              string // none: frames go by the standard encapsulation
	Why                  string // it is not native; empty if it is
	Bursts, Frames       uint64 // sent
	Saved                uint64 // bytes that the standard encapsulation would have cost more
	GotPieces, GotFrames uint64
	LostBytes            uint64 // of the peer's stream that did not come, or too late
	Parts                uint64 // of superframes that had lost a piece, and were handed on
	Refused              uint64 // pieces that were dropped
}

// status says how a peer is reached; nil: the stream is off.
func (n *nativePlane) status(p *peer) *NativeStatus {
	if n == nil {
		return nil
	}
	x := &p.state.native
	c := &x.counts
	s := &NativeStatus{Carrier: "none", Bursts: c.bursts.Load(), Frames: c.frames.Load(), Saved: c.saved.Load(), GotPieces: c.gotPieces.Load(), GotFrames: c.gotFrames.Load(),
		LostBytes: c.lost.Load(), Parts: c.parts.Load(), Refused: c.refused.Load()}
	if way := x.way.Load(); way != nil {
		s.Carrier = way.carrier.String()
		return s
	}
	s.Why = "no traffic to it yet"
	n.mu.Lock()
	defer n.mu.Unlock()
	if a := n.peers[p.state]; a != nil {
		s.Why = a.Why(n.now())
	}
	return s
}
