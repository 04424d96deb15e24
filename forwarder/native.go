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
//	toPeer ─▶ toNative ─▶ burst (nativesend.go) ─┬─▶ UDP socket ─────────────────▶ peer
//	             │                               └─▶ packet socket (nativetcp.go) ─▶ peer
//	             └ the way changes: hold, fence (nativehold.go)
//
//	peer ──▶ UDP socket, packet socket ─▶ pieces ─▶ native.Stream ─▶ accept (nativereceive.go)
//	             └ messages ─▶ nativePlane, which asks package agree (nativeagent.go)
//
// Workers read two words of a peer: by which way frames go, and what it sends.
// nativePlane alone writes them. While the stream is off, Forwarder.native and
// worker.native are nil and nothing of this runs.

// Native is how the stream is used.
type Native struct {
	TCP, UDP bool // by these carriers
	Port     uint16
}

// On reports whether there is a carrier to use.
func (n Native) On() bool { return n.TCP || n.UDP }

// nativeWay is how frames go to a peer as the native stream. Immutable.
type nativeWay struct {
	carrier native.Carrier
	piece   int // how bursts are cut
	room    int // bytes of frames in a burst
	to      ring.Sockaddr
	fence   bool           // what it replaces is alive, unless it is one of dead: change in order
	dead    native.Carrier // that are not proven now
	me      native.Message // what we say of ourselves to this peer
}

func newNativeWay(by native.Carrier, to ring.Sockaddr, me native.Message) *nativeWay {
	w := &nativeWay{carrier: by, piece: me.Piece(by), to: to, fence: true, me: me}
	if w.room = native.Room(w.piece, 0, native.MaxBurst); by == native.UDP {
		w.room = native.Room(w.piece, native.UDPLen, maxRunBytes)
	}
	return w
}

// same reports whether frames that go by way or by other go the same way.
func (way *nativeWay) same(other *nativeWay) bool {
	return way == other || way != nil && other != nil && way.carrier == other.carrier && way.me == other.me
}

// carrierIndex numbers the carriers: their streams have nothing to do with each other.
func carrierIndex(by native.Carrier) int {
	if by == native.TCP {
		return 0
	}
	return 1
}

const nativeCarriers = 2

// nativePeer is what a peer sends, as it has said. Immutable.
type nativePeer struct {
	first, streams uint16              // its tags
	size           [nativeCarriers]int // of its pieces; 0: by a carrier that it does not offer, and so sends nothing by
}

func newNativePeer(known native.Message) *nativePeer {
	p := &nativePeer{first: known.FirstTag, streams: uint16(known.Streams)}
	for _, by := range [...]native.Carrier{native.TCP, native.UDP} {
		if known.Carriers&by != 0 {
			p.size[carrierIndex(by)] = known.Piece(by)
		}
	}
	return p
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
	full  []byte         // zeros behind a message
	may   native.Carrier // that are configured, and that the kernel has

	refused atomic.Bool // the uplink's device, bursts of the tcp carrier

	mu     sync.Mutex
	self   native.Message // what is the same for all peers
	prefer native.Carrier
	tcp    ring.Writer // sends messages by the tcp carrier; nil: there is none
	index  int         // of the device that tcp is on
	frames *ring.Packets
	peers  map[*peerState]*nativeAgreement

	unopened string // why the port is not ours; empty if it is
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
	may := native.Carrier(0)
	if s.Native.TCP {
		may |= native.TCP
	}
	switch {
	case !s.Native.UDP:
	case f.use.udpSegment && f.use.udpGRO:
		may |= native.UDP
	default:
		f.log.Warn("the udp carrier of the native stream needs UDP_SEGMENT and UDP_GRO, which this kernel lacks or offload switches off: it stays off")
	}
	if may == 0 {
		return nil
	}
	n := &nativePlane{f: f, inbox: make(chan nativeEvent, nativeInbox), poked: make(chan struct{}, 1), stop: make(chan struct{}),
		out: ring.NewDatagrams(1, 4), frames: ring.NewPackets(1, 4), full: make([]byte, 1<<16), may: may, peers: map[*peerState]*nativeAgreement{}}
	var err error
	if n.sock, err = f.env.openUDP(ring.UDPConfig{Local: netip.AddrPortFrom(s.Address, 0), SendOnly: true, Errors: true}); err != nil {
		return fmt.Errorf("the native stream: %w", err)
	}
	f.fds.add("native/messages", n.sock.FD())
	f.native = n
	for _, w := range f.workers {
		w.native = newNativeWorker()
	}
	if n.openPort(s) != nil {
		f.log.Warn(n.unopened + "; frames go by the encapsulation, trying again")
	}
	n.openTCP(s)
	n.renew(s)
	n.setPrefer(s.Uplink)
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
	udp, tcp := s.UnderlayMTU-head-udpLen-native.UDPLen, s.UnderlayMTU-head-native.TCPLen
	n.self = native.Message{Carriers: n.may, MinVersion: native.Version, MaxVersion: native.Version, Streams: uint8(min(len(n.f.workers), 255)), Network: s.VNI,
		PieceUDP: uint16(min(max(udp, native.MinPiece), nativePieceMost)), PieceTCP: uint16(min(max(tcp, native.MinPiece), nativePieceMost))}
	if udp < native.MinPiece {
		n.self.Carriers &^= native.UDP
	}
	if tcp < native.MinPiece || n.tcp == nil {
		n.self.Carriers &^= native.TCP
	}
	if n.unopened != "" {
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
	n.closeTCP()
	for _, w := range f.workers {
		if w.native != nil && w.native.sock != nil {
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
	Version              int    // of the stream, while there is a carrier
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
		s.Carrier, s.Version = way.carrier.String(), native.Version
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
