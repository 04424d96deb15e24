package capture

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"github.com/penstock-net/penstock/forwarder/control"
)

// A capture is a stream in the body of the answer: the magic, then records, each its length (u32, little endian, without
// itself), its kind (one byte) and
//
//	'P'  a frame: Unix nanoseconds i64, length u32, segment u32, worker u16, flags u8, then stage, reason, pod and peer,
//	     each a length byte and text, then the frame's bytes
//	'L'  u64: frames so far that matched and found no room; sent when it changes and once a second, as a sign of life
//	'E'  text: why the daemon ends the stream
const streamMagic = "PNSTCAP1"

const (
	recordFrame = 'P'
	recordLost  = 'L'
	recordEnd   = 'E'

	flagEthernet = 1 << 0
	flagOuter    = 1 << 1

	frameHead = 8 + 4 + 4 + 2 + 1
	// maxRecord is the longest superframe with all that stands around it.
	maxRecord = 1 + frameHead + 4*256 + 66<<10
)

// Frame is one that the daemon has seen.
type Frame struct {
	Time     time.Time
	Worker   int
	Stage    string // from-pod, from-host, from-peer, to-pod, to-host, to-peer or dropped
	Reason   string // of what was dropped
	Pod      string // "container/interface" of the port that it came from or goes to
	Peer     string // name of the peer that it came from or goes to
	Ethernet bool   // Data begins with an Ethernet header, else with an IP header
	Outer    bool   // Data is what came over the wire, still encapsulated
	Length   int    // of the whole frame, of which Data may be the beginning
	Segment  int    // of a superframe: payload bytes of the packets that it stands for
	Data     []byte // valid until the next record is read
}

// Writer writes a stream; an error of the connection shows at Flush.
type Writer struct {
	*bufio.Writer
	scratch []byte
}

func NewWriter(w io.Writer) *Writer {
	s := &Writer{Writer: bufio.NewWriterSize(w, 256<<10)}
	s.WriteString(streamMagic)
	return s
}

func (s *Writer) record(kind byte, head, tail []byte) {
	var b [5]byte
	binary.LittleEndian.PutUint32(b[:], uint32(1+len(head)+len(tail)))
	b[4] = kind
	s.Write(b[:])
	s.Write(head)
	s.Write(tail)
}

func (s *Writer) Frame(c *Frame) {
	b := binary.LittleEndian.AppendUint64(s.scratch[:0], uint64(c.Time.UnixNano()))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Length))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.Segment))
	b = binary.LittleEndian.AppendUint16(b, uint16(c.Worker))
	flags := byte(0)
	if c.Ethernet {
		flags |= flagEthernet
	}
	if c.Outer {
		flags |= flagOuter
	}
	b = append(b, flags)
	for _, text := range [4]string{c.Stage, c.Reason, c.Pod, c.Peer} {
		text = text[:min(len(text), 255)]
		b = append(append(b, byte(len(text))), text...)
	}
	s.scratch = b
	s.record(recordFrame, b, c.Data)
}

func (s *Writer) Lost(n uint64) {
	s.record(recordLost, binary.LittleEndian.AppendUint64(nil, n), nil)
}

func (s *Writer) End(why string) { s.record(recordEnd, []byte(why), nil) }

// Reader reads a stream. It trusts nothing in it.
type Reader struct {
	in    *bufio.Reader
	close func() error
	body  []byte
	frame Frame
	lost  uint64
}

// NewReader begins to read a stream, whose magic must come first.
func NewReader(r io.Reader) (*Reader, error) {
	c := &Reader{in: bufio.NewReaderSize(r, 256<<10), close: func() error { return nil }}
	magic := make([]byte, len(streamMagic))
	if _, err := io.ReadFull(c.in, magic); err != nil {
		return nil, fmt.Errorf("the capture broke off before it began: %w", err)
	}
	if string(magic) != streamMagic {
		return nil, fmt.Errorf("what the daemon sends is not a capture that this penstockctl understands: use the penstockctl of its version")
	}
	return c, nil
}

// Next is the next frame. io.EOF says that the stream has ended at a border of records, an *Error why the daemon ended it.
func (c *Reader) Next() (*Frame, error) {
	for {
		kind, body, err := c.record()
		if err != nil {
			return nil, err
		}
		switch kind {
		case recordFrame:
			if err := c.frame.decode(body); err != nil {
				return nil, err
			}
			return &c.frame, nil
		case recordLost:
			if len(body) != 8 {
				return nil, fmt.Errorf("the capture is damaged: a count of lost frames has %d bytes", len(body))
			}
			c.lost = binary.LittleEndian.Uint64(body)
		case recordEnd:
			return nil, control.Errorf(control.NotReady, "%s", body)
		}
		// Records of a kind that a later daemon may send are passed over.
	}
}

// Lost is how many frames matched and are missing, as far as read.
func (c *Reader) Lost() uint64 { return c.lost }

// Waiting tells that Next may have to wait: everything that was received is read.
func (c *Reader) Waiting() bool { return c.in.Buffered() == 0 }

// Close ends the capture.
func (c *Reader) Close() error { return c.close() }

func (c *Reader) record() (kind byte, body []byte, err error) {
	var head [4]byte
	if _, err := io.ReadFull(c.in, head[:]); err != nil {
		if err == io.ErrUnexpectedEOF {
			err = fmt.Errorf("the capture broke off within a record")
		}
		return 0, nil, err
	}
	n := int(binary.LittleEndian.Uint32(head[:]))
	if n < 1 || n > maxRecord {
		return 0, nil, fmt.Errorf("the capture is damaged: a record claims %d bytes", n)
	}
	if cap(c.body) < n {
		c.body = make([]byte, n, max(n, 4096))
	}
	c.body = c.body[:n]
	if _, err := io.ReadFull(c.in, c.body); err != nil {
		return 0, nil, fmt.Errorf("the capture broke off within a record")
	}
	return c.body[0], c.body[1:], nil
}

// decode fills c from the body of a frame's record, to which Data then refers.
func (c *Frame) decode(b []byte) error {
	if len(b) < frameHead {
		return fmt.Errorf("the capture is damaged: a frame's record has %d bytes", len(b))
	}
	*c = Frame{Time: time.Unix(0, int64(binary.LittleEndian.Uint64(b))), Length: int(binary.LittleEndian.Uint32(b[8:])),
		Segment: int(binary.LittleEndian.Uint32(b[12:])), Worker: int(binary.LittleEndian.Uint16(b[16:])),
		Ethernet: b[18]&flagEthernet != 0, Outer: b[18]&flagOuter != 0}
	b = b[frameHead:]
	for _, text := range [4]*string{&c.Stage, &c.Reason, &c.Pod, &c.Peer} {
		if len(b) < 1 || len(b) < 1+int(b[0]) {
			return fmt.Errorf("the capture is damaged: a text in a frame's record is cut")
		}
		n := 1 + int(b[0]) // 1 + b[0] as a byte is 0 for a text of 255
		*text = string(b[1:n])
		b = b[n:]
	}
	if c.Length < len(b) || c.Length > maxRecord {
		return fmt.Errorf("the capture is damaged: %d bytes of a frame of %d", len(b), c.Length)
	}
	c.Data = b
	return nil
}
