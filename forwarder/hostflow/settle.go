package hostflow

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// patience is how long the kernel may take for a batch of answers, or between two pieces of a dump: it answers within the
// system call, so this is for a machine that stands still.
const patience = 30 * time.Second

// A question is a reply tuple and the conntrack zone to look it up in.
type question struct {
	tuple Tuple
	zone  uint16
}

// getType is IPCTNL_MSG_CT_GET (1) of ctnetlink.
const getType = unix.NFNL_SUBSYS_CTNETLINK<<8 | 1

// settle forgets those flows that conntrack does not have.
func (t *Tracker) settle(ask []question) error {
	missing, err := t.missing(ask)
	if err != nil {
		return err
	}
	t.kept.Add(uint64(len(ask) - len(missing)))
	return t.forget(missing)
}

// forget removes flows that were not there a moment ago, and puts those back that are there now: what was born and
// remembered between the two would otherwise be lost until its next packet.
func (t *Tracker) forget(gone []question) error {
	for _, q := range gone {
		t.sink.Forget(q.tuple)
	}
	still, err := t.missing(gone)
	if err != nil {
		return err
	}
	t.forgotten.Add(uint64(len(still)))
	if len(still) == len(gone) {
		return nil
	}
	absent := make(map[Tuple]bool, len(still))
	for _, q := range still {
		absent[q.tuple] = true
	}
	for _, q := range gone {
		if !absent[q.tuple] {
			t.sink.Preload(q.tuple)
		}
	}
	return nil
}

// check asks conntrack for everything that the Sink remembers. It reports how long that took.
func (t *Tracker) check(ctx context.Context) (time.Duration, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	start := time.Now()
	t.audits.Add(1)
	var ask []question
	t.sink.Known(func(k Tuple) bool {
		ask = append(ask, question{tuple: k})
		return true
	})
	missing, err := t.missing(ask)
	if err != nil {
		return 0, err
	}
	if len(missing) > 0 {
		// Other zones, protocols with keys of their own: a dump has them all. Seldom needed, as events come first.
		absent := make(map[Tuple]bool, len(missing))
		for _, q := range missing {
			absent[q.tuple] = true
		}
		if err := t.dump(ctx, func(e *entry) { delete(absent, e.reply.tuple()) }); err != nil {
			if ctx.Err() != nil {
				return 0, nil // half a dump proves nothing
			}
			return 0, fmt.Errorf("cannot read the host's flows: %w", err)
		}
		gone := missing[:0]
		for _, q := range missing {
			if absent[q.tuple] {
				gone = append(gone, q)
			}
		}
		if err := t.forget(gone); err != nil {
			return 0, err
		}
		if len(gone) > 0 {
			t.log.Debug("flows of the host that ended unheard were forgotten", "flows", len(gone), "remembered", len(ask))
		}
	}
	return time.Since(start), nil
}

// missing returns those that conntrack does not have, or cannot be asked for. A batch goes out in one message.
func (t *Tracker) missing(ask []question) (out []question, err error) {
	sent := make([]question, 0, batch)
	msgs := make([]netlink.Message, 0, batch+1)
	flush := func() error {
		if len(msgs) == 0 {
			return nil
		}
		found, err := t.ask(sent, msgs)
		if err != nil {
			return err
		}
		for i, q := range sent {
			if !found[i] {
				out = append(out, q)
			}
		}
		sent, msgs = sent[:0], msgs[:0]
		return nil
	}
	for _, q := range ask {
		if !askable(&q.tuple) {
			out = append(out, q)
			continue
		}
		sent = append(sent, q)
		msgs = append(msgs, netlink.Message{Header: netlink.Header{Type: getType, Flags: netlink.Request}, Data: request(&q.tuple, q.zone)})
		if len(msgs) == batch {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	return out, flush()
}

// ask sends the requests and reads exactly one answer each, in order: the entry, or ENOENT.
//
// The kernel flags an entry as part of a multi-part message that never ends (ctnetlink_fill_info sets NLM_F_MULTI
// whenever it writes to a socket), so the library reads on for more. The last request is for a flow that cannot be: its
// ENOENT ends the reading.
func (t *Tracker) ask(sent []question, msgs []netlink.Message) (found [batch]bool, err error) {
	if err := t.ready(); err != nil {
		return found, fmt.Errorf("cannot ask conntrack: %w", err)
	}
	msgs = append(msgs, nobody)
	numbered, err := t.query.SendMessages(msgs)
	if err != nil {
		return found, fmt.Errorf("cannot ask conntrack: %w", err)
	}
	for answers := 0; answers < len(numbered); {
		for m, err := range t.query.ReceiveIter() {
			answers++
			switch i := int(m.Header.Sequence - numbered[0].Header.Sequence); {
			case errors.Is(err, unix.ENOENT):
			case err != nil:
				return found, fmt.Errorf("conntrack does not answer: %w", err)
			case i < 0 || i >= len(sent):
				return found, fmt.Errorf("conntrack answered with the number %d, asked were %d", i, len(sent))
			default:
				// The look-up takes either direction; a flow the other way round is another flow.
				var e entry
				found[i] = decode(m.Data, &e) && e.reply.tuple() == sent[i].tuple
			}
		}
	}
	t.broken = false
	return found, nil
}

// nobody asks for a flow that cannot be.
var nobody = netlink.Message{Header: netlink.Header{Type: getType, Flags: netlink.Request},
	Data: request(&Tuple{Proto: unix.IPPROTO_UDP, Src: netip.IPv4Unspecified(), Dst: netip.IPv4Unspecified()}, 0)}

// probe asks for nothing but nobody: ENOENT says that conntrack is there.
func (t *Tracker) probe() error {
	_, err := t.ask(nil, nil)
	return err
}

// dump calls fn with each entry of both families and all zones. The entry is lent for the call.
func (t *Tracker) dump(ctx context.Context, fn func(*entry)) error {
	req := netlink.Message{Header: netlink.Header{Type: getType, Flags: netlink.Request | netlink.Dump}, Data: []byte{unix.AF_UNSPEC, 0, 0, 0}}
	if err := t.ready(); err != nil {
		return err
	}
	if _, err := t.query.Send(req); err != nil {
		return err
	}
	var e entry
	n := 0
	for m, err := range t.query.ReceiveIter() {
		if err != nil {
			return err
		}
		if n++; n%1024 == 0 {
			if ctx.Err() != nil {
				return ctx.Err() // the rest is not worth reading: the socket goes
			}
			t.query.SetDeadline(time.Now().Add(patience))
		}
		if decode(m.Data, &e) {
			fn(&e)
		} else {
			t.malformed.Add(1)
		}
	}
	t.broken = false
	return ctx.Err()
}
