package forwarder

import "sync/atomic"

// account is one worker's part of what is counted for a peer or a pod. That
// worker alone adds to it, once a run, a write or a batch; it fills a cache line,
// so that no two workers ever fight for one. Whoever asks adds the workers' up.
type account struct {
	sent, got volume        // of a peer: to it, from it; of a port: by the pod, to the pod
	dropped   atomic.Uint64 // frames that ended in a drop
	lastSeen  atomic.Int64  // Unix seconds of the last frame from it, of a peer the last that was accepted; 0: never
	rejected  atomic.Uint64 // of a peer, of got: frames that the rules for what comes from the wire turned away
	rejection atomic.Int64  // of the last of them: Unix seconds << 8 | Reason; 0: none
}

type volume struct{ packets, bytes atomic.Uint64 }

func (v *volume) add(packets, bytes uint64) {
	v.packets.Add(packets)
	v.bytes.Add(bytes)
}

// seen notes that something came. The clock has seconds: most batches write nothing.
func (a *account) seen(now int64) {
	if a.lastSeen.Load() != now {
		a.lastSeen.Store(now)
	}
}

// reject counts frames of a peer that the rules turned away, the last of them for r.
func (a *account) reject(frames uint64, r Reason, now int64) {
	a.rejected.Add(frames)
	if v := now<<8 | int64(r); a.rejection.Load() != v {
		a.rejection.Store(v)
	}
}

// drop counts frames for or from whom the account is.
func (a *account) drop(frames uint64) {
	if frames != 0 {
		a.dropped.Add(frames)
	}
}

// accounts has one for each worker, by index, and a last one for traces, which nobody adds up.
type accounts []account

func (f *Forwarder) newAccounts() accounts { return make(accounts, f.settings.Workers+1) }

// total adds up what the workers have counted.
type total struct {
	sent, got Volume
	dropped   uint64
	lastSeen  int64
	rejected  uint64
	rejection int64
}

func (as accounts) total() (t total) {
	for i := range max(len(as), 1) - 1 {
		a := &as[i]
		t.sent.Packets += a.sent.packets.Load()
		t.sent.Bytes += a.sent.bytes.Load()
		t.got.Packets += a.got.packets.Load()
		t.got.Bytes += a.got.bytes.Load()
		t.dropped += a.dropped.Load()
		t.lastSeen = max(t.lastSeen, a.lastSeen.Load())
		t.rejected += a.rejected.Load() // after got, and counted before it: got less rejected is never too much
		t.rejection = max(t.rejection, a.rejection.Load())
	}
	return t
}
