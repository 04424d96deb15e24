package load

import (
	"net/netip"
	"time"
)

// Kind is what a process does.
type Kind string

const (
	SendDatagrams    Kind = "send-datagrams"
	ReceiveDatagrams Kind = "receive-datagrams"
	SendStreams      Kind = "send-streams"
	ReceiveStreams   Kind = "receive-streams"
	AskDatagrams     Kind = "ask-datagrams" // request and response, one on the way at a time
	AnswerDatagrams  Kind = "answer-datagrams"
	AskStreams       Kind = "ask-streams"
	AnswerStreams    Kind = "answer-streams"
	Connect          Kind = "connect" // a connection for every request; AnswerStreams serves it
)

// Flow is one socket of a receiver, or what a sender sends to it.
type Flow struct {
	Pod int            // whose namespace: index in the list that the process was started with
	At  netip.AddrPort // receiver: where to listen (port 0: any); sender: where to send
}

// Job is what a process is told to do.
type Job struct {
	Kind  Kind
	Flows []Flow
	Sizes []int  // of the datagrams, in turn, shuffled over the flows; of requests and responses the first
	Burst int    // datagrams of one flow in a row; 0: 1. Only with several flows from one pod
	TCP   string // congestion control of every stream, as tcp(7) names it; "": the machine's own
}

// Mark is the state of a job at one moment.
type Mark struct {
	Time    time.Duration // CLOCK_MONOTONIC, which all processes share
	Packets uint64        // datagrams, or requests answered, or connections
	Bytes   uint64
	Lost    uint64 // requests without an answer
	Failed  string // why a thread gave up; "" while all is well
}

// Result is the end of a job. Quantiles are of what was asked since the first mark.
type Result struct {
	Mark
	P50, P99, P999 time.Duration
}

type command struct {
	Op  string // "start", "mark", "stop"
	Job *Job   `json:",omitempty"`
}

type reply struct {
	Error  string   `json:",omitempty"`
	Ports  []uint16 `json:",omitempty"` // of a receiver's flows
	Result Result
}
