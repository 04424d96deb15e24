//go:build linux

package ring

// Packets is a batch of frames to be written to a Port: each a virtio header,
// stored inside, and the caller's bytes by reference.
//
//	iovecs   [hdr 0][outer][payload] [hdr 1][payload] [hdr 2][…
//	messages └────── 0 ────────────┘ └───── 1 ──────┘ └── 2 …
type Packets struct {
	batch
	hdrs  [][VirtioLen]byte
	uring *Uring // that writes many to a TUN; nil: none

	// What became of messages [doneFrom, doneTo), which a Uring has written.
	doneFrom, doneTo int
	done             [UringEntries]int32
}

// NewPackets makes room for a number of messages and of iovecs, of which each
// message needs one for its virtio header beside those that are appended.
func NewPackets(messages, iovecs int) *Packets {
	b := newBatch(messages, iovecs)
	return &Packets{batch: b, hdrs: make([][VirtioLen]byte, len(b.msgs))}
}

// Reset forgets all messages; what was appended is no longer borrowed.
func (p *Packets) Reset() {
	p.reset()
	p.doneFrom, p.doneTo = 0, 0
}

// Begin opens the next message; false if there is no room for one with payload.
func (p *Packets) Begin(v Virtio) bool {
	if p.nmsg == len(p.msgs) || p.niov+2 > len(p.iovs) {
		return false
	}
	hdr := &p.hdrs[p.nmsg]
	v.Put(hdr[:])
	p.begin()
	p.append(hdr[:])
	p.bytes[p.nmsg-1] = 0
	return true
}

// Append puts b behind what the open message holds. b is borrowed until Write
// has returned. false: no iovec is left, and the message is as it was.
func (p *Packets) Append(b []byte) bool { return p.append(b) }

// Drop takes the last message back.
func (p *Packets) Drop() { p.drop() }

// Virtio is the header of message i.
func (p *Packets) Virtio(i int) Virtio {
	v, _ := ParseVirtio(p.hdrs[i][:])
	return v
}

// Len is the number of messages.
func (p *Packets) Len() int { return p.nmsg }

// Bytes is the length of message i, without its virtio header.
func (p *Packets) Bytes(i int) int { return int(p.bytes[i]) }

// CopyTo copies message i, without its virtio header, into dst and returns how
// many bytes fitted. It is for captures and tests.
func (p *Packets) CopyTo(i int, dst []byte) int { return copyTo(dst, p.message(i)[1:]) }
