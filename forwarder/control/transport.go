package control

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"time"
)

// HTTP/1.1 as far as the client of one daemon needs it: one request a connection, and the answer's head and body. Package net/http
// does the same and much more, and a plugin that lives for some milliseconds spends a good part of them on starting it
// (docs/decisions/0011-lean-plugin.md). What answers is not trusted: it may be another program behind the same path.

const (
	dialTimeout = 5 * time.Second
	maxHead     = 16 << 10 // status line and header, of the interim answers before them too
	maxInterim  = 5        // answers 1xx before the true one
	maxTrailers = 32
)

// What package net/http has names for.
const (
	methodGet       = "GET"
	methodPost      = "POST"
	methodPut       = "PUT"
	statusOK        = 200
	statusSwitching = 101
	jsonHeader      = "Connection: close\r\nContent-Type: application/json\r\n"
	plainHeader     = "Connection: close\r\n"
)

// MaxBody bounds the body of a request: a pod with a thousand addresses fits many times. MaxGC bounds that of a GC, which lists all
// attachments of a network: forty thousand.
const (
	MaxBody = 64 << 10
	MaxGC   = 4 << 20
)

// DeadlineHeader says until when the client waits, in milliseconds of Unix time: both are on one machine. A daemon that hung must
// not do later what its client has meanwhile undone.
const DeadlineHeader = "Penstock-Deadline"

// garbled is an answer that is not HTTP: penstockd did not write it.
type garbled struct{ what string }

func (g *garbled) Error() string { return g.what }

func garbledf(format string, args ...any) error { return &garbled{fmt.Sprintf(format, args...)} }

// answer is one request's answer as it comes in. Whoever has it closes it; what the context of the request does to the connection
// ends with that.
type answer struct {
	status int
	line   string // "404 Not Found"
	body   io.Reader
	conn   *net.UnixConn
	stop   func() bool // no longer tied to the context
}

func (a *answer) close() error {
	a.stop()
	return a.conn.Close()
}

// ask sends a request and reads the answer's head. When ctx ends, everything that waits on the connection fails, until the answer
// is closed. Errors are for explain.
func (c *Client) ask(ctx context.Context, method, path, header string, body []byte) (_ *answer, err error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, err
	}
	a := &answer{conn: conn.(*net.UnixConn)}
	a.stop = context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	request := fmt.Appendf(nil, "%s %s HTTP/1.1\r\nHost: penstock\r\nUser-Agent: penstock\r\n%sContent-Length: %d\r\n", method, path, header, len(body))
	if end, ok := ctx.Deadline(); ok {
		request = fmt.Appendf(request, "%s: %d\r\n", DeadlineHeader, end.UnixMilli())
	}
	request = append(append(request, "\r\n"...), body...)
	// A server that refuses a request may answer before it has read all of it, and close.
	_, sent := conn.Write(request)
	if err := a.read(conn); err != nil {
		if sent != nil {
			return nil, sent
		}
		return nil, err
	}
	return a, nil
}

// read reads the head of an answer and finds its body.
func (a *answer) read(r io.Reader) error {
	// The limit is on what is taken from the connection: some of the body is in the buffer when the head has been read.
	limit := &io.LimitedReader{R: r, N: maxHead}
	in := bufio.NewReader(limit)
	err := a.readHead(in)
	if limit.N <= 0 && err == io.ErrUnexpectedEOF {
		return garbledf("the head of its answer is longer than %d bytes", maxHead)
	}
	limit.N = math.MaxInt64
	return err
}

