package ipam

import (
	"encoding/binary"
	"math"
	"math/bits"
	"net/netip"
)

// pool knows which addresses of one CIDR are busy: a bitmap in blocks that exist only where something is busy, so that a /64
// costs no more than its pods, and a full block is passed in one step. Addresses are counted from the CIDR's first; of a prefix
// with more than 64 host bits only the first 2^64 are given.
type pool struct {
	cidr   netip.Prefix
	max    uint64 // last offset that may be given; 0: none
	cursor uint64 // where the search goes on
	blocks map[uint64]*block
}

const blockBits = 4096

type block struct {
	busy int
	bits [blockBits / 64]uint64
}

func newPool(cidr netip.Prefix) *pool {
	return &pool{cidr: cidr, max: size(cidr), cursor: 1, blocks: map[uint64]*block{}}
}

// size is how many addresses pods may have, which is also the offset of the last of them.
func size(cidr netip.Prefix) uint64 {
	host := cidr.Addr().BitLen() - cidr.Bits()
	switch {
	case host >= 64:
		return math.MaxUint64 // 2^64 less the first
	case cidr.Addr().Is4() && host >= 2:
		return 1<<host - 2
	}
	return 1<<host - 1
}

func last(cidr netip.Prefix) netip.Addr {
	b := cidr.Addr().As4()
	v := binary.BigEndian.Uint32(b[:]) | uint32(1<<(32-cidr.Bits())-1)
	binary.BigEndian.PutUint32(b[:], v)
	return netip.AddrFrom4(b)
}

// offset of an address; false: not one that is given here.
func (p *pool) offset(a netip.Addr) (uint64, bool) {
	if !p.cidr.Contains(a) {
		return 0, false
	}
	var o uint64
	if a.Is4() {
		x, y := a.As4(), p.cidr.Addr().As4()
		o = uint64(binary.BigEndian.Uint32(x[:]) - binary.BigEndian.Uint32(y[:]))
	} else {
		x, y := a.As16(), p.cidr.Addr().As16()
		if [8]byte(x[:8]) != [8]byte(y[:8]) {
			return 0, false
		}
		o = binary.BigEndian.Uint64(x[8:]) - binary.BigEndian.Uint64(y[8:])
	}
	return o, o >= 1 && o <= p.max
}

func (p *pool) address(o uint64) netip.Addr {
	if p.cidr.Addr().Is4() {
		b := p.cidr.Addr().As4()
		binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+uint32(o))
		return netip.AddrFrom4(b)
	}
	b := p.cidr.Addr().As16()
	binary.BigEndian.PutUint64(b[8:], binary.BigEndian.Uint64(b[8:])+o)
	return netip.AddrFrom16(b)
}

func (p *pool) mark(a netip.Addr, busy bool) {
	o, ok := p.offset(a)
	if !ok {
		return
	}
	b := p.blocks[o/blockBits]
	if b == nil {
		if !busy {
			return
		}
		b = &block{}
		p.blocks[o/blockBits] = b
	}
	word, bit := &b.bits[o%blockBits/64], uint64(1)<<(o%64)
	switch {
	case busy && *word&bit == 0:
		*word |= bit
		b.busy++
	case !busy && *word&bit != 0:
		*word &^= bit
		if b.busy--; b.busy == 0 {
			delete(p.blocks, o/blockBits)
		}
	}
}

// moveBehind lets the search go on behind an address.
func (p *pool) moveBehind(a netip.Addr) {
	if o, ok := p.offset(a); ok {
		p.advance(o)
	}
}

func (p *pool) advance(o uint64) {
	if p.cursor = o + 1; o >= p.max {
		p.cursor = 1
	}
}

// next is the first free address from the cursor on, round once.
func (p *pool) next() (netip.Addr, bool) {
	if p.max == 0 {
		return netip.Addr{}, false
	}
	o, ok := p.search(p.cursor, p.max)
	if !ok {
		o, ok = p.search(1, p.cursor-1)
	}
	if !ok {
		return netip.Addr{}, false
	}
	p.advance(o)
	return p.address(o), true
}

// search finds the first free offset in [from, to].
func (p *pool) search(from, to uint64) (uint64, bool) {
	for from <= to {
		b := p.blocks[from/blockBits]
		if b == nil {
			return from, true
		}
		end := from/blockBits*blockBits + blockBits - 1 // of the block
		if b.busy < blockBits {
			for word := from % blockBits / 64; word < blockBits/64; word++ {
				free := ^b.bits[word]
				if word == from%blockBits/64 {
					free &= ^uint64(0) << (from % 64)
				}
				if free != 0 {
					o := from/blockBits*blockBits + word*64 + uint64(bits.TrailingZeros64(free))
					return o, o <= to
				}
			}
		}
		if end == math.MaxUint64 {
			break
		}
		from = end + 1
	}
	return 0, false
}
