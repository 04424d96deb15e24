package native

import (
	"encoding/binary"

	"github.com/penstock-net/penstock/encap"
)

// walk is how far a burst has been handed out.
type walk struct {
	at     int // the next frame begins here; 0: not begun
	parts  bool
	h      header // of the superframe whose parts are handed out
	from   int    // where its packet begins
	pos    int    // up to where in the burst
	p      encap.Packet
	v      encap.Virtio
	hlen   int
	packet [encap.MaxHeaderLen]byte // its headers
}

// next hands out the next frame: in order, and only what nothing can be in front of any more.
func (o *burst) next(f *Frame) bool {
	w := &o.walk
	if w.parts {
		if o.nextPart(f) {
			return true
		}
		w.parts, w.at = false, w.from+w.h.length
	}
	n := (o.length + o.size - 1) / o.size
	first, end := DirectoryLen(n), o.length-DirectoryLen(n)
	if w.at == 0 {
		w.at = first
	}
	for w.at < end {
		have := o.upTo(w.at)
		if have <= w.at {
			// A hole, or nothing yet.
			if !o.ended || !o.skip(end) {
				return false
			}
			continue
		}
		b := o.mem[w.at:min(have, end)]
		h, more, ok := parseHeader(b)
		switch {
		case more && have < end:
			// The hole is in the header itself.
			if !o.ended {
				return false
			}
			w.at = have
			continue
		case !ok || w.at+h.size+h.length > end:
			if !o.ended {
				return false
			}
			*f = Frame{Kind: Bad}
			if w.at++; !o.skip(end) {
				w.at = end
			}
			return true
		}
		from := w.at + h.size
		to := from + h.length
		if have >= to {
			*f = Frame{IP: o.mem[from:to:to], Network: h.network, h: h}
			w.at = to
			return true
		}
		if !o.ended {
			return false
		}
		ip := o.mem[from:max(from, have)]
		if o.beginParts(h, from, ip) {
			return o.next(f)
		}
		*f = Frame{Kind: Lost, IP: ip, Network: h.network, h: h}
		w.at = to
		return true
	}
	return false
}

// upTo is the end of the span in which at lies, or at itself.
func (o *burst) upTo(at int) int {
	for _, h := range o.have[:o.nhave] {
		if h.from <= at && at < h.to {
			return h.to
		}
	}
	return at
}

// skip goes on from a place that is no border, or is missing, to the next border that has come; false: there is none.
func (o *burst) skip(end int) bool {
	w := &o.walk
	dir := o.directory()
	for _, h := range o.have[:o.nhave] {
		if h.to <= w.at {
			continue
		}
		i := (max(h.from, w.at) + o.size - 1) / o.size
		for ; dir != nil && i >= 1 && i*o.size < h.to && i <= len(dir)/entryLen; i++ {
			at := int(binary.BigEndian.Uint16(dir[(i-1)*entryLen:]))
			if at < i*o.size || at < w.at || at > end {
				return false // no sender writes this
			}
			if at >= h.to {
				break
			}
			w.at = at
			return at < end
		}
	}
	return false
}

// directory is the copy of the directory that has come whole, or nil.
func (o *burst) directory() []byte {
	n := DirectoryLen((o.length + o.size - 1) / o.size)
	switch {
	case n == 0 || 2*n > o.length:
		return nil
	case o.upTo(0) >= n:
		return o.mem[:n]
	case o.upTo(o.length-n) == o.length:
		return o.mem[o.length-n:]
	}
	return nil
}

// beginParts prepares to hand out a TCP superframe in parts; false: it is none, or its headers have not come.
func (o *burst) beginParts(h header, from int, ip []byte) bool {
	w := &o.walk
	if h.flags&formMask != formSuper {
		return false
	}
	p, hlen, ok := peek(ip, h.length)
	if !ok {
		return false
	}
	v, ok := h.virtio(&p)
	if !ok || v.GSOType == encap.GSOUDPL4 {
		return false
	}
	w.parts, w.h, w.from, w.pos, w.p, w.v, w.hlen = true, h, from, from+hlen, p, v, hlen
	copy(w.packet[:], ip[:hlen])
	return true
}

// peek parses the headers of a packet of n bytes of which only the beginning has come.
func peek(ip []byte, n int) (p encap.Packet, hlen int, ok bool) {
	// Parse wants all bytes: lend it the length, with bytes that it does not look at.
	if len(ip) < encap.IPv4Len {
		return p, 0, false
	}
	var head [encap.MaxHeaderLen]byte
	k := copy(head[:], ip)
	switch head[0] >> 4 {
	case 4:
		if int(binary.BigEndian.Uint16(head[2:])) != n {
			return p, 0, false
		}
		// A shorter total length, with a checksum to match, so that the headers are judged by themselves.
		ihl := int(head[0]&15) * 4
		if ihl < encap.IPv4Len || ihl > k || encap.Fold(encap.Sum(head[:ihl], 0)) != 0xffff {
			return p, 0, false
		}
		binary.BigEndian.PutUint16(head[2:], uint16(k))
		head[10], head[11] = 0, 0
		binary.BigEndian.PutUint16(head[10:], ^encap.Fold(encap.Sum(head[:ihl], 0)))
	case 6:
		if k < encap.IPv6Len || encap.IPv6Len+int(binary.BigEndian.Uint16(head[4:])) != n {
			return p, 0, false
		}
		binary.BigEndian.PutUint16(head[4:], uint16(k-encap.IPv6Len))
	}
	if encap.Parse(head[:k], &p) != encap.OK || p.Proto != encap.ProtoTCP || p.Frag != encap.NotFrag {
		return p, 0, false
	}
	p.Len = n
	hlen = encap.HeaderLen(head[:k], &p)
	return p, hlen, hlen <= k
}

// nextPart hands out what has come of the superframe's payload up to its next hole. The headers of all parts but the
// first go into the hole in front of them; one too small for them costs the part.
func (o *burst) nextPart(f *Frame) bool {
	w := &o.walk
	end := w.from + w.h.length
	for i, h := range o.have[:o.nhave] {
		from, to := max(h.from, w.pos), min(h.to, end)
		if from >= to {
			continue
		}
		w.pos = to
		if from > w.from+w.hlen && from-w.hlen < o.have[i-1].to {
			continue
		}
		b := o.mem[from-w.hlen : to : to]
		copy(b, w.packet[:w.hlen])
		v := encap.Part(b, len(b), &w.p, w.v, from-w.from-w.hlen, to == end)
		*f = Frame{Kind: Part, IP: b, Network: w.h.network, h: w.h, virtio: v}
		return true
	}
	return false
}
