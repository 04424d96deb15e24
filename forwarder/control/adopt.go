package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
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
//
// With "attach", the body of POST /v1/attach, in the message the pod is attached by the queue, and the answer is Attached.
const (
	AdoptPath     = "/v1/adopt"
	AdoptProtocol = "penstock-adopt"
	AdoptTimeout  = 10 * time.Second
)

// WaitsForAdopt is the problem of a pod that waits for its queue, and nothing else is wrong with it.
const WaitsForAdopt = "waiting for adopt"

// AdoptReason is why a daemon is not ready of which n pods wait.
func AdoptReason(n int) string { return fmt.Sprintf("pods with a TUN wait for penstock adopt: %d", n) }

// AdoptCommand is what root runs on the node to bring queues back to the daemon of that socket.
func AdoptCommand(socket string) string {
	if socket == DefaultSocket {
		return "/opt/cni/bin/penstock adopt"
	}
	return "/opt/cni/bin/penstock adopt -socket " + socket
}

// AdoptMessage goes beside the queue: whose it is.
type AdoptMessage struct {
	PodKey
	Attach *AttachRequest `json:"attach,omitempty"` // about the same pod; nil: the pod is attached, and waits for its queue
}

// Attached is a port that was attached by its queue.
type Attached struct {
	Port
	QueueLen int `json:"queueLen,omitempty"` // how many packets its bandwidth lets wait in the TUN, for the caller to set; 0: as many as do
}

// Adopt hands the daemon a queue of a tun pod's device, opened in the pod's network namespace. The caller keeps its own
// descriptor and may close it.
func (c *Client) Adopt(ctx context.Context, key PodKey, queue *os.File) error {
	return c.pass(ctx, AdoptMessage{PodKey: key}, queue, &struct{}{})
}

// AttachQueue is Attach of a tun pod whose device the caller has made in the pod's network namespace: it hands over the device's
// only queue. From then on the device lasts, and it goes when the pod is detached. The caller keeps its own descriptor and may close it.
func (c *Client) AttachQueue(ctx context.Context, r AttachRequest, queue *os.File) (p Attached, err error) {
	return p, c.pass(ctx, AdoptMessage{PodKey{r.Container, r.Interface}, &r}, queue, &p)
}

// pass sends a message with a queue beside it and reads the answer.
func (c *Client) pass(ctx context.Context, m AdoptMessage, queue *os.File, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, AdoptTimeout)
	defer cancel()
	a, err := c.ask(ctx, methodPost, AdoptPath, "Connection: Upgrade\r\nUpgrade: "+AdoptProtocol+"\r\n", nil)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer a.close()
	if a.status != statusSwitching {
		b, _ := io.ReadAll(io.LimitReader(a.body, MaxBody))
		return c.refusal(b, a.line)
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(b) > MaxBody {
		return Errorf(TooLarge, "the request about %s has %d bytes, more than %d", m.PodKey, len(b), MaxBody)
	}
	raw, err := queue.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { _, _, sent = a.conn.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil) }); err != nil {
		return err
	}
	if sent != nil {
		return c.explain(ctx, sent)
	}
	b, err = io.ReadAll(io.LimitReader(a.body, MaxBody))
	if err != nil {
		return c.explain(ctx, err)
	}
	var e Envelope
	if err := json.Unmarshal(b, &e); err != nil && !bytes.HasSuffix(b, []byte("\n")) { // a daemon that died over it
		return c.explain(ctx, io.ErrUnexpectedEOF)
	} else if err != nil || e.Error != nil {
		return c.refusal(b, "something else")
	}
	if err := json.Unmarshal(b, answer); err != nil {
		return fmt.Errorf("the answer of %s is not understood: %w", AdoptPath, err)
	}
	return nil
}
