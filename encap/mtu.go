package encap

import "encoding/binary"

// PodMTU returns the largest inner packet that fits, encapsulated, into an underlay of this MTU. Of an
// underlay that is too small it is 0 or negative.
func PodMTU(underlay int, k Kind, outer6 bool) int { return underlay - k.Overhead(outer6) }

// MinMTU6 is what every IPv6 link carries (RFC 8200 section 5).
const MinMTU6 = 1280

const (
	tcpOptEnd = 0
	tcpOptNOP = 1
	tcpOptMSS = 2
)

// ClampMSS lowers the maximum segment size that a TCP SYN announces to what fits into mtu without
// options (RFC 9293 section 3.7.1, RFC 6691) and mends the checksum; it reports whether it did. v is the
// packet's metadata: a partial checksum does not cover the option yet and stays as it is.
func ClampMSS(b []byte, p *Packet, v Virtio, mtu int) bool {
	if p.Proto != ProtoTCP || p.Frag != NotFrag {
		return false
	}
	h := TCP(b[p.L4:p.Len])
	if h.Flags()&TCPSyn == 0 {
		return false
	}
	limit := mtu - TCPLen - IPv4Len
	if p.Version == 6 {
		limit = mtu - TCPLen - IPv6Len
	}
	if limit <= 0 || limit > 0xffff {
		return false
	}
	at, hlen := TCPLen, h.HeaderLen()
	for at < hlen {
		switch h[at] {
		case tcpOptEnd:
			return false
		case tcpOptNOP:
			at++
			continue
		}
		if at+1 >= hlen || h[at+1] < 2 || at+int(h[at+1]) > hlen {
			return false
		}
		if h[at] == tcpOptMSS && h[at+1] == 4 {
			old := binary.BigEndian.Uint16(h[at+2:])
			if int(old) <= limit {
				return false
			}
			binary.BigEndian.PutUint16(h[at+2:], uint16(limit))
			if v.Flags&NeedsCsum == 0 {
				was, now := old, uint16(limit)
				if at&1 != 0 { // the value lies across two words: what it adds to the sum is byte-swapped
					was, now = was<<8|was>>8, now<<8|now>>8
				}
				h.setChecksum(update16(h.Checksum(), was, now))
			}
			return true
		}
		at += int(h[at+1])
	}
	return false
}
