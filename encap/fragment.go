package encap

// maxIPv4Len is the longest IPv4 header; the longest total length is 65535.
const maxIPv4Len = 60

// Fragments cuts an IPv4 packet that may be fragmented into fragments (RFC 791 section 3.2). A packet
// that is a fragment itself gives fragments of the same whole. It holds on to b from Init to the last
// Next and only reads it.
//
// The L4 checksum must be complete before (Complete; a superframe is cut by Segments first): it covers
// the whole and no fragment could mend it.
type Fragments struct {
	b         []byte // the packet, cut to its length
	hlen      int    // of its header: that of the first fragment
	later     int    // header length of the others: options that are not copied are left out
	first     int    // payload of the first fragment; of the others
	rest      int
	pos       int
	count     int
	next      int
	frag      uint16 // flags and offset of the whole
	laterHead [maxIPv4Len]byte
}

// Init begins to cut b into fragments of at most mtu bytes.
func (f *Fragments) Init(b []byte, p *Packet, mtu int) Fault {
	if p.Version != 4 || p.DF {
		return FaultDontFragment
	}
	h := IPv4(b[:p.Len])
	hlen := h.HeaderLen()
	first := (mtu - hlen) &^ 7
	if mtu < hlen || first == 0 {
		return FaultBadMTU
	}
	f.b, f.hlen, f.pos, f.next = h, hlen, hlen, 0
	f.frag = h.fragField()
	f.later = copyFragmentHeader(&f.laterHead, h)
	f.first, f.rest = first, (mtu-f.later)&^7
	n := p.Len - hlen
	f.count = 1
	// The last fragment may fill the MTU to the byte.
	if n > mtu-hlen {
		n -= first
		f.count++
		if n > mtu-f.later {
			f.count += (n - (mtu - f.later) + f.rest - 1) / f.rest
		}
	}
	return OK
}

// Count returns the number of fragments; 1: the packet fits as it is.
func (f *Fragments) Count() int { return f.count }

// Next writes the header of the next fragment to the start of hdr, which has room for 60 bytes, and
// returns its length and its payload, lent from b; ok is false when there are no more.
func (f *Fragments) Next(hdr []byte) (n int, payload []byte, ok bool) {
	if f.next >= f.count {
		return 0, nil, false
	}
	size := f.rest
	h := IPv4(hdr)
	if f.next == 0 {
		n, size = f.hlen, f.first
		copy(h[:n], f.b)
	} else {
		n = f.later
		copy(h[:n], f.laterHead[:n])
	}
	last := f.next == f.count-1
	if last {
		size = len(f.b) - f.pos
	}
	payload = f.b[f.pos : f.pos+size]
	frag := f.frag + uint16((f.pos-f.hlen)/8) // the offset cannot overflow: Parse held its end against 65535
	if !last {
		frag |= ipv4MF
	}
	h.setTotalLen(n + size)
	h.setFragField(frag)
	h[:n].updateChecksum()
	f.pos += size
	f.next++
	return n, payload, true
}

// copyFragmentHeader makes the header of later fragments: the options with the copy bit only, padded to
// a multiple of 4. It returns its length.
func copyFragmentHeader(dst *[maxIPv4Len]byte, h IPv4) int {
	*dst = [maxIPv4Len]byte{}
	n := copy(dst[:], h[:IPv4Len])
	opts := h.Options()
	for len(opts) > 0 && opts[0] != ipv4OptEnd {
		size := 1
		if opts[0] != ipv4OptNOP {
			size = int(opts[1])
			if opts[0]&ipv4OptsCopy != 0 {
				n += copy(dst[n:], opts[:size])
			}
		}
		opts = opts[size:]
	}
	for n%4 != 0 {
		dst[n] = ipv4OptEnd
		n++
	}
	dst[0] = 4<<4 | uint8(n/4)
	return n
}
