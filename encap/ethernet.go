package encap

import "encoding/binary"

// EtherTypes of the payloads that are carried or answered.
const (
	EtherTypeIPv4 uint16 = 0x0800
	EtherTypeARP  uint16 = 0x0806
	EtherTypeIPv6 uint16 = 0x86dd
)

// EthernetLen is the length of an untagged Ethernet header.
const EthernetLen = 14

// MAC is an Ethernet address. Being an array it compares, copies and serves as a map key.
type MAC [6]byte

// IsZero reports whether m is the zero address, which stands for "not known".
func (m MAC) IsZero() bool { return m == MAC{} }

// IsMulticast reports whether m is a group address; the broadcast address is one.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

// String returns m as six pairs of lower-case hex digits with colons.
func (m MAC) String() string {
	const digits = "0123456789abcdef"
	var s [17]byte
	for i, b := range m {
		s[3*i], s[3*i+1] = digits[b>>4], digits[b&15]
		if i < 5 {
			s[3*i+2] = ':'
		}
	}
	return string(s[:])
}

// Ethernet is an Ethernet header of at least EthernetLen bytes and what follows it.
type Ethernet []byte

// Dst returns the destination address.
func (e Ethernet) Dst() MAC { return MAC(e[0:6]) }

// Src returns the source address.
func (e Ethernet) Src() MAC { return MAC(e[6:12]) }

// EtherType returns the type of the payload.
func (e Ethernet) EtherType() uint16 { return binary.BigEndian.Uint16(e[12:14]) }

// Payload returns what follows the header.
func (e Ethernet) Payload() []byte { return e[EthernetLen:] }

// Put writes the whole header.
func (e Ethernet) Put(dst, src MAC, etherType uint16) {
	_ = e[EthernetLen-1]
	copy(e[0:6], dst[:])
	copy(e[6:12], src[:])
	binary.BigEndian.PutUint16(e[12:14], etherType)
}
