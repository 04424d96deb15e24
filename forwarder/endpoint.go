package forwarder

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/penstock-net/penstock/encap"
	"github.com/penstock-net/penstock/ring"
)

// endpoint is one encapsulation and port on which this node listens. There is
// one for the node's own encap and one more for each that a peer overrides.
type endpoint struct {
	index int // place in every worker's lanes
	key   endpointKey
}

type endpointKey struct {
	kind encap.Kind
	port uint16 // 0 for ipip
}

func (k endpointKey) String() string {
	if k.kind == encap.KindIPIP {
		return "ipip"
	}
	return fmt.Sprintf("%s/%d", k.kind, k.port)
}

// lane is one worker's sockets of one endpoint. The worker alone uses them.
type lane struct {
	key       endpointKey
	sockets   []ring.Socket // all; the first `receiving` of them receive
	receiving int
	egress    []*egress // what it sends by: udp the receiving socket, vxlan one a source port, ipip by inner version
}

// ipip lanes send by inner version.
const (
	laneInner4 = iota
	laneInner6
)

// Socket buffers: a batch of runs must fit on the way out; on the way in the
// buffer bridges the worker's longest batch at line rate.
const (
	sendBuffer    = 8 << 20
	receiveBuffer = 8 << 20
)

// openLane opens worker w's sockets of an endpoint.
func (f *Forwarder) openLane(key endpointKey, w int) (*lane, error) {
	l := &lane{key: key}
	ok := false
	defer func() {
		if !ok {
			l.close(f, w)
		}
	}()
	s := &f.settings
	add := func(sock ring.Socket, name string, receives, sends bool) {
		f.fds.add(fmt.Sprintf("%s/%s/%d", key, name, w), sock.FD())
		l.sockets = append(l.sockets, sock)
		if receives {
			l.receiving++
		}
		if sends {
			l.egress = append(l.egress, newEgress(sock, len(l.egress)))
		}
	}
	if key.kind == encap.KindIPIP {
		for _, proto := range []uint8{encap.ProtoIPIP, encap.ProtoIPv6} {
			sock, err := f.env.openIPIP(ring.RawConfig{Local: s.Address, Proto: int(proto), Worker: w, Workers: s.Workers,
				Errors: true, RecvBuffer: receiveBuffer, SendBuffer: sendBuffer})
			if err != nil {
				return nil, err
			}
			add(sock, fmt.Sprintf("proto%d", proto), true, true)
		}
		ok = true
		return l, nil
	}
	sock, err := f.env.openUDP(ring.UDPConfig{Local: netip.AddrPortFrom(s.Address, key.port), ReusePort: true, GRO: f.use.udpGRO,
		Errors: true, RecvBuffer: receiveBuffer, SendBuffer: sendBuffer})
	if err != nil {
		return nil, err
	}
	add(sock, "listen", true, key.kind == encap.KindUDP)
	if key.kind == encap.KindVXLAN {
		// Own source ports give ECMP and RSS entropy; flannel's udp wants the one port both ways.
		for i := range s.SourcePorts {
			sock, err := f.env.openUDP(ring.UDPConfig{Local: netip.AddrPortFrom(s.Address, 0), SendOnly: true, Errors: true, SendBuffer: sendBuffer})
			if err != nil {
				return nil, err
			}
			add(sock, fmt.Sprintf("source%d", i), false, true)
		}
	}
	ok = true
	return l, nil
}

func (l *lane) close(f *Forwarder, w int) {
	for _, s := range l.sockets {
		f.fds.remove(s.FD())
		s.Close()
	}
}

// ownEndpoint is where the node's own encapsulation listens.
func (f *Forwarder) ownEndpoint() endpointKey {
	if f.settings.Encap == encap.KindIPIP {
		return endpointKey{kind: encap.KindIPIP}
	}
	return endpointKey{f.settings.Encap, f.settings.Port}
}

// openEndpoints opens on every worker what need names and is not open yet, all
// or nothing. It returns what it opened. f.control is held.
func (f *Forwarder) openEndpoints(need map[endpointKey]bool) (opened []endpointKey, err error) {
	kinds := map[uint16]encap.Kind{}
	for key := range need {
		if k, taken := kinds[key.port]; taken && key.port != 0 {
			return nil, fmt.Errorf("UDP port %d cannot carry both %s and %s: give the peers that differ another port", key.port, k, key.kind)
		}
		if f.native != nil && key.port == f.settings.Native.Port && key.kind != encap.KindIPIP {
			return nil, fmt.Errorf("UDP port %d is the native stream's, and cannot carry %s: change native.port or the port of encap", key.port, key.kind)
		}
		kinds[key.port] = key.kind
	}
	for key := range need {
		if f.endpoints[key] != nil {
			continue
		}
		e := &endpoint{key: key, index: f.endpointSlots.take()}
		f.endpoints[key] = e
		opened = append(opened, key)
		for _, w := range f.workers {
			l, err := f.openLane(key, w.index)
			if err == nil {
				err = w.do(func(w *worker) error { return w.addLane(e.index, l) })
				if err != nil {
					l.close(f, w.index)
				}
			}
			if err != nil {
				f.closeEndpoints(opened)
				return nil, err
			}
		}
	}
	return opened, nil
}

// closeEndpoints closes endpoints that no peer in the table uses.
func (f *Forwarder) closeEndpoints(keys []endpointKey) {
	for _, key := range keys {
		e := f.endpoints[key]
		delete(f.endpoints, key)
		f.onAll(func(w *worker) {
			if e.index < len(w.lanes) && w.lanes[e.index] != nil {
				w.lanes[e.index].close(f, w.index)
				w.lanes[e.index] = nil
			}
		})
		f.endpointSlots.give(e.index)
	}
}

// tunnelPorts is which ports of UDP and TCP, and whether ipip, are tunnels here.
type tunnelPorts struct {
	set    atomic.Pointer[[1 << 10]uint64]
	ipip   atomic.Bool
	native uint16 // the native stream's port, of UDP and TCP, also while it is off here: a pod that spoke to a peer's in this node's name would be this node to it. Fixed by New
}

func (t *tunnelPorts) has(proto uint8, port uint16) bool {
	if proto == encap.ProtoTCP {
		return port == t.native && t.native != 0
	}
	return t.set.Load()[port>>6]&(1<<(port&63)) != 0
}

func (t *tunnelPorts) store(endpoints map[endpointKey]*endpoint) {
	var set [1 << 10]uint64
	ipip := false
	for k := range endpoints {
		if k.kind == encap.KindIPIP {
			ipip = true
		} else {
			set[k.port>>6] |= 1 << (k.port & 63)
		}
	}
	if t.native != 0 {
		set[t.native>>6] |= 1 << (t.native & 63)
	}
	t.set.Store(&set)
	t.ipip.Store(ipip)
}
