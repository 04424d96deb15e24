package encap

// Fault says what is wrong with a packet; OK (zero) says that nothing is. It is a number and not an
// error because it is made for every packet of a flood, and counted by its name.
type Fault uint8

// The faults, each with the name under which its drops are counted.
const (
	OK                     Fault = iota
	FaultShort                   // fewer bytes than the first header needs
	FaultBadVersion              // the IP version is neither 4 nor 6
	FaultBadHeaderLength         // the IPv4 header length is below 20 or leaves the packet
	FaultBadTotalLength          // the IP length is below that of the header or beyond the bytes that are there
	FaultBadHeaderChecksum       // the IPv4 header checksum is wrong
	FaultBadOptions              // an IPv4 option leaves the header
	FaultSourceRoute             // an IPv4 source route or an IPv6 type 0 routing header
	FaultBadExtension            // an IPv6 extension header leaves the packet, is out of place or one of too many
	FaultBadFragment             // a fragment that is empty, has no L4, is not a multiple of 8 or ends beyond 65535
	FaultBadL4Length             // a TCP, UDP or SCTP header does not fit, or says more than is there
	FaultBadVirtio               // the virtio header contradicts the packet
	FaultNotIP                   // what is encapsulated is not an IP packet
	FaultBadVXLAN                // the VXLAN header is cut or has no valid VNI
	FaultWrongVNI                // the VXLAN network is another
	FaultWrongMAC                // the inner Ethernet frame is for another VTEP
	FaultBadOuter                // the outer header of an IPIP packet is malformed or of another protocol
	FaultBadChecksum             // the checksum of the L4 header and its payload is wrong
	FaultBadGRO                  // a received superframe that nothing says how to cut
	FaultLongHeader              // more headers in front of the payload than segmentation handles
	FaultDontFragment            // must not be fragmented: IPv6, or IPv4 with DF
	FaultBadMTU                  // an MTU into which not even a header and 8 bytes fit

	NumFaults = iota // how many there are, OK included: the size of an array indexed by Fault
)

var faultNames = [NumFaults]string{
	OK:                     "ok",
	FaultShort:             "short",
	FaultBadVersion:        "bad_version",
	FaultBadHeaderLength:   "bad_header_length",
	FaultBadTotalLength:    "bad_total_length",
	FaultBadHeaderChecksum: "bad_header_checksum",
	FaultBadOptions:        "bad_options",
	FaultSourceRoute:       "source_route",
	FaultBadExtension:      "bad_extension",
	FaultBadFragment:       "bad_fragment",
	FaultBadL4Length:       "bad_l4_length",
	FaultBadVirtio:         "bad_virtio",
	FaultNotIP:             "not_ip",
	FaultBadVXLAN:          "bad_vxlan",
	FaultWrongVNI:          "wrong_vni",
	FaultWrongMAC:          "wrong_mac",
	FaultBadOuter:          "bad_outer",
	FaultBadChecksum:       "inner_checksum",
	FaultBadGRO:            "bad_gro",
	FaultLongHeader:        "long_header",
	FaultDontFragment:      "dont_fragment",
	FaultBadMTU:            "bad_mtu",
}

// String returns the name of the drop that the fault leads to, as it stands in metrics.
func (f Fault) String() string {
	if int(f) < len(faultNames) {
		return faultNames[f]
	}
	return "unknown_fault"
}
