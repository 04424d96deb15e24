package control

import (
	"context"
)

// TraceRequest is the body of POST /v1/trace: a packet that is not sent.
type TraceRequest struct {
	Src   string `json:"src"`             // an address, or a pod of this node (container/interface, owner, device)
	Dst   string `json:"dst"`             // the same
	From  string `json:"from,omitempty"`  // who sends it: a pod, "peer NAME" or "host"; empty: whoever has src
	Proto string `json:"proto,omitempty"` // tcp, udp or icmp; empty: icmp
	Sport uint16 `json:"sport,omitempty"`
	Dport uint16 `json:"dport,omitempty"`
	Size  int    `json:"size,omitempty"` // of the IP packet; 0: 100 bytes
	TTL   int    `json:"ttl,omitempty"`  // 0: 64
	DF    bool   `json:"df,omitempty"`
}

// Trace says what would happen to it.
type Trace struct {
	Src     string      `json:"src"`
	Dst     string      `json:"dst"`
	Origin  string      `json:"origin"` // "pod c1/eth0", "peer node-b" or "host"
	Steps   []TraceStep `json:"steps"`
	Outcome string      `json:"outcome"`          // to-peer, to-pod, to-host, dropped or OutcomeElsewhere
	Reason  string      `json:"reason,omitempty"` // of dropped
}

// OutcomeElsewhere is that of a packet that ought to come to the daemon, and that the host's stack sends elsewhere, or refuses.
const OutcomeElsewhere = "elsewhere"

// TraceStep is one thing that would happen, in order.
type TraceStep struct {
	Name string `json:"name"`
	Text string `json:"text"`
}

// Trace asks what would happen to a packet.
func (c *Client) Trace(ctx context.Context, r TraceRequest) (t Trace, err error) {
	return t, c.do(ctx, methodPost, "/v1/trace", r, &t)
}
