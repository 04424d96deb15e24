package native

import "encoding/binary"

// A burst is what is handed to the kernel in one write:
//
//	│ directory │ frame │ frame │ … │ frame │ directory │
//
// It is cut every `piece` bytes. The directory says for each piece but the first where in the burst the first frame
// that begins in it or behind it does; a burst of one piece has none. It stands at both ends, so that a lost piece
// takes one copy at most, unless it takes both.
const entryLen = 2

// Pieces is how many pieces a burst with n bytes of frames is cut into.
func Pieces(n, piece int) int {
	if n <= piece {
		return 1
	}
	return (n - 2*entryLen + piece - 2*entryLen - 1) / (piece - 2*entryLen)
}

// DirectoryLen is the length of each copy of the directory of a burst of so many pieces.
func DirectoryLen(pieces int) int { return (pieces - 1) * entryLen }

// PutDirectory writes a burst's directory to dst, which has DirectoryLen bytes. ends says for each frame how many bytes
// of frames there are up to its end.
func PutDirectory(dst []byte, piece int, ends []uint16) {
	n := len(dst) / entryLen
	at, k := len(dst), -1 // the border behind frame k
	for i := 1; i <= n; i++ {
		for at < i*piece && k+1 < len(ends) {
			k++
			at = len(dst) + int(ends[k])
		}
		binary.BigEndian.PutUint16(dst[(i-1)*entryLen:], uint16(at))
	}
}

// Room is how many bytes of frames a burst may hold, so that its pieces, each with head bytes in front of it, are no more
// than most bytes together.
func Room(piece, head, most int) int {
	n := min((most+piece+head-1)/(piece+head), MaxPieces)
	return min(most-n*head, n*piece, MaxBurst) - 2*DirectoryLen(n)
}
