package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A descriptor cannot travel in HTTP, so POST /v1/adopt switches the connection to a protocol of its own:
//
//	client                                       server
//	POST /v1/adopt, Upgrade: penstock-adopt ──▶
//	                                        ◀── 101 Switching Protocols
//	{"container":…,"interface":…} ──▶               one message, the queue beside it (SCM_RIGHTS)
//	                                        ◀── {} or {"error":{…}}, end
const (
	adoptPath     = "/v1/adopt"
	adoptProtocol = "penstock-adopt"
	adoptTimeout  = 10 * time.Second
)

// Adopt hands the daemon a queue of a tun pod's device, opened in the pod's network namespace. The caller keeps its own
// descriptor and may close it.
func (c *Client) Adopt(ctx context.Context, key PodKey, queue *os.File) error {
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.SetDeadline(time.Now().Add(adoptTimeout))
	u := conn.(*net.UnixConn)
	if _, err := fmt.Fprintf(u, "POST %s HTTP/1.1\r\nHost: penstock\r\nConnection: Upgrade\r\nUpgrade: %s\r\nContent-Length: 0\r\n\r\n", adoptPath, adoptProtocol); err != nil {
		return c.explain(ctx, err)
	}
	in := bufio.NewReader(u)
	a, err := http.ReadResponse(in, nil)
	if err != nil {
		return c.explain(ctx, err)
	}
	if a.StatusCode != http.StatusSwitchingProtocols {
		b, _ := io.ReadAll(io.LimitReader(a.Body, MaxBody))
		return refusal(b, a.Status, c.socket)
	}
	b, err := json.Marshal(key)
	if err != nil {
		return err
	}
	raw, err := queue.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { _, _, sent = u.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil) }); err != nil {
		return err
	}
	if sent != nil {
		return c.explain(ctx, sent)
	}
	b, err = io.ReadAll(io.LimitReader(in, MaxBody))
	if err != nil {
		return c.explain(ctx, err)
	}
	if strings.TrimSpace(string(b)) == "{}" {
		return nil
	}
	return refusal(b, "something else", c.socket)
}

func refusal(b []byte, status, socket string) error {
	var e envelope
	if json.Unmarshal(b, &e) != nil || e.Error == nil || e.Error.Message == "" {
		return fmt.Errorf("what listens on %s answers %q and is not penstockd", socket, status)
	}
	return e.Error
}

// serveAdopt is the server's side.
func serveAdopt(w http.ResponseWriter, r *http.Request, b Backend, log *slog.Logger) {
	switch {
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		fail(w, Errorf(BadMethod, "%s does not take %s", adoptPath, r.Method))
		return
	case !strings.EqualFold(r.Header.Get("Upgrade"), adoptProtocol):
		fail(w, Errorf(BadRequest, "%s passes a descriptor: ask for Upgrade: %s, or use the command penstock adopt", adoptPath, adoptProtocol))
		return
	}
	h, ok := w.(http.Hijacker)
	if !ok {
		fail(w, Errorf(BadRequest, "this connection cannot pass a descriptor"))
		return
	}
	conn, buffered, err := h.Hijack()
	if err != nil {
		fail(w, err)
		return
	}
	defer conn.Close()
	defer func() {
		if p := recover(); p != nil {
			log.Error("the control API panicked; this is a bug in penstockd", "path", adoptPath, "panic", p)
		}
	}()
	conn.SetDeadline(time.Now().Add(adoptTimeout))
	u, ok := conn.(*net.UnixConn)
	if !ok || buffered.Reader.Buffered() > 0 { // bytes that came early have left their descriptor behind
		return
	}
	if _, err := io.WriteString(u, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+adoptProtocol+"\r\n\r\n"); err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), adoptTimeout)
	defer cancel()
	answer := any(struct{}{})
	if err := receiveQueue(ctx, u, b); err != nil {
		e := Errorf(CodeOf(err), "%v", err)
		answer = envelope{e}
	}
	if out, err := json.Marshal(answer); err == nil {
		u.Write(append(out, '\n'))
	}
}

// receiveQueue reads the one message and passes the descriptor on. Descriptors beyond the one are closed.
func receiveQueue(ctx context.Context, u *net.UnixConn, b Backend) error {
	body, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(8*4))
	n, noob, _, _, err := u.ReadMsgUnix(body, oob) // Go's net sets MSG_CMSG_CLOEXEC
	if err != nil {
		return Errorf(BadRequest, "the message with the descriptor cannot be read: %v", err)
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(oob[:noob])
	for _, m := range messages {
		more, e := unix.ParseUnixRights(&m)
		fds, err = append(fds, more...), errors.Join(err, e)
	}
	shut := func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}
	var key PodKey
	if err == nil {
		err = decode(body[:n], &key)
	}
	if err == nil && len(fds) != 1 {
		err = Errorf(BadRequest, "one descriptor is expected beside the message, not %d", len(fds))
	}
	if err != nil {
		shut()
		return err
	}
	return b.Adopt(ctx, key, fds[0])
}
