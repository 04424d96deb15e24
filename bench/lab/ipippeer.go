package lab

import (
	"errors"
	"fmt"
	"net"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

// setUpIPIP runs an IPIP endpoint that shares no code with Penstock: gopacket builds and parses the outer
// header, raw sockets carry it. Inner IPv4 is protocol 4 (RFC 2003), inner IPv6 is protocol 41 (RFC 4213).
func (n *Node) setUpIPIP() error {
	tun, err := n.openTUN()
	if err != nil {
		return err
	}
	sockets := map[layers.IPProtocol]*net.IPConn{}
	for _, proto := range []layers.IPProtocol{layers.IPProtocolIPv4, layers.IPProtocolIPv6} {
		err := n.Do(func() error {
			c, err := net.ListenIP(fmt.Sprintf("ip4:%d", proto), &net.IPAddr{IP: n.IP4.AsSlice()})
			sockets[proto] = c
			return err
		})
		if err != nil {
			return fmt.Errorf("lab: raw socket of the endpoint on %s: %w", n.Name, err)
		}
		c := sockets[proto]
		n.closers = append(n.closers, func() { c.Close() })
		forceBuffers(c, 8<<20)
		if err := setsockopt(c, unix.IPPROTO_IP, unix.IP_HDRINCL, 1); err != nil {
			return fmt.Errorf("lab: IP_HDRINCL on %s: %w", n.Name, err)
		}
	}
	go func() { // pods → wire
		b := make([]byte, 65536)
		out := gopacket.NewSerializeBuffer()
		for {
			size, err := tun.Read(b)
			if err != nil {
				return
			}
			peer := n.peerFor(b[:size])
			if peer == nil {
				continue
			}
			proto := layers.IPProtocolIPv4
			if b[0]>>4 == 6 {
				proto = layers.IPProtocolIPv6
			}
			outer := &layers.IPv4{
				Version: 4, IHL: 5, TTL: 64, Protocol: proto, Flags: layers.IPv4DontFragment,
				SrcIP: n.IP4.AsSlice(), DstIP: peer.IP4.AsSlice(),
			}
			options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
			if gopacket.SerializeLayers(out, options, outer, gopacket.Payload(b[:size])) == nil {
				sockets[proto].WriteToIP(out.Bytes(), &net.IPAddr{IP: peer.IP4.AsSlice()})
			}
		}
	}()
	for proto, c := range sockets {
		go func() { // wire → pods
			raw, err := c.SyscallConn()
			if err != nil {
				return
			}
			b := make([]byte, 65536)
			for {
				// Not ReadFromIP: it cuts the outer header, which gopacket is to judge.
				var size int
				var fault error
				err := raw.Read(func(fd uintptr) bool {
					size, _, fault = unix.Recvfrom(int(fd), b, 0)
					return !errors.Is(fault, unix.EAGAIN)
				})
				if err != nil {
					return
				}
				if fault != nil {
					continue
				}
				var outer layers.IPv4
				if outer.DecodeFromBytes(b[:size], gopacket.NilDecodeFeedback) != nil || outer.Protocol != proto {
					n.malformed.Add(1)
					continue
				}
				tun.Write(outer.Payload)
			}
		}()
	}
	return nil
}

// Malformed counts outer packets that the independent IPIP endpoint could not parse.
func (n *Node) Malformed() uint64 { return n.malformed.Load() }
