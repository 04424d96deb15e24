package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"
)

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// packetSocket is an AF_PACKET socket on a device, for Go's poller. Without receive it hears nothing.
func (h *Host) packetSocket(device string, receive bool) (*os.File, error) {
	link, err := h.link(device)
	if err != nil {
		return nil, err
	}
	var file *os.File
	err = h.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		to := &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index}
		if receive {
			to.Protocol = htons(unix.ETH_P_ALL)
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20); err != nil {
				unix.Close(fd)
				return err
			}
		}
		if err := unix.Bind(fd, to); err != nil {
			unix.Close(fd)
			return err
		}
		file = os.NewFile(uintptr(fd), "packet "+device)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: packet socket on %s in %s: %w", device, h.Name, err)
	}
	return file, nil
}

// SendFrame sends arbitrary bytes out of a device: an Ethernet frame, or on a TUN a bare packet.
func (h *Host) SendFrame(device string, frame []byte) error {
	f, err := h.packetSocket(device, false)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(frame); err != nil {
		return fmt.Errorf("lab: frame of %d bytes out of %s in %s: %w", len(frame), device, h.Name, err)
	}
	return nil
}

// InjectFrame sends an Ethernet frame out of the pod's veth.
func (p *Pod) InjectFrame(frame []byte) error { return p.SendFrame("eth0", frame) }

// InjectIP sends arbitrary bytes as the pod's IP packet. On a veth they get an Ethernet header to the gateway,
// whose type follows the version in the first byte (IPv4 if it is neither).
func (p *Pod) InjectIP(packet []byte) error {
	if p.Attach == TUN {
		return p.injectTUN(packet)
	}
	frame := append([]byte{}, hostMAC...)
	frame = append(frame, p.MAC...)
	kind := uint16(unix.ETH_P_IP)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	frame = binary.BigEndian.AppendUint16(frame, kind)
	return p.SendFrame("eth0", append(frame, packet...))
}

// injectTUN needs the packet's protocol in the address, as there is no link header to read it from.
func (p *Pod) injectTUN(packet []byte) error {
	link, err := p.link("eth0")
	if err != nil {
		return err
	}
	kind := uint16(unix.ETH_P_IP)
	if len(packet) > 0 && packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	err = p.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrLinklayer{Ifindex: link.Attrs().Index, Protocol: htons(kind)})
	})
	if err != nil {
		return fmt.Errorf("lab: packet of %d bytes out of eth0 in %s: %w", len(packet), p.Name, err)
	}
	return nil
}

// SendIP sends a whole IP packet through a raw socket; the kernel routes it. In IPv4 the kernel fills in a
// zero identification and the header checksum.
func (h *Host) SendIP(packet []byte) error {
	var to unix.Sockaddr
	family := unix.AF_INET
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		to = &unix.SockaddrInet4{Addr: [4]byte(packet[16:20])}
	case len(packet) >= 40 && packet[0]>>4 == 6:
		family = unix.AF_INET6
		to = &unix.SockaddrInet6{Addr: [16]byte(packet[24:40])}
	default:
		return fmt.Errorf("lab: %d bytes are no IP packet", len(packet))
	}
	err := h.Do(func() error {
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // implies HDRINCL
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, to)
	})
	if err != nil {
		return fmt.Errorf("lab: packet of %d bytes from %s: %w", len(packet), h.Name, err)
	}
	return nil
}

// UDPPacket builds an IP and UDP packet with gopacket; without checksum the field is zero.
func UDPPacket(from, to netip.AddrPort, payload []byte, checksum bool) ([]byte, error) {
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	var ip gopacket.SerializableLayer
	if from.Addr().Is4() {
		l := &layers.IPv4{
			Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolUDP, Flags: layers.IPv4DontFragment,
			SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(),
		}
		ip = l
		udp.SetNetworkLayerForChecksum(l)
	} else {
		l := &layers.IPv6{
			Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP,
			SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice(),
		}
		ip = l
		udp.SetNetworkLayerForChecksum(l)
	}
	b := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(payload))
	if err != nil {
		return nil, fmt.Errorf("lab: build a UDP packet: %w", err)
	}
	packet := b.Bytes()
	if !checksum {
		at := len(packet) - len(payload) - 2
		packet[at], packet[at+1] = 0, 0
	}
	return packet, nil
}

// SendUDP sends one crafted datagram with a UDP checksum. The source need not be the host's own.
func (h *Host) SendUDP(from, to netip.AddrPort, payload []byte) error {
	packet, err := UDPPacket(from, to, payload, true)
	if err != nil {
		return err
	}
	return h.SendIP(packet)
}

// SendUDPNoChecksum is SendUDP with checksum zero, as kernel vxlan devices send it.
func (h *Host) SendUDPNoChecksum(from, to netip.AddrPort, payload []byte) error {
	packet, err := UDPPacket(from, to, payload, false)
	if err != nil {
		return err
	}
	return h.SendIP(packet)
}

// Capture collects the frames of a device, both ways.
type Capture struct {
	file    *os.File
	mu      sync.Mutex
	frames  [][]byte
	running sync.WaitGroup
}

// Capture starts collecting the frames for which match is true (all, if it is nil).
func (h *Host) Capture(device string, match func(frame []byte) bool) (*Capture, error) {
	f, err := h.packetSocket(device, true)
	if err != nil {
		return nil, err
	}
	c := &Capture{file: f}
	c.running.Go(func() {
		b := make([]byte, 1<<17)
		for {
			n, err := f.Read(b)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if err != nil || match != nil && !match(b[:n]) {
				continue
			}
			c.mu.Lock()
			c.frames = append(c.frames, append([]byte{}, b[:n]...))
			c.mu.Unlock()
		}
	})
	return c, nil
}

// Frames is what was collected so far.
func (c *Capture) Frames() [][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.frames[:len(c.frames):len(c.frames)]
}

// Wait returns when there are n frames, or after the timeout.
func (c *Capture) Wait(n int, timeout time.Duration) [][]byte {
	for end := time.Now().Add(timeout); ; time.Sleep(2 * time.Millisecond) {
		if f := c.Frames(); len(f) >= n || time.Now().After(end) {
			return f
		}
	}
}

// Close ends the collection.
func (c *Capture) Close() {
	c.file.Close()
	c.running.Wait()
}

// IPPayload is the IP packet in a frame: behind the Ethernet header of a veth, or the whole of a TUN's frame.
// It is nil for frames that carry no IP.
func IPPayload(frame []byte) []byte {
	if len(frame) > 14 {
		switch kind := binary.BigEndian.Uint16(frame[12:]); {
		case kind == unix.ETH_P_IP && frame[14]>>4 == 4, kind == unix.ETH_P_IPV6 && frame[14]>>4 == 6:
			return frame[14:]
		}
	}
	if len(frame) >= 20 && (frame[0]>>4 == 4 || frame[0]>>4 == 6) {
		return frame
	}
	return nil
}

// MAC is a device's hardware address.
func (n *NS) MAC(device string) (net.HardwareAddr, error) {
	link, err := n.link(device)
	if err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}
