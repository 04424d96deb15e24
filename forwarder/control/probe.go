package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ProbeRequest is the body of POST /v1/probe.
type ProbeRequest struct {
	Peer string `json:"peer"` // its name or address
}

// Probe is what real packets have found out about the way to a peer, with DF set and through the normal data path.
type Probe struct {
	Peer       string     `json:"peer"`
	Address    netip.Addr `json:"address"`              // on the underlay
	Host       netip.Addr `json:"host"`                 // the address behind the tunnel that was asked: the first of its pod CIDR
	Node       bool       `json:"node"`                 // its underlay address answers ICMP echoes
	AnsweredBy string     `json:"answeredBy,omitempty"` // through the overlay: AnsweredByPenstock or AnsweredByHost; empty: nobody
	Refused    bool       `json:"refused,omitempty"`    // its host answers through the overlay, but no Penstock there
	RTT        int64      `json:"rttMicroseconds,omitempty"`
	Clock      int64      `json:"clockMilliseconds,omitempty"` // its clock less ours; AnsweredByPenstock only
	MTU        int        `json:"mtu"`                         // the size that was meant to pass
	Passes     int        `json:"passes,omitempty"`            // the largest packet to it that was answered
	Back       int        `json:"back,omitempty"`              // the largest from it; 0: not measured by itself
	Uplink     string     `json:"uplink,omitempty"`            // the device by which tunnel superframes to it leave whole
	NoUplink   string     `json:"noUplink,omitempty"`          // why they do not
}

// Who answered a probe.
const (
	AnsweredByPenstock = "penstock" // the peer's daemon
	AnsweredByHost     = "icmp"     // the kernel of the peer's host
)

// BenchRequest is the body of POST /v1/bench.
type BenchRequest struct {
	Peer         string `json:"peer"`                   // its name or address
	Milliseconds int64  `json:"milliseconds,omitempty"` // for all of it; 0: 3000, at most MaxBench
}

// MaxBench bounds a bench, in milliseconds: it ends before its request does.
const MaxBench = 24_000

// Bench is what was measured between this node's host and a peer's, through the overlay.
type Bench struct {
	Peer      string     `json:"peer"`
	Host      netip.Addr `json:"host"`
	Latency   Latency    `json:"latency"`
	Datagrams BenchFlow  `json:"datagrams"` // small ones, each sent by itself
	Bulk      BenchFlow  `json:"bulk"`      // as large as fit, handed to the kernel by 64 KiB
}

// Latency is that of one small packet there and back.
type Latency struct {
	Size int   `json:"size"` // bytes of an IP packet
	Sent int   `json:"sent"`
	Lost int   `json:"lost"`
	P50  int64 `json:"p50Microseconds"`
	P99  int64 `json:"p99Microseconds"`
	Max  int64 `json:"maxMicroseconds"`
}

// BenchFlow is datagrams in one direction.
type BenchFlow struct {
	Size       int     `json:"size"` // bytes of an IP packet
	Sent       uint64  `json:"sent"`
	Delivered  uint64  `json:"delivered"`
	Seconds    float64 `json:"seconds"`
	PerSecond  float64 `json:"perSecond"`     // delivered datagrams
	BitsSecond float64 `json:"bitsPerSecond"` // delivered, of IP packets
}

// Probe sends real packets to a peer.
func (c *Client) Probe(ctx context.Context, r ProbeRequest) (p Probe, err error) {
	return p, c.do(ctx, methodPost, "/v1/probe", r, &p)
}

// Bench measures the way to a peer.
func (c *Client) Bench(ctx context.Context, r BenchRequest) (b Bench, err error) {
	return b, c.do(ctx, methodPost, "/v1/bench", r, &b)
}

// Process is the id of the process behind the socket, as this process's PID namespace has it.
func (c *Client) Process(ctx context.Context) (pid int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.socket)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) {
			err = op.Err
		}
		return 0, fmt.Errorf("the control socket %s cannot be opened: %w", c.socket, err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var e error
	if err := raw.Control(func(fd uintptr) { cred, e = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if e != nil {
		return 0, fmt.Errorf("the process behind %s cannot be told: %w", c.socket, e)
	}
	return int(cred.Pid), nil
}