func (a *answer) readHead(in *bufio.Reader) error {
	for range maxInterim + 1 {
		line, err := readLine(in)
		if err != nil {
			return err
		}
		if err := a.readStatus(line); err != nil {
			return err
		}
		var codings, lengths []string
		for {
			if line, err = readLine(in); err != nil {
				return err
			}
			if line == "" {
				break
			}
			name, value, ok := strings.Cut(line, ":")
			if !ok || name == "" || strings.ContainsAny(name, " \t") { // a folded line among them
				return garbledf("the header of its answer has the line %.80q", line)
			}
			switch value = strings.Trim(value, " \t"); {
			case strings.EqualFold(name, "Transfer-Encoding"):
				codings = append(codings, value)
			case strings.EqualFold(name, "Content-Length"):
				lengths = append(lengths, value)
			}
		}
		if a.status >= 200 || a.status == statusSwitching {
			return a.findBody(codings, lengths, in)
		}
	}
	return garbledf("it answers %.80q again and again", a.line)
}

// readStatus understands "HTTP/1.1 200 OK".
func (a *answer) readStatus(line string) error {
	version, rest, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	n, err := strconv.ParseUint(code, 10, 16)
	if err != nil || len(code) != 3 || n < 100 || version != "HTTP/1.1" && version != "HTTP/1.0" {
		return garbledf("it answers %.80q", line)
	}
	a.status, a.line = int(n), rest
	return nil
}

// findBody: RFC 9112, section 6.3, and stricter: who says twice how long the body is does not know it.
func (a *answer) findBody(codings, lengths []string, in *bufio.Reader) error {
	switch {
	case a.status == statusSwitching: // another protocol follows
		a.body = in
	case a.status == 204 || a.status == 304:
		a.body = strings.NewReader("")
	case len(codings) > 0 && (len(codings) > 1 || len(lengths) > 0 || !strings.EqualFold(codings[0], "chunked")):
		return garbledf("the encoding of its answer is %.80q", codings)
	case len(codings) > 0:
		a.body = &chunks{in: in}
	case len(lengths) > 0:
		n, err := strconv.ParseUint(lengths[0], 10, 63)
		if err != nil || len(lengths) > 1 {
			return garbledf("the length of its answer is %.80q", lengths)
		}
		a.body = &exactly{in, int64(n)}
	default:
		a.body = in
	}
	return nil
}

// exactly is a body of a known length: its early end is an error.
type exactly struct {
	in   io.Reader
	left int64
}

func (e *exactly) Read(b []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.in.Read(b[:min(int64(len(b)), e.left)])
	if e.left -= int64(n); err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// chunks is a body in chunks (RFC 9112, section 7.1).
type chunks struct {
	in    *bufio.Reader
	left  int64 // of the chunk
	begun bool  // a chunk was read: its end of line comes next
	err   error
}

func (c *chunks) Read(b []byte) (int, error) {
	if c.err == nil && c.left == 0 {
		c.left, c.err = c.next()
	}
	if c.err != nil || len(b) == 0 {
		return 0, c.err
	}
	n, err := c.in.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// next is the length of the next chunk; behind the last one it is io.EOF.
func (c *chunks) next() (int64, error) {
	if c.begun {
		line, err := readLine(c.in)
		if err != nil {
			return 0, err
		}
		if line != "" {
			return 0, garbledf("a chunk of its answer ends with %.40q", line)
		}
	}
	c.begun = true
	line, err := readLine(c.in)
	if err != nil {
		return 0, err
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(strings.TrimRight(size, " \t"), 16, 63)
	if err != nil {
		return 0, garbledf("a chunk of its answer begins with %.40q", line)
	}
	if n > 0 {
		return int64(n), nil
	}
	for range maxTrailers {
		line, err := readLine(c.in)
		if err != nil {
			return 0, err
		}
		if line == "" {
			return 0, io.EOF
		}
	}
	return 0, garbledf("its answer has more than %d trailers", maxTrailers)
}

// readLine is a line without its end. The reader's buffer bounds it. One that is cut is io.ErrUnexpectedEOF.
func readLine(in *bufio.Reader) (string, error) {
	b, err := in.ReadSlice('\n')
	switch {
	case err == bufio.ErrBufferFull:
		return "", garbledf("a line of its answer is longer than %d bytes", in.Size())
	case err == io.EOF:
		return "", io.ErrUnexpectedEOF
	case err != nil:
		return "", err
	}
	return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
}
