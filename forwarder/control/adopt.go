package control

import (
	"context"
	"encoding/json"
	"io"
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
	AdoptPath     = "/v1/adopt"
	AdoptProtocol = "penstock-adopt"
	AdoptTimeout  = 10 * time.Second
)

// Adopt hands the daemon a queue of a tun pod's device, opened in the pod's network namespace. The caller keeps its own
// descriptor and may close it.
func (c *Client) Adopt(ctx context.Context, key PodKey, queue *os.File) error {
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
	b, err := json.Marshal(key)
	if err != nil {
		return err
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
	if strings.TrimSpace(string(b)) == "{}" {
		return nil
	}
	return c.refusal(b, "something else")
}
