// Package agree decides for one peer whether, and by which carrier, frames may go to it as the native stream: who it is
// (hello), what passes (probes, at full size, both ways), and when that stops. It opens nothing and has no clock: it is told
// the time, what has arrived and whether there is traffic, and says what to send.
//
//	nothing to send ──▶ hello ──▶ known ──▶ probe each carrier ──▶ proven: Way
//	      ▲               ▲ doubling wait         ▲   │ no echo for ProofLife
//	      └── quiet ──────┴── silent for Forget ──┴───┘
//
// docs/native-stream.md, section 4, is the specification.
package agree
