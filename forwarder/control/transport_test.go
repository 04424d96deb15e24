package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// says is a server that answers every request with the same bytes and hangs up; the bytes may end with "…", then it does not.
func says(t *testing.T, answer string) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	answer, hang := strings.CutSuffix(answer, "…")
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			io.WriteString(c, answer)
			if hang {
				io.Copy(io.Discard, c)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return New(socket)
}

// TestAnswers: what may come is understood, whatever else is refused by a sentence that tells a stranger from a daemon that died.
func TestAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	const body = `{"node":"node-a"}`
	const stranger = "is not penstockd"
	for name, test := range map[string]struct{ answer, want string }{
		"length":                {ok + "Content-Length: 17\r\n\r\n" + body, ""},
		"length, open":          {ok + "Content-Length: 17\r\n\r\n" + body + "…", ""},
		"length, more":          {ok + "content-length: 17\r\n\r\n" + body + "}}", ""},
		"to the end":            {"HTTP/1.0 200 OK\r\n\r\n" + body, ""},
		"bare line feeds":       {"HTTP/1.1 200 OK\nContent-Length: 17\n\n" + body, ""},
		"no reason":             {"HTTP/1.1 200\r\nContent-Length: 17\r\n\r\n" + body, ""},
		"chunked":               {ok + "Transfer-Encoding: Chunked\r\n\r\n4\r\n" + body[:4] + "\r\n0D;x=\"y\"\r\n" + body[4:] + "\r\n0\r\nTrailer: x\r\n\r\n…", ""},
		"interim":               {"HTTP/1.1 100 Continue\r\n\r\n" + ok + "Content-Length: 17\r\n\r\n" + body, ""},
		"refused":               {"HTTP/1.1 409 Conflict\r\nContent-Length: 48\r\n\r\n" + `{"error":{"code":"conflict","message":"in use"}}` + " ", "in use"},
		"another's 404":         {"HTTP/1.1 404 Not Found\r\n\r\nnothing here", `answers "404 Not Found" and ` + stranger},
		"nothing inside":        {"HTTP/1.1 204 No Content\r\n\r\n", stranger},
		"switched":              {"HTTP/1.1 101 Switching Protocols\r\n\r\n", stranger},
		"nothing":               {"", "broke off"},
		"cut in the status":     {"HTTP/1.1 20", "broke off"},
		"cut in the header":     {ok + "Content-Le", "broke off"},
		"cut in the body":       {ok + "Content-Length: 18\r\n\r\n" + body, "broke off"},
		"cut in a chunk":        {ok + "Transfer-Encoding: chunked\r\n\r\n12\r\n" + body, "broke off"},
		"cut before a chunk":    {ok + "Transfer-Encoding: chunked\r\n\r\n11\r\n" + body + "\r\n", "broke off"},
		"cut in a trailer":      {ok + "Transfer-Encoding: chunked\r\n\r\n0\r\nx: y\r\n", "broke off"},
		"another protocol":      {"SSH-2.0-OpenSSH_9.2\r\n", stranger},
		"another version":       {"HTTP/2.0 200 OK\r\n\r\n", stranger},
		"no status":             {"HTTP/1.1 OK\r\n\r\n", stranger},
		"a status too long":     {"HTTP/1.1 00200 OK\r\n\r\n", stranger},
		"a status too small":    {"HTTP/1.1 042 OK\r\n\r\n", stranger},
		"no header":             {ok + "hello\r\n\r\n", stranger},
		"a folded header":       {ok + "x: y\r\n z: z\r\n\r\n", stranger},
		"an endless line":       {ok + "x: " + strings.Repeat("y", 2*maxHead) + "…", "a line of its answer is longer"},
		"endless headers":       {ok + strings.Repeat("x: y\r\n", maxHead) + "…", "longer than 16384 bytes"},
		"endless interim":       {strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 10), "again and again"},
		"two lengths":           {ok + "Content-Length: 17\r\nContent-Length: 17\r\n\r\n" + body, stranger},
		"a negative length":     {ok + "Content-Length: -1\r\n\r\n" + body, stranger},
		"a signed length":       {ok + "Content-Length: +17\r\n\r\n" + body, stranger},
		"a giant length":        {ok + "Content-Length: 99999999999999999999\r\n\r\n", stranger},
		"length and chunks":     {ok + "Content-Length: 17\r\nTransfer-Encoding: chunked\r\n\r\n", stranger},
		"compressed":            {ok + "Transfer-Encoding: gzip, chunked\r\n\r\n", stranger},
		"a chunk of no size":    {ok + "Transfer-Encoding: chunked\r\n\r\nx\r\n", stranger},
		"a giant chunk":         {ok + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", stranger},
		"a chunk without end":   {ok + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}0\r\n\r\n", stranger},
		"an endless chunk line": {ok + "Transfer-Encoding: chunked\r\n\r\n1;" + strings.Repeat("x", 9999), stranger},
		"endless trailers":      {ok + "Transfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("x: y\r\n", 40), stranger},
		"no JSON":               {ok + "\r\nhello", "not understood"},
		"JSON of something":     {ok + "\r\n" + `{"node":7}`, "not understood"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			s, err := says(t, test.answer).Status(ctx)
			switch {
			case test.want == "" && (err != nil || s.Node != "node-a"):
				t.Errorf("%+v, %v", s, err)
			case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n")):
				t.Errorf("%v, want %s", err, test.want)
			}
			if strings.HasPrefix(name, "cut") && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%v does not wrap io.ErrUnexpectedEOF: nobody tries again", err)
			}
			if errors.Is(err, ErrUnreachable) {
				t.Errorf("%v: the request was sent", err)
			}
		})
	}
}

