//go:build linux

package ring

import (
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// TCPFilter is what a packet socket accepts instead of everything: TCP to one address and port of this host from a port
// that is at least MinSource, without VLAN tags, fragments and IPv6 extension headers. A tag of VLAN 0, a priority only,
// counts as none. What a promiscuous device shows of others' frames, and what the host sends, is not for this host.
// Several sockets on a device share it by source port: number Share of Shares
// accepts those that leave Share when they are divided by Shares, so that each connection has one socket for good, and
// the order of its segments.
type TCPFilter struct {
	Local         netip.Addr
	Port          uint16
	MinSource     uint16
	Share, Shares int // Shares 0 is 1
}

// program makes a classic BPF program of it, for frames that begin with an Ethernet header.
func (f *TCPFilter) program() []bpf.Instruction {
	var p []bpf.Instruction
	load := func(off uint32, size int, want uint32) {
		p = append(p, bpf.LoadAbsolute{Off: off, Size: size}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: want})
	}
	const ethernet = 14
	p = append(p, bpf.LoadExtension{Num: bpf.ExtType}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_HOST},
		// Older kernels leave the number of a tag that has been taken off.
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 2},
		bpf.LoadExtension{Num: bpf.ExtVLANTag}, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0xfff})
	local := f.Local.Unmap()
	ports := uint32(ethernet) // of the TCP header; with IPv4 relative to X, the IP header's length
	if local.Is4() {
		load(12, 2, unix.ETH_P_IP)
		load(ethernet+9, 1, unix.IPPROTO_TCP)
		a := local.As4()
		load(ethernet+16, 4, word(a[:]))
		p = append(p, bpf.LoadAbsolute{Off: ethernet + 6, Size: 2}, bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x3fff}, bpf.LoadMemShift{Off: ethernet})
	} else {
		load(12, 2, unix.ETH_P_IPV6)
		load(ethernet+6, 1, unix.IPPROTO_TCP)
		a := local.As16()
		for i := uint32(0); i < 16; i += 4 {
			load(ethernet+24+i, 4, word(a[i:]))
		}
		p = append(p, bpf.LoadConstant{Dst: bpf.RegX, Val: 40})
	}
	p = append(p, bpf.LoadIndirect{Off: ports + 2, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(f.Port)})
	p = append(p, bpf.LoadIndirect{Off: ports, Size: 2}, bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(f.MinSource)})
	if f.Shares > 1 {
		p = append(p, bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(f.Shares)},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(f.Share)})
	}
	p = append(p, bpf.RetConstant{Val: acceptAll}, bpf.RetConstant{Val: 0})
	for i := range p { // every jump that does not say where to is one to the drop at the end
		if j, ok := p[i].(bpf.JumpIf); ok && j.SkipTrue == 0 {
			j.SkipTrue = uint8(len(p) - 2 - i)
			p[i] = j
		}
	}
	return p
}

func word(b []byte) uint32 {
	return uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
}
