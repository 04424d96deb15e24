package native

// Buffers is memory for bursts that come in several pieces, shared by all streams of a worker.
type Buffers struct {
	free    [][]byte
	waiting [][]byte // given back, but frames in them may still be referred to
	left    int      // that may still be made
}

// NewBuffers makes room for so many bursts; memory is taken when it is first needed.
func NewBuffers(most int) *Buffers {
	return &Buffers{left: most, free: make([][]byte, 0, most), waiting: make([][]byte, 0, most)}
}

// get is a buffer of MaxBurst bytes, or nil.
func (b *Buffers) get() []byte {
	if n := len(b.free); n > 0 {
		m := b.free[n-1]
		b.free = b.free[:n-1]
		return m
	}
	if b.left == 0 {
		return nil
	}
	b.left--
	return make([]byte, MaxBurst)
}

func (b *Buffers) put(m []byte) { b.waiting = append(b.waiting, m) }

// Reclaim lets the memory of finished bursts be used again. Call it when nothing that Next has returned is referred to.
func (b *Buffers) Reclaim() {
	if len(b.waiting) > 0 {
		b.free = append(b.free, b.waiting...)
		b.waiting = b.waiting[:0]
	}
}