// TestDeadline: wherever an answer stops to come, the context ends the wait.
func TestDeadline(t *testing.T) {
	for _, answer := range []string{"…", "HTTP/1.1 2…", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{…", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n…"} {
		ctx, cancel := WithTimeout(t.Context(), 30*time.Millisecond)
		if _, err := says(t, answer).Status(ctx); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnreachable) ||
			strings.Contains(err.Error(), "context") || !strings.Contains(err.Error(), "did not answer in 30ms: look why with journalctl") {
			t.Errorf("%q: %v", answer, err)
		}
		cancel()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := says(t, "").Status(ctx); !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "context") {
		t.Errorf("cancelled before: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	s, err := says(t, "HTTP/1.1 200 OK\r\n\r\nabc…").Stream(ctx, "/v1/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	b := make([]byte, 3)
	if _, err := io.ReadFull(s, b); err != nil || string(b) != "abc" {
		t.Errorf("%q, %v", b, err)
	}
	cancel()
	if _, err := s.Read(b); !errors.Is(err, context.Canceled) {
		t.Errorf("a stream goes on: %v", err)
	}
}

// TestAnswerBeforeTheRequestIsRead: a refusal arrives though the server closes in the middle of a long request.
func TestAnswerBeforeTheRequestIsRead(t *testing.T) {
	valid := make([]PodKey, 100_000) // 4 MB
	_, err := says(t, "HTTP/1.1 413 Too Large\r\nContent-Length: 45\r\n\r\n"+`{"error":{"code":"too_large","message":"no"}}`).GC(t.Context(), GCRequest{Valid: valid})
	if CodeOf(err) != TooLarge {
		t.Errorf("got %v", err)
	}
}

// TestAgainstNetHTTP: package net/http understands the requests, and its answers of all sizes are understood.
func TestAgainstNetHTTP(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var method, kind, deadline string
	var size int64
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		method, kind, deadline, size = r.Method, r.Header.Get("Content-Type"), r.Header.Get(DeadlineHeader), r.ContentLength
		if int64(len(b)) != r.ContentLength || !r.Close {
			w.WriteHeader(http.StatusTeapot)
		}
		io.WriteString(w, `{"level":"`+strings.Repeat("x", len(b)*50)+`"}`)
	})}}
	s.Start()
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, n := range []int{0, 1, 100, 10_000} {
		var l LogLevel
		if err := New(socket).do(ctx, methodPut, "/v1/loglevel", LogLevel{strings.Repeat("y", n)}, &l); err != nil || len(l.Level) != (n+12)*50 {
			t.Errorf("%d: %d, %v", n, len(l.Level), err)
		}
		if method != "PUT" || kind != "application/json" || deadline == "" || size != int64(n+12) {
			t.Errorf("%s %q %q %d", method, kind, deadline, size)
		}
	}
	if level, err := New(socket).LogLevel(context.Background()); err != nil || level != "" || method != "GET" || deadline != "" || size != 0 {
		t.Errorf("%q, %v; %s %q %d", level, err, method, deadline, size)
	}
}

// TestNames are those of package net/http, which this package does without.
func TestNames(t *testing.T) {
	if methodGet != http.MethodGet || methodPost != http.MethodPost || methodPut != http.MethodPut || statusOK != http.StatusOK || statusSwitching != http.StatusSwitchingProtocols {
		t.Error("a constant is not that of net/http")
	}
}

// FuzzAnswer: no answer is read beyond its bounds, understood two ways, or refused without a reason.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\n{}\r\n0\r\nA: b\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 503 Service Unavailable\r\n\r\n" + `{"error":{"code":"not_ready","message":"x"}}`))
	f.Add([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: penstock-adopt\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 204 \r\n\r\n"))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"))
	read := func(r io.Reader) (status int, body []byte, err error) {
		var a answer
		if err := a.read(r); err != nil {
			return 0, nil, err
		}
		body, err = io.ReadAll(a.body)
		return a.status, body, err
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		status, body, err := read(bytes.NewReader(b))
		again, same, err2 := read(&dribble{b})
		if status != again || !bytes.Equal(body, same) || (err == nil) != (err2 == nil) {
			t.Fatalf("%d %q %v in one piece, %d %q %v by bytes", status, body, err, again, same, err2)
		}
		var g *garbled
		switch {
		case err != nil && !errors.As(err, &g) && !errors.Is(err, io.ErrUnexpectedEOF):
			t.Fatalf("%v", err)
		case err == nil && (status < 100 || status > 999 || len(body) > len(b)):
			t.Fatalf("%d %q", status, body)
		case err != nil && strings.Contains(err.Error(), "\n"):
			t.Fatalf("no sentence: %q", err)
		}
	})
}

// dribble gives a byte a time.
type dribble struct{ b []byte }

func (d *dribble) Read(b []byte) (int, error) {
	if len(d.b) == 0 {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	b[0], d.b = d.b[0], d.b[1:]
	return 1, nil
}
