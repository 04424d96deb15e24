package capture

import (
	"context"

	"github.com/penstock-net/penstock/forwarder/control"
)

// Path is the endpoint of captures.
const Path = "/v1/capture"

// Request is the body of POST /v1/capture; the answer is a stream (see Reader) that lasts until the client hangs
// up or the daemon stops. What is set must all hold.
type Request struct {
	Pod      string `json:"pod,omitempty"`      // "container/interface", owner, device or address
	Peer     string `json:"peer,omitempty"`     // name or underlay address
	Protocol string `json:"protocol,omitempty"` // of the inner packet: tcp, udp, icmp, icmp6, sctp or a number
	Port     int    `json:"port,omitempty"`     // source or destination of TCP, UDP or SCTP; 0: all
	Reason   string `json:"reason,omitempty"`   // only what was dropped for it
	Snap     int    `json:"snap,omitempty"`     // bytes of each frame; 0: all
}

// Source is a capture that runs. One goroutine uses it.
type Source interface {
	Read(func(*Frame)) int // what is queued
	Lost() uint64          // frames that matched and found no room, since the beginning
	Close()
}

// Open begins a capture, which lasts until ctx ends or the reader is closed.
func Open(ctx context.Context, c *control.Client, r Request) (*Reader, error) {
	body, err := c.Stream(ctx, Path, r)
	if err != nil {
		return nil, err
	}
	s, err := NewReader(body)
	if err != nil {
		body.Close()
		return nil, err
	}
	s.close = body.Close
	return s, nil
}
