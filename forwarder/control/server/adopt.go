package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/penstock-net/penstock/forwarder/control"
)

// serveAdopt is the server's side. A server that stops waits no longer for a message, but for what one has begun.
func serveAdopt(w http.ResponseWriter, r *http.Request, b Backend, log *slog.Logger, stopping context.Context) {
	switch {
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		fail(w, control.Errorf(control.BadMethod, "%s does not take %s", control.AdoptPath, r.Method))
		return
	case !strings.EqualFold(r.Header.Get("Upgrade"), control.AdoptProtocol):
		fail(w, control.Errorf(control.BadRequest, "%s passes a descriptor: ask for Upgrade: %s, or use the command penstock adopt", control.AdoptPath, control.AdoptProtocol))
		return
	}
	h, ok := w.(http.Hijacker)
	if !ok {
		fail(w, control.Errorf(control.BadRequest, "this connection cannot pass a descriptor"))
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
			log.Error("the control API panicked; this is a bug in penstockd", "path", control.AdoptPath, "panic", p)
		}
	}()
	conn.SetDeadline(time.Now().Add(control.AdoptTimeout))
	u, ok := conn.(*net.UnixConn)
	if !ok || buffered.Reader.Buffered() > 0 { // bytes that came early have left their descriptor behind
		return
	}
	if _, err := io.WriteString(u, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+control.AdoptProtocol+"\r\n\r\n"); err != nil {
		return
	}
	defer context.AfterFunc(stopping, func() { u.SetReadDeadline(time.Now()) })()
	ctx, cancel := context.WithTimeout(context.Background(), control.AdoptTimeout)
	defer cancel()
	answer, err := receiveQueue(ctx, u, b)
	if err != nil {
		e := control.Errorf(control.CodeOf(err), "%v", err)
		answer = control.Envelope{Error: e}
	}
	if out, err := json.Marshal(answer); err == nil {
		u.Write(append(out, '\n'))
	}
}

// receiveQueue reads the one message and passes the descriptor on. Descriptors beyond the one are closed.
func receiveQueue(ctx context.Context, u *net.UnixConn, b Backend) (answer any, err error) {
	body, oob := make([]byte, control.MaxBody), make([]byte, unix.CmsgSpace(8*4))
	n, noob, _, _, err := u.ReadMsgUnix(body, oob) // Go's net sets MSG_CMSG_CLOEXEC
	if err != nil {
		return nil, control.Errorf(control.BadRequest, "the message with the descriptor cannot be read: %v", err)
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
	var m control.AdoptMessage
	if err == nil {
		err = decode(body[:n], &m)
	}
	if err == nil && m.Attach != nil && (control.PodKey{Container: m.Attach.Container, Interface: m.Attach.Interface}) != m.PodKey {
		err = control.Errorf(control.BadRequest, "attach is about another pod than %s", m.PodKey)
	}
	if err == nil && len(fds) != 1 {
		err = control.Errorf(control.BadRequest, "one descriptor is expected beside the message, not %d", len(fds))
	}
	if err != nil {
		shut()
		return nil, err
	}
	if m.Attach != nil {
		return b.AttachQueue(ctx, *m.Attach, fds[0])
	}
	return struct{}{}, b.Adopt(ctx, m.PodKey, fds[0])
}
