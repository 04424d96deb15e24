//go:build linux

package ring

import (
	"errors"
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// RawConfig describes a raw IPv4 socket for IPIP.
type RawConfig struct {
	Local           netip.Addr // IPv4
	Proto           int        // 4: IPv4 inside; 41: IPv6 inside
	Worker, Workers int        // this worker's share of what arrives; Workers 0 is 1
	SendOnly        bool
	Errors          bool

	// As UDPConfig's.
	RecvBuffer, SendBuffer int
}

// Raw is a raw IPv4 socket of protocol 4 or 41. It is a Socket: what it sends is
// the inner packet, the kernel writes the outer header; what it receives starts
// with the outer header.
type Raw struct{ endpoint }

// OpenIPIP opens a socket in the calling thread's network namespace. The kernel
// gives every packet to every raw socket of its protocol; the sockets of N workers
// keep one share each, by a filter.
func OpenIPIP(cfg RawConfig) (*Raw, error) {
	cfg.Local = cfg.Local.Unmap()
	cfg.Workers = max(cfg.Workers, 1)
	fail := func(err error) (*Raw, error) {
		advice := ""
		switch {
		case errors.Is(err, unix.EPERM):
			advice = "run as root or with CAP_NET_RAW"
		case errors.Is(err, unix.EADDRNOTAVAIL):
			advice = "give an address that this node has"
		}
		return nil, setup(err, advice, "open a raw socket of protocol %d on %v", cfg.Proto, cfg.Local)
	}
	switch {
	case !cfg.Local.Is4():
		return fail(unix.EAFNOSUPPORT)
	case cfg.Proto != unix.IPPROTO_IPIP && cfg.Proto != unix.IPPROTO_IPV6:
		return fail(unix.EPROTONOSUPPORT)
	case cfg.Worker < 0 || cfg.Worker >= cfg.Workers:
		return fail(unix.EINVAL)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, cfg.Proto)
	if err != nil {
		return fail(err)
	}
	r := &Raw{endpoint{fd: fd, errors: cfg.Errors}}
	// A raw socket receives from its birth on, from anywhere: nothing may come
	// in before it is bound and has its share.
	err = setFilter(fd, dropAll)
	if err == nil {
		err = setOptions(fd, ipOptions(false, cfg.Errors))
	}
	if err == nil {
		err = r.bindTo(netip.AddrPortFrom(cfg.Local, 0), cfg.SendOnly, cfg.RecvBuffer, cfg.SendBuffer)
	}
	if err == nil && !cfg.SendOnly {
		err = setFilter(fd, shareFilter(cfg.Proto, cfg.Worker, cfg.Workers))
	}
	if err != nil {
		_ = unix.Close(fd)
		return fail(err)
	}
	// The kernel gives a raw socket's protocol as its port.
	r.local = netip.AddrPortFrom(cfg.Local, 0)
	r.eq.init()
	return r, nil
}

// shareFilter accepts what belongs to worker: the inner addresses, exclusive-or
// of both so that a flow's two directions agree, multiplied and taken modulo the
// workers. It uses no ports, so fragments stay with their flow. What is too
// short to have inner addresses goes to worker 0, to be dropped there by name.
func shareFilter(proto, worker, workers int) []bpf.Instruction {
	if workers == 1 {
		return []bpf.Instruction{bpf.RetConstant{Val: acceptAll}}
	}
	// The filter sees the outer header at 0 (raw_rcv pushes it back); X is its
	// length. inner is where the addresses start in the inner header.
	inner, words := uint32(12), 1
	if proto == unix.IPPROTO_IPV6 {
		inner, words = 8, 4
	}
	need := inner + uint32(words)*8
	var short uint32 // what to return for a packet without them
	if worker == 0 {
		short = acceptAll
	}

	p := []bpf.Instruction{
		// A = length without the outer header, which the kernel has checked.
		bpf.LoadMemShift{Off: 0},
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.ALUOpX{Op: bpf.ALUOpSub},
		bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: need, SkipTrue: 1},
		bpf.RetConstant{Val: short},
		bpf.LoadIndirect{Off: inner, Size: 4},
	}
	// A ^= each further word; M[1] holds the sum so far, as A is what loads use
	// and X what they are relative to.
	for i := 1; i < words*2; i++ {
		p = append(p,
			bpf.StoreScratch{Src: bpf.RegA, N: 1},
			bpf.LoadMemShift{Off: 0},
			bpf.LoadIndirect{Off: inner + uint32(i)*4, Size: 4},
			bpf.LoadScratch{Dst: bpf.RegX, N: 1},
			bpf.ALUOpX{Op: bpf.ALUOpXor},
		)
	}
	return append(p,
		bpf.ALUOpConstant{Op: bpf.ALUOpMul, Val: 0x9e3779b1}, // Knuth: mixes low bits into high ones
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 16},
		bpf.ALUOpConstant{Op: bpf.ALUOpMod, Val: uint32(workers)},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(worker), SkipFalse: 1},
		bpf.RetConstant{Val: acceptAll},
		bpf.RetConstant{Val: 0},
	)
}

// acceptAll is a filter's answer: keep so many bytes.
const acceptAll = 0x40000
