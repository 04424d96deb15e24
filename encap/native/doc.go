// Package native is the codec of the native stream between Penstock nodes, as docs/native-stream.md specifies it. It
// changes bytes and keeps what has arrived of a burst, and nothing else: it opens nothing and knows no clock.
//
//	frames ─▶ PutHeader ─▶ burst: directory │ frames │ directory ─▶ cut into pieces ─▶ wire
//	          frame.go     burst.go                                 piece.go, outer.go
//
//	wire ─▶ ParseTCP, ParseUDP ─▶ Stream.Add ─▶ Stream.Next ─▶ frames, and parts of frames
//	        piece.go              stream.go     walk.go
//
//	hello, probe and fence travel beside the stream: message.go
//
// # Ownership
//
// What Add is given is lent until the caller has used all that Next returns. A burst that does not come in one go is
// collected in memory of Buffers; frames in it are lent until the next Buffers.Reclaim, which the caller calls when
// nothing that Next returned is referred to any more.
//
// # Bounds
//
// A Stream is a few hundred bytes, and one buffer of Buffers while a burst is incomplete; Buffers has a fixed number
// of them. Whatever arrives, Next returns at most one frame for each three bytes of a burst, and nothing panics.
package native
